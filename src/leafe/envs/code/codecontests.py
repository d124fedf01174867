"""CodeContests: solve a contest problem with a Python program that reads stdin and writes stdout.

The statement's own examples are the public tests. A failing one is shown with its input, the
expected and the actual output, or the program's traceback. The private and the generated tests
decide and are never shown: their inputs enter the sandbox one at a time, their outputs never do,
and only the kind of a failure is reported. (A public test alone can reject a right program: some
problems have several answers.) Progress counts public tests first, and hidden ones only if all
public ones passed. The limits are the problem's own.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Task, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs._options import check_split, shuffled
from leafe.envs.code._compare import describe_difference, excerpt, first_difference
from leafe.envs.code._files import SUFFIXES, read_rows
from leafe.envs.code._submissions import VERDICTS, Judged, Submissions, counted
from leafe.envs.sandbox import Limits, Outcome

SPLITS = ("train", "valid", "test")
_TESTS = ("public_tests", "private_tests", "generated_tests")
_COLUMNS = ("name", "description", *_TESTS, "time_limit", "memory_limit_bytes", "input_file")
_SECONDS, _MEMORY = 2.0, 256_000_000
"""Defaults, if the file has no limit."""
_INTERPRETER = 64 << 20
"""Bytes of address space for Python itself, added to the problem's limit."""
_OUTPUT = 1 << 20
"""Bytes that a program may print, in addition to twice the expected output."""
_LIMITS = (Outcome.time, Outcome.memory, Outcome.output)
_APPENDED = re.compile(r"^## (Categories|Source|Examples|Testing)$", re.MULTILINE)
"""What some conversions append to a statement: tags, and examples that are private tests."""
_NEXT_EXAMPLE = re.compile(r"\n\s*\n(Input|Note|## (Categories|Source|Examples|Testing))\n")
"""What may follow the output of an example that a conversion cut too late."""


