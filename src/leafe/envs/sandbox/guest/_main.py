"""The first code inside the box: a zygote that forks a child for each job.

A job comes as five descriptors: the job itself (JSON), and what becomes stdin, stdout, stderr and
the report. The zygote never reads a job: it
hands the descriptors to a fresh child and closes its own, so that no program, input or test is ever
in the memory from which later children
are forked. It waits for its child and for its control socket, and for nothing else; when the socket
closes, both end.

The child is the first process of a namespace of process numbers that is made for this job. It gives
up the one capability that the zygote has for that
(and for making the devices read-only), forks the program and hands on how that ended. So a program
is always number 2, its threads are 3, 4 and so on,
whatever ran before; and nothing of it can stay, for such a namespace ends with its first process.
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
"""Descriptors of a child, beside the three that every program has."""
_MOST_FILES = 1 << 20
_SPARE = 32 << 20
"""Address space for the report on a memory error."""
_STACK = 64 << 20
_STACKS = 768 << 20
"""Address space for the stacks that a script may ask for beyond its memory; what it really uses is
measured."""
_THREADS = 128
_BESIDE = 8
"""Processes in the box besides the program's threads: bubblewrap's, the zygote, the first of the
namespace."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_EXACT = 2
"""CPUCLOCK_SCHED: what the scheduler measured. RLIMIT_CPU goes by ticks, which count too much on a
loaded machine; it is a backstop."""
_TICK, _CORES = 0.005, max(1, os.cpu_count() or 1)
_SAID = 77
_NEW_PIDS = 0x20000000
_CLONE = {"aarch64": 220, "x86_64": 56}
_CAPABILITIES_3 = 0x20080522
_READ_ONLY = 0x1 | 0x2 | 0x8 | 0x20 | 0x1000
"""MS_RDONLY, MS_NOSUID, MS_NOEXEC, MS_REMOUNT, MS_BIND."""
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    """The zygote: its control socket is the descriptor that the first argument names, and becomes
    that which a child's report takes the place of."""
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
        if message == b"kill" or len(files) != 5:  # for a child that has ended meanwhile
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
    """No mode, owner or time of a device can be changed: these are the machine's own. (Bubblewrap
    can make them read-only only so that nobody opens them.)"""
    for device in Path("/dev").iterdir():
        if device.is_char_device() and _libc.mount(
            None, bytes(device), None, ctypes.c_ulong(_READ_ONLY), None
        ):
            os.write(
                2, f"{device} cannot be made read-only: {os.strerror(ctypes.get_errno())}".encode()
            )
            os._exit(113)


def _in_new_pids() -> int:
    """As os.fork, the child being the first process of a new namespace of process numbers. libc and
    the interpreter are told nothing in the child,
    whose only business is to fork once more."""
    child = int(_libc.syscall(_CLONE[os.uname().machine], _NEW_PIDS | signal.SIGCHLD, 0, 0, 0, 0))
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return child


def _first(control: socket.socket, files: list[int], number: int, seconds: float) -> None:
    """Fork the program, end it when it has had its processor time, and say how it ended."""
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
    _say(control, number, *os.wait4(program, 0)[1:])
    os._exit(_SAID)


def _say(control: socket.socket, number: int, status: int, usage: resource.struct_rusage) -> None:
    """Of the job `number`, perhaps for the second time: exit status, or 128 + signal for a death by
    signal; processor time in microseconds; most memory
    at a time in KB."""
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
    """Until the first process of the namespace has ended; one that was killed, here or from
    outside, has perhaps not said what became of the
    program."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while ended not in (ready := {file for file, _ in poll.poll()}):
        message = control.recv(16, socket.MSG_PEEK) if control.fileno() in ready else b""
        if message == b"kill":
            control.recv(16)
        elif message:  # the next job: it is said how this one ended
            break
        os.kill(child, signal.SIGKILL)
        if not message:
            os._exit(0)
    _, status, usage = os.wait4(child, 0)
    os.close(ended)
    if status != _SAID << 8:
        _say(control, number, status, usage)


def _child(files: list[int]) -> None:
    job_file, *ends = (fcntl.fcntl(file, fcntl.F_DUPFD, 40) for file in files)
    job: dict[str, Any] = json.loads(_read(job_file))
    stdin, stdout, stderr, report = ends
    if job["kind"] != "script":  # what comes on stdin are requests: the program finds nothing there
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
    """One line to the watcher, whole: what was printed before it is out before it."""
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
    """Streams of this child's own, as the interpreter makes them."""
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
    resource.setrlimit(
        resource.RLIMIT_CPU, (seconds + 2, seconds + 2)
    )  # no soft limit, whose signal can be ignored
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
    """From here on the system calls of `_seccomp.py` are refused; `stand_in` in it is replaced by
    this process's own number."""
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
