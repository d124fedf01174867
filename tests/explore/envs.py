"""Small environments for the scheduler's tests."""

from __future__ import annotations

import time

from leafe import Environment
from leafe.core import Completion, Request, StepResult, Task


class Doors(Environment):
    """Say the right letter at each of `depth` doors; a wrong one is noticed one step later.
    Feedback names the right letter."""

    name = "doors"
    quick = True
    can_snapshot = True
    horizon = 12

    def __init__(self, depth: int = 4, snapshots: bool = True) -> None:
        self.depth = depth
        self.can_snapshot = snapshots  # type: ignore[misc]

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> list[Task]:
        words = ["abab", "bcca", "cabc", "aaab", "bbcb", "cacb", "acbb", "bacc"]
        count = 8 if count is None else count
        return [
            Task(
                f"{split}-{i}",
                self.name,
                split,
                "open all doors",
                {"word": words[(i + seed) % len(words)]},
            )
            for i in range(count)
        ]

    def reset(self, task: Task, seed: int) -> str:
        self.word, self.at, self.wrong = str(task.payload["word"])[: self.depth], 0, -1
        return "door 0"

    def step(self, action: str) -> StepResult:
        if action not in ("a", "b", "c"):
            return StepResult(
                f"{action!r} is not a key: use a, b or c", valid=False, progress=self.at
            )
        if self.wrong >= 0:
            return StepResult(
                f"trap: door {self.wrong} needed {self.word[self.wrong]}",
                done=True,
                progress=self.at,
            )
        if action != self.word[self.at]:
            self.wrong = self.at
            return StepResult(f"door {self.at + 1}", progress=self.at)
        self.at += 1
        if self.at == self.depth:
            return StepResult("out", 1.0, True, True, progress=self.at)
        return StepResult(f"door {self.at}", progress=self.at)

    def snapshot(self) -> object:
        return (self.word, self.at, self.wrong)

    def restore(self, snapshot: object) -> None:
        self.word, self.at, self.wrong = snapshot  # type: ignore[misc]


class Slow(Doors):
    """The same in a worker thread."""

    quick = False

    def step(self, action: str) -> StepResult:
        time.sleep(0.001)
        return super().step(action)


class Forgetful(Doors):
    """Says something else on every reset: a replay cannot reproduce it."""

    def __init__(self) -> None:
        super().__init__(snapshots=False)
        self.resets = 0

    def reset(self, task: Task, seed: int) -> str:
        self.resets += 1
        return f"{super().reset(task, seed)} ({self.resets})"


class Raising(Doors):
    """Raises at every step."""

    def step(self, action: str) -> StepResult:
        raise RuntimeError("the floor gave way")


def answer(request: Request) -> list[Completion]:
    """A scripted policy: follows advice, reflects on what the trap said, else guesses from the
    request's seed."""
    last = request.messages[-1].content
    assert request.seed is not None
    if "Which of the steps" in last:
        import re

        found = re.findall(r"trap: door (\d) needed (\w)", last)
        if not found or request.seed % 10 == 0:
            return [Completion("I cannot say")]
        door, key = found[-1]
        # doors are opened one a step here, but invalid actions shift them: find the step that stood
        # before that door
        users = [m.content for m in request.messages if m.role == "user"]
        step = next(i for i, text in enumerate(users) if f"door {door}" in text)
        return [Completion(f'{{"step": {step}, "experience": "say {key}"}}')]
    if "Advice" in last:
        return [Completion(last.rsplit("say ", 1)[1][0])]
    earlier = request.messages[0].content
    key = "abc?"[request.seed % 4] if request.seed % 7 == 0 else "abc"[request.seed % 3]
    if "An earlier attempt" in earlier and request.seed % 2:
        key = earlier.split("needed ", 1)[1][0]
    return [Completion(f"Thought: a guess.\nAction: {key}")]
