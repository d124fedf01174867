"""The HTTP side of an environment server: settings, access, and the routes of both protocols.

leafe's own calls are `POST /CALL` with a session and a number (docs/remote.md); OpenEnv's are `/ws`
and a few descriptions (`_openenv`). Both end in the same `SessionTable`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import signal
import zlib
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from leafe.core import UserError
from leafe.core.answers import check_facts, versions_of
from leafe.envs._registry import make_env
from leafe.envs.remote import _openenv
from leafe.envs.remote._sessions import CALLS, SessionTable, task_list
from leafe.envs.remote._wire import (
    MAX_BODY,
    PROTOCOL,
    STATUS,
    Malformed,
    Refused,
    decode,
    encode,
    error_body,
    integer,
    string,
    strings,
)


class EnvServer:
    """Serves one environment. Used in one event loop: `start`, then requests, then `stop`.

    Args:
        name: The environment, as `make_env` takes it.
        options: Its options.
        host: The address to listen at; one that others can reach needs a token.
        port: The port; 0 takes any free one.
        workers: The most sessions at a time.
        token: Clients send it as `Authorization: Bearer TOKEN`; None: only localhost is answered.
        idle: Seconds without a call after which a session is closed.

    Raises:
        UserError: A setting is not usable.
    """

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
        self.host, self.port, self.idle = host, port, idle
        self.name, self.options = name, dict(options)
        self.table = SessionTable(lambda: make_env(name, **options), workers, idle)
        self._expected = f"Bearer {token}".encode() if token is not None else None
        self._runner: web.ServerRunner | None = None
        self._versions: dict[str, str] = {}
        self._description = b""

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> None:
        """Make the environment that describes all others, then listen.

        Raises:
            UserError: The environment cannot be made, or the port cannot be had.
        """
        await self.table.start()
        facts = self.table.facts
        # the environment's options are not the client's, so they count as a version there
        self._versions = {
            "env": self.name,
            "options": json.dumps(self.options, sort_keys=True, default=str),
            **await self.table.facts_thread.run(lambda: versions_of(facts)),
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
                "versions": self._versions,
            }
        )
        loop = asyncio.get_running_loop()
        # no web.Application: its router costs a quarter of the server's time. Idle connections stay
        # as long as sessions: a closed one shows that its client left
        listener = web.Server(
            self._handle,
            request_factory=lambda message, payload, protocol, writer, task: web.BaseRequest(
                message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY
            ),
            access_log=None,
            logger=_LOGGER,
            keepalive_timeout=self.idle,
        )
        # by the shutdown every call that will be answered has been
        self._runner = web.ServerRunner(listener, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError as error:
            raise UserError(
                f"An environment server cannot listen at {self.host}, port {self.port} "
                f"({error.strerror or error}): choose another port."
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Answer what runs, then close every environment. May be called after a failed start."""
        await self.table.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self._authorize(request)
            if request.method == "GET" and request.path.strip("/") == "ws":
                return await _openenv.WebSocketSession(self.table, request).serve()
            status, body = await self._answer(request)
        except Refused as refused:
            status, body = STATUS[refused.kind], error_body(refused.kind, str(refused))
        except Malformed as error:
            status, body = (
                400,
                error_body("user", f"The request breaks the protocol: {error}."),
            )
        except _Unauthorized as error:
            status, body = 401, error_body("user", str(error))
        except web.HTTPRequestEntityTooLarge:
            status, body = (
                413,
                error_body("user", f"The request is longer than {MAX_BODY >> 20} MiB."),
            )
        except web.HTTPException as error:  # a WebSocket handshake that is none
            status, body = error.status, error_body("user", f"It is no WebSocket: {error.reason}.")
        return web.Response(status=status, body=body, content_type="application/json")

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._expected is not None:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._expected):
                raise _Unauthorized("The token is missing or wrong.")
        elif not _is_loopback(request.host.rpartition(":")[0].strip("[]") or request.host):
            # a web page's name that was made to point here
            raise _Unauthorized("Without a token this server answers to localhost alone.")
        elif "Upgrade" in request.headers and "Origin" in request.headers:
            raise _Unauthorized("Without a token this server answers no web page.")
        if request.method == "POST" and request.content_type != "application/json":
            # no web page can send this type here without a preflight request
            raise Malformed("its Content-Type is not application/json")

    async def _answer(self, request: web.BaseRequest) -> tuple[int, bytes]:
        path = request.path.strip("/")
        if request.method == "GET":
            if not path:
                return 200, self._description
            found = _openenv.get(path, self.table.facts, self._versions)
            if found is not None:
                return 200, json.dumps(found).encode()
        env, _, task_call = path.rpartition("/")
        is_task_call = env == self.name and task_call in _openenv.TASK_CALLS
        known = path in (*CALLS, "tasks", "release", "close") or is_task_call
        if request.method != "POST" or not known:
            raise Refused("absent", f"There is no call {request.method} /{path[:40]}.")
        raw = await _read_body(request)
        try:
            body = decode(raw)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"its body is no JSON object ({error})") from error
        if is_task_call:
            return 200, _bounded(await _openenv.post_tasks(task_call, self.table, body))
        if path == "tasks":
            split, seed = string(body, "split"), integer(body, "seed", 0)
            count = None if body.get("count") is None else integer(body, "count", least=1)
            return 200, _bounded(
                await self.table.with_facts(
                    lambda env: encode({"tasks": task_list(env, split, count, seed)})
                )
            )
        if path == "release":
            for snapshot in strings(body, "snapshots"):
                self.table.release(snapshot)
            return 200, b"{}"
        session = string(body, "session")
        if path == "close":
            self.table.close(session)
            return 200, b"{}"
        number = integer(body, "call", least=1)
        return await self.table.call(session, number, path, body, raw, request.transport)


def _bounded(answer: bytes) -> bytes:
    if len(answer) > MAX_BODY:
        raise Refused(
            "user",
            f"These tasks take {len(answer) >> 20} MiB, more than the {MAX_BODY >> 20} MiB of one "
            "answer: ask for fewer.",
        )
    return answer


_CLIENT_FAULTS = (
    web.RequestPayloadError,
    ClientPayloadError,
    HttpProcessingError,
    ConnectionError,
    zlib.error,
)
"""Raised for a request that is no HTTP, is not compressed as it says, or is cut off: answered with
a 4xx, or not at all if nobody is connected any more."""


def _is_server_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _CLIENT_FAULTS))


_LOGGER = logging.getLogger("leafe.envs.serve")
_LOGGER.addFilter(_is_server_fault)


async def _read_body(request: web.BaseRequest) -> bytes:
    """The whole body. Malformed where it was cut off, or is not compressed as its headers say."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise
    except (*_CLIENT_FAULTS, ValueError, LookupError) as error:
        raise Malformed(
            f"its body cannot be read ({type(error).__name__}): it was cut off, or is not "
            "compressed as its headers say"
        ) from error


class _Unauthorized(Exception):
    """The client may not ask."""


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
