"""An environment that shows what its process inherited, as careless ones do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from leafe.core import Environment, StepResult, Task


class Shows(Environment):
    """Says the environment variable that an action names."""

    name = "shows"
    process: ClassVar[bool] = True

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        return [Task("t", "shows", split, "Look.")]

    def reset(self, task: Task, seed: int) -> str:
        return " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()))

    def step(self, action: str) -> StepResult:
        return StepResult(os.environ.get(action, "unset"))


class Beside(Shows):
    """The same in leafe's own process."""

    process: ClassVar[bool] = False
