"""One JSON request to one server, tried a bounded number of times; every failed try is counted by kind.

What may pass by itself (429, 5xx, time-outs, lost connections, garbage) is tried again after an exponential wait with seeded
jitter, or after what Retry-After asks for; what may not (other 4xx) is handed back at once as a `Refused`. The key is read from
the environment, sent as a header, and cut out of every text that leaves this module.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from leafe.core import PolicyError, UserError, derive_seed
from leafe.policies.http._wire import Garbage, refusal_text

T = TypeVar("T")

_LONGEST_WAIT_S = 60.0
"""No wait between two tries is longer, whatever Retry-After says."""
_AGAIN = frozenset({408, 409, 425, 429})
"""4xx that may pass by themselves."""


class Refused(Exception):
    """A 4xx (or a redirect) that trying again does not mend. `text` is the server's own sentence, in one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class Unreachable(PolicyError):
    """No answer at all: the last try met a lost or refused connection, or a time-out."""


class _Failed(Exception):
    """One try failed and another may succeed: `kind` for the counter, `cause` for people, `wait` in seconds where the server said."""

    def __init__(self, kind: str, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.kind = kind
        self.cause = cause
        self.wait = wait


class Transport:
    """A connection pool to `base_url`, opened in the running event loop at the first request and again after `close`."""

    def __init__(self, base_url: str, api_key_env: str | None, *, timeout_s: float, retries: int, concurrency: int, backoff_s: float) -> None:
        try:
            url = URL(base_url)
        except ValueError as error:
            raise UserError(f"base_url = {base_url!r} is no web address ({error}): write http://HOST:PORT/v1.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"base_url = {base_url!r} is no web address: write http://HOST:PORT/v1.")
        if url.user is not None or url.password is not None:
            raise UserError(f"base_url for {url.host} holds a user name or password: put the key in an environment variable and name it with api_key_env.")
        self.url = url.with_path(url.path.rstrip("/"), keep_query=True).with_fragment(None)
        self.api_key_env = api_key_env
        self.timeout_s = timeout_s
        self._connect_s = min(timeout_s, 10.0)
        self.retries = retries
        self.concurrency = concurrency
        self.backoff_s = backoff_s
        self.stats: Counter[str] = Counter()
        self._jitter = random.Random(derive_seed("jitter", str(self.url)))
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(concurrency)

    def at(self, path: str) -> str:
        """The address of a path under base_url as errors show it: without its query, which may hold a key."""
        return str(self._address(path).with_query(None)).rstrip("/")

    def _address(self, path: str) -> URL:
        return self.url.with_path(f"{self.url.path.rstrip('/')}/{path}", keep_query=True)

    async def call(self, path: str, body: dict[str, Any] | None, read: Callable[[object], T], *, once: bool = False) -> T:
        """POST `body` as JSON (GET where it is None) and return `read(answer)`.

        `read` raises Garbage for an answer it cannot use. Raises Refused at once, PolicyError after `retries` further tries (`once`: after none).
        """
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        session = self._opened()
        async with self._slots:
            for attempt in range(self.retries + 1):
                self.stats["requests"] += 1
                try:
                    return read(await self._once(session, path, payload))
                except _Failed as failed:
                    last = failed
                except Garbage as garbage:
                    last = _Failed("garbage", str(garbage))
                self.stats[last.kind] += 1
                if once or attempt == self.retries:
                    break
                self.stats["retries"] += 1
                await asyncio.sleep(self._wait(attempt, last.wait))
        self.stats["given_up"] += 1
        tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
        kind = Unreachable if last.kind in ("connection", "timeout") else PolicyError
        raise kind(f"{self.at(path)} gave no answer after {tries}: {self.hide(last.cause).rstrip('.')}.")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds until the next try: what the server asked for, else a doubling wait, jittered so that clients do not come back together."""
        if asked is not None:
            return min(asked, _LONGEST_WAIT_S)
        return float(min(self.backoff_s * 2**attempt, _LONGEST_WAIT_S) * self._jitter.uniform(0.5, 1.0))

    async def _once(self, session: aiohttp.ClientSession, path: str, payload: bytes | None) -> object:
        try:
            # no redirects: they turn a POST into a GET, and would carry the key to another host
            async with session.request("GET" if payload is None else "POST", self._address(path), data=payload, allow_redirects=False) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except aiohttp.ConnectionTimeoutError as error:
            raise _Failed("connection", f"no connection within {self._connect_s:g} s") from error
        except TimeoutError as error:
            raise _Failed("timeout", f"no answer within {self.timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise _Failed("connection", f"the connection failed ({_cause(error)})") from error
        try:
            answer: object = json.loads(raw)
        except ValueError as error:
            if status < 300:
                raise _Failed("garbage", f"the answer is not JSON ({raw[:40]!r})") from error
            answer = raw[:300].decode("utf-8", "replace")
        if 200 <= status < 300:
            return answer
        text = refusal_text(answer)
        if status == 429 or status >= 500 or status in _AGAIN:
            kind = "5xx" if status >= 500 else str(status)
            raise _Failed(kind, f"status {status}: {text}", _retry_after(headers.get("Retry-After")))
        raise Refused(status, self.hide(text))

    def hide(self, text: str) -> str:
        """The text without the key, should a server echo it."""
        key = self._key()
        return text.replace(key, "***") if key else text

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    def _opened(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            headers = {"Content-Type": "application/json"}
            key = self._key()
            if key:
                if not (key.isascii() and key.isprintable()):
                    raise UserError(f"The environment variable {self.api_key_env} holds characters that no API key has: set it anew.")
                headers["Authorization"] = f"Bearer {key}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=self._connect_s),
                # uvicorn drops idle connections after 5 s: let go of them before, else a request meets a closed one
                connector=aiohttp.TCPConnector(limit=self.concurrency, keepalive_timeout=4.0),
            )
            self._loop = loop
            self._slots = asyncio.Semaphore(self.concurrency)
        return self._session

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date; None where it says neither."""
    if not value:
        return None
    try:
        seconds = float(value) if value[0] in "-0123456789" else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
    return max(0.0, seconds)
