"""An environment that lives in a process of its own, seen from ours: an ordinary `Environment` that
cannot take us with it.

`make_env` gives this for every class that says `process = True`. A call that is not answered in
time, and a process that died, are a `EnvError`;
the process and all that it started are killed, and the next `reset` begins in a new one. Where the
class says `forkable`, a snapshot is a copy
of the process: it costs a fork, is restored by another fork, and at most `FROZEN` of them are held,
the least recently used making
room (`SnapshotGone`: replay instead).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from leafe.core import EnvError, Environment, SnapshotGone, StepResult, Task, UserError
from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited
from leafe.envs.worker._frames import receive, send

FROZEN = 64
"""Snapshot processes held by this process at a time, over all its environments: each costs the
pages in which it differs from its parent."""
START_SECONDS = 300.0
"""For the environment's construction: imports, an index that is built for the first time, a JVM."""
_CLOSE_SECONDS = 5.0


class ProcessEnv(Environment):
    """The environment `target` (`package.module:Class`) with its options, in its own process.
    `timeout`:
    seconds for one call, None: no bound. `env_vars`: names of environment variables that the
    process inherits beside those that programs need to run.

    What the environment says about itself is asked of it at construction; its `UserError`s come
    through.
    """

    process = True
    heavy = True

    def __init__(
        self,
        target: str,
        options: Mapping[str, Any],
        *,
        forkable: bool = False,
        timeout: float | None = 600.0,
        env_vars: Sequence[str] = (),
    ) -> None:
        self.target = target
        self.env_vars = tuple(env_vars)
        self.options = dict(options)
        self.timeout = timeout
        self.can_snapshot = forkable
        self._calling = threading.Lock()
        self._thawing: _Frozen | None = None
        self._process: _Process | None = _Process(target, self.options, self.env_vars)
        facts = self._process.facts
        self.name, self.deterministic, self.horizon = (
            facts["name"],
            facts["deterministic"],
            facts["horizon"],
        )
        self.actions_help: str = facts["actions_help"]
        self.splits: tuple[str, ...] = tuple(facts["splits"])
        self._versions: dict[str, str] = facts["versions"]

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        for left in (True, False):
            if self._process is None:
                self._process = _Process(self.target, self.options, self.env_vars)
            try:
                return [
                    Task.from_json(task)
                    for task in self._call(
                        {"op": "tasks", "split": split, "count": count, "seed": seed}
                    )
                ]
            except EnvError:
                if not left or self._process is not None:
                    raise
        raise AssertionError("not reached")

    def reset(self, task: Task, seed: int) -> str:
        if self._process is None:
            self._process = _Process(self.target, self.options, self.env_vars)
        observation: str = self._call({"op": "reset", "task": task.to_json(), "seed": seed})
        return observation

    def step(self, action: str) -> StepResult:
        return StepResult(**self._call({"op": "step", "action": action}))

    def valid_actions(self) -> Sequence[str]:
        actions: list[str] = self._call({"op": "valid_actions"})
        return actions

    def versions(self) -> Mapping[str, str]:
        return self._versions

    def snapshot(self) -> object:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = self._call({"op": "snapshot"}, theirs)
            except BaseException:
                ours.close()
                raise
        return _hold(_Frozen(ours, pid))

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, int)
        frozen = self._thawing = _take(snapshot)
        ours, theirs = socket.socketpair()
        life, their_life = socket.socketpair()
        with theirs, their_life:
            try:
                with frozen.lock:
                    frozen.connection.settimeout(self.timeout)
                    send(frozen.connection, {"op": "thaw"}, (theirs, their_life))
                    pid = receive(frozen.connection)["ok"]
            except (OSError, EOFError) as error:
                ours.close()
                life.close()
                _drop(snapshot)
                raise SnapshotGone(
                    f"The snapshot's process of the environment {self.name} is gone."
                ) from error
            finally:
                self._thawing = None
        if self._process is None:
            self._process = _Process.adopted(ours, life, pid)
        else:
            self._process.go_on_as(ours, life, pid)

    def release(self, snapshot: object) -> None:
        assert isinstance(snapshot, int)
        _drop(snapshot)

    def close(self) -> None:
        """May be called from another thread while a call is waiting: that call then fails."""
        thawing, process, self._process = self._thawing, self._process, None
        if thawing is not None:  # another thread waits for a snapshot's process, which may hang
            with contextlib.suppress(OSError):
                thawing.connection.shutdown(socket.SHUT_RDWR)
        if process is None:
            return
        if self._calling.acquire(blocking=False):
            try:
                process.close()
            finally:
                self._calling.release()
        else:
            process.kill()  # it is in a call: it would not hear that it is asked to close

    @property
    def pid(self) -> int | None:
        """The process that plays now."""
        return self._process.pid if self._process is not None else None

    def _call(self, request: dict[str, Any], *sockets: socket.socket) -> Any:
        process = self._process
        if process is None:
            raise EnvError(f"The environment {self.name} was closed: reset it first.")
        try:
            with self._calling:
                process.connection.settimeout(self.timeout)
                send(process.connection, request, sockets)
                answer = receive(process.connection)
        except TimeoutError as error:
            if self._process is process:
                self._process = None
            process.kill()
            raise EnvError(
                f"The environment {self.name} gave no answer to {request['op']} within "
                f"{self.timeout:g} s: its process was killed."
            ) from error
        except (OSError, EOFError, ValueError) as error:
            raise EnvError(
                f"The environment {self.name} died in {request['op']}{self._lose(process)}."
            ) from error
        if "ok" in answer:
            return answer["ok"]
        if answer["error"] == "user":
            raise UserError(answer["message"])
        if answer["error"] == "absent":
            raise NotImplementedError(answer["message"])
        raise EnvError(answer["message"])

    def _lose(self, process: _Process) -> str:
        how = process.kill()
        if self._process is process:
            self._process = None
        return how


