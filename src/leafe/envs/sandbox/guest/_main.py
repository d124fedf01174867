"""The first code inside the box: a zygote that forks a child for each job.

A job is five descriptors: the job itself (JSON), and what becomes stdin, stdout, stderr and the
report. The zygote never reads a job: it passes the descriptors to a new child and closes its own,
so no program, input or test is ever in the memory that later children are forked from. It waits for
its child and for its control socket; when the socket closes, both end.

The child is the first process of a pid namespace made for this job. It drops the one capability
that the zygote has for that (and for making the devices read-only), forks the program, and reports
how it ended. So a program is always pid 2, and its threads 3, 4 and so on. Nothing of it can stay:
the namespace ends with its first process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import io
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from leafe.envs.sandbox.guest import _idioms, _judge, _program

REPORT, REQUEST = 3, 4
"""Descriptors of a child, beside stdin, stdout and stderr."""
_MOST_FILES = 1 << 20
_SPARE = 32 << 20
"""Address space for the report on a memory error."""
_STACK = 64 << 20
_STACKS = 768 << 20
"""Address space for the stacks that a script may ask for beyond its memory; its real use is
measured."""
_THREADS = 128
_BESIDE = 8
"""Processes in the box beside the program's threads: bubblewrap's, the zygote, the namespace's
first."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_EXACT = 2
"""CPUCLOCK_SCHED: time measured by the scheduler. RLIMIT_CPU counts ticks, too many on a loaded
machine; it is a backstop."""
_TICK, _CORES = 0.005, max(1, os.cpu_count() or 1)
_REPORTED = 77
_NEW_PIDS = 0x20000000
_CLONE = {"aarch64": 220, "x86_64": 56}
_CAPABILITIES_3 = 0x20080522
_READ_ONLY = 0x1 | 0x2 | 0x8 | 0x20 | 0x1000
"""MS_RDONLY, MS_NOSUID, MS_NOEXEC, MS_REMOUNT, MS_BIND."""
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    """The zygote. Its control socket is the descriptor named by the first argument; it is moved to
    where a child has its report."""
    os.dup2(int(sys.argv[1]), REPORT)
    os.closerange(REPORT + 1, _MOST_FILES)
    control = socket.socket(fileno=REPORT)
    _seal_devices()
    gc.collect()
    gc.freeze()
    control.send(b"hello")
    while True:
        message, files, _, _ = socket.recv_fds(control, 64, 5)
        if not message:
            os._exit(0)
        if message == b"kill" or len(files) != 5:  # the child has ended meanwhile
            continue
        number, seconds = message.split()
        child = _in_new_pids()
        if child == 0:
            try:
                _first(control, files, int(number), float(seconds))
            finally:
                os._exit(112)
        for file in files:
            os.close(file)
        _wait(control, child, int(number))


def _seal_devices() -> None:
    """Make the devices read-only, so that no mode, owner or time of them can be changed: they
    are the machine's own. (Bubblewrap can only make them read-only in a way that forbids opening
    them.)"""
    for device in Path("/dev").iterdir():
        if device.is_char_device() and _libc.mount(
            None, bytes(device), None, ctypes.c_ulong(_READ_ONLY), None
        ):
            os.write(
                2, f"{device} cannot be made read-only: {os.strerror(ctypes.get_errno())}".encode()
            )
            os._exit(113)


def _in_new_pids() -> int:
    """Like os.fork, but the child is the first process of a new pid namespace. libc and the
    interpreter do not notice in the child, which only forks once more."""
    child = int(_libc.syscall(_CLONE[os.uname().machine], _NEW_PIDS | signal.SIGCHLD, 0, 0, 0, 0))
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return child


def _first(control: socket.socket, files: list[int], number: int, seconds: float) -> None:
    """Fork the program, kill it after its processor time, and report how it ended."""
    header, none = struct.pack("=Ii", _CAPABILITIES_3, 0), bytes(24)
    if _libc.capset(header, none):
        os.write(2, b"the capability could not be given up")
        return
    program = os.fork()
    if program == 0:
        try:
            _child(files)
        finally:
            os._exit(112)
    for file in files:
        os.close(file)
    poll = select.poll()
    poll.register(os.pidfd_open(program), select.POLLIN)
    clock = ~program << 3 | _EXACT
    while not poll.poll(1000 * max(_TICK, (seconds - time.clock_gettime(clock)) / _CORES)):
        if time.clock_gettime(clock) >= seconds:
            os.kill(program, signal.SIGKILL)
    _report_end(control, number, *os.wait4(program, 0)[1:])
    os._exit(_REPORTED)


