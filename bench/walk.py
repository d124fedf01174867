"""An environment that costs next to nothing, to measure the loop around it: a corridor, then
failure.

`Walk` is called in the event loop. `SlowWalk` blocks for `step_s` seconds a call and is called in
threads. `ProcessWalk` does so in a process of its own. Only `Walk` has snapshots. Each task has its
own length, 10 to 20 steps, drawn from the seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from leafe.core import Environment, StepResult, Task

HELP = "Actions: go up, go down, take ITEM, open ITEM, look."


class Walk(Environment):
    """A corridor of rooms; nothing is ever found."""

    name, horizon, quick, can_snapshot, actions_help = "walk", 20, True, True, HELP

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        chance = random.Random(f"{split} {seed}")
        lengths = [chance.randint(10, 20) for _ in range(count or 64)]
        return [
            Task(
                f"task-{i}",
                "walk",
                split,
                f"Errand task-{i}: find the lamp and light it.",
                {"length": n},
            )
            for i, n in enumerate(lengths)
        ]

    def reset(self, task: Task, seed: int) -> str:
        self.at, self.length = 0, int(task.payload["length"])
        return "You stand in a hall with many doors. The lamp is somewhere in this house. " * 6

    def step(self, action: str) -> StepResult:
        self.at += 1
        return StepResult(
            f"Room {self.at}. " + "There is a table, a lamp and two doors, one of them open. " * 4,
            done=self.at >= self.length,
        )

    def valid_actions(self) -> Sequence[str]:
        return ["go up", "look"]

    def snapshot(self) -> object:
        return self.at, self.length

    def restore(self, snapshot: object) -> None:
        self.at, self.length = snapshot  # type: ignore[misc]


class SlowWalk(Walk):
    """The same, `step_s` seconds a call."""

    quick, can_snapshot = False, False

    def __init__(self, step_s: float = 0.005) -> None:
        self.step_s = step_s

    def reset(self, task: Task, seed: int) -> str:
        time.sleep(self.step_s)
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        time.sleep(self.step_s)
        return super().step(action)


class ProcessWalk(SlowWalk):
    """The same, in a process of its own."""

    process = True
