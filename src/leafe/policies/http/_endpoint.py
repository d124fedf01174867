"""One server: its address, its dialect, its health, and one attempt of one request.

Transient failures (429, 5xx, time-outs, lost connections, garbage, aborted answers) raise `Failed`,
permanent ones (other 4xx, redirects) `Refused`. The API key is removed from everything that the
server sends, however it is escaped, before anything else reads it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urljoin, urlsplit

from yarl import URL

from leafe.core import PolicyError, UserError
from leafe.core.secret import hider, names_secret
from leafe.policies.http._client import Answer, Failed, HTTPClient, StaleConnection, proxy_of
from leafe.policies.http._refusals import ErrorText, error_text, status_in
from leafe.policies.http._wire import Dialect, Garbage

T = TypeVar("T")

_TRANSIENT = frozenset({408, 409, 425, 429})
"""4xx after which the same request may succeed."""
_PROBE_S = 5.0
_MAX_CUTS = 256
_KEY_PART = 6
"""A message never shows that many characters of the key in a row."""
_MAX_FAILURES = 3
"""Failures in a row after which a server is taken out; one is enough where no connection could be
made."""


class Refused(Exception):
    """A 4xx or a redirect: sending the same request again would not help.

    Args:
        endpoint: The server.
        status: The HTTP status.
        error: What the server's body says.
        location: Where a redirect points to.
    """

    def __init__(
        self, endpoint: Endpoint, status: int, error: ErrorText, location: str = ""
    ) -> None:
        super().__init__(f"{status}: {error.text}")
        self.endpoint = endpoint
        self.status = status
        self.error = error
        self.location = location

    @property
    def context_full(self) -> bool:
        """The request is too long for the model, or for a gateway in front of it."""
        return self.error.context_full or (self.status == 413 and not self.error.of_rates)


class Unreachable(PolicyError):
    """No answer at all: the last attempt met a lost or refused connection, or a time-out."""


class Endpoint:
    """The server at `base_url`.

    Args:
        base_url: Its address; usually ends in /v1.
        client: Sends the requests.
        timeout_s: The most seconds that one attempt may take.
        stats: Counts of all servers together.
        ready: Awaited before every request; raises PolicyError where the server will not come back.

    Raises:
        UserError: `base_url` is no web address, or holds a password.
    """

    def __init__(
        self,
        base_url: str,
        client: HTTPClient,
        timeout_s: float,
        stats: Counter[str],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        wrong = f"base_url = {base_url!r} is no web address"
        try:
            parts = urlsplit(base_url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise UserError(f"{wrong} ({error}): write http://HOST:PORT/v1.") from error
        if parts.username is not None or parts.password is not None:
            raise UserError(
                f"base_url for {parts.hostname} holds a user name or password: put the key in an "
                "environment variable and name it with api_key_env."
            )
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not (base_url.isascii() and base_url.isprintable())
            or " " in base_url
        ):
            raise UserError(f"{wrong}: write http://HOST:PORT/v1.")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/")
        self._query = f"?{parts.query}" if parts.query else ""
        self._query_secrets = tuple(
            value for name, value in parse_qsl(parts.query) if names_secret(name)
        )
        self._proxy = proxy_of(parts.scheme, parts.hostname, port)
        self._urls: dict[tuple[str, str], URL] = {}
        self._client = client
        self.timeout_s = timeout_s
        self.ready = ready
        self.dialect = Dialect()
        self.stats = stats
        self.own: Counter[str] = Counter()
        """Counts of this server: requests, failures by kind, times it was taken out."""
        self.renewed = 0
        """Requests that met a connection which the server had closed, and were sent on another."""
        self.in_flight = 0
        self.up = True
        self._failures = 0
        self._cuts: dict[int, int] = {}

    @property
    def base_url(self) -> str:
        """The address as errors show it: without its query, which may hold a key."""
        return self._origin + self._path

    def url_of(self, path: str) -> str:
        return f"{self.base_url}/{path}".rstrip("/")

    async def send(self, path: str, payload: bytes | None, read: Callable[[object], T]) -> T:
        """One attempt of one request.

        Args:
            path: Below `base_url`.
            payload: The JSON to POST; None: GET.
            read: Reads the decoded answer; raises Garbage where it cannot use it.

        Returns:
            What `read` returns.

        Raises:
            Failed: Another attempt may succeed.
            Refused: The server refuses the request.
        """
        self.count("requests")
        try:
            return self._read(
                path, await self._exchange(self._path, path, payload, self.timeout_s), read
            )
        except Failed as failed:
            self.own[failed.kind] += 1
            raise

    def _read(self, path: str, answer: Answer, read: Callable[[object], T]) -> T:
        status = answer.status
        # hidden before it is parsed: this finds escaped spellings of the key too
        text = self.hide(answer.body.decode(json.detect_encoding(answer.body), "replace"))
        try:
            content: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            shown = text[:300]
            key = self._client.key
            if any(key[i : i + _KEY_PART] in shown for i in range(len(key) - _KEY_PART + 1)):
                shown = ""  # the key was cut off, and is not hidden
            if status < 300:
                raise Failed("garbage", f"the answer is not JSON ({shown[:40]!r})") from error
            content = shown
        if 200 <= status < 300:
            embedded = self._error_in(content)
            if embedded is None:
                try:
                    return read(content)
                except Garbage as garbage:
                    raise Failed(garbage.kind, str(garbage)) from garbage
            status = embedded
        if 300 <= status < 400:
            location = self._location(path, answer.headers.get("location", ""))
            raise Refused(
                self, status, ErrorText(f"it redirects to {location or 'no address'}"), location
            )
        refused = Refused(self, status, error_text(content))
        if status == 429 or (not refused.context_full and (status >= 500 or status in _TRANSIENT)):
            raise Failed(
                "5xx" if status >= 500 else str(status),
                f"status {refused}",
                _retry_after(answer.headers.get("retry-after")),
            )
        raise refused

    @staticmethod
    def _error_in(content: object) -> int | None:
        """The status of an error that a gateway sent as a 200; None where there is none."""
        if not isinstance(content, dict) or "choices" in content or not content.get("error"):
            return None
        return status_in(content) or (400 if error_text(content).context_full else None)

    def _location(self, path: str, header: str) -> str:
        """The address of a redirect, without its query; nothing where it is none."""
        try:
            parts = urlsplit(urljoin(self.url_of(path), self.hide(header)))
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return ""
        address = f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
        return "".join(filter(str.isprintable, address))[:200] if header else ""

    async def _exchange(
        self, base: str, path: str, payload: bytes | None, timeout_s: float
    ) -> Answer:
        url = self._urls.get((base, path))
        if url is None:
            url = URL(f"{self._origin}{base}/{path}{self._query}", encoded=True)
            self._urls[base, path] = url
        variable, proxy = self._proxy or ("", None)
        while True:
            try:
                return await self._client.fetch(url, payload, timeout_s, proxy)
            except StaleConnection:  # its server did not see the request: this costs no attempt
                self.renewed += 1
            except Failed as failed:
                if failed.unreachable and proxy:
                    failed.cause += f", through the proxy that {variable} names"
                raise

    def hide(self, text: str) -> str:
        """The text without the key. A key of fewer than 8 characters is a placeholder and stays."""
        return hider((self._client.key, *self._query_secrets))(text)

    @property
    def key_env(self) -> str | None:
        return self._client.key_env

    def count(self, kind: str) -> int:
        """Count for this server and for all; returns this server's count."""
        self.stats[kind] += 1
        self.own[kind] += 1
        return self.own[kind]

    def context_ends(self, prompt: int, total: int) -> bool:
        """Whether the context is full after `total` tokens of prompt and answer.

        That is so where the models list gives this length, or where another prompt's answer was cut
        at the same total: a limit on answers alone would give another sum.
        """
        context = self.dialect.context
        if len(self._cuts) >= _MAX_CUTS:
            self._cuts.clear()
        before = self._cuts.setdefault(total, prompt)
        return before != prompt or (context is not None and total >= context - 1)

    def answered(self) -> None:
        self._failures = 0

    def failed(self, failed: Failed) -> bool:
        """Count a failure; whether the server should be taken out. 429 is no failure."""
        if failed.kind == "429":
            return False
        self._failures += 1
        return self._failures >= _MAX_FAILURES or failed.unreachable

    async def healthy(self) -> bool:
        """Whether it takes requests, by /health, or by the models list where there is none."""
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

    def report(self) -> dict[str, Any]:
        """Plain values: what the server understands, requests and failures."""
        d = self.dialect
        return {
            "address": self.base_url,
            "schema": d.schema,
            "seed": d.seed and d.seed_holds,
            "choices": d.most,
            "token_ids": d.ids,
            "logprobs": d.logprobs,
            "renewed": self.renewed,
            **{kind: self.own[kind] for kind in sorted(self.own)},
        }


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header (a number or an HTTP date); None where it is neither."""
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