class _Process:
    """The process that plays: the one that was started, or a copy that a snapshot left."""

    def __init__(self, target: str, options: Mapping[str, Any], env_vars: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self.life, their_life = socket.socketpair()
        """Nothing is sent on it: an environment that hangs ends with it, and so with this
        process."""
        self.errors: BinaryIO | None = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        with theirs, their_life:
            self.started: subprocess.Popen[bytes] | None = subprocess.Popen(
                with_default_signals(
                    [
                        sys.executable,
                        "-m",
                        "leafe.envs.worker._child",
                        str(theirs.fileno()),
                        str(their_life.fileno()),
                    ]
                ),
                pass_fds=(theirs.fileno(), their_life.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **inherited(env_vars)},
            )
        self.connection, self.pid = ours, self.started.pid
        self.handle: int | None = None
        """Of a copy, which is not our child: a number that cannot come to mean another process."""
        self.lock = threading.Lock()
        self._forget: Callable[[], object] = weakref.finalize(self, _kill_group, self.started)
        try:
            ours.settimeout(START_SECONDS)
            send(ours, {"target": target, "options": options, "path": sys.path})
            answer = receive(ours)
        except TimeoutError as error:
            self.kill()
            raise EnvError(
                f"The process of the environment {target} did not start within {START_SECONDS:g} s."
            ) from error
        except (OSError, EOFError) as error:
            raise EnvError(
                f"The process of the environment {target} died at its start{self.kill()}."
            ) from error
        except TypeError as error:
            self.kill()
            raise UserError(
                f"The options of the environment {target} must be plain values (text, "
                f"numbers, lists, tables): {error}."
            ) from error
        if "error" in answer:
            self.kill()
            raise (UserError if answer["error"] == "user" else EnvError)(answer["message"])
        self.facts: dict[str, Any] = answer["ok"]

    @classmethod
    def adopted(cls, connection: socket.socket, life: socket.socket, pid: int) -> _Process:
        self = cls.__new__(cls)
        self.errors, self.started = None, None
        self.connection, self.life, self.pid, self.handle = connection, life, pid, _open_handle(pid)
        self.lock, self._forget = threading.Lock(), _nothing
        return self

    def go_on_as(self, connection: socket.socket, life: socket.socket, pid: int) -> None:
        """Let the playing process go (it ends with its socket) and play on in a copy."""
        self.connection.close()
        self.life.close()
        if self.handle is not None:
            os.close(self.handle)
            _reap(self.pid)
        self.connection, self.life, self.pid, self.handle = connection, life, pid, _open_handle(pid)

    def kill(self) -> str:
        """End it now; returns how it had ended, where it had, and its last words, for an error."""
        with self.lock:
            handle, self.handle = self.handle, None
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
            _reap(self.pid)
        how = _how_it_ended(self.started) if self.started is not None else ""
        self._forget()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
        self.connection.close()
        self.life.close()
        return how + self._last_words()

    def close(self) -> None:
        try:
            self.connection.settimeout(_CLOSE_SECONDS)
            send(self.connection, {"op": "close"})
            receive(self.connection)
        except (OSError, EOFError, ValueError):  # busy, hung or dead: no time for manners
            pass
        self.kill()
        if self.errors is not None:
            self.errors.close()

    def _last_words(self) -> str:
        if self.errors is None or self.errors.closed:
            return ""
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        lines = [
            line.strip()
            for line in self.errors.read().decode(errors="replace").splitlines()
            if line.strip()
        ]
        return f"; its last words: {lines[-1][:300]}" if lines else ""


@dataclass(slots=True)
class _Frozen:
    connection: socket.socket
    pid: int
    lock: threading.Lock

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection, self.pid, self.lock = connection, pid, threading.Lock()


_held: OrderedDict[int, _Frozen] = OrderedDict()
_lock = threading.Lock()
_next = 0


def _hold(frozen: _Frozen) -> int:
    """Keep it under a number of this process, the least recently used making room."""
    global _next
    with _lock:
        _next += 1
        number = _next
        _held[number] = frozen
        over = [_held.popitem(last=False)[1] for _ in range(len(_held) - FROZEN)]
    for old in over:
        _thaw_away(old)
    return number


def _take(number: int) -> _Frozen:
    with _lock:
        frozen = _held.get(number)
        if frozen is None:
            raise SnapshotGone("The snapshot made room for newer ones.")
        _held.move_to_end(number)
        return frozen


def _drop(number: int) -> None:
    with _lock:
        frozen = _held.pop(number, None)
    if frozen is not None:
        _thaw_away(frozen)


def _thaw_away(frozen: _Frozen) -> None:
    frozen.connection.close()  # it ends with its socket
    _reap(frozen.pid)


_unreaped: set[int] = set()


def _reap(pid: int) -> None:
    """A copy whose parent is gone belongs to the system's first process. Where that is this very
    process (in a container), reaping it is ours."""
    _unreaped.add(pid)
    if os.getpid() != 1:
        _unreaped.clear()
        return
    for each in list(_unreaped):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(each, os.WNOHANG)[0] == 0:
                continue
        _unreaped.discard(each)


def _open_handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # it died already: the next call will say so
        return None


def _kill_group(started: subprocess.Popen[bytes]) -> None:
    """The started process and all in its session that did not leave it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def _how_it_ended(started: subprocess.Popen[bytes]) -> str:
    """Of a process that is dead or dying; not reaped by it, so that its group's number stays its
    own."""
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        try:
            found = os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # another thread has killed it and read its status
            return ""
        if found is not None:
            return (
                f" (status {found.si_status})"
                if found.si_code == os.CLD_EXITED
                else f" ({signal.Signals(found.si_status).name})"
            )
        time.sleep(0.005)
    return ""


def _nothing() -> None:
    pass
