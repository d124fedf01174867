"""The README's own example is a world that keeps the contract and a recipe that is valid; the files that it points to are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from leafe.envs import load_tasks, make_world
from leafe.recipes import load_recipe
from leafe.testing import check_environment

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, f"the README has no {language} block"
    return found[1]


def test_the_example_is_a_sound_world_and_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doors.py").write_text(block("python"))
    (tmp_path / "doors.toml").write_text(block("toml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(str(tmp_path / "doors.toml"))
    world = make_world(recipe.world.name, **recipe.world.options)
    try:
        tasks = load_tasks(world, recipe.tasks.train_split, recipe.tasks.train, 0)
        assert len(tasks) == 20
        report = check_environment(world, tasks[:5], actions=["open red", "open blue", "fly"])
        assert not report.problems, report
        assert "leafe+" in recipe.arms
    finally:
        sys.modules.pop("doors", None)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([\w/.-]+)\)", page.read_text("utf-8")):
            assert (ROOT / target).is_file(), f"{page.name} points to {target}"