def _report_end(
    control: socket.socket, number: int, status: int, usage: resource.struct_rusage
) -> None:
    """Report the end of a job, perhaps twice: exit status (128 + signal for a death by signal),
    processor time in microseconds, peak memory in KB."""
    code = os.waitstatus_to_exitcode(status)
    control.send(
        b"%d %d %d %d"
        % (
            number,
            code if code >= 0 else 128 - code,
            int(1e6 * (usage.ru_utime + usage.ru_stime)),
            usage.ru_maxrss,
        )
    )


def _wait(control: socket.socket, child: int, number: int) -> None:
    """Wait for the first process of the namespace; report its end if it did not do so itself."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while ended not in (ready := {file for file, _ in poll.poll()}):
        message = control.recv(16, socket.MSG_PEEK) if control.fileno() in ready else b""
        if message == b"kill":
            control.recv(16)
        elif message:  # the next job: this one's end has been reported
            break
        os.kill(child, signal.SIGKILL)
        if not message:
            os._exit(0)
    _, status, usage = os.wait4(child, 0)
    os.close(ended)
    if status != _REPORTED << 8:
        _report_end(control, number, status, usage)


def _child(files: list[int]) -> None:
    job_file, *ends = (fcntl.fcntl(file, fcntl.F_DUPFD, 40) for file in files)
    job: dict[str, Any] = json.loads(_read(job_file))
    stdin, stdout, stderr, report = ends
    if job["kind"] != "script":  # stdin carries requests; the program reads nothing there
        os.dup2(stdin, REQUEST)
        stdin = os.open("/dev/null", os.O_RDONLY)
    for at, file in enumerate((stdin, stdout, stderr, report)):
        os.dup2(file, at)
    if job["kind"] == "script":
        os.closerange(REQUEST, _MOST_FILES)
    else:
        os.closerange(REQUEST + 1, _MOST_FILES)
    _streams()
    _limit(job)
    random.seed(0)
    vars(__builtins__ if not isinstance(__builtins__, dict) else sys.modules["builtins"]).update(
        exit=sys.exit, quit=sys.exit
    )  # as the site module would
    sys.argv, sys.path[:] = ["solution.py"], [p for p in sys.path if not p.startswith("/code")]
    sys.modules.pop("__main__", None)
    _filter(bytes.fromhex(job["filter"]), struct.pack("=I", job["stand_in"]))
    report_line({"event": "ready"})
    if job["kind"] != "judge":
        _idioms.open_standard_files()
    if job["kind"] == "script":
        _program.run_script(job, report_line)
    requests = io.FileIO(REQUEST, closefd=False)
    if job["kind"] == "calls":
        _program.serve_calls(job, report_line, requests)
    _judge.judge(job, report_line, requests)


def report_line(event: dict[str, Any]) -> None:
    """Send one line to the watcher, after all that was printed before it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # the program may have closed or replaced it
            stream.flush()
    data = json.dumps(event).encode() + b"\n"
    while data:
        data = data[os.write(REPORT, data) :]


def _read(file: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(file, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _streams() -> None:
    """Make the standard streams, as the interpreter does."""
    errors = "surrogateescape"
    stdin = open(0, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    stdout = open(1, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = stdout  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = stderr  # type: ignore[misc]


def _limit(job: dict[str, Any]) -> None:
    memory, seconds = job["memory"], job["seconds"]
    stacks = _STACKS if job["kind"] == "script" else 0
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + stacks + _SPARE))
    # soft = hard, since the signal of a soft limit can be ignored
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 2, seconds + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for what in (
        resource.RLIMIT_CORE,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_RTPRIO,
        resource.RLIMIT_NICE,
    ):
        resource.setrlimit(what, (0, 0))
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (256, 256))
    if job["count_threads"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (_THREADS + _BESIDE, _THREADS + _BESIDE))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(
        resource.RLIMIT_STACK,
        (_STACK if hard == resource.RLIM_INFINITY else min(_STACK, hard), hard),
    )
    if stacks:
        _idioms.allow_stacks(memory + stacks)


def _filter(code: bytes, stand_in: bytes) -> None:
    """Install the filter of `_seccomp.py`; `stand_in` in it is replaced by this process's pid."""
    if not code:
        return
    code = code.replace(stand_in, struct.pack("=I", os.getpid()))
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    if _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or _libc.prctl(
        _SET_SECCOMP, _FILTER_MODE, ctypes.c_char_p(program), 0, 0
    ):
        os.write(
            2, b"the system-call filter was refused: " + os.strerror(ctypes.get_errno()).encode()
        )
        os._exit(111)
