"""A run folder of leafe 0.1.0 (tests/runs/v0_1_0) opens, is reported, and is gone on with."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from leafe.core import UserError
from leafe.envs.gates import Gates
from leafe.pipeline import (
    Outcome,
    recipe_of,
    report_run,
    result_of,
    run_recipe,
    summarise_run,
)
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees
from tests.pipeline.test_run import trees_of

STORED = Path(__file__).parents[1] / "runs" / "v0_1_0"


class Versioned(Gates):
    """The environment of the stored run, which says what its observations depend on."""

    installed = "1"

    def versions(self) -> Mapping[str, str]:
        return {"rules": self.installed}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = types.ModuleType("versioned_gates")
    module.Versioned = Versioned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "versioned_gates", module)
    shutil.copytree(STORED, tmp_path / "run")
    return tmp_path / "run"


def more(run: RunFolder) -> Recipe:
    recipe = recipe_of(run)
    return recipe.model_copy(update={"strategies": ("tree", "independent")})


def test_it_has_the_old_names() -> None:
    assert "[world]" in (STORED / "config.toml").read_text()
    assert '"worlds"' in (STORED / "manifest.json").read_text()
    assert '"world_failures"' in (STORED / "evaluate/base/done.json").read_text()
    assert (STORED / "explore/tree/world.json").is_file()


def test_its_recipe_and_results_are_read() -> None:
    run = RunFolder.read(STORED)
    recipe = recipe_of(run)
    assert recipe.env.name == "versioned_gates:Versioned"
    assert (recipe.explore.max_depth, recipe.explore.branches_per_reflection) == (3, 2)
    assert recipe.arms["rl"].grpo["reward"] == "env"
    assert run.manifest["envs"] == {"env": {"rules": "1"}}
    explored, collected = result_of(run, "explore/tree"), result_of(run, "collect/early")
    assert explored is not None
    assert collected is not None
    assert explored.outcome is Outcome.completed
    assert explored.marker["env_failures"] == 0
    assert explored.marker["env"] == {"rules": "1"}
    assert collected.outcome is Outcome.empty
    assert "hold no success" in collected.reason
    assert len(load_trees(STORED / "explore/tree")) == 4


def test_it_is_summarised_and_reported(old: Path) -> None:
    summary = summarise_run(RunFolder.read(old))
    assert [row["strategy"] for row in summary.to_json()["explore"]] == ["tree"]
    assert [row["arm"] for row in summary.to_json()["evaluate"]] == ["base"]
    report_run(old, Console(quiet=True), tables=True)
    assert "versioned_gates" in (old / "report.html").read_text(encoding="utf-8")


def test_it_is_gone_on_with(old: Path) -> None:
    before = (old / "explore/tree/journal-00000.jsonl").read_bytes()
    run = run_recipe(more(RunFolder.read(old)), old, only="explore")
    result = result_of(run, "explore/independent")
    assert result is not None
    assert result.has_row
    assert result.marker["env"] == {"rules": "1"}
    assert (old / "explore/tree/journal-00000.jsonl").read_bytes() == before
    rows = summarise_run(run).to_json()["explore"]
    assert [row["strategy"] for row in rows] == ["tree", "independent"]


def test_an_exploration_that_was_cut_off_is_finished(old: Path) -> None:
    (old / "explore/tree/done.json").unlink()
    journal = old / "explore/tree/journal-00000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:40])
    run = run_recipe(recipe_of(RunFolder.read(old)), old, only="explore")
    assert trees_of(run.path, "explore/tree") == trees_of(STORED, "explore/tree")


def test_other_versions_of_its_environment_are_refused(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Versioned, "installed", "2")
    with pytest.raises(UserError, match="its rules was '1' and is '2'"):
        run_recipe(more(RunFolder.read(old)), old, only="explore")
    (old / "explore/tree/done.json").unlink()
    manifest = (old / "manifest.json").read_text().replace('"rules": "1"', '"rules": "2"')
    (old / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="its rules was '1' and is '2'"):  # by the stage's note
        run_recipe(recipe_of(RunFolder.read(old)), old, only="explore")
