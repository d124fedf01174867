"""What the code environments share: submit a program, read the verdict, up to four times.

LEAFE's authors allow four submissions an episode on their code benchmark and roll back only when
those are used up (in a recipe: `explore.reflect_every = 0`).
An environment says how a program is judged; submissions are counted, refused and remembered here.
Programs run in the sandbox and nowhere else: where this
machine cannot give one, the environment refuses to be made. A hidden test's failure is named by its
kind alone: nothing that the program
could write (an exception's text, a line number) comes back from a test that the policy may not see,
nor how many of them passed. Hidden tests are run
last, and in boxes in which nothing else is ever run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from keyword import iskeyword

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs.sandbox import Limits, Outcome, Sandbox

LONGEST = 60_000
"""Characters of a submission; a longer one is refused unread."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a submission came to."""

    said: str
    passed: int
    """The progress: tests passed, of which hidden ones count only where no shown one failed. So a
    program that fails a test which the policy sees never
    stands above one that passes them all."""
    outcome: Outcome
    detail: str = ""
    """What was found, where a test says it: for whoever judges a reference, never for the
    policy."""


@dataclass(frozen=True, slots=True)
class _State:
    task: Task
    submissions: int = 0
    best: int = 0
    """Most tests that a submission passed so far."""
    done: bool = False


class Submissions(Environment):
    """An environment of programs that are submitted. Derive from it and write `judge`."""

    deterministic = True
    can_snapshot = True
    horizon = 4
    splits: tuple[str, ...] = ()

    def __init__(self, horizon: int, limits: Limits | None = None) -> None:
        self.checked("horizon", horizon, 1)
        self.horizon = horizon
        self.sandbox = Sandbox(limits)
        self._state: _State | None = None

    @abstractmethod
    def judge(self, task: Task, program: str) -> Judged:
        """Run the program on the task's tests. Never raises for what the program does."""

    def checked(self, option: str, value: object, least: int) -> None:
        """UserError where an option is no whole number from `least`."""
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(
                f"The environment {self.name!r} cannot have {option} = {value!r}: give a "
                f"whole number from {least}."
            )

    def reset(self, task: Task, seed: int) -> str:
        self._state = _State(task)
        return f"Nothing is submitted yet. You have {counted(self.horizon, 'submission')}."

    def step(self, action: str) -> StepResult:
        state = self._state
        if state is None:
            raise RuntimeError("step before reset")
        refused = ""
        if state.done:
            refused = "The task is over: nothing was run."
        elif not action.strip():
            refused = (
                "There is no whole program in this answer: put one complete Python program in "
                "a fenced block, and close it. Nothing was run."
            )
        elif len(action) > LONGEST:
            refused = f"The program is longer than {LONGEST} characters. Nothing was run."
        elif _is_prose(action):
            refused = (
                "This answer is no Python program: put one complete Python program in a fenced "
                "block. Nothing was run."
            )
        if refused:
            return StepResult(refused, valid=False, done=state.done, progress=float(state.best))
        judged = self.judge(state.task, action)
        success = judged.outcome is Outcome.passed
        submissions = state.submissions + 1
        done = success or submissions >= self.horizon
        self._state = _State(state.task, submissions, max(state.best, judged.passed), done)
        said = judged.said
        if not success:
            left = self.horizon - submissions
            said += (
                f"\nYou have {counted(left, 'submission')} left."
                if left
                else "\nThat was the last submission: the task is lost."
            )
        return StepResult(
            said,
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
        return self.sandbox.versions()

    def close(self) -> None:
        self.sandbox.close()


def _is_prose(action: str) -> bool:
    """One line of words that ends as a sentence does, or in which two that are no keywords stand
    together: what a policy says when it writes no program. Anything else is run, so that its
    syntax error is shown: nothing that a model wrote is parsed in this process."""
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
"""How judges say it."""
