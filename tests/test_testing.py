"""The world check sees what it is there to see: sound worlds pass it, and a world with each fault does not."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import ClassVar

import pytest

from leafe.core import Environment, StepResult, Task
from leafe.envs import load_tasks, make_world
from leafe.testing import check_environment
from tests.envs.data import BOXOBAN, needs_boxoban

TASKS = [Task(f"count-{n}", "count", "train", f"Count to {n}.", {"to": n}) for n in (2, 5)]


class Count(Environment):
    """A user's own world, in twenty lines."""

    name = "count"
    can_snapshot = True

    def reset(self, task: Task, seed: int) -> str:
        self.to, self.at = task.payload["to"], 0
        return f"Count to {self.to}."

    def step(self, action: str) -> StepResult:
        if action not in ("more", "less"):
            return StepResult(f"There is no {action!r}: say more or less.", valid=False)
        self.at += 1 if action == "more" else -1
        done = self.at == self.to
        return StepResult(f"You are at {self.at}.", reward=float(done), done=done, success=done)

    def snapshot(self) -> object:
        return (self.to, self.at)

    def restore(self, snapshot: object) -> None:
        self.to, self.at = snapshot  # type: ignore[misc]


def test_a_sound_world_has_no_problem() -> None:
    report = check_environment(Count(), TASKS, ["more", "less", "more"])
    assert report.problems == []
    assert report.episodes == 2
    assert report.steps > 20
    assert set(report.milliseconds) == {"reset", "step", "snapshot", "restore"}
    assert str(report).startswith("count: 2 episodes")


class ChangesOnInvalid(Count):
    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self.at += not result.valid
        return result


class TakesAnything(Count):
    def step(self, action: str) -> StepResult:
        return replace(super().step("more"), valid=True)


class Ticks(Count):
    ticks: ClassVar = itertools.count()

    def reset(self, task: Task, seed: int) -> str:
        return f"{super().reset(task, seed)} {next(self.ticks)}"


class Rolls(Count):
    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(result, observation=f"{result.observation} {random.random()}")


class KeepsState(Count):
    def restore(self, snapshot: object) -> None:
        pass


class SharesState(Count):
    def reset(self, task: Task, seed: int) -> str:
        self.state = {"at": 0}
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self.state["at"] += 1
        return replace(result, observation=f"{result.observation} {self.state}") if result.valid else result

    def snapshot(self) -> object:
        return (self.to, self.at, self.state)

    def restore(self, snapshot: object) -> None:
        self.to, self.at, self.state = snapshot  # type: ignore[misc]


class Silent(Count):
    def step(self, action: str) -> StepResult:
        return replace(super().step(action), observation="")


class Shrinks(Count):
    def step(self, action: str) -> StepResult:
        return replace(super().step(action), progress=float(self.at))


class WinsWithoutEnd(Count):
    def step(self, action: str) -> StepResult:
        return replace(super().step(action), success=True, done=False)


@pytest.mark.parametrize(
    ("world", "says"),
    [
        (ChangesOnInvalid, "a replay with invalid actions in between answers"),
        (TakesAnything, "the invalid action '' was answered with valid=True"),
        (Ticks, "a replay begins with"),
        (Rolls, "a replay answers"),
        (KeepsState, "the snapshot of step"),
        (SharesState, "the snapshot of step"),
        (Silent, "not a text"),
        (Shrinks, "progress went from"),
        (WinsWithoutEnd, "a success, but not done"),
    ],
)
def test_each_fault_is_seen(world: type[Environment], says: str) -> None:
    report = check_environment(world(), TASKS, ["more", "less", "less"])
    assert any(says in problem for problem in report.problems), report


def test_faulty_tasks_are_seen() -> None:
    assert check_environment(Count(), [], ["more"]).problems == ["there is no task to check"]
    assert "two tasks have the same id" in check_environment(Count(), [TASKS[0], TASKS[0]], ["more"]).problems
    strange = Task("count-x", "count", "train", "Count.", {"to": 3, "kept": {1, 2}})
    assert any("payload" in problem for problem in check_environment(Count(), [strange], ["more"]).problems)


@pytest.mark.parametrize("setting", ["easy", "hard", "random"])
def test_gates(setting: str) -> None:
    world = make_world("gates", setting=setting)

    def act(task: Task, observation: str, draw: random.Random) -> str:
        for kind, name, right, _ in task.payload["stages"]:
            if f"{name} {kind}" in observation:
                return draw.choice([f"take {right}" if kind == "gate" else f"go {right}"] * 3 + ["take hammer", "go left", "walk on"])
        held = observation.rpartition("hold ")[2]
        return draw.choice([f"use {held}", "walk on", f"take {task.payload['object']}"])

    report = check_environment(world, load_tasks(world, "train", 12), act, steps=world.horizon)
    assert report.problems == []


@needs_boxoban
def test_sokoban() -> None:
    world = make_world("sokoban", levels=str(BOXOBAN))
    report = check_environment(world, load_tasks(world, "train", 3), ["up", "down", "left", "right", "jump"])
    assert report.problems == []
