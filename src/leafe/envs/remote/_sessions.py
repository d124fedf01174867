"""The sessions of a served environment: each is one environment in a thread of its own, and its
calls are numbered, so that a call that is sent again gets the recorded answer.

Snapshots belong to the table and not to a session, since a client restores in one session what it
took in another; the least recently used ones go first. An environment that raises is closed and its
session forgotten. The event loop does the bookkeeping and runs the calls of quick environments;
whatever may block runs in the session's thread, a daemon, so that an environment that never answers
cannot keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from secrets import token_hex
from typing import Any, TypeVar

from leafe.core import Environment, ForeignFailure, SnapshotGone, Task, UserError
from leafe.core.answers import observation_text, plain_task, step_result
from leafe.envs.remote._wire import (
    STATUS,
    Malformed,
    Refused,
    encode,
    error_body,
    integer,
    string,
    task_from_json,
)
from leafe.envs.worker import ProcessEnv

T = TypeVar("T")

CALLS = ("reset", "step", "valid_actions", "snapshot", "restore")
"""Calls in a session, each with a number."""
MAX_SNAPSHOTS = 4096
"""Snapshots that are held; the least recently used one makes room."""
_SNAPSHOT_IDLE_S = 3600.0
_ORPHAN_S = 60.0
"""On a full server, a session whose connection is closed ends after so long without a call."""
_CLOSING_S = 5.0
"""How long running calls and closing environments may take at the end."""


class EnvThread:
    """One daemon thread that runs one function after another: an environment lives in it."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[
            tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]] | None
        ] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="env").start()

    async def run(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.put((function, loop, future))
        return await future

    def end(self) -> None:
        self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            function, loop, future = item
            value, error = None, None
            try:
                value = _contained(function)
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_resolve, future, value, error)


def _contained(function: Callable[[], T]) -> T:
    """Run it; SystemExit and KeyboardInterrupt of an environment do not end this process."""
    try:
        return function()
    except Exception:
        raise
    except BaseException as raised:
        raise RuntimeError(f"{type(raised).__name__}: {raised}") from raised


