"""One call to one server over one kept-alive connection, tried a bounded number of times within one
deadline.

A call may be sent twice without harm, since the protocol numbers what changes an environment. So a
lost connection, a 5xx and an answer that is no
JSON are tried again after a doubling wait; a server that is there and says nothing until the
deadline is not. The token is read from the
environment for every connection, sent as a header, and cut out of every answer, in whichever
spelling, before anything else reads it.
"""

from __future__ import annotations

import io
import json
import os
import random
import time
from contextlib import suppress
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    RemoteDisconnected,
)
from secrets import token_hex
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from leafe.core import EnvError, UserError
from leafe.core.secret import hider
from leafe.envs.remote._wire import MAX_BODY, STATUS, Refused, decode, encode

_CONNECT_S = 10.0
"""The longest wait for a connection, should the deadline be further."""
_BACKOFF_S, _LONGEST_WAIT_S = 0.2, 5.0
_NOT_OFFERED = frozenset({404, 405, 501})
_AGAIN = frozenset({408, 425, 429})
"""4xx that may pass by themselves."""


class Unreachable(EnvError):
    """No answer at all: the last try met a lost or refused connection, or the deadline."""


class _Again(Exception):
    """One try failed and another may succeed."""


class Transport:
    """`timeout`: seconds a call, all its tries together. `retries`: further tries after the
    first."""

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
        try:
            parts = urlsplit(url)
            port = parts.port
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"The environment 'remote': url is no web address ({error}): write "
                "http://HOST:PORT."
            ) from error
        if (
            parts.username is not None
            or parts.password is not None
            or parts.query
            or parts.fragment
        ):
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
                f"The environment 'remote': url = {url!r} is no web address: write "
                "http://HOST:PORT."
            )
        self.url = url.rstrip("/")
        self.timeout = float(timeout)
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._secure = parts.scheme == "https"
        self._retries = retries
        self._token_env = token_env
        self._jitter = random.Random(
            token_hex(8)
        )  # clients that lost one server must not come back together
        self._connection: HTTPConnection | None = None
        self._token()

    def call(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> dict[str, Any]:
        """POST `body` (GET where it is None); returns the answer's object.

        Refused with the server's own kind and sentence where it says no; EnvError after the last
        try.
        """
        seconds, tries = timeout or self.timeout, self._retries if retries is None else retries
        try:
            payload = None if body is None else encode(body)
        except (TypeError, ValueError) as error:
            raise Refused("user", f"what is sent is not plain JSON ({error})") from error
        if payload is not None and len(payload) > MAX_BODY:
            raise Refused(
                "user",
                (
                    f"a request of {len(payload) >> 20} MiB is longer than the "
                    f"{MAX_BODY >> 20} MiB that the protocol allows"
                ),
            )
        deadline, attempt = time.monotonic() + seconds, 0
        while True:
            kept = self._connection is not None
            kind = EnvError
            try:
                return self._read(*self._once(path, payload, deadline))
            except TimeoutError as error:
                self.close()
                raise Unreachable(
                    f"{self.url} gave no answer to {path or 'GET'} within {seconds:g} s."
                ) from error
            except (OSError, HTTPException) as error:
                self.close()
                if kept:
                    # the server had let go of it meanwhile; the next connection is a new one, so
                    # this happens once
                    continue
                kind, cause = (
                    Unreachable,
                    (
                        "the connection failed "
                        f"({error.strerror or error if isinstance(error, OSError) else _named(error)})"
                    ),
                )
            except _Again as failed:
                cause = str(failed)
            wait = min(_BACKOFF_S * 2**attempt, _LONGEST_WAIT_S) * self._jitter.uniform(0.75, 1.0)
            attempt += 1
            if attempt > tries or time.monotonic() + wait >= deadline:
                count = "1 try" if attempt == 1 else f"{attempt} tries"
                raise kind(
                    f"{self.url} gave no answer to {path or 'GET'} after {count}: "
                    f"{self.hide(cause).rstrip('.')}."
                )
            time.sleep(wait)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.close()

    def hide(self, words: str) -> str:
        """The text without the token, should a server echo it."""
        return hider((os.environ.get(self._token_env or "", "").strip(),))(words)

    def _once(self, path: str, payload: bytes | None, deadline: float) -> tuple[int, bytes]:
        connection = self._connection or self._connect(deadline)
        headers = (
            {"Accept": "application/json"}
            if payload is None
            else {"Content-Type": "application/json"}
        )
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        connection.sock.settimeout(_left(deadline))
        connection.request(
            "GET" if payload is None else "POST", f"{self._path}/{path}", payload, headers
        )
        # the class is looked up on the instance, so that the reader of this one answer knows its
        # deadline
        connection.response_class = lambda sock, *a, **k: _TimedResponse(sock, deadline, *a, **k)  # type: ignore[assignment]
        response = connection.getresponse()
        if (response.length or 0) > MAX_BODY:
            self.close()
            raise Refused(
                "env",
                (
                    f"an answer of {(response.length or 0) >> 20} MiB is longer than the "
                    f"{MAX_BODY >> 20} MiB that the protocol allows"
                ),
            )
        raw = response.read() if response.length is not None else response.read(MAX_BODY + 1)
        if len(raw) > MAX_BODY:
            self.close()
            raise Refused(
                "env", f"an answer longer than the {MAX_BODY >> 20} MiB that the protocol allows"
            )
        if response.will_close:
            self.close()
        return response.status, raw

    def _connect(self, deadline: float) -> HTTPConnection:
        make = HTTPSConnection if self._secure else HTTPConnection
        connection = make(self._host, self._port, timeout=min(_left(deadline), _CONNECT_S))
        try:
            connection.connect()  # sets TCP_NODELAY
        except TimeoutError as error:
            raise ConnectionError("no connection within the time allowed") from error
        except UnicodeError as error:
            raise ConnectionError("no host can have that name") from error
        self._connection = connection
        return connection

    def _read(self, status: int, raw: bytes) -> dict[str, Any]:
        try:
            answer = decode(self.hide(raw.decode(json.detect_encoding(raw), "replace")).encode())
            why = ""
        except (ValueError, RecursionError) as error:
            answer, why = {}, str(error)
        said = answer.get("error")
        if isinstance(said, dict):
            kind = said.get("kind")
            sentence = self.hide(
                " ".join(str(said.get("message") or f"status {status}").split())[:500]
            ).rstrip(".")
            if kind == "busy":
                raise _Again(sentence)
            raise Refused(str(kind) if kind in STATUS else "env", sentence)
        if 200 <= status < 300:
            if why:
                raise _Again(f"the answer is no JSON object ({why})")
            return answer
        if (status >= 500 and status != 501) or status in _AGAIN:
            raise _Again(f"status {status}")
        if status in (401, 403):
            raise Refused(
                "user",
                f"it refuses the token (status {status})"
                if self._token()
                else f"it wants a token (status {status})",
            )
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


class _TimedResponse(HTTPResponse):
    """An answer whose reading ends at the deadline however slowly its bytes drip in (a socket's own
    time-out begins anew with each)."""

    def __init__(self, sock: socket, deadline: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline))


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._raw = sock.makefile(
            "rb", buffering=0
        )  # holds the socket open until it is read, should the connection let go of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _named(error: HTTPException) -> str:
    """What is wrong, without what came: that may be a part of the token."""
    return (
        "the answer ended too early"
        if isinstance(error, IncompleteRead | RemoteDisconnected)
        else "the answer is not HTTP/1.1"
    )
