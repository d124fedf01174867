"""The recipe mbpp-weak runs through the real sandbox: all three strategies at equal executions, and
what the tree's advice says is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leafe.core import Kind
from leafe.evaluate import coverage_curve
from leafe.pipeline import run_recipe
from leafe.recipes import load_recipe
from leafe.runs import RunFolder, load_trees
from studies import recipe_path
from tests.envs.data import needs_mbpp, needs_sandbox

PROBLEMS = {
    601: (
        "def longest(ws):\n    if not ws:\n        return 0\n    return max(map(len, ws))",
        "longest",
        [(["a", "bcd"], 3), ([], 0), (["xy"], 2)],
    ),
    602: (
        "def between(x, low, high):\n    return x >= low and x < high",
        "between",
        [((3, 1, 5), True), ((1, 1, 5), True), ((5, 1, 5), False)],
    ),
    603: (
        "import math\ndef area(r):\n    return math.floor(3 * r ** 2) + 1",
        "area",
        [(2, 13), (3, 28), (0, 1)],
    ),
}


@pytest.fixture
def problems(tmp_path: Path) -> str:
    file = tmp_path / "mbpp.jsonl"
    rows = []
    for number, (code, name, cases) in PROBLEMS.items():
        calls = [
            (", ".join(map(repr, given)) if isinstance(given, tuple) else repr(given), want)
            for given, want in cases
        ]  # type: ignore[attr-defined]
        tests = [f"assert {name}({given}) == {want!r}" for given, want in calls]
        rows += [
            {
                "task_id": number,
                "text": f"Write {name}.",
                "code": code,
                "test_list": tests,
                "test_setup_code": "",
            }
        ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def explored(folder: Path, *overrides: str) -> RunFolder:
    run_recipe(
        load_recipe(
            recipe_path("mbpp-weak"),
            ["seeds=[0]", "tasks.train=3", "explore.limits={env_steps=12}", *overrides],
        ),
        folder,
        only="explore",
    )
    return RunFolder.read(folder)


def check(run: RunFolder, executions: int) -> None:
    for strategy in ("tree", "refine", "independent"):
        trees = list(load_trees(run.path / "explore" / strategy).values())
        assert trees
        for tree in trees:
            submitted = [t for t in tree if t.kind is Kind.act]
            assert len(submitted) == executions or tree.solved
            assert len(submitted) <= executions
            assert all(t.valid for t in submitted)
            assert [t for t in tree.reflections if not t.valid] == []
            assert bool(tree.reflections) == (
                strategy == "tree"
                and any(not e.success and len(tree.trajectory(e)) == 4 for e in tree.episodes)
            )
            assert all(
                bool(e.preamble) == (strategy == "refine" and e.index > 0) for e in tree.episodes
            )
            for episode in tree.episodes:
                assert (episode.experience is None) == (episode.depth == 0)
        assert coverage_curve(trees, "env_steps").end <= executions


@pytest.mark.slow
@needs_sandbox
def test_the_recipe_runs_and_gives_the_same_trees_again(problems: str, tmp_path: Path) -> None:
    options = [f'{part}.options.problems="{problems}"' for part in ("env", "policy")]
    one = explored(tmp_path / "one", *options)
    check(one, 12)
    assert any(t.reflections for t in load_trees(one.path / "explore" / "tree").values())
    explored(tmp_path / "two", *options)
    for strategy in ("tree", "refine", "independent"):
        first, second = (
            load_trees(tmp_path / name / "explore" / strategy) for name in ("one", "two")
        )
        assert [
            [(t.id, t.action_text, t.observation) for t in tree] for tree in first.values()
        ] == [[(t.id, t.action_text, t.observation) for t in tree] for tree in second.values()]


@pytest.mark.slow
@needs_sandbox
def test_advice_alone_solves_what_has_one_mistake_and_does_not_add_up_over_rollbacks_to_one_step(
    problems: str, tmp_path: Path
) -> None:
    """A programmer that sees in a reflection what it cannot see otherwise: only the tree asks for
    reflections. A note is not there any more when the next
    branch begins at the same step, so that of several mistakes that show one after the other one is
    always left."""
    options = [f'{part}.options.problems="{problems}"' for part in ("env", "policy")] + [
        "env.options.shown_tests=3",
        "explore.limits={env_steps=8}",
    ]
    able = {
        "repair": 0,
        "recall": 0,
        "insight": 1,
        "heed": 1,
        "lost": 0,
        "habits": 1,
        "stubborn": 1,
    }
    options += [f"policy.options.{name}={value}" for name, value in able.items()]

    def solved(places: int) -> dict[str, int]:
        run = explored(tmp_path / f"{places}", *options, f"policy.options.places={places}")
        return {
            s: sum(t.solved for t in load_trees(run.path / "explore" / s).values())
            for s in ("tree", "refine", "independent")
        }

    assert solved(1) == {"tree": 3, "refine": 0, "independent": 0}
    assert solved(5) == {"tree": 0, "refine": 0, "independent": 0}


@pytest.mark.real
@needs_sandbox
@needs_mbpp
def test_the_recipe_runs_on_the_real_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.envs.data import ROOT

    monkeypatch.setenv("LEAFE_DATA", str(ROOT))
    check(explored(tmp_path / "run", "tasks.train=4"), 12)
