"""The parent's side of an environment that runs in a process of its own.

`make_env` returns a `ProcessEnv` for every class with `process = True`. A call that times out and a
process that died are an `EnvError`: the process and all that it started are killed, and the next
`reset` starts a new one. For a class with `forkable = True` a snapshot is a fork of the process,
restored by forking it again. At most `MAX_SNAPSHOTS` of them are held; the least recently used is
dropped (`SnapshotGone`: the caller replays instead).
"""

from __future__ import annotations

import contextlib
import itertools
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
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from leafe.core import EnvError, Environment, SnapshotGone, StepResult, Task, UserError
from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited
from leafe.envs.worker._frames import receive, send

MAX_SNAPSHOTS = 64
"""Snapshot processes held at a time, over all environments of this process. Each costs the memory
pages in which it differs from its parent."""
START_SECONDS = 300.0
"""For constructing the environment: imports, an index that is built for the first time, a JVM."""
_CLOSE_SECONDS = 5.0


class ProcessEnv(Environment):
    """An environment in a process of its own, used like any other environment.

    The process is asked for the environment's name, horizon and so on at construction. A
    `UserError` of the environment is raised here too.

    Args:
        target: The class, `package.module:Class`.
        options: Its options: plain values (text, numbers, lists, tables).
        forkable: Snapshots are forks of the process.
        timeout: Seconds for one call; None: no limit.
        env_vars: Names of environment variables to inherit, beside those that programs need to run.

    Raises:
        UserError: The environment refuses its options, or they are not plain values.
        EnvError: The process did not start.
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
        self._restoring: _Snapshot | None = None
        self._process: _Process | None = _Process(target, self.options, self.env_vars)
        facts = self._process.facts
        self.name, self.deterministic = facts["name"], facts["deterministic"]
        self.horizon = facts["horizon"]
        self.actions_help: str = facts["actions_help"]
        self.splits: tuple[str, ...] = tuple(facts["splits"])
        self._versions: dict[str, str] = facts["versions"]

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        request = {"op": "tasks", "split": split, "count": count, "seed": seed}
        self._started()
        try:
            found = self._call(request)
        except EnvError:
            if self._process is not None:  # the environment's own error
                raise
            self._started()
            found = self._call(request)
        return [Task.from_json(task) for task in found]

    def reset(self, task: Task, seed: int) -> str:
        self._started()
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
        return _store(_Snapshot(ours, pid))

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, int)
        held = self._restoring = _find(snapshot)
        ours, theirs = socket.socketpair()
        life, their_life = socket.socketpair()
        with theirs, their_life:
            try:
                with held.lock:
                    held.connection.settimeout(self.timeout)
                    send(held.connection, {"op": "restore"}, (theirs, their_life))
                    pid = receive(held.connection)["ok"]
            except (OSError, EOFError) as error:
                ours.close()
                life.close()
                _release(snapshot)
                raise SnapshotGone(
                    f"The snapshot's process of the environment {self.name} is gone."
                ) from error
            finally:
                self._restoring = None
        if self._process is None:
            self._process = _Process.from_copy(ours, life, pid)
        else:
            self._process.continue_as(ours, life, pid)

    def release(self, snapshot: object) -> None:
        assert isinstance(snapshot, int)
        _release(snapshot)

    def close(self) -> None:
        """May be called from another thread during a call, which then fails."""
        restoring, process, self._process = self._restoring, self._process, None
        if restoring is not None:  # another thread waits for a snapshot's process, which may hang
            with contextlib.suppress(OSError):
                restoring.connection.shutdown(socket.SHUT_RDWR)
        if process is None:
            return
        if self._calling.acquire(blocking=False):
            try:
                process.close()
            finally:
                self._calling.release()
        else:
            process.kill()  # busy with a call, it would not read a request to close

    @property
    def pid(self) -> int | None:
        """The process that holds the current episode; None if there is none."""
        return self._process.pid if self._process is not None else None

    def _started(self) -> None:
        if self._process is None:
            self._process = _Process(self.target, self.options, self.env_vars)

    def _call(self, request: dict[str, Any], *sockets: socket.socket) -> Any:
        process = self._process
        if process is None:
            raise EnvError(f"The environment {self.name} was closed: reset it first.")
        try:
            with self._calling:
                process.connection.settimeout(self.timeout)
                send(process.connection, request, sockets)
                answer = receive(process.connection)
        except (OSError, EOFError, ValueError) as error:
            how = process.kill()
            if self._process is process:
                self._process = None
            if isinstance(error, TimeoutError):
                raise EnvError(
                    f"The environment {self.name} gave no answer to {request['op']} within "
                    f"{self.timeout:g} s: its process was killed."
                ) from error
            raise EnvError(f"The environment {self.name} died in {request['op']}{how}.") from error
        if "ok" in answer:
            return answer["ok"]
        if answer["error"] == "user":
            raise UserError(answer["message"])
        if answer["error"] == "absent":
            raise NotImplementedError(answer["message"])
        raise EnvError(answer["message"])


class _Process:
    """The process of the current episode: the one that was started, or a fork of a snapshot."""

    def __init__(self, target: str, options: Mapping[str, Any], env_vars: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self.life, their_life = socket.socketpair()
        """Carries no data. The kernel kills a hanging environment when this end closes, so also
        when this process dies."""
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
        """A pidfd of a fork, which is not our child: its pid may be reused, its pidfd may not."""
        self.lock = threading.Lock()
        self._kill_started: Callable[[], object] = weakref.finalize(self, _kill_group, self.started)
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
    def from_copy(cls, connection: socket.socket, life: socket.socket, pid: int) -> _Process:
        """A fork of a snapshot whose first process is gone."""
        self = cls.__new__(cls)
        self.errors, self.started = None, None
        self.connection, self.life, self.pid, self.handle = connection, life, pid, _open_handle(pid)
        self.lock, self._kill_started = threading.Lock(), lambda: None
        return self

    def continue_as(self, connection: socket.socket, life: socket.socket, pid: int) -> None:
        """Replace the current process, which ends with its socket, by a fork of a snapshot."""
        self.connection.close()
        self.life.close()
        if self.handle is not None:
            os.close(self.handle)
            _reap(self.pid)
        self.connection, self.life, self.pid, self.handle = connection, life, pid, _open_handle(pid)

    def kill(self) -> str:
        """Kill it; returns how it had ended before, if it had, and the end of its stderr."""
        with self.lock:
            handle, self.handle = self.handle, None
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
            _reap(self.pid)
        how = _exit_status(self.started) if self.started is not None else ""
        self._kill_started()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
        self.connection.close()
        self.life.close()
        return how + self._last_line()

    def close(self) -> None:
        try:
            self.connection.settimeout(_CLOSE_SECONDS)
            send(self.connection, {"op": "close"})
            receive(self.connection)
        except (OSError, EOFError, ValueError):  # busy, hung or dead
            pass
        self.kill()
        if self.errors is not None:
            self.errors.close()

    def _last_line(self) -> str:
        """The last line of its stderr, for an error message."""
        if self.errors is None or self.errors.closed:
            return ""
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        lines = self.errors.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        return f"; its last words: {lines[-1][:300]}" if lines else ""


@dataclass(slots=True)
class _Snapshot:
    """A process that waits to be forked."""

    connection: socket.socket
    pid: int
    lock: threading.Lock = field(default_factory=threading.Lock)


_snapshots: OrderedDict[int, _Snapshot] = OrderedDict()
_lock = threading.Lock()
_numbers = itertools.count(1)


def _store(snapshot: _Snapshot) -> int:
    """Hold a snapshot under a new number; drops the least recently used beyond `MAX_SNAPSHOTS`."""
    with _lock:
        number = next(_numbers)
        _snapshots[number] = snapshot
        excess = [_snapshots.popitem(last=False)[1] for _ in range(len(_snapshots) - MAX_SNAPSHOTS)]
    for old in excess:
        _end(old)
    return number


def _find(number: int) -> _Snapshot:
    with _lock:
        snapshot = _snapshots.get(number)
        if snapshot is None:
            raise SnapshotGone("The snapshot made room for newer ones.")
        _snapshots.move_to_end(number)
        return snapshot


def _release(number: int) -> None:
    with _lock:
        snapshot = _snapshots.pop(number, None)
    if snapshot is not None:
        _end(snapshot)


def _end(snapshot: _Snapshot) -> None:
    snapshot.connection.close()  # its process ends with its socket
    _reap(snapshot.pid)


_unreaped: set[int] = set()


def _reap(pid: int) -> None:
    """Reap a fork whose parent is gone. It belongs to the system's first process, which in a
    container may be this one."""
    if os.getpid() != 1:
        return
    _unreaped.add(pid)
    for each in list(_unreaped):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(each, os.WNOHANG)[0] == 0:
                continue
        _unreaped.discard(each)


def _open_handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # it died already: the next call fails
        return None


def _kill_group(started: subprocess.Popen[bytes]) -> None:
    """Kill the started process and all that is still in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def _exit_status(started: subprocess.Popen[bytes]) -> str:
    """How a dead or dying process ended. It is not reaped, so that its group's id is not reused."""
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        try:
            found = os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:  # another thread has reaped it
            return ""
        if found is not None:
            return (
                f" (status {found.si_status})"
                if found.si_code == os.CLD_EXITED
                else f" ({signal.Signals(found.si_status).name})"
            )
        time.sleep(0.005)
    return ""
