"""Runs programs in boxes, and judges their tests where the program cannot reach.

A script's output is compared by the caller, outside all boxes; only one test's input enters. A
function's tests run in a second box, which asks the program's box for calls and receives plain
values. So a program passes a test only by giving the right value: nothing that it prints, returns,
redefines or leaves undone counts as a success.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from leafe.core import EnvError, UserError, clean_text
from leafe.envs.sandbox._box import CURE, Boxes
from leafe.envs.sandbox._seccomp import seccomp_filter
from leafe.envs.sandbox._watch import Ended, Limits, Outcome, Watch
from leafe.envs.sandbox.guest._plain import short

_SLOTS = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
"""Runs at once in this process: the wall clock of a run must not be spent on waiting for a core."""
_ATTEMPTS = 3
NOT_THE_PROGRAM = "It was the test's own code that did."
"""The detail of a verdict where the test itself ran into a limit."""
_JUDGE = Limits(seconds=10, wall_seconds=60.0, memory=512 << 20, output=1 << 20, report=256 << 20)
"""Limits of the judge's box, where no model-written code runs."""
_DETAIL_LINES = 12

T = TypeVar("T")
Way = Literal["fork", "fresh"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a program's tests."""

    outcome: Outcome
    passed: int
    """Tests that passed, of `total`."""
    total: int
    test: int | None = None
    """Index of the first test that did not pass; None if all did, or if the program did not
    load."""
    detail: str = ""
    """What was found instead, or a short traceback of the program's own frames. Deterministic,
    unless the program draws at random."""


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a script on one input."""

    outcome: Outcome
    """`passed` if it ended with status 0: the caller judges its output."""
    stdout: bytes
    detail: str = ""


class Sandbox:
    """Runs programs in boxes.

    Args:
        limits: Bounds of one run; by default `Limits()`.
        way: 'fork' forks each process from one that waits in a box (a few milliseconds). 'fresh'
            makes a box for each run (some tens of milliseconds). 'auto' is 'fork' if its self-test
            passes. Walls, limits and verdicts are the same.

    Raises:
        UserError: The self-test fails: this machine cannot give the protection.
    """

    def __init__(
        self, limits: Limits | None = None, way: Literal["auto", "fork", "fresh"] = "auto"
    ) -> None:
        self.limits = limits or Limits()
        self.way = _way(way)
        _USERS.add(self)

    def run(
        self,
        program: str,
        tests: Sequence[str],
        setup: str = "",
        *,
        given: str = "",
        judge_setup: str = "",
        names: Mapping[str, str] | None = None,
        hidden: bool = False,
    ) -> Verdict:
        """Run a program's tests.

        `given`, the program and then `setup` are loaded into one namespace. Each test runs in the
        judge's box. Blocks, for milliseconds up to the wall limit. Thread-safe.

        Args:
            program: Python source.
            tests: Python statements, usually one assert each. None: the program is only loaded.
            setup: Source loaded after the program.
            given: Source loaded before the program.
            judge_setup: Source run in the judge's box before the tests.
            names: What a name in a test is called in the program.
            hidden: Use boxes in which only hidden tests run, so that nothing that a program leaves
                behind there is found by a shown test.

        Raises:
            EnvError: The box itself failed three times in a row.
        """
        job = {"program": program, "given": given, "setup": setup}
        judge = {"tests": list(tests), "setup": judge_setup, "names": dict(names or {})}
        return self._retried(
            lambda: _verdict(
                _BOXES[self.way].of(hidden), _BOXES[self.way].tests, job, judge, self.limits
            )
        )

    def run_script(
        self, program: str, stdin: bytes, limits: Limits | None = None, *, hidden: bool = False
    ) -> Run:
        """Run a program as a script that reads `stdin`.

        Args:
            program: Python source.
            stdin: Its input.
            limits: By default the sandbox's.
            hidden: The input is that of a hidden test.

        Raises:
            EnvError: The box itself failed three times in a row.
        """
        return self._retried(
            lambda: _script(_BOXES[self.way].of(hidden), program, stdin, limits or self.limits)
        )

    def close(self) -> None:
        """End the waiting processes, if no other sandbox of this process is in use. A later run
        starts new ones."""
        _USERS.discard(self)
        if not _USERS:
            for boxes in _BOXES["fork"]:
                boxes.close()

    def versions(self) -> dict[str, str]:
        """The Python that runs the programs."""
        return {"python in the sandbox": platform.python_version()}

    def _retried(self, run: Callable[[], T]) -> T:
        _USERS.add(self)
        for left in reversed(range(_ATTEMPTS)):
            try:
                with _SLOTS:
                    return run()
            except (EnvError, OSError) as error:
                if not left:
                    raise EnvError(f"The sandbox failed {_ATTEMPTS} times: {error}") from error
        raise AssertionError("not reached")


_USERS: weakref.WeakSet[Sandbox] = weakref.WeakSet()


class Pools(NamedTuple):
    """Boxes by what runs in them; nothing runs in a box of another kind."""

    shown: Boxes
    """Programs on tests that the policy may see."""
    hidden: Boxes
    """Programs on hidden tests."""
    tests: Boxes
    """The tests themselves: judges."""

    @staticmethod
    def made(keep: bool) -> Pools:
        return Pools(Boxes(keep), Boxes(keep), Boxes(keep))

    def of(self, hidden: bool) -> Boxes:
        """The boxes for programs."""
        return self.hidden if hidden else self.shown


_BOXES: dict[Way, Pools] = {"fork": Pools.made(keep=True), "fresh": Pools.made(keep=False)}


def restarts() -> int:
    """How many fork servers of this process were lost and started anew."""
    return sum(boxes.restarts for pair in _BOXES.values() for boxes in pair)


def _script(boxes: Boxes, program: str, stdin: bytes, limits: Limits, filtered: bool = True) -> Run:
    with closing(
        Watch(boxes.start, "script", {"program": program}, limits, stdin, filtered)
    ) as watch:
        said = watch.line()
        while (more := watch.line()) is not None:
            said = said or more
        ended = watch.end()
        _check_start(watch, ended)
        detail = _shortened(str(said.get("detail", ""))) if said else ""
        if ended.bound:
            return Run(ended.bound, ended.stdout)
        if said and said.get("event") == "memory" and ended.status:
            return Run(Outcome.memory, ended.stdout)
        if ended.status == 0:
            return Run(Outcome.passed, ended.stdout, detail)
        return (
            Run(Outcome.error, ended.stdout, detail)
            if detail
            else Run(Outcome.exited, ended.stdout, ended.how)
        )


def _verdict(
    boxes: Boxes,
    judge_boxes: Boxes,
    job: Mapping[str, Any],
    judge: Mapping[str, Any],
    limits: Limits,
    filtered: bool = True,
) -> Verdict:
    total = len(judge["tests"])
    with closing(Watch(boxes.start, "calls", job, limits, None, filtered)) as program:
        loaded = program.line()
        if loaded is None or loaded.get("outcome") != "passed":
            if loaded is None:
                outcome, detail = _ended_early(program)
            else:
                outcome, detail = _failure(loaded)
            return Verdict(outcome, 0, total, None, detail)
        if not total:
            return Verdict(Outcome.passed, 0, 0)
        with closing(Watch(judge_boxes.start, "judge", judge, _JUDGE)) as tests:
            return _judged(program, tests, total)


def _judged(program: Watch, tests: Watch, total: int) -> Verdict:
    """Carry requests and answers between both boxes until the tests are done."""
    results: list[tuple[Outcome, str]] = []
    gone: tuple[Outcome, str] | None = None
    while True:
        event = tests.line(_JUDGE.wall_seconds)
        if event is None:
            ended = tests.end()
            _check_start(tests, ended)
            # a test that computes or prints without end, by itself or on the program's values
            if ended.bound:
                results.append((ended.bound, NOT_THE_PROGRAM))
                break
            raise EnvError(f"The tests' own process ended: {ended.how}.")
        if event["event"] == "ask":
            program.send(json.dumps(event).encode() + b"\n")
            answer = program.line()
            if answer is None:
                gone = _ended_early(program)
                break
            tests.send(_answer_line(answer))
        elif event["event"] == "test":
            results.append((Outcome(event["outcome"]), _shortened(event["detail"])))
        else:
            break
    if gone:
        results.append(gone)
    passed = sum(outcome is Outcome.passed for outcome, _ in results)
    for at, (outcome, detail) in enumerate(results):
        if outcome is not Outcome.passed:
            return Verdict(outcome, passed, total, at, detail)
    if passed != total:
        raise EnvError(f"The tests' own process reported {passed} of {total} tests.")
    return Verdict(Outcome.passed, passed, total)


def _answer_line(answer: Mapping[str, Any]) -> bytes:
    """The program's answer as it is sent to the judge. The description of a failure is bounded
    here: escaped, a text is up to six times as long."""
    if "ok" not in answer and "callback" not in answer:
        outcome, detail = _failure(answer)
        answer = {
            **answer,
            "outcome": outcome,
            "error": short(str(answer.get("error", ""))),
            "detail": detail,
        }
    try:
        return json.dumps(answer).encode() + b"\n"
    except (RecursionError, ValueError):
        return (
            b'{"outcome": "error", "error": "RecursionError", "detail": "RecursionError: the '
            b'value is nested too deeply"}\n'
        )


def _ended_early(watch: Watch) -> tuple[Outcome, str]:
    """How a process ended that should have reported more."""
    ended = watch.end()
    _check_start(watch, ended)
    return (ended.bound, "") if ended.bound else (Outcome.exited, ended.how)


def _check_start(watch: Watch, ended: Ended) -> None:
    if not watch.started:
        raise EnvError(
            f"The sandbox did not start: {watch.error_output() or f'it ended with {ended.how}'}."
        )


def _failure(said: Mapping[str, Any]) -> tuple[Outcome, str]:
    """What a program's process reports of a failure. It is trusted for the kind of failure, and for
    nothing else."""
    outcome = said.get("outcome")
    kind = Outcome(outcome) if outcome in ("error", "memory", "exited") else Outcome.error
    return kind, _shortened(str(said.get("detail", "")))


def _shortened(text: str) -> str:
    return "\n".join(
        short(line) for line in clean_text(text).split("\n", _DETAIL_LINES)[:_DETAIL_LINES]
    )


_PROBES = """
import os, socket
def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True
def reads(path):
    try:
        open(path).close()
    except OSError:
        return False
    return True
def writes(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True
def changes(path):
    seen = os.stat(path)
    times = seen.st_atime, seen.st_mtime
    chmod = lambda: os.chmod(path, seen.st_mode & 0o7777)
    for act in (chmod, lambda: os.utime(path), lambda: os.utime(path, times)):
        try:
            act()
            return True
        except OSError:
            pass
    return False
def forks():
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    return True
def signals():
    try:
        os.kill(os.getppid() or 1, 0)
    except OSError:
        return False
    return True
"""


@cache
def _way(asked: Literal["auto", "fork", "fresh"]) -> Way:
    if asked != "auto":
        self_test(asked)
        return asked
    try:
        self_test("fork")
        return "fork"
    except UserError:
        self_test("fresh")
        return "fresh"


def self_test(way: Way) -> None:
    """Try, from inside a box, what must not be possible.

    First without the filter, so that each wall is tested by itself, then with it.

    Raises:
        UserError: The first attempt that succeeded, or why there is no box.
    """
    if sys.platform != "linux":
        raise UserError(
            "There is no sandbox for model-written code on this system: run on Linux, with "
            "pip install 'leafe[code]'."
        )
    if seccomp_filter() is None:
        raise UserError(
            f"There is no sandbox for model-written code on {platform.machine()}: run on "
            "x86_64 or aarch64."
        )
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = Path(folder) / "secret"
        secret.write_text("outside")
        walls = {
            "the network is open": f"assert not connects({server.getsockname()[1]})",
            "files outside can be read": (
                f"assert not reads({str(secret)!r}) and not reads('/etc/passwd')"
            ),
            "files outside can be written": (
                f"assert not any(map(writes, [{str(secret)!r}, '/tmp/x', '/box/x', "
                "'/dev/shm/x', '/dev/x', '/usr/x']))"
            ),
            "devices can be changed": "assert not any(map(changes, ['/dev/null', '/dev/urandom']))",
        }
        rules = {
            "processes can be started": "assert not forks()",
            "processes can be signalled": "assert not signals()",
        }
        limits = Limits(seconds=10, wall_seconds=60)
        for tests, filtered in ((walls, False), (rules, True)):
            job, judge = (
                {"program": _PROBES, "given": "", "setup": ""},
                {"tests": list(tests.values()), "setup": "", "names": {}},
            )
            try:
                verdict = _verdict(
                    _BOXES[way].shown, _BOXES[way].tests, job, judge, limits, filtered
                )
            except (EnvError, OSError) as error:
                raise UserError(
                    "The sandbox for model-written code does not work on this machine "
                    f"({error}). {CURE}"
                ) from error
            if verdict.outcome is not Outcome.passed:
                what = (
                    list(tests)[verdict.test]
                    if verdict.test is not None
                    else f"its probe came to {verdict.outcome}: {verdict.detail}"
                )
                raise UserError(
                    "The sandbox for model-written code does not hold on this machine: "
                    f"{what}. {CURE}"
                )
