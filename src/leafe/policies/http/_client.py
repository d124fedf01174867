"""HTTP through aiohttp: one request out, one answer of bounded size in, every failure as `Failed`.

No exception of aiohttp leaves this module, and no error here quotes what the server sent: it may
hold a part of the API key.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from leafe.core import UserError

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientTimeout
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.tracing import Trace

CONNECT_S = 10.0
_KEEPALIVE_S = 4.0
"""Seconds after which an idle connection is closed: uvicorn closes them after 5 s, and a request on
a closed connection is lost."""
_MAX_BODY = 1 << 28
_MAX_CONNECTING = 64
"""Connections being opened at a time: more at once overflow the accept queues of small servers."""

_opened: ContextVar[bool] = ContextVar("opened", default=False)
"""Whether the current request opened a new connection."""


class Failed(Exception):
    """One attempt failed, and another may succeed.

    Args:
        kind: The counter to increase: "429", "5xx", "timeout", "connection", "garbage", "aborted".
        cause: What happened, for people.
        wait: Seconds to wait before the next attempt, where the server named them.
        unreachable: No connection could be made.
    """

    def __init__(
        self, kind: str, cause: str, wait: float | None = None, *, unreachable: bool = False
    ) -> None:
        super().__init__(cause)
        self.kind = kind
        self.cause = cause
        self.wait = wait
        self.unreachable = unreachable


class StaleConnection(Exception):
    """The server had closed the kept connection that the request was sent on."""


@dataclass(slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connector(aiohttp.TCPConnector):
    """Opens a bounded number of connections at a time, and notes that it opened one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._opening = asyncio.Semaphore(_MAX_CONNECTING)

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        _opened.set(True)
        async with self._opening:
            return await super()._create_connection(req, traces, timeout)


class HTTPClient:
    """The aiohttp session of one policy, opened at the first request in each event loop.

    Args:
        key_env: The environment variable that holds the API key, sent as a bearer token.
        connect_s: Seconds within which a connection must be made.
        secure: Whether a server speaks TLS; its certificate must be trusted (SSL_CERT_FILE names
            others than the system's).
    """

    def __init__(
        self, key_env: str | None, connect_s: float = CONNECT_S, *, secure: bool = False
    ) -> None:
        self.key_env = key_env
        self.secure = secure
        self.connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def key(self) -> str:
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""

    async def fetch(
        self, url: URL, body: bytes | None, timeout_s: float, proxy: str | None = None
    ) -> Answer:
        """POST `body` to `url`, or GET it where `body` is None.

        Raises:
            Failed: No answer came, or none of HTTP.
            StaleConnection: The request met a kept connection that the server had closed.
        """
        session = self._open()
        _opened.set(False)
        try:
            async with (
                asyncio.timeout(timeout_s),
                session.request(
                    "GET" if body is None else "POST",
                    url,
                    data=body,
                    proxy=proxy,
                    allow_redirects=False,
                ) as response,
            ):
                return Answer(response.status, response.headers, await _body_of(response))
        except aiohttp.ConnectionTimeoutError:
            cause = f"no connection within {self.connect_s:g} s"
            raise _no_connection(cause, unreachable=True) from None
        except TimeoutError:
            raise Failed("timeout", f"no answer within {timeout_s:g} s") from None
        except aiohttp.ClientHttpProxyError as error:
            cause = f"the proxy refused the tunnel with status {error.status}"
            raise _no_connection(cause, unreachable=True) from None
        except aiohttp.ClientConnectorError as error:
            raise _no_connection(_os_cause(error.os_error), unreachable=True) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _no_connection(str(error.certificate_error), unreachable=True) from None
        except aiohttp.ClientConnectionError as error:
            if not _opened.get():
                raise StaleConnection from None
            cause = _os_cause(error) if isinstance(error, OSError) else "the server closed it"
            raise _no_connection(cause) from None
        except aiohttp.ClientPayloadError as error:
            if isinstance(error.__cause__, ContentEncodingError):
                raise Failed("garbage", "the answer cannot be decompressed") from None
            raise _no_connection("the server closed it in mid-answer") from None
        except aiohttp.ClientError as error:
            tls = r"\x15\x03" in str(getattr(error, "message", ""))  # how a TLS alert starts
            cause = "the server speaks TLS: write https" if tls else "the answer is not HTTP/1.1"
            raise Failed("garbage", cause) from None

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is loop:
            return self._session
        headers = {
            "User-Agent": "leafe",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if key := self.key:
            if not (key.isascii() and key.isprintable()):
                raise UserError(
                    f"The environment variable {self.key_env} holds characters that no API key "
                    "has: set it anew."
                )
            headers["Authorization"] = f"Bearer {key}"
        self._loop = loop
        self._session = aiohttp.ClientSession(
            # limit=0: the pool of endpoints bounds the requests in flight
            connector=_Connector(
                limit=0,
                keepalive_timeout=_KEEPALIVE_S,
                ssl=ssl.create_default_context() if self.secure else True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_s),
        )
        return self._session

    async def close(self) -> None:
        """Close all connections; a later request opens new ones and reads the key again."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()


def _no_connection(cause: str, *, unreachable: bool = False) -> Failed:
    return Failed("connection", f"the connection failed ({cause})", unreachable=unreachable)


def _os_cause(error: OSError) -> str:
    """The system's words: asyncio writes the address into strerror."""
    if error.errno and not isinstance(error, socket.gaierror | ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, decompressed; Failed where it is longer than 256 MiB."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_BODY:
            raise Failed("garbage", "the answer is longer than 256 MiB")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def proxy_of(scheme: str, host: str, port: int) -> tuple[str, str] | None:
    """The proxy for a server, from HTTP_PROXY, HTTPS_PROXY or ALL_PROXY.

    aiohttp's own `trust_env` reads the environment and .netrc in a thread for every request; this
    is read once.

    Returns:
        (variable, proxy's address); None where no variable names one, where NO_PROXY excepts the
        server, and for this machine.

    Raises:
        UserError: The proxy speaks SOCKS.
    """
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    proxies = getproxies_environment()
    found = next((kind for kind in (scheme, "all") if proxies.get(kind)), None)
    if found is None or proxy_bypass(f"{host}:{port}"):
        return None
    variable = f"{found.upper()}_PROXY"
    address = proxies[found] if "://" in proxies[found] else f"http://{proxies[found]}"
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"{variable} names a proxy for {host} that is no HTTP proxy: name one that is, or "
            "except the server in NO_PROXY."
        )
    return variable, address
