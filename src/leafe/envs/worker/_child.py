"""The environment's own process: makes the environment, answers requests, forks for snapshots.

    python -m leafe.envs.worker._child FD LIFE

FD is one end of a socket pair for frames. LIFE is one end of another, which carries no data.

The first frame says which environment to make. For a snapshot the process forks: the child keeps
only the socket that came with the request, and waits on it. To restore, the child forks again, and
that second child continues the episode over the sockets that came with that request. So a snapshot
can be restored any number of times by whoever holds its socket, and closing the socket frees it.
Every process ends when its socket closes; during a call, which may hang, the kernel kills it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from leafe.core import EnvError, Environment, Task, UserError, find_named
from leafe.core.answers import check_facts, observation_text, plain_task, step_result, versions_of
from leafe.envs.worker._frames import receive, receive_socket, send


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    life = socket.socket(fileno=int(sys.argv[2]))
    for each in (connection, life):
        each.set_inheritable(False)  # programs that the environment starts must not hold it open
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # prints are dropped; stderr is kept and quoted if the process dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        spec = receive(connection)
        sys.path[:] = spec["path"]
        env = find_named(spec["target"])(**spec["options"])
        assert isinstance(env, Environment)
        check_facts(env)
    except EOFError:
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            send(connection, _error(error))
        return
    send(connection, {"ok": _facts(env)})
    _Server(env, connection, life).serve()


def _facts(env: Environment) -> dict[str, Any]:
    return {
        "name": env.name,
        "deterministic": env.deterministic,
        "horizon": env.horizon,
        "actions_help": env.actions_help,
        "splits": list(env.splits),
        "versions": versions_of(env),
        "pid": os.getpid(),
    }


def _error(error: BaseException) -> dict[str, Any]:
    """The answer that reports an error."""
    for kind, name in ((UserError, "user"), (NotImplementedError, "absent"), (EnvError, "env")):
        if isinstance(error, kind):
            return {"error": name, "message": str(error)}
    traceback.print_exception(error, file=sys.stderr)
    return {
        "error": "env",
        "message": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
    }


@contextlib.contextmanager
def _killed_on_close(life: socket.socket) -> Iterator[None]:
    """Meanwhile the kernel kills this process group as soon as the other end of `life` closes.

    A hanging call may keep threads and handlers from running, so none is used. The socket of the
    frames cannot serve for this: the kernel queues a request before it signals it, so the signal
    of the current request may come during the call.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(life, fcntl.F_GETFL)
    fcntl.fcntl(life, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, 0)  # POLLHUP is always reported
    if poll.poll(0):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    try:
        yield
    finally:
        fcntl.fcntl(life, fcntl.F_SETFL, flags)


class _Server:
    """Answers requests on one connection."""

    def __init__(self, env: Environment, connection: socket.socket, life: socket.socket) -> None:
        self.env = env
        self.connection = connection
        self.life = life
        self.copies: list[int] = []
        """Processes forked from this one and not yet reaped."""
        self.copied = False
        """This process is a fork or has one: what the environment holds outside its memory is
        shared, and this process must not free it."""

    def serve(self) -> None:
        while True:
            try:
                request = receive(self.connection)
            except (EOFError, ConnectionError):
                if not self.copied:
                    self.close()
                os._exit(0)
            if request["op"] == "snapshot":
                self.fork_snapshot()
                continue
            with _killed_on_close(self.life):
                try:
                    answer = {"ok": self.answer(request)}
                except Exception as error:
                    answer = _error(error)
            with contextlib.suppress(ConnectionError):
                send(self.connection, answer)
            if request["op"] == "close":
                os._exit(0)

    def answer(self, request: dict[str, Any]) -> Any:
        op = request["op"]
        if op == "step":
            return asdict(step_result(self.env.step(request["action"]), self.env.name))
        if op == "reset":
            return observation_text(
                self.env.reset(Task.from_json(request["task"]), request["seed"]), self.env.name
            )
        if op == "tasks":
            return [
                plain_task(task, self.env.name).to_json()
                for task in self.env.tasks(request["split"], request["count"], request["seed"])
            ]
        if op == "valid_actions":
            return [str(action) for action in self.env.valid_actions()]
        if op == "close":
            return self.close()
        raise AssertionError(op)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it is not used again
            self.env.close()

    def fork_snapshot(self) -> None:
        """Fork a child that waits on the socket that follows, and returns once it is restored."""
        held = receive_socket(self.connection)
        pid = self.fork()
        if pid:
            held.close()
            send(self.connection, {"ok": pid})
            return
        self.connection.close()
        self.life.close()
        while True:  # in the child
            try:
                receive(held)
                live, life = receive_socket(held), receive_socket(held)
            except (EOFError, ConnectionError):
                os._exit(0)
            pid = self.fork()
            if pid:
                live.close()
                life.close()
                send(held, {"ok": pid})
                continue
            held.close()
            self.connection, self.life = live, life
            return

    def fork(self) -> int:
        self.copied = True
        self.copies = [pid for pid in self.copies if os.waitpid(pid, os.WNOHANG)[0] == 0]
        pid = os.fork()
        # A fork outlives its parent's process group. Both sides set the new group, so that it holds
        # before either continues.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        if pid:
            self.copies.append(pid)
        else:
            self.copies = []
        return pid


if __name__ == "__main__":
    main()
