"""bench/code_strategies.py: its budgets count what was spent, its differences are by task, and
remembering a verdict changes no tree."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.code_strategies import (
    STRATEGIES,
    SWEEP,
    Runs,
    difference,
    explored,
    report,
    solved_by,
    stored,
    sweep_row,
)
from leafe.core import Kind, Tree
from leafe.pipeline import run_recipe
from leafe.recipes import load_recipe
from studies import recipe_path
from tests.core.growth import grown_trees
from tests.envs.data import needs_sandbox
from tests.studies.test_weak_programmer import ROW

FEW = argparse.Namespace(
    split="train", tasks=2, executions=8, seeds=2, budgets=[4, 8], remember=True, over="tasks"
)


def bought(tree: Tree, budget: int, calls: bool) -> float:
    """Whether a success was among the first `budget` executions (or calls) of a task; replays
    count as none."""
    for episode in tree.episodes:
        for turn in episode.turns:
            budget -= 1 if calls or turn.kind is Kind.act else 0
            if turn.success:
                return float(budget >= 0)
    return 0.0


@settings(max_examples=25)
@given(st.lists(grown_trees(), min_size=1, max_size=3), st.integers(0, 12))
def test_a_task_is_solved_within_what_its_first_success_cost(
    trees: list[Tree], budget: int
) -> None:
    for tree in trees:
        assert solved_by([tree], "policy_calls", budget) == {
            tree.task.id: bought(tree, budget, True)
        }
        assert solved_by([tree], "env_steps", budget) == {tree.task.id: bought(tree, budget, False)}


@pytest.fixture
def problems(tmp_path: Path) -> str:
    file = tmp_path / "mbpp.jsonl"
    rows = [
        ROW,
        ROW
        | {
            "task_id": 602,
            "code": "def twice(x):\n    return 2 * x",
            "test_list": ["assert twice(3) == 6", "assert twice(0) == 0"],
        },
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def words(runs: Runs) -> list[list[tuple[str, str]]]:
    return [
        [(t.id, t.action_text) for t in tree]
        for name in STRATEGIES
        for trees in runs[name]
        for tree in trees
    ]


def shares(line: str) -> Sequence[float]:
    return [float(n) for n in re.findall(r"\| [+]?(-?\d+\.\d) \[", line)]


@pytest.mark.slow
@needs_sandbox
def test_the_strategies_play_the_same_tasks_within_the_same_executions(
    problems: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"{part}problems={problems}" for part in ("", "env.")]
    runs = explored(FEW, changes)
    assert words(runs) == words(
        explored(argparse.Namespace(**vars(FEW) | {"remember": False}), changes)
    )
    assert words(runs) != words(explored(FEW, [*changes, "heed=1", "insight=1"]))
    for name in STRATEGIES:
        assert [[tree.task.id for tree in trees] for trees in runs[name]] == [
            [tree.task.id for tree in trees] for trees in runs["tree"]
        ]
        assert all(
            len(e.acts) <= 4 for trees in runs[name] for tree in trees for e in tree.episodes
        )
        assert all(
            sum(len(e.acts) for e in tree.episodes) == 8 or tree.solved
            for trees in runs[name]
            for tree in trees
        )
    report(FEW, runs, "title")
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("| 8 |"))
    independent, refine, tree, *between = shares(line)
    assert between == pytest.approx(
        [tree - refine, tree - independent, refine - independent], abs=0.11
    )
    assert tree == pytest.approx(
        25 * sum(t.solved for trees in runs["tree"] for t in trees), abs=0.06
    )
    assert shares(sweep_row("what", "changes", runs, 8)) == [independent, refine, tree, *between]


def test_a_difference_is_paired_by_task() -> None:
    from tests.trees import Ep, make_tree

    won, lost = (
        [make_tree(Ep("a"), task_id=f"t{i}") for i in range(3)],
        [make_tree(Ep("a", stop="failure"), task_id=f"t{i}") for i in range(3)],
    )  # type: ignore[arg-type]
    runs = {"tree": [won[:2] + lost[2:]], "refine": [[lost[2], won[1], lost[0]]]}
    assert difference(runs, "tree", "refine", "env_steps", 1).startswith("+33.3 ")
    assert difference(runs, "tree", "refine", "env_steps", 0).startswith("+0.0 ")


@pytest.mark.slow
@needs_sandbox
def test_a_run_folder_gives_the_figures_of_its_trees(problems: str, tmp_path: Path) -> None:
    overrides = [f'{part}.options.problems="{problems}"' for part in ("env", "policy")]
    run_recipe(
        load_recipe(
            recipe_path("mbpp-weak"),
            [*overrides, "seeds=[0, 1]", "tasks.train=2", "explore.limits={env_steps=8}"],
        ),
        tmp_path / "run",
        only="explore",
    )
    runs = stored(tmp_path / "run")
    assert set(runs) == set(STRATEGIES)
    assert all(
        len(runs[name]) == 2 and len(trees) == 2 for name in STRATEGIES for trees in runs[name]
    )
    of_one_programmer = explored(
        FEW, [f"{part}problems={problems}" for part in ("", "env.")] + ["seed=0"]
    )
    assert words(runs) == words(of_one_programmer)


@needs_sandbox
def test_every_setting_of_the_sweep_is_one_that_there_is(problems: str) -> None:
    tiny = argparse.Namespace(**vars(FEW) | {"tasks": 1, "executions": 2, "seeds": 1})
    for _, changes in SWEEP:
        explored(tiny, [*changes.split(), f"problems={problems}", f"env.problems={problems}"])
