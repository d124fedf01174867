"""Calls to one server over one kept-alive connection, each tried a bounded number of times within
one deadline.

A call may be sent twice without harm, since the protocol numbers what changes an environment. So a
lost connection, a 5xx and an answer that is no JSON are tried again after a doubling wait; a server
that accepts the connection and does not answer before the deadline is not. The token is read from
the environment variable for every call, sent as a header, and cut out of every answer, in whichever
spelling, before anything else reads it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import time
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from leafe.core import EnvError, UserError
from leafe.core.secret import hider
from leafe.envs.remote import _loop
from leafe.envs.remote._wire import MAX_BODY, STATUS, Refused, decode, encode

_CONNECT_S = 10.0
"""The longest wait for a connection, should the deadline be further."""
_BACKOFF_S, _LONGEST_WAIT_S = 0.2, 5.0
_NOT_OFFERED = frozenset({404, 405, 501})
_TRANSIENT = frozenset({408, 425, 429})
"""4xx that may pass by themselves."""


class Unreachable(EnvError):
    """No answer at all: the last try met a lost or refused connection, or the deadline."""


class _TryAgain(Exception):
    """One try failed and another may succeed; `error` is raised after the last one."""

    def __init__(self, cause: str, error: type[EnvError] = EnvError) -> None:
        super().__init__(cause)
        self.error = error


class Transport:
    """A client of one server.

    Args:
        url: The server's address, http or https.
        timeout: Seconds a call may take, all its tries together.
        retries: Further tries after the first.
        token_env: The environment variable that holds the bearer token; None: no token.

    Raises:
        UserError: An argument is not usable.
    """

    def __init__(self, url: str, timeout: float, retries: int, token_env: str | None) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < 1e6:
            raise UserError(
                f"The environment 'remote' cannot have timeout {timeout!r}: give seconds, "
                "more than 0."
            )
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise UserError(
                f"The environment 'remote' cannot have retries {retries!r}: give a whole "
                "number from 0."
            )
        self.url = _checked_url(url)
        self.timeout = float(timeout)
        self._retries = retries
        self._token_env = token_env
        # clients that lost one server must not come back together
        self._jitter = random.Random(token_hex(8))
        self._session: aiohttp.ClientSession | None = None
        self._kept = False
        """The session has a connection that an earlier call left open."""
        self._token()

    def call(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> dict[str, Any]:
        """Send one call and wait for its answer.

        Args:
            path: The call's name; "" asks for the description.
            body: Sent as JSON by POST; None: a GET.
            timeout: Instead of the transport's own.
            retries: Instead of the transport's own.

        Returns:
            The answer's JSON object.

        Raises:
            Refused: The server refuses, with its kind and sentence.
            Unreachable: No answer came.
            EnvError: The last try got an answer that is none.
        """
        try:
            payload = None if body is None else encode(body)
        except (TypeError, ValueError) as error:
            raise Refused("user", f"what is sent is not plain JSON ({error})") from error
        if payload is not None and len(payload) > MAX_BODY:
            raise Refused(
                "user",
                f"a request of {len(payload) >> 20} MiB is longer than the {MAX_BODY >> 20} MiB "
                "that the protocol allows",
            )
        return _loop.run(
            self._call(
                path,
                payload,
                timeout or self.timeout,
                self._retries if retries is None else retries,
            )
        )

    def close(self) -> None:
        _loop.run(self._close())

    def hide(self, text: str) -> str:
        """The text without the token, should a server echo it."""
        return hider((os.environ.get(self._token_env or "", "").strip(),))(text)

    async def _call(
        self, path: str, payload: bytes | None, seconds: float, retries: int
    ) -> dict[str, Any]:
        deadline, attempt = time.monotonic() + seconds, 0
        what = f"{self.url} gave no answer to {path or 'GET'}"
        while True:
            kept = self._kept
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                    status, raw = await self._send(path, payload)
                return self._read(status, raw)
            except TimeoutError as error:
                await self._close()
                raise Unreachable(f"{what} within {seconds:g} s.") from error
            except (aiohttp.ClientError, OSError, UnicodeError) as error:
                await self._close()
                if kept:  # the server had closed it meanwhile; the next connection is a new one
                    continue
                failed = _TryAgain(f"the connection failed ({_reason(error)})", Unreachable)
            except _TryAgain as error:
                failed = error
            wait = min(_BACKOFF_S * 2**attempt, _LONGEST_WAIT_S) * self._jitter.uniform(0.75, 1.0)
            attempt += 1
            if attempt > retries or time.monotonic() + wait >= deadline:
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                cause = self.hide(str(failed)).rstrip(".")
                raise failed.error(f"{what} after {tries}: {cause}.")
            await asyncio.sleep(wait)

    async def _send(self, path: str, payload: bytes | None) -> tuple[int, bytes]:
        """One try: status and body."""
        session = self._session or self._open()
        headers = {"Accept": "application/json"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        async with session.request(
            "GET" if payload is None else "POST",
            URL(f"{self.url}/{path}", encoded=True),
            data=payload,
            headers=headers,
            allow_redirects=False,
        ) as response:
            size, parts = response.content_length or 0, list[bytes]()
            if size <= MAX_BODY:
                size = 0
                async for part in response.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_BODY:
                        break
            if size <= MAX_BODY:
                self._kept = True
                return response.status, b"".join(parts)
            response.close()
        await self._close()
        raise Refused(
            "env", f"an answer is longer than the {MAX_BODY >> 20} MiB that the protocol allows"
        )

    def _open(self) -> aiohttp.ClientSession:
        """A session of one connection, which shows the server that this client is there."""
        # made here and not by aiohttp, which reads the trusted certificates once, at import
        context = ssl.create_default_context() if self.url.startswith("https") else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=context, keepalive_timeout=1e6),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )
        return self._session

    async def _close(self) -> None:
        session, self._session, self._kept = self._session, None, False
        if session is not None:
            await session.close()

    def _read(self, status: int, raw: bytes) -> dict[str, Any]:
        """The answer's object, by status and body."""
        try:
            answer = decode(self.hide(raw.decode(json.detect_encoding(raw), "replace")).encode())
            why = ""
        except (ValueError, RecursionError) as error:
            answer, why = {}, str(error)
        refusal = answer.get("error")
        if isinstance(refusal, dict):
            kind = refusal.get("kind")
            sentence = " ".join(str(refusal.get("message") or f"status {status}").split())
            sentence = self.hide(sentence[:500]).rstrip(".")
            if kind == "busy":
                raise _TryAgain(sentence)
            raise Refused(str(kind) if kind in STATUS else "env", sentence)
        if 200 <= status < 300:
            if why:
                raise _TryAgain(f"the answer is no JSON object ({why})")
            return answer
        if (status >= 500 and status != 501) or status in _TRANSIENT:
            raise _TryAgain(f"status {status}")
        if status in (401, 403):
            problem = "it refuses the token" if self._token() else "it wants a token"
            raise Refused("user", f"{problem} (status {status})")
        raise Refused(
            "absent" if status in _NOT_OFFERED else "user", f"it answers with status {status}"
        )

    def _token(self) -> str:
        if self._token_env is None:
            return ""
        token = os.environ.get(self._token_env, "").strip()
        if not token:
            raise UserError(
                f"The environment 'remote': the environment variable {self._token_env} is "
                "empty: put the server's token there."
            )
        if not (token.isascii() and token.isprintable()):
            raise UserError(
                f"The environment 'remote': the environment variable {self._token_env} "
                "holds characters that no token has: set it anew."
            )
        return token


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"The environment 'remote': url is no web address ({error}): write http://HOST:PORT."
        ) from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"The environment 'remote': the url of {parts.hostname} may hold no user "
            "name, query or key: name a token's variable with token_env."
        )
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not (url.isascii() and url.isprintable())
        or " " in url
    ):
        raise UserError(
            f"The environment 'remote': url = {url!r} is no web address: write http://HOST:PORT."
        )
    return url.rstrip("/")


def _reason(error: Exception) -> str:
    """Why a connection failed, without any of what came: that may hold a part of the token."""
    if isinstance(error, UnicodeError | aiohttp.InvalidURL):
        return "no host can have that name"
    if isinstance(error, aiohttp.ServerTimeoutError):
        return "no connection within the time allowed"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "the answer ended too early"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return "the answer is not HTTP/1.1"
