"""docs/options.md lists every option with the default that it has, and names no option of TRL,
transformers or peft that they do not have."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from leafe.baselines.grpo import GrpoConfig
from leafe.distill import DistillConfig, Lora, OutcomeWeights
from leafe.explore import ExploreConfig

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
MODELS: dict[str, type[BaseModel]] = {
    "Exploring": ExploreConfig,
    "Distilling": DistillConfig,
    "Adapters": Lora,
    "Outcome weights": OutcomeWeights,
    "GRPO": GrpoConfig,
}


def tables() -> dict[str, list[list[str]]]:
    """The rows of each section's table, by the first words of its heading."""
    out: dict[str, list[list[str]]] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("##"):
            heading = line.strip("# ").split(":")[0]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            out.setdefault(heading, []).append(cells)
    return out


def toml(value: Any) -> str:
    """A default as the page writes it."""
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case str():
            return f'`"{value}"`'
        case dict():
            inner = ", ".join(f"{k} = {v}" for k, v in value.items())
            return f"`{{ {inner} }}`" if inner else "`{}`"
        case tuple() | list():
            return "`[]`" if not value else f"`{list(value)}`"
    return f"`{value}`"


@pytest.mark.parametrize("heading", MODELS)
def test_names_and_defaults_are_those_of_the_models(heading: str) -> None:
    fields = MODELS[heading].model_fields
    rows = tables()[heading]
    assert [row[0].strip("`") for row in rows] == list(fields)
    for row in rows:
        default = fields[row[0].strip("`")].get_default(call_default_factory=True)
        assert row[2] == toml(default), row[0]
        assert len(row) <= 4, f"{row[0]}: a cell holds a bar"


def test_what_is_called_the_same_as_elsewhere_is_there() -> None:
    trl = pytest.importorskip("trl")
    peft = pytest.importorskip("peft")
    homes = {"Exploring": [trl.GRPOConfig], "GRPO": [trl.GRPOConfig], "Adapters": [peft.LoraConfig]}
    others = [trl.SFTConfig, trl.DPOConfig, trl.GRPOConfig]
    for heading, rows in tables().items():
        for name, _, _, *where in rows:
            same = re.match(r"as `(?:(\w+)\.)?(\w+)`", where[0]) if where else None
            if same is None or same[2] == "EarlyStoppingCallback":
                continue
            kinds = [k for k in others if k.__name__ == same[1]] or homes.get(heading, others[:1])
            for kind in kinds:
                assert same[2] in {f.name for f in dataclasses.fields(kind)}, (name, kind)