class CodeContests(Submissions):
    """CodeContests: programs for contest problems, judged on hidden tests, in up to 4 submissions.

    Files whose names begin with train, valid or test are that split. If no name does, the problems
    are split by a hash of their names: 70 % train, 10 % valid, 20 % test.

    Args:
        problems: A file or a folder in the official columns (parquet, JSON lines, gzip). By default
            `codecontests` in the data folder.
        horizon: Submissions.
        time_factor: Multiplies a problem's time limit, which was set for C++ on another machine.
        memory_factor: Multiplies a problem's memory limit.
    """

    name = "codecontests"
    actions_help = (
        "An action is one complete Python 3 program in a fenced block. It reads standard "
        "input and prints to standard output; "
        "the standard library may be imported."
    )
    splits: tuple[str, ...] = SPLITS
    needs: ClassVar[str] = (
        "CodeContests (deepmind/code_contests) in LEAFE_DATA/codecontests or at the option "
        "problems; bubblewrap: pip install 'leafe[code]'"
    )

    def __init__(
        self,
        problems: str | None = None,
        horizon: int = 4,
        time_factor: float = 1.0,
        memory_factor: float = 1.0,
    ) -> None:
        for option, value in (("time_factor", time_factor), ("memory_factor", memory_factor)):
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 < value < 1000
            ):
                raise UserError(
                    f"The environment 'codecontests' cannot have {option} = {value!r}: "
                    "give a number above 0."
                )
        super().__init__(horizon)
        self.problems = problems
        self.time_factor, self.memory_factor = time_factor, memory_factor
        self._names: dict[str, list[str]] = {}

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems, in an order drawn by `seed`, without those that read a named file
        instead of stdin."""
        check_split(self.name, split, SPLITS)
        files, by_name = self._files(split)
        if split not in self._names:
            found = {
                _name(row, where): row.get("input_file")
                for where, row in _rows(files, ("name", "input_file"))
            }
            self._names[split] = sorted(
                name
                for name, reads in found.items()
                if not reads and (not by_name or hash_split(name) == split)
            )
        chosen = shuffled(self._names[split], seed, "codecontests", split)
        wanted: dict[str, Task | None] = dict.fromkeys(chosen[:count])
        for where, row in _rows(files, _COLUMNS, wanted):
            name = _name(row, where)
            if name in wanted and wanted[name] is None:
                wanted[name] = self._task(row, where, split)
        return [task for task in wanted.values() if task is not None]

    def _path(self) -> Path:
        return (
            Path(self.problems)
            if self.problems
            else data_path("codecontests", "CodeContests", "problems")
        )

    def _files(self, split: str) -> tuple[list[Path], bool]:
        """The files that hold the split, and whether the problems' names decide the split."""
        path = self._path()
        if not path.exists():
            raise UserError(
                f"CodeContests not found at {path}: give the option problems the path of a "
                "file or folder."
            )
        files = _files_of(path)
        if not files:
            raise UserError(
                f"{path} holds no problems: it should have files that end in {', '.join(SUFFIXES)}."
            )
        named = {
            file: match[1]
            for file in files
            if (match := re.match(r"(train|valid|test)", file.name))
        }
        if not named:
            return files, True
        files = [file for file in files if named.get(file) == split]
        if not files:
            raise UserError(
                f"{path} holds no file of the split {split!r}: there "
                f"{'is' if len(named) == 1 else 'are'} {', '.join(f.name for f in named)}."
            )
        return files, False

    def _task(self, row: Mapping[str, Any], where: str, split: str) -> Task:
        description = row.get("description")
        if not isinstance(description, str):
            raise _bad_column(where, "description")
        public, *hidden = (_tests(row, column, where) for column in _TESTS)
        description = _APPENDED.split(description, maxsplit=1)[0]
        public = [
            [stdin, _NEXT_EXAMPLE.split(want, maxsplit=1)[0] + "\n"] for stdin, want in public
        ]
        seconds, memory = _seconds(row, where), row.get("memory_limit_bytes") or _MEMORY
        if not isinstance(memory, int):
            raise _bad_column(where, "memory_limit_bytes")
        payload = {
            "public": public,
            "hidden": [test for tests in hidden for test in tests],
            "seconds": seconds,
            "memory": memory,
        }
        if not (payload["public"] or payload["hidden"]):
            raise UserError(
                f"{where}: this problem has no test: each row is one problem with tests."
            )
        limits = f"Time limit: {seconds:g} s. Memory limit: {memory // 1_000_000} MB."
        return Task(
            f"codecontests-{row['name']}",
            self.name,
            split,
            f"{description.strip()}\n\n{limits}",
            payload,
        )

    def problem_files(self) -> Sequence[Path]:
        return _files_of(self._path())

    def judge(self, task: Task, program: str) -> Judged:
        public, hidden = task.payload["public"], task.payload["hidden"]
        passed, shown_failure, outcome = 0, "", Outcome.passed
        for at, test in enumerate(public):
            result, report = self._run(task, program, test)
            passed += result is Outcome.passed
            if result is not Outcome.passed and not shown_failure:
                outcome = result
                shown_failure = (
                    f"{VERDICTS[result]} on public test {at + 1} "
                    f"(%s).\nInput:\n{excerpt(test[0])}{report}"
                )
            if result in _LIMITS:
                break
        if shown_failure:
            score = f"{passed} of {counted(len(public), 'public test')} passed"
            shown_failure = shown_failure.replace("%s", score, 1)
            if outcome is not Outcome.failed or not hidden:
                return Judged(shown_failure, passed, outcome)
        ran = 0
        for test in hidden:
            outcome, _ = self._run(task, program, test, hidden=True)
            if outcome is not Outcome.passed:
                break
            ran += 1
        progress = passed if shown_failure else passed + ran
        if ran < len(hidden):
            all_public = f"All {counted(len(public), 'public test')} passed. " if public else ""
            return Judged(
                shown_failure or f"{all_public}{VERDICTS[outcome]} on a hidden test.",
                progress,
                outcome,
            )
        tests = counted(len(hidden) or len(public), "hidden test" if hidden else "test")
        return Judged(f"Accepted: all {tests} passed.", progress, Outcome.passed)

    def _run(
        self, task: Task, program: str, test: Sequence[str], hidden: bool = False
    ) -> tuple[Outcome, str]:
        """The outcome, and what to show of it below the input."""
        stdin, want = (text.encode("utf-8", "surrogatepass") for text in test)
        seconds = task.payload["seconds"] * self.time_factor
        memory = int(task.payload["memory"] * self.memory_factor)
        limits = Limits(seconds, None, memory + _INTERPRETER, _OUTPUT + 2 * len(want))
        run = self.sandbox.run_script(program, stdin, limits, hidden=hidden)
        if run.outcome is Outcome.passed:
            at = first_difference(run.stdout, want)
            if at is None:
                return Outcome.passed, ""
            if not run.detail:
                return Outcome.failed, "\n" + describe_difference(run.stdout, want, at)
            return Outcome.error, "\n" + run.detail  # an exception in a thread, and no output
        reports = {
            Outcome.time: f"It ran longer than {seconds:g} s.",
            Outcome.memory: f"It took more than {memory // 1_000_000} MB.",
            Outcome.output: f"It printed more than {limits.output >> 10} KB.",
        }
        return run.outcome, "\n" + reports.get(run.outcome, run.detail)


def _files_of(path: Path) -> list[Path]:
    return (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
    )


def hash_split(name: str) -> str:
    """The split of a problem, by its name alone."""
    part = derive_seed(0, "codecontests split", name) % 10
    return "train" if part < 7 else "valid" if part == 7 else "test"


def _rows(
    files: Sequence[Path], columns: Sequence[str], names: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        yield from read_rows(file, columns, "CodeContests", names)


def _name(row: Mapping[str, Any], where: str) -> str:
    name = row.get("name")
    if not isinstance(name, str) or not name:
        raise _bad_column(where, "name")
    return name


def _tests(row: Mapping[str, Any], column: str, where: str) -> list[list[str]]:
    tests = row.get(column)
    if tests is None and column == "generated_tests":
        return []
    inputs, outputs = (
        (tests.get("input"), tests.get("output")) if isinstance(tests, dict) else (None, None)
    )
    if not (
        isinstance(inputs, list)
        and isinstance(outputs, list)
        and len(inputs) == len(outputs)
        and all(isinstance(text, str) for text in (*inputs, *outputs))
    ):
        raise _bad_column(where, column)
    return [list(pair) for pair in zip(inputs, outputs, strict=True)]


def _seconds(row: Mapping[str, Any], where: str) -> float:
    limit = row.get("time_limit")
    if limit is None:
        return _SECONDS
    try:
        return limit["seconds"] + (limit["nanos"] or 0) / 1e9 or _SECONDS
    except (TypeError, KeyError):
        raise _bad_column(where, "time_limit") from None


def _bad_column(where: str, column: str) -> UserError:
    return UserError(
        f"{where}: the column {column!r} is missing or of the wrong type: each row is one "
        "problem in the columns of deepmind/code_contests."
    )
