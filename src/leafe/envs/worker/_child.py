"""The environment's own process: makes the environment, answers one request after another, and
copies itself where a snapshot is asked for.

    python -m leafe.envs.worker._child FD LIFE      FD: one end of a socket pair, for frames; LIFE:
    of another, on which nothing is ever sent

The first frame says what to make. For a snapshot the process forks: the copy keeps nothing but the
socket that came with the request, and waits on it;
to restore, it is asked to fork once more, and that second copy goes on playing over the socket that
came with that request. So a snapshot can be
restored any number of times, by whoever holds its socket, and is freed by closing it. Every process
ends when its socket does; in the
midst of a call, which may be one that hangs, Linux sees to that.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from leafe.core import EnvError, Environment, Task, UserError
from leafe.core.answers import check_facts, observation_text, plain_task, step_result, versions_of
from leafe.envs.worker._frames import receive, receive_socket, send


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    life = socket.socket(fileno=int(sys.argv[2]))
    for each in (connection, life):
        each.set_inheritable(False)  # what the environment starts must not hold it open
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(
        nowhere, 1
    )  # what an environment prints is nobody's answer; its stderr is kept and quoted if it dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        spec = receive(connection)
        sys.path[:] = spec["path"]
        env = _make(spec["target"], spec["options"])
    except EOFError:
        return
    except BaseException as error:
        with contextlib.suppress(OSError):
            send(connection, _described(error))
        return
    send(connection, {"ok": _facts(env)})
    _Side(env, connection, life).serve()


def _make(target: str, options: dict[str, Any]) -> Environment:
    module, _, name = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    env = found(**options)
    assert isinstance(env, Environment)
    return check_facts(env)


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


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, UserError):
        return {"error": "user", "message": str(error)}
    if isinstance(error, NotImplementedError):
        return {"error": "absent", "message": str(error)}
    if isinstance(error, EnvError):
        return {"error": "env", "message": str(error)}
    traceback.print_exception(error, file=sys.stderr)
    return {
        "error": "env",
        "message": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
    }


@contextlib.contextmanager
def _ending_with(life: socket.socket) -> Iterator[None]:
    """Nothing is ever sent on this socket. So whatever happens to it is the other side's end: that
    this process is told by SIGKILL, and all of its group, for
    whoever would have ended it when it hangs is gone. No thread and no handler of ours is needed,
    which a hanging call might keep from running. (Not the
    socket of the frames: the kernel queues a request before it tells of it, and a sender that is
    interrupted in between tells in the middle of the call.)"""
    if not sys.platform.startswith("linux"):
        yield
        return
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(life, fcntl.F_GETFL)
    fcntl.fcntl(life, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, 0)  # POLLHUP is always told
    if poll.poll(0):
        os.killpg(os.getpgrp(), signal.SIGKILL)
    try:
        yield
    finally:
        fcntl.fcntl(life, fcntl.F_SETFL, flags)


class _Side:
    def __init__(self, env: Environment, connection: socket.socket, life: socket.socket) -> None:
        self.env = env
        self.connection = connection
        self.life = life
        self.copies: list[int] = []
        """Processes forked from this one and not yet reaped."""
        self.copied = False
        """This process is a copy, or has one: what the environment holds outside its memory is
        shared, and not this process's to free."""

    def serve(self) -> None:
        while True:
            try:
                request = receive(self.connection)
            except (EOFError, ConnectionError):
                if not self.copied:
                    self.close()
                os._exit(0)
            if request["op"] == "snapshot":
                self.freeze()
                continue
            with _ending_with(self.life):
                try:
                    answer = {"ok": self.answer(request)}
                except Exception as error:
                    answer = _described(error)
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
        with contextlib.suppress(Exception):  # it is being thrown away
            self.env.close()

    def freeze(self) -> None:
        """Leave a copy of this process behind on the socket that follows."""
        held = receive_socket(self.connection)
        pid = self.fork()
        if pid:
            held.close()
            send(self.connection, {"ok": pid})
            return
        self.connection.close()
        self.life.close()
        while True:  # the frozen copy
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
        # A copy outlives the group of the process that it was forked from. Both sides see to it:
        # whichever comes first, it holds before anybody is told.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        if pid:
            self.copies.append(pid)
        else:
            self.copies = []
        return pid


if __name__ == "__main__":
    main()
