"""Watches one process in a box: its output, its report, and its limits.

The bounds that are enforced from outside are here: the wall clock, and the amount of output and of
report. All that the process sends is data: the lines of its report are parsed and passed on, and
nothing that it writes makes a run count as passed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from leafe.core import EnvError
from leafe.envs.sandbox._box import START_SECONDS, Process, Used
from leafe.envs.sandbox._seccomp import STAND_IN, seccomp_filter

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

Start = Callable[[list[int], float], Process]


class Outcome(StrEnum):
    """The result of a program, decided by the first test that it did not pass."""

    passed = "passed"  # every test passed
    failed = "failed"  # a wrong answer
    error = "error"  # an exception, a syntax error included
    time = "time"  # processor time or wall clock ran out
    memory = "memory"  # the address space ran out
    output = "output"  # more was printed than the limit
    exited = "exited"  # the process ended before its tests did: exit(), os._exit(), a crash


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run."""

    seconds: float = 3
    """Processor seconds."""
    wall_seconds: float | None = None
    """Wall clock seconds from the moment the program may start; it stops sleeping programs. None:
    10 + 20 * `seconds`, which a computing program reaches on no machine in use."""
    memory: int = 512 << 20
    """Bytes of address space."""
    output: int = 64 << 10
    """Bytes of stdout and stderr together."""
    report: int = 4 << 20
    """Bytes of what the process reports to the judge: the values of calls."""

    @property
    def wall(self) -> float:
        return 10 + 20 * self.seconds if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    status: int
    """Exit status; 128 + signal for a death by signal."""
    bound: Outcome | None
    """The limit that it ran into; None if it ended by itself."""
    stdout: bytes

    @property
    def how(self) -> str:
        return (
            f"signal {signal.Signals(self.status - 128).name}"
            if self.status - 128 in set(signal.Signals)
            else f"status {self.status}"
        )


