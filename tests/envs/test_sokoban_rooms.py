"""Generated Sokoban: solvable as claimed, distinct, in one split only, the same in every
process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Environment, Task, UserError
from leafe.envs.sokoban import Sokoban
from leafe.envs.sokoban._rooms import rooms, solution_lengths
from leafe.testing import check_environment
from tests.envs.sokoban_solver import solve
from tests.loop import both_stages


def variants(rows: Sequence[str]) -> set[str]:
    """The level without its frame, turned and mirrored in every way, by numpy."""
    grid = np.array([list(row) for row in rows])
    inner = np.argwhere(grid != "#")
    (top, left), (bottom, right) = inner.min(axis=0), inner.max(axis=0) + 1
    grid = grid[top:bottom, left:right]
    every = [np.rot90(g, k) for g in (grid, np.fliplr(grid)) for k in range(4)]
    return {"\n".join("".join(line) for line in g) for g in every}


def without_player(rows: Sequence[str]) -> list[str]:
    return [row.replace("@", " ").replace("+", ".") for row in rows]


@pytest.mark.parametrize(
    ("size", "boxes", "horizon", "count"),
    [
        ("6x6", 1, 15, 150),
        ("6x6", 2, 20, 40),
        ("7x5", 1, 9, 40),
        ("8x8", 2, 25, 8),
        ("10x10", 3, 40, 1),
    ],
)
def test_every_level_is_solved_within_the_horizon(
    size: str, boxes: int, horizon: int, count: int
) -> None:
    env = Sokoban(size=size, boxes=boxes, horizon=horizon)
    tasks = env.tasks("train", count)
    assert len(tasks) == count
    height, width = map(int, size.split("x"))
    for task in tasks:
        rows = task.payload["level"]
        text = "".join(rows)
        assert (len(rows), {len(row) for row in rows}) == (height, {width})
        assert (
            text.count("$"),
            text.count("*"),
            text.count(".") + text.count("+"),
            text.count("@") + text.count("+"),
        ) == (boxes, 0, boxes, 1)
        path = solve(rows)
        assert path is not None
        assert len(path) == task.payload["moves"] <= horizon
        shown = env.reset(task, 0).split("\n")[:-1]
        assert [len(line.split(" ")) for line in shown] == [
            width
        ] * height  # nothing is cropped: a room is shown in its full size
        results = [env.step(move) for move in path]
        assert [r.done for r in results] == [False] * (len(path) - 1) + [True]
        assert results[-1].success


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_lengths_are_those_of_a_forward_search(data: st.DataObject) -> None:
    """On any floor, connected or not, for every state: the backward search against the forward
    one."""
    height, width, boxes = (
        data.draw(st.integers(2, 3)),
        data.draw(st.integers(2, 4)),
        data.draw(st.integers(1, 2)),
    )
    squares = list(range(height * width))
    floor = sorted(
        data.draw(st.permutations(squares))[: data.draw(st.integers(2 * boxes, height * width))]
    )
    goals = sorted(data.draw(st.permutations(floor))[:boxes])
    known = solution_lengths(height, width, [floor, squares], [goals, goals], 200)[0]
    where = sorted(data.draw(st.permutations(floor))[: boxes + 1])
    player = data.draw(st.sampled_from(where))
    placed = [cell for cell in where if cell != player]
    code = 0
    for cell in (*placed, player):
        code = code * len(squares) + cell
    grid = ["#" if cell not in floor else "." if cell in goals else " " for cell in squares]
    for cell, off, on in (*((cell, "$", "*") for cell in placed), (player, "@", "+")):
        grid[cell] = on if cell in goals else off
    wall = "#" * (width + 2)
    path = solve(
        [
            wall,
            *("#" + "".join(grid[r * width : (r + 1) * width]) + "#" for r in range(height)),
            wall,
        ]
    )
    assert known[code] == (255 if path is None else len(path))


def test_levels_are_distinct_and_in_one_split() -> None:
    env = Sokoban()
    found = {(split, seed): env.tasks(split, 200, seed) for split in env.splits for seed in (0, 1)}
    for tasks in found.values():
        assert len({min(variants(t.payload["level"])) for t in tasks}) == len(tasks) == 200
    for bare in (False, True):  # not even with the player elsewhere
        keys = {
            split: {
                min(variants(without_player(t.payload["level"]) if bare else t.payload["level"]))
                for seed in (0, 1)
                for t in found[split, seed]
            }
            for split in env.splits
        }
        assert not keys["train"] & keys["valid"]
        assert not keys["train"] & keys["test"]
        assert not keys["valid"] & keys["test"]
    by_id: dict[str, str] = {}
    for tasks in found.values():
        for task in (
            tasks
        ):  # an id is a level's, up to turning and mirroring, in every split and for every seed
            key = min(variants(task.payload["level"]))
            assert by_id.setdefault(task.id, key) == key
    assert env.tasks("test", 20, 1) == found["test", 1][:20]
    assert found["test", 0] != found["test", 1]


def test_same_levels_in_another_process() -> None:
    program = (
        "from leafe.envs.sokoban import Sokoban; print([(t.id, t.payload) for s in ('train', "
        "'test') for t in Sokoban().tasks(s, 20, 5)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert said == {
        f"{[(t.id, t.payload) for s in ('train', 'test') for t in Sokoban().tasks(s, 20, 5)]}\n"
    }


def test_contract() -> None:
    env = Sokoban()

    def valid(task: Task, observation: str, draw: object) -> str:
        actions = env.valid_actions()
        assert set(actions) <= {"up", "down", "left", "right"}
        return draw.choice(list(actions))  # type: ignore[attr-defined, no-any-return]

    report = check_environment(env, env.tasks("valid", 10), valid, steps=20)
    assert not report.problems, report


def test_valid_actions_are_those_that_are_taken() -> None:
    for task in Sokoban(boxes=2, size="5x6").tasks("train", 30):
        env = Sokoban()
        env.reset(task, 0)
        for move in ("left", "left", "down"):
            actions = set(env.valid_actions())
            here = env.snapshot()
            for word in ("up", "down", "left", "right"):
                env.restore(here)
                assert env.step(word).valid is (word in actions)
            env.restore(here)
            if env.step(move).done:
                break


def test_a_size_that_runs_dry_ends() -> None:
    few = [room.rows for room in rooms(4, 5, 1, 15, "train", 0)]
    assert 1 <= len(few) < 40
    assert all(solve(rows) for rows in few)
    assert list(islice((room.rows for room in rooms(4, 5, 1, 15, "train", 0)), 3)) == few[:3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": None}, "cannot have levels = None"),
        ({"horizon": True}, "cannot have horizon = True"),
        ({"size": "6"}, "cannot have size '6': write rows x columns"),
        ({"size": 6}, "cannot have size 6"),
        ({"size": "3x6"}, "both from 4"),
        ({"boxes": 0}, "cannot have boxes = 0"),
        ({"boxes": True}, "cannot have boxes = True"),
        ({"boxes": 8}, "too many states"),
        ({"size": "13x13", "boxes": 4}, "too many states to search"),
        ({"size": "4x4", "boxes": 2}, "no 4x4 room with 2 boxes"),
        ({"boxes": 3, "horizon": 2}, "at most 2 steps"),
        ({"difficulty": "hard"}, "difficulties on level files only"),
        ({"levels": "boxoban", "boxes": 2}, "size and boxes for levels = 'generated' only"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Sokoban(**options)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_the_same_seed_gives_the_levels_of_this_version() -> None:
    """Who changes what is drawn raises VERSION, and these."""
    assert Sokoban().versions() == {"sokoban rooms": "1"}
    assert Sokoban(levels="boxoban").versions() == {}
    drawn = [*Sokoban().tasks("train", 2), *Sokoban(boxes=2).tasks("test", 2, 7)]
    assert [(task.id, task.payload["moves"]) for task in drawn] == [
        ("sokoban-6x6-1-04bfa0727514", 2),
        ("sokoban-6x6-1-79c44e48f9ac", 9),
        ("sokoban-6x6-2-b886fc837753", 4),
        ("sokoban-6x6-2-a5583490731e", 11),
    ]


def test_horizons() -> None:
    assert (Sokoban().horizon, Sokoban(levels="boxoban").horizon, Sokoban(horizon=7).horizon) == (
        15,
        40,
        7,
    )


@pytest.mark.slow
def test_both_stages(tmp_path: Path) -> None:
    def solution(env: Environment, task: Task) -> list[str]:
        return solve(task.payload["level"]) or []

    both_stages("sokoban", tmp_path, solve=solution, wrong="stay")