def _resolve(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:  # a future refuses StopIteration
        future.set_exception(
            RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
        )


@dataclass(slots=True, eq=False)
class Session:
    id: str
    thread: EnvThread = field(default_factory=EnvThread)
    env: Environment | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0
    """The number of the last call that was answered."""
    request: bytes = b""
    answer: tuple[int, bytes] = (200, b"{}")
    task_id: str = ""
    steps: int = 0
    """Steps since the reset."""
    used: float = field(default_factory=time.monotonic)
    transport: asyncio.BaseTransport | None = None
    """The connection of the last call."""
    released: list[object] = field(default_factory=list)
    """Snapshots that this environment frees before its next call."""
    closed: bool = False

    def close_env(self) -> None:
        if self.env is not None:
            self.env.close()


@dataclass(slots=True)
class _Snapshot:
    owner: Session
    value: object
    task_id: str
    steps: int
    used: float = field(default_factory=time.monotonic)


class SessionTable:
    """All sessions of one server. Used in one event loop: `start`, then calls, then `stop`.

    Args:
        make: Makes an environment; called in the session's thread.
        workers: The most sessions at a time.
        idle: Seconds without a call after which a session is closed.
    """

    def __init__(self, make: Callable[[], Environment], workers: int, idle: float) -> None:
        self.make, self.workers, self.idle = make, workers, idle
        self.sessions: dict[str, Session] = {}
        self.facts: Environment
        """One environment beside the sessions, for the description and the task list."""
        self.facts_thread = EnvThread()
        self._threads: set[EnvThread] = set()
        """Of sessions, and of ended ones whose environment is not closed yet: they hold a place."""
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.facts = await self.facts_thread.run(self.make)
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Finish running calls, then close every environment; after a few seconds the rest is left
        behind. May be called after a failed start."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for session in list(self.sessions.values()):
            self._end(session)
        if hasattr(self, "facts"):
            self._spawn(self._end_thread(self.facts_thread, self.facts.close))
        if self._background:
            await asyncio.wait(self._background, timeout=_CLOSING_S)

    async def with_facts(self, function: Callable[[Environment], T]) -> T:
        """Run a function on the environment that answers for all; Refused where it raises."""
        async with _env_errors():
            return await self.facts_thread.run(lambda: function(self.facts))

    async def call(
        self,
        name: str,
        number: int,
        what: str,
        body: Mapping[str, Any],
        raw: bytes,
        transport: asyncio.BaseTransport | None,
    ) -> tuple[int, bytes]:
        """Answer a numbered call of a session.

        Args:
            name: The session; the first `reset` or `restore` opens it.
            number: 1 for the first call, then one more each; the last number again gets the
                recorded answer.
            what: One of `CALLS`.
            body: The call's fields.
            raw: The request as it came, to tell a repeated call from another one.
            transport: The client's connection.

        Returns:
            HTTP status and JSON body.

        Raises:
            Refused: No such session, no free place, or a number out of order.
            Malformed: A field is missing or of the wrong type; the session ends.
        """
        if not 0 < len(name) <= 200:
            raise Malformed("a session has a name of at most 200 characters")
        session = self.sessions.get(name)
        if session is None:
            if number != 1 or what not in ("reset", "restore"):
                raise Refused(
                    "lost",
                    "The session is not known here: it has expired, or the server was started "
                    "again.",
                )
            session = self._open(name)
        session.used, session.transport = time.monotonic(), transport
        async with session.lock:  # a repeated call waits here while the first one runs
            if session.closed:
                raise Refused("lost", "The session is over.")
            if number == session.calls and raw == session.request:
                return session.answer
            if number != session.calls + 1:
                raise Refused(
                    "lost",
                    f"Call {number} does not follow call {session.calls}: the session is used "
                    "from two sides.",
                )
            try:
                answer = 200, _encoded(await self._run(session, what, body))
            except Refused as refused:
                if refused.kind not in ("gone", "absent"):
                    self._end(session)
                answer = STATUS[refused.kind], error_body(refused.kind, str(refused))
            except Malformed:
                self._end(session)
                raise
            session.calls, session.request, session.answer = number, raw, answer
            session.used = time.monotonic()
            return answer

    def close(self, name: str) -> None:
        """End a session, known or not."""
        if name in self.sessions:
            self._end(self.sessions[name])

    def release(self, snapshot: str) -> None:
        """Free a snapshot, held or not."""
        held = self._snapshots.pop(snapshot, None)
        if held is None:
            return
        if held.owner.closed:
            self._spawn(self._release_in_facts(held.value))
        else:
            held.owner.released.append(held.value)

    async def _run(self, session: Session, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One call in the session's environment, which is made for its first one."""
        call = self._function(session, what, body)
        async with _env_errors():
            if session.env is None:
                session.env = await session.thread.run(self.make)
            env = session.env
            released, session.released = session.released, []
            if released:
                await session.thread.run(lambda: _release(env, released))
            if env.quick:
                answer = _contained(lambda: call(env))
            else:
                answer = await session.thread.run(lambda: call(env))
        if what == "snapshot":
            return {"snapshot": self._store(session, answer["snapshot"])}
        return answer

    def _function(
        self, session: Session, what: str, body: Mapping[str, Any]
    ) -> Callable[[Environment], dict[str, Any]]:
        """What a request asks of its environment; Malformed or Refused before any environment is
        touched."""
        match what:
            case "reset":
                task, seed = task_from_json(body.get("task")), integer(body, "seed")
                session.task_id, session.steps = task.id, 0
                return lambda env: _reset(env, task, seed)
            case "step":
                action = string(body, "action")
                session.steps += 1
                return lambda env: asdict(step_result(env.step(action), env.name))
            case "valid_actions":
                return lambda env: {"actions": [str(action) for action in env.valid_actions()]}
            case "snapshot":
                return lambda env: {"snapshot": env.snapshot()}
            case _:
                held = self._find(string(body, "snapshot"))
                session.task_id, session.steps = held.task_id, held.steps
                return lambda env: _restore(env, held.value)

    def _open(self, name: str) -> Session:
        if self._stopping:
            raise Refused("busy", "This server is about to end.")
        if len(self._threads) >= self.workers:
            now = time.monotonic()
            for other in sorted(self.sessions.values(), key=lambda s: s.used):
                if (
                    not other.lock.locked()
                    and now - other.used > _ORPHAN_S
                    and (other.transport is None or other.transport.is_closing())
                ):
                    self._end(other)
                    break
            raise Refused(
                "busy",
                f"All {self.workers} environments of this server are in use: start it with more "
                "workers, or play fewer at a time.",
            )
        session = self.sessions[name] = Session(name)
        self._threads.add(session.thread)
        return session

    def _end(self, session: Session) -> None:
        """End a session; its place is free as soon as its environment has closed."""
        if not session.closed:
            session.closed = True
            self.sessions.pop(session.id, None)
            if session.lock.locked() and isinstance(session.env, ProcessEnv):
                self._spawn(asyncio.to_thread(session.env.close))  # ends the running call
            self._spawn(self._end_thread(session.thread, session.close_env))

    async def _end_thread(self, thread: EnvThread, close: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):  # the environment is discarded anyway
            await thread.run(close)
        thread.end()
        self._threads.discard(thread)

    def _store(self, session: Session, value: object) -> str:
        while len(self._snapshots) >= MAX_SNAPSHOTS:
            self.release(next(iter(self._snapshots)))
        name = token_hex(8)
        self._snapshots[name] = _Snapshot(session, value, session.task_id, session.steps)
        return name

    def _find(self, name: str) -> _Snapshot:
        held = self._snapshots.get(name)
        if held is None:
            raise Refused("gone", "The snapshot is no longer held here.")
        self._snapshots.move_to_end(name)
        held.used = time.monotonic()
        return held

    async def _release_in_facts(self, value: object) -> None:
        await self.facts_thread.run(lambda: _release(self.facts, [value]))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle / 4, 15.0))
            now = time.monotonic()
            for session in list(self.sessions.values()):
                if now - session.used > self.idle and not session.lock.locked():
                    self._end(session)
            for name, held in list(self._snapshots.items()):
                if now - held.used > _SNAPSHOT_IDLE_S:
                    self.release(name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


@contextlib.asynccontextmanager
async def _env_errors() -> AsyncIterator[None]:
    """Turn what an environment raises into the kind of error that its caller would have seen."""
    try:
        yield
    except Refused:
        raise
    except Malformed as error:
        raise Refused("env", f"It breaks its contract: {error}.") from error
    except SnapshotGone as error:
        raise Refused("gone", str(error)) from error
    except UserError as error:
        raise Refused("user", str(error)) from error
    except NotImplementedError as error:
        raise Refused("absent", _one_line(error) or "It does not offer this call.") from error
    except ForeignFailure as error:
        raise Refused("env", str(error)) from error
    except Exception as error:  # an environment is foreign code
        raise Refused("env", f"It raised {type(error).__name__}: {_one_line(error)}") from error


def task_list(facts: Environment, split: str, count: int | None, seed: int) -> list[dict[str, Any]]:
    """The tasks as JSON objects, for `SessionTable.with_facts`."""
    return [plain_task(task, facts.name).to_json() for task in facts.tasks(split, count, seed)]


def _encoded(answer: Mapping[str, Any]) -> bytes:
    """An environment's answer; Refused where JSON cannot hold it."""
    try:
        return encode(answer)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused("env", f"Its answer cannot be sent: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _reset(env: Environment, task: Task, seed: int) -> dict[str, Any]:
    return {"observation": observation_text(env.reset(task, seed), env.name)}


def _restore(env: Environment, snapshot: object) -> dict[str, Any]:
    env.restore(snapshot)
    return {}


def _release(env: Environment, snapshots: list[object]) -> None:
    for snapshot in snapshots:
        with contextlib.suppress(Exception):  # freeing early is optional
            env.release(snapshot)