class Watch:
    """One process: started with a job, read line by line, ended. Not thread-safe."""

    def __init__(
        self,
        start: Start,
        kind: str,
        job: Mapping[str, Any],
        limits: Limits,
        stdin: bytes | None = None,
        filtered: bool = True,
    ) -> None:
        """Start the process. `stdin` None: it is sent lines with `send`."""
        self.limits = limits
        self.stdout, self.stderr = b"", b""
        self._printed, self._reported, self._unread = 0, 0, b""
        self._lines: list[bytes] = []
        self._bound: Outcome | None = None
        self._ready = False
        self._deadline = time.monotonic() + START_SECONDS
        self._process: Process | None = None
        self._opened: list[int] = []
        rules = (seccomp_filter() or b"").hex() if filtered else ""
        whole = {
            "kind": kind,
            "memory": limits.memory,
            "seconds": max(1, -int(-limits.seconds // 1)),
            "filter": rules,
            "stand_in": STAND_IN,
            "count_threads": counts_threads(),
            **job,
        }
        theirs = [sealed_file(json.dumps(whole).encode())]
        try:
            self._send_to: int | None = None
            if stdin is None:
                read, self._send_to = os.pipe()
                self._opened.append(self._send_to)
                theirs.append(read)
            else:
                theirs.append(sealed_file(stdin))
            self._takers: dict[int, Callable[[bytes], None]] = {}
            for take in (self._take_stdout, self._take_stderr, self._take_report):
                read, write = os.pipe()
                self._opened.append(read)
                theirs.append(write)
                self._takers[read] = take
            self._report = read
            self._process = start(theirs, limits.seconds)
        except BaseException:
            self.close()
            raise
        finally:
            for file in theirs:
                os.close(file)

    def line(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next line of the report that is a JSON object, or None if there will be none.
        `seconds` sets a new deadline."""
        if seconds is not None:
            self._deadline = time.monotonic() + seconds
        while True:
            # output printed before a line is counted before it
            while self._lines and not self._bound:
                # the program itself may have written the line
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(self._lines.pop(0))
                    if isinstance(event, dict):
                        return event
            if self._bound or self._report not in self._takers:
                return None
            self._read()

    def send(self, line: bytes) -> None:
        assert self._send_to is not None
        with contextlib.suppress(BrokenPipeError):
            # The pipe's buffer holds every request but the largest, and the process reads when it
            # is asked.
            while line:
                if not _ready([self._send_to], select.POLLOUT, self._deadline):
                    self._stop(Outcome.time)
                    return
                line = line[os.write(self._send_to, line[:4096]) :]

    def end(self) -> Ended:
        """Read until the process has ended or passed a bound."""
        while self._takers and not self._bound:
            self._read()
        assert self._process is not None
        try:
            used = self._process.wait(
                START_SECONDS if self._bound else max(0.0, self._deadline - time.monotonic())
            )
        except TimeoutError:
            self._stop(Outcome.time)
            used = self._waited()
        killed = used.status - 128 == signal.SIGKILL
        if self._bound is None and (
            used.seconds > self.limits.seconds + 0.05
            or (killed and used.seconds >= self.limits.seconds - 0.1)
        ):
            self._bound = Outcome.time
        if self._bound is None and used.memory > self.limits.memory:
            self._bound = Outcome.memory
        return Ended(used.status, self._bound, self.stdout)

    def close(self) -> None:
        """End the process and close the pipes. May be called twice."""
        for file in self._opened:
            os.close(file)
        self._opened.clear()
        if self._process is not None:
            self._process.close()
            self._process = None

    def _waited(self) -> Used:
        assert self._process is not None
        try:
            return self._process.wait(START_SECONDS)
        except TimeoutError as error:
            raise EnvError("A process in the sandbox could not be ended.") from error

    def _read(self) -> None:
        ready = _ready(self._takers, select.POLLIN, self._deadline)
        if not ready:
            self._stop(Outcome.time)
            return
        if self._report in ready:
            # Count first what was printed before the report: it is in the pipes by now.
            while self._printed <= self.limits.output:
                printed = _ready(
                    [file for file in self._takers if file != self._report], select.POLLIN, None
                )
                if not printed:
                    break
                for file in printed:
                    self._take(file)
            ready = [self._report]
        for file in ready:
            self._take(file)
        if self._printed > self.limits.output or self._reported > self.limits.report:
            self._stop(Outcome.output)

    def _take(self, file: int) -> None:
        data = os.read(file, 1 << 16)
        if data:
            self._takers[file](data)
        else:
            del self._takers[file]

    def _stop(self, bound: Outcome) -> None:
        self._bound = self._bound or bound
        if self._process is not None:
            self._process.kill()

    def _take_stdout(self, data: bytes) -> None:
        self._printed += len(data)
        self.stdout += data

    def _take_stderr(self, data: bytes) -> None:
        self._printed += len(data)
        if len(self.stderr) < 1000:
            self.stderr += data

    def _take_report(self, data: bytes) -> None:
        self._reported += len(data)
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines and not self._ready:
            if json.loads(lines.pop(0)) != {"event": "ready"}:
                raise EnvError("The sandbox did not start as it should.")
            self._ready = True
            self._deadline = time.monotonic() + self.limits.wall
        self._lines += lines

    def error_output(self) -> str:
        """The start of stderr: why it did not start."""
        return self.stderr[:300].decode(errors="replace").strip()

    @property
    def started(self) -> bool:
        return self._ready


@cache
def counts_threads() -> bool:
    """Whether this kernel counts a user's processes per user namespace (from 5.14), so that a box
    can have its own limit."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (5, 14)


def _ready(files: Iterable[int], event: int, deadline: float | None) -> list[int]:
    """The ready files, in the order given; none after the deadline. Without a deadline, those that
    are ready now. select() is not used: it refuses large file numbers."""
    files = list(files)
    poll = select.poll()
    for file in files:
        poll.register(file, event)
    left = deadline - time.monotonic() if deadline is not None else 0.0
    found = {file for file, _ in poll.poll(1000 * left)} if deadline is None or left > 0 else set()
    return [file for file in files if file in found]


def sealed_file(data: bytes) -> int:
    """A descriptor to read `data` from, which nobody can change any more. To the program it is a
    file, as judges give it."""
    file = os.memfd_create("leafe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        at = 0
        while at < len(data):
            at += os.write(file, memoryview(data)[at:])
        os.lseek(file, 0, os.SEEK_SET)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file
