"""The Gymnasium adapter: its own text games and a user's, by way of the worker process and without
it."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from leafe.core import EnvError, Environment, Task, UserError
from leafe.envs import make_env
from leafe.testing import check_environment

pytest.importorskip("gymnasium", reason="needs pip install 'leafe[gymnasium]'")

from leafe.envs.adapters.gymnasium import GymnasiumEnv, frozen_lake, marked

RIDDLE = {
    "id": "tests.envs.gym_envs:Riddle",
    "text_key": "text",
    "success": "solved",
    "invalid": "refused",
    "actions_help": "Say a colour.",
}


def lake_path(observation: str) -> list[str]:
    """Shortest way over the lake, from its picture."""
    rows = [
        line.replace("[", "").replace("]", "")
        for line in observation.split("\n")
        if set(line) <= set("[]SFHG")
    ]
    at = {(r, c): s for r, row in enumerate(rows) for c, s in enumerate(row)}
    start = next(cell for cell, s in at.items() if s == "S")
    todo, seen = deque([(start, list[str]())]), {start}
    while todo:
        (r, c), path = todo.popleft()
        if at[r, c] == "G":
            return path
        for word, (dr, dc) in {
            "left": (0, -1),
            "down": (1, 0),
            "right": (0, 1),
            "up": (-1, 0),
        }.items():
            to = (r + dr, c + dc)
            if at.get(to, "H") != "H" and to not in seen:
                seen.add(to)
                todo.append((to, [*path, word]))
    raise AssertionError(observation)


def solve_lake(env: Environment, task: Task) -> list[str]:
    return lake_path(env.reset(task, 0))


def test_frozen_lake_is_crossed() -> None:
    env = GymnasiumEnv()
    tasks = env.tasks("train", 20)
    assert len({env.reset(task, 0) for task in tasks}) > 10, "each task has a lake of its own"
    for task in tasks:
        path = solve_lake(env, task)
        assert env.reset(task, 1).startswith("[S]")
        results = [env.step(move) for move in path]
        assert [r.success for r in results] == [False] * (len(path) - 1) + [True]
        assert results[-1].reward == 1.0
        assert results[-1].observation.endswith("The episode is over. You have succeeded.")
        after = env.step("up")
        assert (after.valid, after.done) == (False, True)


def test_a_hole_is_a_loss() -> None:
    env = GymnasiumEnv(id="FrozenLake-v1", kwargs={"is_slippery": False})
    assert env.horizon == 100
    assert env.reset(env.tasks("test", 1)[0], 0) == "[S]FFF\nFHFH\nFFFH\nHFFG"
    env.step("down")
    result = env.step("Right.")
    assert (result.done, result.success) == (True, False)
    assert (
        result.observation
        == "  (Right)\nSFFF\nF[H]FH\nFFFH\nHFFG\nThe episode is over. You have failed."
    )


def test_chance_is_part_of_the_task() -> None:
    """On slippery ice: the same task slips alike, tasks slip differently, and nobody else's draws
    move."""
    env = GymnasiumEnv(id="FrozenLake-v1", kwargs={"is_slippery": True})
    random.seed(5)
    np.random.seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]

    def play(task: Task, seed: int) -> list[str]:
        return [
            env.reset(task, seed),
            *(env.step(a).observation for a in ("right", "down", "right", "down")),
        ]

    tasks = env.tasks("train", 8)
    first = [play(task, 0) for task in tasks]
    assert [play(task, 9) for task in tasks] == first
    assert len({tuple(seen) for seen in first}) > 1
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"id": "FrozenLake-v1", "kwargs": {"is_slippery": True}},
        {"id": "Taxi"},
        {"id": "CliffWalking-v1"},
        {"id": "Blackjack-v1"},
        RIDDLE,
    ],
    ids=["lake", "slippery", "taxi", "cliff", "blackjack", "riddle"],
)
def test_contract_in_a_process_of_its_own(options: dict[str, object]) -> None:
    report = check_environment("gymnasium", options=options, count=3, steps=12)
    assert not report.problems, report
    assert report.way_back == "fork"


def test_taxi_drives_a_passenger() -> None:
    env = GymnasiumEnv(id="Taxi", show_reward=True)
    task = env.tasks("valid", 1)[0]
    assert task.payload["seed"] >= 1_000_000
    seen = env.reset(task, 0)
    assert all(mark in seen for mark in "[({"), seen
    unwrapped = env.env.unwrapped
    stands = unwrapped.locs

    def drive(to: tuple[int, int]) -> None:
        """By the environment's own numbers, breadth first over squares."""
        row, column, _, _ = unwrapped.decode(unwrapped.s)
        todo, known = deque([((row, column), list[str]())]), {(row, column)}
        state = unwrapped.s
        while todo:
            at, path = todo.popleft()
            if at == to:
                for move in path:
                    assert env.step(move).observation.endswith("Reward: -1.")
                return
            for action, word in enumerate(env.actions[:4]):
                _, _, passenger, goal = unwrapped.decode(state)
                after = unwrapped.P[unwrapped.encode(*at, passenger, goal)][action][0][1]
                cell = tuple(unwrapped.decode(after))[:2]
                if cell not in known:
                    known.add(cell)
                    todo.append((cell, [*path, word]))
        raise AssertionError

    _, _, passenger, goal = unwrapped.decode(unwrapped.s)
    drive(stands[passenger])
    assert "(" not in env.step("pickup").observation.split("\n  (")[0], "on board"
    assert env.step("pickup").observation.endswith("Reward: -10.")
    drive(stands[goal])
    result = env.step("dropoff")
    assert (result.success, result.reward) == (True, 20.0)


