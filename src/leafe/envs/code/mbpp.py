"""MBPP: write a Python function; an action is a whole program, the answer is what its first failing test found.

The task shows its text and its first test (option `shown_tests`; the usual prompt of MBPP shows all three); all tests decide. A shown test that fails
comes back with the value that was found or the program's own traceback; of a hidden one only the kind of its failure is said.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Task, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs.code._files import file_versions, read_lines
from leafe.envs.code._submissions import LONGEST, Judged, Submissions, counted
from leafe.envs.sandbox import Limits, Outcome, Verdict

__all__ = ["LONGEST", "SPLITS", "Mbpp", "read_problems"]

SPLITS = {"shots": range(1, 11), "test": range(11, 511), "valid": range(511, 601), "train": range(601, 975)}
"""The published split, by task_id; 'shots' are the ten that its authors prompt with."""


class Mbpp(Submissions):
    """MBPP (Mostly Basic Python Problems): write a function that passes its tests, in up to 4 submissions.

    Options: `problems`, the file in its published columns (JSON lines, plain or gzip), by default `mbpp/mbpp.jsonl.gz` in the data folder;
    `shown_tests`, how many tests the task shows, 0 to 3; `horizon`, submissions; `seconds`, processor seconds for one submission.
    """

    name = "mbpp"
    actions_help = (
        "An action is one complete Python program in a fenced block. It must define the function that the tests call; the standard library may be imported."
    )
    splits: ClassVar[tuple[str, ...]] = tuple(SPLITS)
    needs: ClassVar[str] = "mbpp.jsonl (google-research/mbpp) in LEAFE_DATA/mbpp or at the option problems; bubblewrap: pip install 'leafe[code]'"

    def __init__(self, problems: str | None = None, shown_tests: int = 1, horizon: int = 4, seconds: int = 3) -> None:
        self.checked("shown_tests", shown_tests, 0)
        self.checked("seconds", seconds, 1)
        self.limits = Limits(seconds=seconds)
        super().__init__(horizon, self.limits)
        self.problems = problems
        self.shown_tests = shown_tests

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems in an order drawn by `seed`; a smaller count is a prefix of a larger one."""
        if split not in SPLITS:
            raise UserError(f"The world 'mbpp' has no split {split!r}: its splits are {', '.join(SPLITS)}.")
        chosen = [self._task(row, split) for row in read_problems(self._path()) if row["task_id"] in SPLITS[split]]
        random.Random(derive_seed(seed, "mbpp", split)).shuffle(chosen)
        return chosen[:count]

    def _path(self) -> Path:
        return Path(self.problems) if self.problems else data_path("mbpp/mbpp.jsonl.gz", "MBPP", "problems")

    def versions(self) -> Mapping[str, str]:
        found = dict(super().versions())
        with contextlib.suppress(UserError):  # tasks may come from elsewhere
            found |= file_versions([self._path()])
        return found

    def _task(self, row: dict[str, Any], split: str) -> Task:
        tests = [test.strip() for test in row["test_list"]]
        shown = tests[: self.shown_tests]
        what = "this test" if len(shown) == 1 else "these tests"
        instruction = row["text"].strip() + (f"\nYour code should pass {what}:\n" + "\n".join(shown) if shown else "")
        payload = {"tests": tests, "setup": row["test_setup_code"].replace("\r\n", "\n")}
        return Task(id=f"mbpp-{row['task_id']}", env=self.name, split=split, instruction=instruction, payload=payload)

    def judge(self, task: Task, program: str) -> Judged:
        tests = task.payload["tests"]
        verdict = self.sandbox.run(program, tests, task.payload["setup"])
        return Judged(feedback(verdict, tests[: self.shown_tests], self.limits), verdict.passed, verdict.outcome)


def feedback(verdict: Verdict, shown: Sequence[str], limits: Limits) -> str:
    """What is said of a function's tests, of which the first, `shown`, may be seen."""
    if verdict.outcome is Outcome.passed:
        return f"All {counted(verdict.total, 'test')} passed."
    what = {
        Outcome.failed: "failed",
        Outcome.error: "raised an exception",
        Outcome.time: f"ran past the time limit of {limits.seconds:g} s",
        Outcome.memory: f"used more than {limits.memory >> 20} MB of memory",
        Outcome.output: f"printed more than {limits.output >> 10} KB",
        Outcome.exited: "ended the process",
    }[verdict.outcome]
    detail = f"\n{verdict.detail}" if verdict.detail else ""
    if verdict.test is None:
        return f"Loading the program {what}.{detail}"
    score = f"{verdict.passed} of {counted(verdict.total, 'test')} passed."
    if verdict.test < len(shown):
        return f"{score} This test {what}:\n{shown[verdict.test]}{detail}"
    return f"{score} A hidden test {what}."


def read_problems(path: Path) -> list[dict[str, Any]]:
    """The problems of a file in MBPP's published columns; UserError with file and line for one that is not."""
    rows = []
    for where, found in read_lines(path, "MBPP"):
        row = {"test_setup_code": ""} | found
        kinds = {"task_id": int, "text": str, "test_setup_code": str, "test_list": list}
        wrong = [column for column, kind in kinds.items() if not isinstance(row.get(column), kind)]
        if not wrong and not (row["test_list"] and all(isinstance(test, str) for test in row["test_list"])):
            wrong = ["test_list"]
        if wrong:
            raise UserError(f"{where}: the column {wrong[0]!r} is missing or of the wrong type: each line is one MBPP problem.")
        rows.append(row)
    return rows
