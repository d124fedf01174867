"""A small sound environment and some that break their contract where only another process can see
it; they import nothing beside leafe's core."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import ClassVar

from leafe.core import Environment, StepResult, Task

TASKS = [Task(f"count-{n}", "count", "train", f"Count to {n}.", {"to": n}) for n in (2, 5)]


class Count(Environment):
    """A user's own environment, in twenty lines."""

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


class Hashes(Count):
    """Its words hang on the hash seed."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(
            result,
            observation=f"{result.observation} {sorted(['lamp', 'rope', 'key', 'map'], key=hash)}",
        )


class Numbers(Count):
    """Its words hang on the process."""

    def reset(self, task: Task, seed: int) -> str:
        return f"{super().reset(task, seed)} {os.getpid()}"


class Leaves(Count):
    """It starts a process and forgets it."""

    def reset(self, task: Task, seed: int) -> str:
        self.child = subprocess.Popen(["sleep", "20"])
        return super().reset(task, seed)


class Dies(Count):
    """It cannot be made twice on one machine."""

    def __init__(self) -> None:
        if os.environ.get("PYTHONHASHSEED") == "1":
            raise RuntimeError("there is one already")


class Shares(Count):
    """All instances count on one number."""

    board: ClassVar[dict[str, int]] = {}

    def reset(self, task: Task, seed: int) -> str:
        Shares.board["at"] = 0
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        self.at = Shares.board["at"]
        result = super().step(action)
        Shares.board["at"] = self.at
        return result

    def restore(self, snapshot: object) -> None:
        super().restore(snapshot)
        Shares.board["at"] = self.at


class Keeps(Count):
    """Its snapshots are numbers of its own book."""

    made = 0

    def __init__(self) -> None:
        Keeps.made += 1
        self.book: list[tuple[int, int]] = [(9, 9)] * (1000 * Keeps.made)

    def snapshot(self) -> object:
        self.book.append((self.to, self.at))
        return len(self.book) - 1

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, int)
        self.to, self.at = self.book[snapshot] if snapshot < len(self.book) else (9, 9)