def test_cliff_walk_succeeds_with_a_negative_reward() -> None:
    env = GymnasiumEnv(id="CliffWalking-v1")
    env.reset(env.tasks("train", 1)[0], 0)
    results = [env.step(move) for move in ("up", *["right"] * 11, "down")]
    assert (results[-1].success, results[-1].reward, results[-2].done) == (True, -1.0, False)


def test_text_actions_of_a_users_own() -> None:
    env = GymnasiumEnv(**RIDDLE)  # type: ignore[arg-type]
    task = env.tasks("train", 1)[0]
    assert env.reset(task, 0) == "Three words, in order."
    long = env.step("x" * 50)
    assert not long.valid
    assert "is no action of this environment. Say a colour. Nothing changed." in long.observation
    refused = env.step("purple")
    assert (refused.valid, refused.observation) == (False, "I do not know purple.")
    riddle = env.env.unwrapped
    won = [env.step(word) for word in riddle.order][-1]
    assert (won.done, won.success, won.valid) == (True, True, True)


def test_numbers_where_no_names_are_given() -> None:
    env = GymnasiumEnv(id="tests.envs.gym_envs:Pixels")
    assert env.actions == ("1", "2")
    assert env._parsed("2") == 2, "the space starts at 1"
    with pytest.raises(EnvError, match="is ndarray, not a text: set text_key or render"):
        env.reset(env.tasks("train", 1)[0], 0)
    odd = GymnasiumEnv(**RIDDLE | {"text_key": "words"})  # type: ignore[arg-type]
    with pytest.raises(EnvError, match="no entry 'words', only text, left"):
        odd.reset(odd.tasks("train", 1)[0], 0)


def test_tasks_are_seeds() -> None:
    env = GymnasiumEnv(tasks=50)
    seeds = {split: [t.payload["seed"] for t in env.tasks(split)] for split in env.splits}
    assert {split: len(set(found)) for split, found in seeds.items()} == {
        "train": 50,
        "valid": 50,
        "test": 50,
    }
    assert not set(seeds["train"]) & set(seeds["test"])
    assert env.tasks("train", 7, 3) == env.tasks("train", None, 3)[:7]
    assert env.tasks("train", 7, 3) != env.tasks("train", 7, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id": "NoSuch-v0"}, "cannot make 'NoSuch-v0'"),
        ({"id": "no_module_here:NoSuch-v0"}, "cannot make 'no_module_here:NoSuch-v0'"),
        ({"id": "no_module_here:factory"}, "package 'no_module_here' cannot be found"),
        ({"id": "tests.envs.gym_envs:nothing"}, "has no function or class 'nothing'"),
        ({"id": "tests.envs.gym_envs:not_an_env"}, "gave str, not a gymnasium.Env"),
        (
            {"id": "tests.envs.gym_envs:Pixels", "kwargs": {"actions": 0}},
            "wrap it so that its actions are Discrete or Text",
        ),
        ({"id": "tests.envs.gym_envs:Pixels", "kwargs": {"colour": 1}}, "correct id or kwargs"),
        ({"id": "tests.envs.gym_envs:Pixels", "render": "ansi"}, "does not render 'ansi'"),
        ({"actions": ["left", "right"]}, "has 4 actions: give so many different names"),
        ({"actions": ["left", "right", "up", "Up"]}, "has 4 actions: give so many different names"),
        (RIDDLE | {"actions": ["red"]}, "need no names"),
        ({"actions": "left"}, "actions as a list of texts"),
        ({"kwargs": [1]}, "kwargs as a table"),
        ({"id": 3}, "id as a text"),
        ({"render": "human"}, "no render = 'human'"),
        ({"horizon": 0}, "cannot have horizon = 0"),
        ({"tasks": True}, "cannot have tasks = True"),
        ({"tasks": 2_000_000}, "from 1 to 1000000"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        GymnasiumEnv(**options)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_colours_become_brackets() -> None:
    assert (
        marked("a\x1b[43m\x1b[34;1mR\x1b[0m\x1b[0mb \x1b[35mG\x1b[0m \x1b[32mx")
        == "a[(R)]b {G} <x>"
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install 'leafe\[gymnasium\]'"):
        GymnasiumEnv()


def test_the_factory_draws_from_its_seed() -> None:
    assert (
        frozen_lake(3).unwrapped.desc.tolist()
        == frozen_lake(3).unwrapped.desc.tolist()
        != frozen_lake(4).unwrapped.desc.tolist()
    )


def test_rollback_by_a_copy_of_the_process() -> None:
    with make_env("gymnasium", id="FrozenLake-v1", kwargs={"is_slippery": True}) as env:
        assert env.can_snapshot
        task = env.tasks("train", 1)[0]
        env.reset(task, 0)
        here = env.snapshot()
        actions = ("right", "down", "right")
        first = [env.step(a).observation for a in actions]
        env.restore(here)
        assert [env.step(a).observation for a in actions] == first
        env.release(here)


@pytest.mark.slow
def test_both_stages(tmp_path: Path) -> None:
    from tests.loop import both_stages

    both_stages("gymnasium", tmp_path, solve=solve_lake, wrong="up")
