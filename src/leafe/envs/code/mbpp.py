"""MBPP: write a Python function. An action is a whole program; its first failing test answers.

The task shows its text and its first test (option `shown_tests`; the usual MBPP prompt shows all
three). All tests decide. A failing shown test is answered with the value that was found or the
program's traceback. Hidden tests run only if the shown ones pass, and only the kind of a failure is
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Task, UserError
from leafe.envs._data import data_path
from leafe.envs._options import check_split, shuffled, whole_number
from leafe.envs.code._files import read_rows
from leafe.envs.code._functions import feedback, hidden_feedback, judgeable
from leafe.envs.code._submissions import MAX_PROGRAM, Judged, Submissions
from leafe.envs.sandbox import Limits, Outcome, Verdict

__all__ = ["MAX_PROGRAM", "SPLITS", "Mbpp", "read_problems"]

SPLITS = {
    "shots": range(1, 11),
    "test": range(11, 511),
    "valid": range(511, 601),
    "train": range(601, 975),
}
"""The published split by task_id. 'shots' are the ten examples of its authors' prompt."""
_COLUMNS = (
    "task_id",
    "text",
    "prompt",
    "code",
    "test_list",
    "test_setup_code",
    "test_imports",
    "test",
)
_FITS = (
    "each row is one problem in the columns of mbpp.jsonl or sanitized-mbpp.json "
    "(google-research/mbpp), or of MBPP+ as evalplus/mbppplus has them "
    "(task_id, text or prompt, test_list)."
)


class Mbpp(Submissions):
    """MBPP (Mostly Basic Python Problems): write a function that passes its tests, in up to 4
    submissions.

    Args:
        problems: The file, in the columns of MBPP, sanitized MBPP or MBPP+ (JSON lines, an array or
            parquet). By default `mbpp/mbpp.jsonl.gz` in the data folder.
        shown_tests: How many tests the task shows, 0 to 3.
        horizon: Submissions.
        seconds: Processor seconds for one run of a submission.
    """

    name = "mbpp"
    actions_help = (
        "An action is one complete Python program in a fenced block. It must define the "
        "function that the tests call; the standard library may be imported."
    )
    splits: tuple[str, ...] = tuple(SPLITS)
    needs: ClassVar[str] = (
        "mbpp.jsonl (google-research/mbpp) in LEAFE_DATA/mbpp or at the option problems; "
        "bubblewrap: pip install 'leafe[code]'"
    )

    def __init__(
        self, problems: str | None = None, shown_tests: int = 1, horizon: int = 4, seconds: int = 3
    ) -> None:
        self.limits = Limits(seconds=whole_number(self.name, "seconds", seconds))
        super().__init__(horizon, self.limits)
        self.problems = problems
        self.shown_tests = whole_number(self.name, "shown_tests", shown_tests, least=0)

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems, in an order drawn by `seed`. A problem whose reference does not
        pass here is skipped with a warning."""
        check_split(self.name, split, SPLITS)
        rows = [row for row in read_problems(self._path()) if row["task_id"] in SPLITS[split]]
        return judgeable(
            ((self._task(row, split), row["code"]) for row in shuffled(rows, seed, "mbpp", split)),
            count,
            self.judge,
            self._path(),
        )

    def _path(self) -> Path:
        return (
            Path(self.problems)
            if self.problems
            else data_path("mbpp/mbpp.jsonl.gz", "MBPP", "problems")
        )

    def problem_files(self) -> Sequence[Path]:
        return [self._path()]

    def _task(self, row: dict[str, Any], split: str) -> Task:
        tests = row["test_list"]
        shown = tests[: self.shown_tests]
        what = "this test" if len(shown) == 1 else "these tests"
        instruction = row["text"].strip() + (
            f"\nYour code should pass {what}:\n" + "\n".join(shown) if shown else ""
        )
        payload = {"tests": [*tests, *row["more_tests"]], "setup": row["test_setup_code"]}
        if row["test_imports"]:
            payload["imports"] = row["test_imports"]
        return Task(
            id=f"mbpp-{row['task_id']}",
            env=self.name,
            split=split,
            instruction=instruction,
            payload=payload,
        )

    def judge(self, task: Task, program: str) -> Judged:
        tests, imports = task.payload["tests"], task.payload.get("imports", "")
        shown = tests[: self.shown_tests]

        def run(chosen: list[str], hidden: bool) -> Verdict:
            return self.sandbox.run(
                program,
                chosen,
                "\n".join([imports, task.payload["setup"]]).strip(),
                judge_setup=imports,
                hidden=hidden,
            )

        verdict = run(shown, hidden=False)
        if verdict.outcome is not Outcome.passed or len(shown) == len(tests):
            return Judged(
                feedback(verdict, shown, len(tests), self.limits),
                verdict.passed,
                verdict.outcome,
                verdict.detail,
            )
        verdict = run(tests, hidden=True)
        if verdict.outcome is Outcome.passed:
            return Judged(
                feedback(verdict, shown, len(tests), self.limits), verdict.passed, verdict.outcome
            )
        text = hidden_feedback(verdict.outcome, len(shown), self.limits)
        return Judged(text, max(verdict.passed, len(shown)), verdict.outcome, verdict.detail)


def read_problems(path: Path) -> list[dict[str, Any]]:
    """The problems of a file in the columns of MBPP, sanitized MBPP or MBPP+.

    Returns:
        Rows with `task_id`, `text`, `test_list`, `test_setup_code`, `test_imports` (one text),
        `more_tests` (the further tests of MBPP+, as one), and `code` or None.

    Raises:
        UserError: A row is none of these; the message names its line.
    """
    rows = []
    for where, found in read_rows(path, _COLUMNS, "MBPP"):
        row = {"test_setup_code": "", "test_imports": [], "code": None, "test": ""} | {
            k: v for k, v in found.items() if v is not None
        }
        row["text"] = row.get("text", row.get("prompt"))
        kinds = {
            "task_id": int,
            "text": str,
            "test_setup_code": str,
            "test_list": list,
            "test_imports": list,
            "test": str,
        }
        wrong = [column for column, kind in kinds.items() if not isinstance(row.get(column), kind)]
        wrong += [
            c
            for c in ("test_list", "test_imports")
            if c not in wrong and not all(isinstance(text, str) for text in row[c])
        ]
        wrong += [] if wrong or row["test_list"] else ["test_list"]
        if wrong:
            raise UserError(
                f"{where}: the column {wrong[0]!r} is missing or of the wrong type: {_FITS}"
            )
        row["test_list"] = [test.strip() for test in row["test_list"]]
        row["test_setup_code"] = row["test_setup_code"].replace("\r\n", "\n")
        row["test_imports"] = "\n".join(row["test_imports"])
        row["more_tests"] = [row.pop("test")] if row["test"].strip() else []
        row["code"] = row["code"] if isinstance(row["code"], str) else None
        rows.append(row)
    return rows
