"""MBPP: write a Python function; an action is a whole program, the answer is what its first failing test found.

Up to four submissions, as LEAFE's authors allow on their code benchmark. The task shows its text and its first test (option `shown_tests`; the
usual one-shot prompt of MBPP shows all three); all tests decide. A failing test is shown in the feedback, with the value that was found or the
program's own traceback. Programs run in the sandbox and nowhere else: where this machine cannot give one, the world refuses to be made.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs.sandbox import Limits, Outcome, Sandbox, Verdict

SPLITS = {"shots": range(1, 11), "test": range(11, 511), "valid": range(511, 601), "train": range(601, 975)}
"""The published split, by task_id; 'shots' are the ten that its authors prompt with."""
LONGEST = 20_000
"""Characters of a submission; a longer one is refused unread."""


@dataclass(frozen=True, slots=True)
class _State:
    task: Task
    submissions: int = 0
    best: int = 0
    """Most tests that a submission passed so far: the progress."""
    done: bool = False


class Mbpp(Environment):
    """MBPP (Mostly Basic Python Problems): write a function that passes its tests, in up to 4 submissions.

    Options: `problems`, the file in its published columns (JSON lines, plain or gzip), by default `mbpp/mbpp.jsonl.gz` in the data folder;
    `shown_tests`, how many tests the task shows, 0 to 3; `horizon`, submissions; `seconds`, processor seconds for one submission.
    """

    name = "mbpp"
    deterministic = True
    can_snapshot = True
    horizon = 4
    actions_help = (
        "An action is one complete Python program in a fenced block. It must define the function that the tests call; the standard library may be imported."
    )
    splits: ClassVar[tuple[str, ...]] = tuple(SPLITS)
    needs: ClassVar[str] = "mbpp.jsonl (google-research/mbpp) in LEAFE_DATA/mbpp or at the option problems; bubblewrap: pip install 'leafe[code]'"

    def __init__(self, problems: str | None = None, shown_tests: int = 1, horizon: int = 4, seconds: int = 3) -> None:
        for option, value, least in (("shown_tests", shown_tests, 0), ("horizon", horizon, 1), ("seconds", seconds, 1)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"The world 'mbpp' cannot have {option} = {value!r}: give a whole number from {least}.")
        self.problems = problems
        self.shown_tests = shown_tests
        self.horizon = horizon
        self.limits = Limits(seconds=seconds, wall_seconds=3.0 * seconds + 1)
        self.sandbox = Sandbox(self.limits)
        self._state: _State | None = None

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems in an order drawn by `seed`; a smaller count is a prefix of a larger one."""
        if split not in SPLITS:
            raise UserError(f"The world 'mbpp' has no split {split!r}: its splits are {', '.join(SPLITS)}.")
        path = Path(self.problems) if self.problems else data_path("mbpp/mbpp.jsonl.gz", "MBPP", "problems")
        chosen = [self._task(row, split) for row in read_problems(path) if row["task_id"] in SPLITS[split]]
        random.Random(derive_seed(seed, "mbpp", split)).shuffle(chosen)
        return chosen[:count]

    def _task(self, row: dict[str, Any], split: str) -> Task:
        tests = [test.strip() for test in row["test_list"]]
        shown = tests[: self.shown_tests]
        what = "this test" if len(shown) == 1 else "these tests"
        instruction = row["text"].strip() + (f"\nYour code should pass {what}:\n" + "\n".join(shown) if shown else "")
        payload = {"tests": tests, "setup": row["test_setup_code"].replace("\r\n", "\n")}
        return Task(id=f"mbpp-{row['task_id']}", env=self.name, split=split, instruction=instruction, payload=payload)

    def reset(self, task: Task, seed: int) -> str:
        self._state = _State(task)
        return f"Nothing is submitted yet. You have {_counted(self.horizon, 'submission')}."

    def step(self, action: str) -> StepResult:
        state = self._state
        if state is None:
            raise RuntimeError("step before reset")
        refused = ""
        if state.done:
            refused = "The task is over: nothing was run."
        elif not action.strip():
            refused = "There is no code in this answer: put one complete Python program in a fenced block. Nothing was run."
        elif len(action) > LONGEST:
            refused = f"The program is longer than {LONGEST} characters. Nothing was run."
        if refused:
            return StepResult(refused, valid=False, done=state.done, progress=float(state.best))
        tests = state.task.payload["tests"]
        verdict = self.sandbox.run(action, tests, state.task.payload["setup"])
        success = verdict.outcome is Outcome.passed
        submissions = state.submissions + 1
        done = success or submissions >= self.horizon
        self._state = _State(state.task, submissions, max(state.best, verdict.passed), done)
        said = self._feedback(verdict, tests)
        if not success:
            left = self.horizon - submissions
            said += f"\nYou have {_counted(left, 'submission')} left." if left else "\nThat was the last submission: the task is lost."
        return StepResult(said, reward=float(success), done=done, success=success, progress=float(self._state.best), info={"outcome": str(verdict.outcome)})

    def snapshot(self) -> object:
        return self._state

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, _State)
        self._state = snapshot

    def _feedback(self, verdict: Verdict, tests: Sequence[str]) -> str:
        if verdict.outcome is Outcome.passed:
            return f"All {_counted(verdict.total, 'test')} passed."
        what = {
            Outcome.failed: "failed",
            Outcome.error: "raised an exception",
            Outcome.time: f"ran past the time limit of {self.limits.seconds} s",
            Outcome.memory: f"used more than {self.limits.memory >> 20} MB of memory",
            Outcome.output: f"printed more than {self.limits.output >> 10} KB",
            Outcome.exited: "ended the process",
        }[verdict.outcome]
        detail = f"\n{verdict.detail}" if verdict.detail else ""
        if verdict.test is None:
            return f"Loading the program {what}.{detail}"
        return f"{verdict.passed} of {_counted(verdict.total, 'test')} passed. This test {what}:\n{tests[verdict.test]}{detail}"


def read_problems(path: Path) -> list[dict[str, Any]]:
    """The problems of a file in MBPP's published columns; UserError with file and line for one that is not."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"The MBPP file {path} cannot be read: {error}.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: this is no JSON ({error.msg}): each line is one MBPP problem.") from error
        row = {"test_setup_code": ""} | row if isinstance(row, dict) else {}
        kinds = {"task_id": int, "text": str, "test_setup_code": str, "test_list": list}
        wrong = [column for column, kind in kinds.items() if not isinstance(row.get(column), kind)]
        if not wrong and not (row["test_list"] and all(isinstance(test, str) for test in row["test_list"])):
            wrong = ["test_list"]
        if wrong:
            raise UserError(f"{path}, line {number}: the column {wrong[0]!r} is missing or of the wrong type: each line is one MBPP problem.")
        rows.append(row)
    return rows


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
