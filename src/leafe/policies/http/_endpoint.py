"""One server: its address, what it understands, whether it is up, and one try of one request.

What may pass by itself (429, 5xx, time-outs, lost connections, garbage, answers given up half-way)
comes out as `Failed`, what may not (other 4xx) as `Refused`. The key is read from the environment,
sent as a header, and cut out of everything that the server sends, in whichever spelling, before
anything else reads it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit

from leafe.core import PolicyError, UserError
from leafe.core.secret import hider, names_secret
from leafe.policies.http._http import Answer, Broken, Connections, NoHTTP, proxy_variable, unpacked
from leafe.policies.http._refusals import Words, status_in, words_of
from leafe.policies.http._wire import Dialect, Garbage

T = TypeVar("T")

_AGAIN = frozenset({408, 409, 425, 429})
"""4xx that may pass by themselves."""
CONNECT_S = 10.0
_PROBE_S = 5.0
_CUTS = 256
_PART = 6
"""Characters of a key that are too many to be shown."""
_ROW = 3
"""Failed tries in a row after which a server is taken out; where no connection could be made, one
is enough."""


class Refused(Exception):
    """A 4xx (or a redirect) that trying again does not mend. `words`: the server's own; `location`:
    of a redirect, where to."""

    def __init__(self, endpoint: Endpoint, status: int, words: Words, location: str = "") -> None:
        super().__init__(f"{status}: {words.text}")
        self.endpoint = endpoint
        self.status = status
        self.words = words
        self.location = location

    @property
    def text(self) -> str:
        return self.words.text

    @property
    def context_full(self) -> bool:
        """What was sent is too long, for the model or for a gateway before it."""
        return self.words.context_full or (self.status == 413 and not self.words.of_rates)


class Unreachable(PolicyError):
    """No answer at all: the last try met a lost or refused connection, or a time-out."""


class Failed(Exception):
    """One try failed and another may succeed: `kind` for the counter, `cause` for people, `wait` in
    seconds where the server said, `absent` where
    there was not even a connection."""

    def __init__(
        self, kind: str, cause: str, wait: float | None = None, *, absent: bool = False
    ) -> None:
        super().__init__(cause)
        self.absent = absent
        self.kind = kind
        self.cause = cause
        self.wait = wait


class Endpoint:
    """The server at `base_url`. `ready`: awaited before every request; raises PolicyError where the
    server will not come back."""

    def __init__(
        self,
        base_url: str,
        key_env: str | None,
        timeout_s: float,
        stats: Counter[str],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        wrong = f"base_url = {base_url!r} is no web address"
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{wrong} ({error}): write http://HOST:PORT/v1.") from error
        if parts.username is not None or parts.password is not None:
            where = f"base_url for {parts.hostname}"
            raise UserError(
                f"{where} holds a user name or password: put the key in an environment "
                "variable and name it with api_key_env."
            )
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not base_url.isascii()
            or any(c.isspace() for c in base_url)
        ):
            raise UserError(f"{wrong}: write http://HOST:PORT/v1.")
        secure = parts.scheme == "https"
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.netloc
        self._path = parts.path.rstrip("/")
        self._query = f"?{parts.query}" if parts.query else ""
        self._query_secrets = tuple(
            value for name, value in parse_qsl(parts.query) if names_secret(name)
        )
        self.key_env = key_env
        self.timeout_s = timeout_s
        self.ready = ready
        self.dialect = Dialect()
        self.stats = stats
        """Of all servers together."""
        self.own: Counter[str] = Counter()
        """Of this one: requests, failures by kind, times it was taken out."""
        self.in_flight = 0
        self.up = True
        self._failures = 0
        self._cuts: dict[int, int] = {}
        self.proxy = proxy_variable(parts.scheme, parts.hostname, port or (443 if secure else 80))
        """The environment variable that names a proxy for this server, which is not used; None:
        there is none."""
        self._head: dict[tuple[str, str], bytes] = {}
        self._connections = Connections(
            parts.hostname, port or (443 if secure else 80), secure, min(timeout_s, CONNECT_S)
        )

    @property
    def base_url(self) -> str:
        """The address as errors show it: without its query, which may hold a key."""
        return self._origin + self._path

    def at(self, path: str) -> str:
        return f"{self.base_url}/{path}".rstrip("/")

    async def send(self, path: str, payload: bytes | None, read: Callable[[object], T]) -> T:
        """One try: POST `payload` (GET where it is None) to base_url/path; `read(answer)`, which
        raises Garbage for what it cannot use."""
        self.stats["requests"] += 1
        self.own["requests"] += 1
        try:
            return self._read(
                path, await self._exchange(self._path, path, payload, self.timeout_s), read
            )
        except Failed as failed:
            self.own[failed.kind] += 1
            raise

    def _read(self, path: str, answer: Answer, read: Callable[[object], T]) -> T:
        status = answer.status
        # before it is decoded: a key spelled with escapes is found as well, and every text inside
        # is clean
        text = self.hide(answer.body.decode(json.detect_encoding(answer.body), "replace"))
        try:
            content: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            shown = text[:300]
            key = self._key()
            if any(key[i : i + _PART] in shown for i in range(len(key) - _PART + 1)):
                shown = ""  # it was cut off in the midst of the key
            if status < 300:
                raise Failed("garbage", f"the answer is not JSON ({shown[:40]!r})") from error
            content = shown
        if 200 <= status < 300:
            said = self._error_in(content)
            if said is None:
                try:
                    return read(content)
                except Garbage as garbage:
                    raise Failed(garbage.kind, str(garbage)) from garbage
            status = said
        if 300 <= status < 400:
            location = self._location(path, answer.headers.get("location", ""))
            raise Refused(
                self, status, Words(f"it redirects to {location or 'no address'}"), location
            )
        refused = Refused(self, status, words_of(content))
        if status == 429 or (not refused.context_full and (status >= 500 or status in _AGAIN)):
            raise Failed(
                "5xx" if status >= 500 else str(status),
                f"status {refused}",
                _retry_after(answer.headers.get("retry-after")),
            )
        raise refused

    @staticmethod
    def _error_in(content: object) -> int | None:
        """The status that an error has which comes as an answer: gateways put that of the server
        behind them there. None: it is an answer, or says no status."""
        if not isinstance(content, dict) or "choices" in content or not content.get("error"):
            return None
        return status_in(content) or (400 if words_of(content).context_full else None)

    def _location(self, path: str, header: str) -> str:
        """The address of a redirect, without its query; nothing where it is none."""
        try:
            parts = urlsplit(urljoin(self.at(path), self.hide(header)))
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return ""
        address = f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
        return "".join(filter(str.isprintable, address))[:200] if header else ""

    async def _exchange(
        self, base: str, path: str, payload: bytes | None, timeout_s: float
    ) -> Answer:
        head = self._head.get((base, path)) or self._make_head(base, path)
        data = (
            b"GET " + head + b"\r\n"
            if payload is None
            else b"POST %bContent-Length: %d\r\n\r\n%b" % (head, len(payload), payload)
        )
        try:
            async with asyncio.timeout(timeout_s):
                return unpacked(await self._connections.ask(data))
        except TimeoutError as error:
            raise Failed("timeout", f"no answer within {timeout_s:g} s") from error
        except Broken as error:
            unused = (
                f"; {self.proxy} names a proxy, which leafe does not use"
                if error.unmade and self.proxy
                else ""
            )
            raise Failed(
                "connection", f"the connection failed ({error}{unused})", absent=error.unmade
            ) from error
        except NoHTTP as error:
            raise Failed("garbage", str(error)) from error

    def _make_head(self, base: str, path: str) -> bytes:
        key = self._key()
        if key and not (key.isascii() and key.isprintable()):
            raise UserError(
                f"The environment variable {self.key_env} holds characters that no API key "
                "has: set it anew."
            )
        lines = [
            f"{base}/{path}{self._query} HTTP/1.1",
            f"Host: {self._host}",
            "User-Agent: leafe",
            "Accept: application/json",
        ]
        lines += ["Accept-Encoding: identity"]
        lines += ["Content-Type: application/json"] + [f"Authorization: Bearer {key}"] * bool(key)
        head = "\r\n".join(lines).encode() + b"\r\n"
        self._head[base, path] = head
        return head

    def hide(self, text: str) -> str:
        """The text without the key, should a server echo it. A key of fewer than 8 characters is a
        placeholder and stays."""
        return hider((self._key(), *self._query_secrets))(text)

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    def ends_here(self, prompt: int, total: int) -> bool:
        """Whether an answer that ended before its limit was cut by the end of the context, after
        `total` tokens with the prompt's.

        Known from the models list, else from another prompt whose answer was cut after as many
        tokens: a limit on answers alone would give another sum.
        """
        context = self.dialect.context
        if len(self._cuts) >= _CUTS:
            self._cuts.clear()
        before = self._cuts.setdefault(total, prompt)
        return before != prompt or (context is not None and total >= context - 1)

    # --- up or down
    # ---------------------------------------------------------------------------------------------

    def answered(self) -> None:
        self._failures = 0

    def failed(self, failed: Failed) -> bool:
        """Count a failed try; whether the server should be taken out. A busy server (429) is none
        that fails."""
        if failed.kind == "429":
            return False
        self._failures += 1
        return self._failures >= _ROW or failed.absent

    async def healthy(self) -> bool:
        """Whether it takes requests: /health beside or under base_url where there is one, else its
        models list."""
        root = self._path.rpartition("/")[0] if self._path.endswith("/v1") else self._path
        try:
            answer = await self._exchange(root, "health", None, min(_PROBE_S, self.timeout_s))
            if answer.status in (401, 403, 404, 405):
                answer = await self._exchange(
                    self._path, "models", None, min(_PROBE_S, self.timeout_s)
                )
                return answer.status < 500
        except Failed:
            return False
        return answer.status == 200

    def close(self) -> None:
        self._head.clear()  # the key may be another one by the next time
        self._connections.close()

    def report(self) -> dict[str, Any]:
        """Plain values on what it was found to understand and how it fared."""
        d = self.dialect
        return {
            "address": self.base_url,
            "schema": d.schema,
            "seed": d.seed and d.seed_holds,
            "choices": d.most,
            "token_ids": d.ids,
            "logprobs": d.logprobs,
            "renewed": self._connections.renewed,
            **{kind: self.own[kind] for kind in sorted(self.own)},
        }


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date; None where it says neither."""
    if not value:
        return None
    try:
        seconds = (
            float(value)
            if value[0] in "-0123456789"
            else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds)
