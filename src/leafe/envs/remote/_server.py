"""Any environment offered over HTTP: one environment a session, each made, played and closed in a
thread of its own.

Sessions are numbered records of calls: the last answer is kept, and the same call sent again gets
it. Snapshots belong to the server, since a
client restores in one session what it took in another; the oldest go when there are too many. An
environment that raises is closed and its session
forgotten. The event loop does the bookkeeping and the calls of quick environments; everything that
may block runs in the session's thread, which is a
daemon, so that an environment that never answers cannot keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import queue
import signal
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from secrets import token_hex
from typing import Any, TypeVar

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from leafe.core import Environment, ForeignFailure, SnapshotGone, Task, UserError
from leafe.core.answers import check_facts, observation_text, plain_task, step_result, versions_of
from leafe.envs._registry import make_env
from leafe.envs.remote._wire import (
    MAX_BODY,
    PROTOCOL,
    STATUS,
    Malformed,
    Refused,
    decode,
    encode,
    error_body,
    task_from_json,
    text,
    texts,
    whole,
)
from leafe.envs.worker import ProcessEnv

T = TypeVar("T")

MAX_SNAPSHOTS = 4096
"""The most that are held; the one that was not used for longest gives way."""
_SNAPSHOT_IDLE_S = 3600.0
_ORPHAN_S = 60.0
"""On a full server, a session whose connection is closed gives way after so long without a call."""
_CLOSING_S = 5.0
"""How long running calls and closing environments may take at the end."""


class Lane:
    """One thread that runs one function after another: an environment's whole life is spent in
    it."""

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
                value = _within(function)
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                loop.call_soon_threadsafe(_settle, future, value, error)


def _within(function: Callable[[], T]) -> T:
    """SystemExit and KeyboardInterrupt are this environment's, and not for this process."""
    try:
        return function()
    except Exception:
        raise
    except BaseException as raised:
        raise RuntimeError(f"{type(raised).__name__}: {raised}") from raised


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(
            RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
        )


@dataclass(slots=True, eq=False)
class Session:
    id: str
    lane: Lane = field(default_factory=Lane)
    env: Environment | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0
    """The number of the last call that was answered."""
    request: bytes = b""
    answer: tuple[int, bytes] = (200, b"{}")
    used: float = field(default_factory=time.monotonic)
    transport: asyncio.BaseTransport | None = None
    """The connection of the last call."""
    released: list[object] = field(default_factory=list)
    """Snapshots that this environment is to free before its next call."""
    closed: bool = False

    def close_env(self) -> None:
        if self.env is not None:
            self.env.close()


@dataclass(slots=True)
class _Held:
    owner: Session
    value: object
    used: float


