"""What MBPP and HumanEval share: the words for test results, and which tasks can be judged.

Shown tests run first, and their failures are described in full. Hidden tests run afterwards, in
boxes of their own, and only the kind of a failure is reported: neither which test failed nor how
many passed, since a program could choose these by what it reads in a hidden test.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from leafe.core import EnvError, Task, UserError
from leafe.envs.code._submissions import Judged, counted
from leafe.envs.sandbox import NOT_THE_PROGRAM, Limits, Outcome, Verdict

_MAX_NAMED = 20
"""The most tasks that a message names."""


def kind(outcome: Outcome, limits: Limits) -> str:
    """A test's outcome in words."""
    return {
        Outcome.passed: "passed",
        Outcome.failed: "failed",
        Outcome.error: "raised an exception",
        Outcome.time: f"ran past the time limit of {limits.seconds:g} s",
        Outcome.memory: f"used more than {limits.memory >> 20} MB of memory",
        Outcome.output: f"printed more than {limits.output >> 10} KB",
        Outcome.exited: "ended the process",
    }[outcome]


def feedback(verdict: Verdict, shown: Sequence[str], total: int, limits: Limits) -> str:
    """The result of the shown tests; the task has `total` tests in all."""
    if verdict.outcome is Outcome.passed:
        return f"All {counted(verdict.total, 'test')} passed."
    detail = f"\n{verdict.detail}" if verdict.detail else ""
    if verdict.test is None:
        return f"Loading the program {kind(verdict.outcome, limits)}.{detail}"
    tests = counted(len(shown), "test" if len(shown) == total else "shown test")
    return (
        f"{verdict.passed} of {tests} passed. This test "
        f"{kind(verdict.outcome, limits)}:\n{shown[verdict.test]}{detail}"
    )


def hidden_feedback(outcome: Outcome, shown: int, limits: Limits) -> str:
    """The result where a hidden test failed after all `shown` tests passed."""
    passed = f"All {counted(shown, 'shown test')} passed. " if shown else ""
    return f"{passed}A hidden test {kind(outcome, limits)}."


def judgeable(
    tasks: Iterable[tuple[Task, str | None]],
    count: int | None,
    judge: Callable[[Task, str], Judged],
    where: object,
) -> list[Task]:
    """The first `count` tasks whose reference passes here; a warning names the others.

    A reference that fails shows that a test is wrong or cannot be judged here (see
    docs/environments.md).

    Args:
        tasks: Pairs of a task and its reference program, None if it has none.
        count: How many tasks to return; None for all.
        judge: Runs a program on a task's tests.
        where: The file, for messages.

    Raises:
        UserError: No task is left.
    """
    kept: list[Task] = []
    refused: dict[str, str] = {}
    for task, reference in tasks:
        if len(kept) == count:
            break
        if reference is not None and (why := _refused(task, reference, judge)):
            refused[task.id] = why
        else:
            kept.append(task)
    if refused:
        names = [f"{name} ({why})" for name, why in list(refused.items())[:_MAX_NAMED]]
        more = [f"{len(refused) - _MAX_NAMED} more"] if len(refused) > _MAX_NAMED else []
        text = (
            f"{where}: {len(refused)} of {counted(len(refused) + len(kept), 'task')} cannot be "
            "judged here (the reference does not pass): "
        )
        text += ", ".join(names + more) + "."
        if not kept:
            raise UserError(f"{text} Give another file.")
        warnings.warn(f"{text} They are left out.", stacklevel=3)
    return kept


_CHECKED: dict[str, str] = {}
"""Why a task is refused, or "", by its reference and tests: a file is often read many times."""


def _refused(task: Task, reference: str, judge: Callable[[Task, str], Judged]) -> str:
    """Why the task cannot be judged here; "" if it can."""
    tests = task.payload["tests"]
    own_types = _own_types(reference)
    # a reference that is no Python says nothing about the tests
    if own_types is None or (not own_types and all(map(_plain, tests))):
        return ""
    key = hashlib.sha256(
        repr((reference, sorted(task.payload.items()))).encode("utf-8", "backslashreplace")
    ).hexdigest()
    if key not in _CHECKED:
        try:
            judged = judge(task, reference)
        except EnvError as error:
            _CHECKED[key] = " ".join(str(error).split())
        else:
            # a slow reference is no fault of the task; a test that never ends is one
            slow = (
                judged.outcome in (Outcome.time, Outcome.memory)
                and NOT_THE_PROGRAM not in judged.detail
            )
            _CHECKED[key] = "" if judged.outcome is Outcome.passed or slow else str(judged.outcome)
    return _CHECKED[key]


@cache
def _own_types(program: str) -> bool | None:
    """Whether a program defines types of its own; None if it is no Python."""
    try:
        return any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(program)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@cache
def _plain(test: str) -> bool:
    """Whether a test compares a call on literals with a literal, exactly or within a bound. Such a
    test is known to be judged as Python does."""
    try:
        body = ast.parse(test).body
        return all(
            isinstance(s, ast.Assert)
            and isinstance(s.test, ast.Compare)
            and _plain_comparison(s.test)
            for s in body
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _plain_comparison(compared: ast.Compare) -> bool:
    call = compared.left
    if (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "abs"
        and len(call.args) == 1
        and isinstance(call.args[0], ast.BinOp)
    ):
        if not _literal(call.args[0].right):
            return False
        call = call.args[0].left
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return False
    return all(
        map(
            _literal,
            [*compared.comparators, *call.args, *(keyword.value for keyword in call.keywords)],
        )
    )


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True
