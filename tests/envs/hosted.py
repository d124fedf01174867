"""Environments for the tests of environments in processes of their own: they hang, die, print,
count, and keep files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from leafe.core import Environment, StepResult, Task, UserError


class Hosted(Environment):
    """A number that grows."""

    name = "hosted"
    process = True
    splits: ClassVar[tuple[str, ...]] = ("train",)

    def __init__(self, horizon: int = 7, mood: str = "", folder: str = "") -> None:
        if mood == "picky":
            raise UserError("The environment 'hosted' is never picky: choose another mood.")
        if mood == "stillborn":
            print("could not find the heart", file=sys.stderr, flush=True)
            os._exit(3)
        self.horizon, self.mood, self.folder = horizon, mood, folder
        self.actions_help = f"say add ({mood})"
        if folder:
            (Path(folder) / f"open-{os.getpid()}").touch()

    def versions(self) -> dict[str, str]:
        return {"hosted": "1"}

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        return [Task(f"hosted-{i}", "hosted", split, "Add.", {"start": i}) for i in range(10)][
            :count
        ]

    def reset(self, task: Task, seed: int) -> str:
        print("this goes nowhere")
        self.at = task.payload["start"]
        self.chance = random.Random(seed)
        return f"You are at {self.at}."

    def step(self, action: str) -> StepResult:
        if action == "hang":
            time.sleep(1000)
        if action == "hang with a child":
            child = subprocess.Popen(["sleep", "1000"])
            (Path(self.folder) / f"child-{child.pid}").touch()
            time.sleep(1000)
        if action == "die":
            print("the dam broke", file=sys.stderr, flush=True)
            os._exit(9)
        if action == "die once" and self.folder:
            mark = Path(self.folder) / "died"
            if not mark.exists():
                mark.touch()
                os._exit(9)
        if action == "hang once" and self.folder:
            mark = Path(self.folder) / "hung"
            if not mark.exists():
                mark.touch()
                time.sleep(1000)
        if action == "raise":
            raise KeyError("no such thing")
        if not action.strip() or action.startswith("no such"):
            return StepResult("Say add.", valid=False)
        self.at += self.chance.randint(1, 6)
        return StepResult(
            f"You are at {self.at}.",
            done=self.at > 40,
            success=self.at == 42,
            info={"pid": os.getpid()},
        )

    def valid_actions(self) -> Sequence[str]:
        return ["add", "add more"]

    def close(self) -> None:
        if self.folder:
            (Path(self.folder) / f"closed-{os.getpid()}").touch()


class Forked(Hosted):
    """The same, copied for a snapshot."""

    name = "forked"
    forkable = True
