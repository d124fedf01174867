"""The base class of the code environments: submit a program, read the verdict, four times at most.

LEAFE's authors allow four submissions in an episode on their code benchmark, and roll back only
when they are used up (in a recipe: `explore.reflect_every = 0`). A subclass judges a program; this
module counts, refuses and remembers submissions. Programs run in the sandbox only: on a machine
without one the environment cannot be made. The failure of a hidden test is reported by its kind
alone, so nothing that the program could write (an exception's text, a line number) comes back from
a hidden test, nor how many of them passed. Hidden tests run last, and in boxes in which nothing
else ever runs.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from keyword import iskeyword
from pathlib import Path

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs._options import whole_number
from leafe.envs.code._files import file_versions
from leafe.envs.sandbox import Limits, Outcome, Sandbox

MAX_PROGRAM = 60_000
"""Characters of a submission; a longer one is refused unread."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a submission."""

    feedback: str
    """The observation."""
    passed: int
    """The progress: tests passed. Hidden tests count only if no shown test failed, so a program
    that fails a test which the policy sees never ranks above one that passes them all."""
    outcome: Outcome
    detail: str = ""
    """What a failing test found: for judging a reference, never shown to the policy."""


@dataclass(frozen=True, slots=True)
class _State:
    task: Task
    submissions: int = 0
    best: int = 0
    """The most tests that a submission passed so far."""
    done: bool = False


class Submissions(Environment):
    """An environment whose actions are programs. Derive from it and write `judge`."""

    deterministic = True
    can_snapshot = True
    horizon = 4
    splits: tuple[str, ...] = ()

    def __init__(self, horizon: int, limits: Limits | None = None) -> None:
        self.horizon = whole_number(self.name, "horizon", horizon)
        self.sandbox = Sandbox(limits)
        self._state: _State | None = None

    @abstractmethod
    def judge(self, task: Task, program: str) -> Judged:
        """Run the program on the task's tests. Never raises for what the program does."""

    def problem_files(self) -> Sequence[Path]:
        """The files of the problems, for `versions`."""
        return []

    def reset(self, task: Task, seed: int) -> str:
        self._state = _State(task)
        return f"Nothing is submitted yet. You have {counted(self.horizon, 'submission')}."

    def step(self, action: str) -> StepResult:
        state = self._state
        if state is None:
            raise RuntimeError("step before reset")
        refusal = ""
        if state.done:
            refusal = "The task is over: nothing was run."
        elif not action.strip():
            refusal = (
                "There is no whole program in this answer: put one complete Python program in "
                "a fenced block, and close it. Nothing was run."
            )
        elif len(action) > MAX_PROGRAM:
            refusal = f"The program is longer than {MAX_PROGRAM} characters. Nothing was run."
        elif _is_prose(action):
            refusal = (
                "This answer is no Python program: put one complete Python program in a fenced "
                "block. Nothing was run."
            )
        if refusal:
            return StepResult(refusal, valid=False, done=state.done, progress=float(state.best))
        judged = self.judge(state.task, action)
        success = judged.outcome is Outcome.passed
        submissions = state.submissions + 1
        done = success or submissions >= self.horizon
        self._state = _State(state.task, submissions, max(state.best, judged.passed), done)
        feedback = judged.feedback
        if not success:
            left = self.horizon - submissions
            feedback += (
                f"\nYou have {counted(left, 'submission')} left."
                if left
                else "\nThat was the last submission: the task is lost."
            )
        return StepResult(
            feedback,
            reward=float(success),
            done=done,
            success=success,
            progress=float(self._state.best),
            info={"outcome": str(judged.outcome)},
        )

    def valid_actions(self) -> list[str]:
        return [
            "pass",
            "print(input())",
            "raise ValueError({'a', 'b', 'c'})",
            "import sys\nprint(len(sys.stdin.read().split()))",
            "1 / 0",
            "def f(:",
        ]

    def snapshot(self) -> object:
        return self._state

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, _State)
        self._state = snapshot

    def versions(self) -> Mapping[str, str]:
        found = dict(self.sandbox.versions())
        with contextlib.suppress(UserError):  # without files: the tasks may come from elsewhere
            found |= file_versions(self.problem_files())
        return found

    def close(self) -> None:
        self.sandbox.close()


def _is_prose(action: str) -> bool:
    """Whether the action is one line of words that ends like a sentence, or in which two words that
    are no keywords follow one another. Anything else is run, so that its syntax error is shown:
    nothing that a model wrote is parsed in this process."""
    line = action.strip()
    words = line.rstrip(".!?").split()
    if not words or "\n" in line or not all(word.isalpha() for word in words):
        return False
    named = [not iskeyword(word) for word in words]
    return line.endswith((".", "!", "?")) or any(a and b for a, b in pairwise(named))


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


VERDICTS = {
    Outcome.failed: "Wrong answer",
    Outcome.error: "Runtime error",
    Outcome.time: "Time limit exceeded",
    Outcome.memory: "Memory limit exceeded",
    Outcome.output: "Output limit exceeded",
    Outcome.exited: "The process ended too early",
}
"""The usual words of judges."""