class EnvServer:
    """The sessions of one environment. Used in one event loop: `start`, then requests, then
    `stop`."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        host: str,
        port: int,
        workers: int,
        token: str | None,
        idle: float,
    ) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise UserError(
                f"An environment server cannot have {workers!r} workers: give a whole "
                "number from 1."
            )
        if not 0 <= port < 65536:
            raise UserError(
                f"There is no port {port}: give one from 1 to 65535, or 0 for any free one."
            )
        if token is not None and not (
            token
            and token.isascii()
            and token.isprintable()
            and not any(c.isspace() for c in token)
        ):
            raise UserError(
                "The token of an environment server must be one word of printable ASCII: "
                "python -c 'import secrets; print(secrets.token_hex())'."
            )
        if token is None and not _is_loopback(host):
            raise UserError(
                f"An environment server at {host!r} could be used by anybody who reaches "
                "it: give it a token, or host 127.0.0.1."
            )
        if not idle > 0:
            raise UserError(f"A session cannot expire after {idle!r} seconds: give more than 0.")
        self.host, self.port, self.workers, self.idle = host, port, workers, idle
        self._make: Callable[[], Environment] = lambda: make_env(name, **options)
        self._expected = f"Bearer {token}".encode() if token is not None else None
        self._sessions: dict[str, Session] = {}
        self._lanes: set[Lane] = set()
        """Of sessions, and of those that are over but whose environment is not closed yet: they
        hold a place."""
        self._snapshots: OrderedDict[str, _Held] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._runner: web.ServerRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._facts: Environment | None = None
        self._facts_lane = Lane()
        self._description = b""
        self.name, self.options = name, dict(options)

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> None:
        """Make the first environment, which says what there is, and listen. UserError where either
        cannot be."""
        facts = self._facts = await self._facts_lane.run(self._make)
        versions = await self._facts_lane.run(lambda: versions_of(facts))
        # the environment's options are not the client's, so what hangs on them is a version there
        versions = {
            "env": self.name,
            "options": json.dumps(self.options, sort_keys=True, default=str),
            **versions,
        }
        check_facts(facts)
        self.name = facts.name
        self._description = encode(
            {
                "protocol": PROTOCOL,
                "name": facts.name,
                "deterministic": bool(facts.deterministic),
                "horizon": int(facts.horizon),
                "actions_help": facts.actions_help,
                "splits": list(getattr(facts, "splits", ())),
                "snapshots": bool(facts.can_snapshot),
                "versions": versions,
            }
        )
        loop = asyncio.get_running_loop()
        # no web.Application: its router costs a quarter of the server's time. Idle connections stay
        # as long as sessions: a closed one says that its client left
        listener = web.Server(
            self._handle,
            request_factory=lambda message, payload, protocol, writer, task: web.BaseRequest(
                message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY
            ),
            access_log=None,
            logger=_LOGGER,
            keepalive_timeout=self.idle,
        )
        self._runner = web.ServerRunner(
            listener, shutdown_timeout=0.2
        )  # by then every call that will be answered is
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError as error:
            raise UserError(
                f"An environment server cannot listen at {self.host}, port {self.port} "
                f"({error.strerror or error}): choose another port."
            ) from error
        self.port = self._runner.addresses[0][1]
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Answer what runs, then close every environment; what takes longer than a few seconds is
        left behind. May be called after a failed start."""
        self._ending = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for session in list(self._sessions.values()):
            self._forget(session)
        if self._facts is not None:
            self._spawn(self._end(self._facts_lane, self._facts.close))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        try:
            self._admit_client(request)
            status, body = await self._answer(request)
        except Refused as refused:
            status, body = STATUS[refused.kind], error_body(refused.kind, str(refused))
        except Malformed as error:
            status, body = (
                400,
                error_body("user", f"The request is not what the protocol says: {error}."),
            )
        except _Denied as denied:
            status, body = 401, error_body("user", str(denied))
        except web.HTTPRequestEntityTooLarge:
            status, body = (
                413,
                error_body("user", f"The request is longer than {MAX_BODY >> 20} MiB."),
            )
        return web.Response(status=status, body=body, content_type="application/json")

    def _admit_client(self, request: web.BaseRequest) -> None:
        if self._expected is not None:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._expected):
                raise _Denied("The token is missing or wrong.")
        elif not _is_loopback(request.host.rpartition(":")[0].strip("[]") or request.host):
            raise _Denied(
                "Without a token this server answers to localhost alone."
            )  # a web page's name that was made to point here
        if request.method == "POST" and request.content_type != "application/json":
            raise Malformed(
                "its Content-Type is not application/json"
            )  # which no web page can send here unasked

    async def _answer(self, request: web.BaseRequest) -> tuple[int, bytes]:
        path = request.path.strip("/")
        if request.method == "GET" and not path:
            return 200, self._description
        if request.method != "POST" or path not in (
            "tasks",
            "reset",
            "step",
            "valid_actions",
            "snapshot",
            "restore",
            "release",
            "close",
        ):
            raise Refused("absent", f"There is no call {request.method} /{path[:40]}.")
        raw = await _body(request)
        try:
            body = decode(raw)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"its body is no JSON object ({error})") from error
        if path == "tasks":
            return 200, await self._list_tasks(body)
        if path == "release":
            for snapshot in texts(body, "snapshots"):
                self._drop_snapshot(snapshot)
            return 200, b"{}"
        name = text(body, "session")
        if path == "close":
            if name in self._sessions:
                self._forget(self._sessions[name])
            return 200, b"{}"
        return await self._in_session(request, path, name, body, raw)

    async def _list_tasks(self, body: Mapping[str, Any]) -> bytes:
        facts = self._facts
        split, seed = text(body, "split"), whole(body, "seed", 0)
        count = None if body.get("count") is None else whole(body, "count", least=1)
        assert facts is not None
        async with _env_errors():
            answer = await self._facts_lane.run(
                lambda: encode(
                    {
                        "tasks": [
                            plain_task(task, facts.name).to_json()
                            for task in facts.tasks(split, count, seed)
                        ]
                    }
                )
            )
        if len(answer) > MAX_BODY:
            raise Refused(
                "user",
                (
                    f"These tasks take {len(answer) >> 20} MiB, more than the {MAX_BODY >> 20} "
                    "MiB of one answer: ask for fewer."
                ),
            )
        return answer

    async def _in_session(
        self, request: web.BaseRequest, what: str, name: str, body: Mapping[str, Any], raw: bytes
    ) -> tuple[int, bytes]:
        number = whole(body, "call", least=1)
        if not 0 < len(name) <= 200:
            raise Malformed("a session has a name of at most 200 characters")
        session = self._sessions.get(name)
        if session is None:
            if number != 1 or what not in ("reset", "restore"):
                raise Refused(
                    "lost",
                    (
                        "The session is not known here: it has expired, or the server was "
                        "started again."
                    ),
                )
            session = self._open(name)
        session.used, session.transport = time.monotonic(), request.transport
        async with (
            session.lock
        ):  # a call that is sent again while it runs waits here for its answer
            if session.closed:
                raise Refused("lost", "The session is over.")
            if number == session.calls and raw == session.request:
                return session.answer
            if number != session.calls + 1:
                raise Refused(
                    "lost",
                    (
                        f"Call {number} does not follow call {session.calls}: the session is "
                        "used from two sides."
                    ),
                )
            try:
                answer = 200, _encoded(await self._play(session, what, body))
            except Refused as refused:
                if refused.kind not in ("gone", "absent"):
                    self._forget(session)
                answer = STATUS[refused.kind], error_body(refused.kind, str(refused))
            except Malformed:
                self._forget(session)
                raise
            session.calls, session.request, session.answer, session.used = (
                number,
                raw,
                answer,
                time.monotonic(),
            )
            return answer

    async def _play(self, session: Session, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One call in the session's environment, made for its first one."""
        call = self._call(what, body)
        async with _env_errors():
            env = session.env
            if env is None:
                env = await session.lane.run(lambda: self._born(session))
            released, session.released = session.released, []
            if released:
                await session.lane.run(lambda: _release(env, released))
            answer = (
                _within(lambda: call(env))
                if env.quick
                else await session.lane.run(lambda: call(env))
            )
        return (
            {"snapshot": self._keep(session, answer["snapshot"])} if what == "snapshot" else answer
        )

    def _call(self, what: str, body: Mapping[str, Any]) -> Callable[[Environment], dict[str, Any]]:
        """What a request asks of its environment; Malformed or Refused before any environment is
        touched."""
        match what:
            case "reset":
                task, seed = task_from_json(body.get("task")), whole(body, "seed")
                return lambda env: _reset(env, task, seed)
            case "step":
                action = text(body, "action")
                return lambda env: asdict(step_result(env.step(action), env.name))
            case "valid_actions":
                return lambda env: {"actions": [str(action) for action in env.valid_actions()]}
            case "snapshot":
                return lambda env: {"snapshot": env.snapshot()}
            case _:
                held = self._hold(text(body, "snapshot"))
                return lambda env: _restore(env, held.value)

    def _born(self, session: Session) -> Environment:
        session.env = self._make()
        return session.env

    def _open(self, name: str) -> Session:
        if self._ending:
            raise Refused("busy", "This server is about to end.")
        if len(self._lanes) >= self.workers:
            now = time.monotonic()
            for other in sorted(self._sessions.values(), key=lambda s: s.used):
                if (
                    not other.lock.locked()
                    and now - other.used > _ORPHAN_S
                    and (other.transport is None or other.transport.is_closing())
                ):
                    self._forget(other)
                    break
            raise Refused(
                "busy",
                (
                    f"All {self.workers} environments of this server are in use: start it with "
                    "more workers, or play fewer at a time."
                ),
            )
        session = self._sessions[name] = Session(name)
        self._lanes.add(session.lane)
        return session

    def _forget(self, session: Session) -> None:
        """The session is over; its place is free as soon as its environment has closed."""
        if not session.closed:
            session.closed = True
            self._sessions.pop(session.id, None)
            if session.lock.locked() and isinstance(session.env, ProcessEnv):
                self._spawn(asyncio.to_thread(session.env.close))  # ends the call that it waits for
            self._spawn(self._end(session.lane, session.close_env))

    async def _end(self, lane: Lane, close: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):  # it is thrown away whatever it says
            await lane.run(close)
        lane.end()
        self._lanes.discard(lane)

    def _keep(self, session: Session, value: object) -> str:
        while len(self._snapshots) >= MAX_SNAPSHOTS:
            self._drop_snapshot(next(iter(self._snapshots)))
        name = token_hex(8)
        self._snapshots[name] = _Held(session, value, time.monotonic())
        return name

    def _hold(self, name: str) -> _Held:
        held = self._snapshots.get(name)
        if held is None:
            raise Refused("gone", "The snapshot is no longer held here.")
        self._snapshots.move_to_end(name)
        held.used = time.monotonic()
        return held

    def _drop_snapshot(self, name: str) -> None:
        held = self._snapshots.pop(name, None)
        if held is None:
            return
        if held.owner.closed:
            self._spawn(self._release_for_the_dead(held.value))
        else:
            held.owner.released.append(held.value)

    async def _release_for_the_dead(self, value: object) -> None:
        facts = self._facts
        assert facts is not None
        await self._facts_lane.run(lambda: _release(facts, [value]))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle / 4, 15.0))
            now = time.monotonic()
            for session in list(self._sessions.values()):
                if now - session.used > self.idle and not session.lock.locked():
                    self._forget(session)
            for name in [
                name for name, held in self._snapshots.items() if now - held.used > _SNAPSHOT_IDLE_S
            ]:
                self._drop_snapshot(name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_CLIENTS_FAULT = (
    web.RequestPayloadError,
    ClientPayloadError,
    HttpProcessingError,
    ConnectionError,
    zlib.error,
)
"""What is raised for a request that is no HTTP, is not packed as it says, or is cut off: answered
with a 4xx, or by nothing where nobody is there."""


def _ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _CLIENTS_FAULT))


