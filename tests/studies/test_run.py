"""The study's cells: all of them, spread from the start, and gone on with after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from leafe.recipes import load_recipe
from leafe.runs import RunFolder
from studies import recipe_path
from studies import run as study

SMALL = (
    "tasks.train=4",
    "tasks.test=2",
    "evaluate.samples=4",
    "evaluate.k=[1,4]",
    "explore.limits.policy_calls=40",
    "validation={tasks=2, samples=2, k=2}",
    "arms.rehearsal.distill.max_steps=1",
    "arms.leafe.distill.max_steps=1",
    "arms.leafe+.distill.max_steps=1",
)


@pytest.mark.parametrize(("bases", "seeds"), [(1, 1), (3, 3), (2, 3), (3, 1)])
def test_every_cell_once_and_diagonals_first(bases: int, seeds: int) -> None:
    found = list(study.cells(["a", "b"], bases, seeds))
    assert sorted(found) == sorted(
        (recipe, base, seed) for recipe in "ab" for base in range(bases) for seed in range(seeds)
    )
    if bases == seeds:
        first = found[: 2 * bases]
        assert {(recipe, base) for recipe, base, _ in first} == {
            (recipe, base) for recipe in "ab" for base in range(bases)
        }
        assert {(recipe, seed) for recipe, _, seed in first} == {
            (recipe, seed) for recipe in "ab" for seed in range(seeds)
        }


def test_its_recipes_are_there_and_differ_in_the_env_alone() -> None:
    for name in (*study.RECIPES, study.TRAINED, *study.TESTED):
        load_recipe(recipe_path(name))
    arms = [set(load_recipe(recipe_path(name)).arms) for name in study.RECIPES]
    assert arms[0] == arms[1] == arms[2]
    assert set(study.TRANSFERRED) <= {"base", *load_recipe(recipe_path(study.TRAINED)).arms}
    envs = [load_recipe(recipe_path(name)).env.options for name in (study.TRAINED, *study.TESTED)]
    assert all(envs.count(env) == 1 for env in envs)


@pytest.mark.slow
def test_a_cell_its_transfer_and_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "TRANSFERRED", ("base", "leafe+"))
    out = tmp_path / "study"
    more = [
        "--out",
        str(out),
        "--docs",
        str(tmp_path / "docs"),
        "--bases",
        "1",
        "--seeds",
        "1",
        "--recipes",
        study.TRAINED,
        "--",
        *SMALL,
    ]
    monkeypatch.setattr(study, "run_dependencies", lambda *arguments: None)
    study.main(more)
    said = capsys.readouterr().out
    assert f"{study.TRAINED}-b0-s0: done" in said, (out / f"{study.TRAINED}-b0-s0.log").read_text()[
        -2000:
    ]
    assert RunFolder.read(out / f"{study.TRAINED}-b0-s0").done("evaluate/leafe+") is not None
    assert {p.name for p in out.iterdir() if p.is_dir()} >= {
        f"{env}-b0-s0.{row}" for env in study.TESTED for row in ("base", "leafe+")
    }
    table = (tmp_path / "docs/table5.md").read_text()
    assert "(transfer)" in table
    assert "LEAFE+" in table
    before = {p: p.stat().st_mtime_ns for p in out.rglob("journal-*.jsonl")}
    study.main(more)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("journal-*.jsonl")} == before, (
        "nothing is done again"
    )
