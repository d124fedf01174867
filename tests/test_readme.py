"""The README's own example is an environment that keeps the contract and a recipe that is valid;
the files that it points to are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from leafe.envs import load_tasks, make_env
from leafe.pipeline import run_recipe
from leafe.recipes import load_recipe
from leafe.testing import check_environment

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def block(language: str, nth: int = 0) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) > nth, f"the README has no {language} block number {nth}"
    return str(found[nth])


def test_the_example_is_a_sound_env_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doors.py").write_text(block("python"))
    (tmp_path / "doors.toml").write_text(block("toml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(str(tmp_path / "doors.toml"))
    env = make_env(recipe.env.name, **recipe.env.options)
    try:
        tasks = load_tasks(env, recipe.tasks.train_split, recipe.tasks.train, 0)
        assert len(tasks) == 20
        report = check_environment(env, tasks[:5])
        assert not report.problems, report
        assert "leafe+" in recipe.arms
    finally:
        sys.modules.pop("doors", None)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([\w/.-]+)\)", page.read_text("utf-8")):
            assert (ROOT / target).is_file(), f"{page.name} points to {target}"


@pytest.mark.slow
def test_exported_samples_train_with_plain_trl(tmp_path: Path) -> None:
    """The README's block as it stands, in a folder where a small run has the demo's name."""
    recipe = load_recipe(str(ROOT / "tests" / "pipeline" / "small.toml"))
    run_recipe(recipe, tmp_path / "runs" / "demo", only="explore")
    run_recipe(recipe, tmp_path / "runs" / "demo", only="distill")
    done = subprocess.run(
        [sys.executable, "-c", block("python", 1)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(x) for x in re.findall(r"'train_loss': '?([0-9.]+)", done.stdout)]
    assert losses
    assert 0 < losses[-1] < 5
    assert list((tmp_path / "runs" / "trl").glob("checkpoint-*/model.safetensors"))