_LOGGER = logging.getLogger("leafe.envs.serve")
_LOGGER.addFilter(_ours)


async def _body(request: web.BaseRequest) -> bytes:
    """The whole body. Malformed where it was cut off, or is not packed as its headers say."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise
    except (*_CLIENTS_FAULT, ValueError, LookupError) as error:
        raise Malformed(
            f"its body cannot be read ({type(error).__name__}): it was cut off, or is not "
            "packed as its headers say"
        ) from error


def _encoded(answer: Mapping[str, Any]) -> bytes:
    """What an environment answered; Refused where JSON cannot say it."""
    try:
        return encode(answer)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused("env", f"Its answer cannot be sent: {_line(error)}.") from error


class _Denied(Exception):
    """The client may not ask."""


@contextlib.asynccontextmanager
async def _env_errors() -> AsyncIterator[None]:
    """What an environment raises, as the kind of error that its caller would have seen."""
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
        raise Refused("absent", _line(error)) from error
    except ForeignFailure as error:
        raise Refused("env", str(error)) from error
    except Exception as error:  # an environment is foreign code
        raise Refused("env", f"It raised {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _reset(env: Environment, task: Task, seed: int) -> dict[str, Any]:
    return {"observation": observation_text(env.reset(task, seed), env.name)}


def _restore(env: Environment, snapshot: object) -> dict[str, Any]:
    env.restore(snapshot)
    return {}


def _release(env: Environment, snapshots: list[object]) -> None:
    for snapshot in snapshots:
        with contextlib.suppress(Exception):  # freeing is a courtesy
            env.release(snapshot)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(
    name: str,
    options: Mapping[str, Any],
    *,
    host: str,
    port: int,
    workers: int,
    token: str | None,
    idle: float,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once."""
    server = EnvServer(name, options, host=host, port=port, workers=workers, token=token, idle=idle)

    async def main() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def stop(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)
            ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        starting, ending = asyncio.create_task(server.start()), asyncio.create_task(ended.wait())
        try:
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                print(f"Serving {server.name} at {server.address}", flush=True)
                await ending
        finally:
            starting.cancel()
            await server.stop()

    asyncio.run(main())
