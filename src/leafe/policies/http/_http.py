"""HTTP/1.1 on an asyncio protocol and nothing more: one request out, one answer in, the connection
kept.

A third of what a general client costs in processor time for each request, and a policy is asked
thousands of times a minute. It knows
what inference servers and gateways send: lengths, chunks, answers that end with the connection, 1xx
before the answer, gzip and deflate though none is asked for. No redirects, no cookies, no proxies
(`proxy_variable` names the one that is passed by). What an answer holds stands in no error of this
module: it may be a part of the key.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import getproxies_environment, proxy_bypass

_KEEP_S = 4.0
"""Idle connections are let go after this long: uvicorn drops them after 5 s, and a request that
meets a closed one is lost."""
_LONGEST_HEAD = 1 << 16
_LONGEST_BODY = 1 << 28
_CONNECTING = 64
"""Connections being opened at a time: more at once overflow the queues of small servers."""


class Broken(Exception):
    """The connection could not be made (`unmade`) or was lost; `stale`: it had been used before and
    no byte of an answer came, so the server had closed it."""

    def __init__(self, cause: str, *, stale: bool = False, unmade: bool = False) -> None:
        super().__init__(cause)
        self.stale = stale
        self.unmade = unmade


class NoHTTP(Exception):
    """What came is no HTTP/1.x answer, or too long for one."""


@dataclass(slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case; of a repeated one the last."""
    body: bytes


class Wire(asyncio.Protocol):
    """One connection. `ask` may be awaited again once it has returned and `reusable` is true."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._need: int | None = None
        """Bytes that the body (or the chunk with its line end) still lacks; None: until the
        connection ends, or, with chunks, no size has been read."""
        self._chunked = False
        self._trailer = False
        self._keep = True
        self.used = False
        self.freed = 0.0

    @property
    def reusable(self) -> bool:
        return (
            self._keep
            and not self._buffer
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def ask(self, data: bytes) -> asyncio.Future[Answer]:
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._head, self._body, self._size, self._need, self._chunked, self._trailer = (
            None,
            [],
            0,
            None,
            False,
            False,
        )
        self._transport.write(data)
        return self._waiter

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            if self._head is not None and not self._chunked and self._need is None:
                self._finish()
                return
            cause = (
                (getattr(exc, "strerror", None) or str(exc))
                if exc
                else "the server closed it in mid-answer"
                if self._head
                else "the server closed it"
            )
            self._waiter.set_exception(
                Broken(cause, stale=self.used and self._head is None and not self._buffer)
            )
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.drop()  # nobody asked: what follows cannot be told apart from an answer
            return
        self._buffer += data
        try:
            while self._head is None:
                if not self._read_head():
                    return
            if self._read_body():
                self._finish()
        except NoHTTP as error:
            self._waiter.set_exception(error)
            self.drop()

    def _finish(self) -> None:
        assert self._head is not None
        assert self._waiter is not None
        status, headers = self._head
        self.used = True
        self._waiter.set_result(
            Answer(status, headers, self._body[0] if len(self._body) == 1 else b"".join(self._body))
        )

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _LONGEST_HEAD or not b"HTTP/1.".startswith(self._buffer[:7]):
                # a TLS alert or handshake begins with 0x15 or 0x16, and the version 3
                tls = bytes(self._buffer[:2]) in (b"\x15\x03", b"\x16\x03")
                raise NoHTTP(
                    "the server speaks TLS: write https" if tls else "the answer is not HTTP/1.1"
                )
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit() or len(rest[:3]) != 3:
            raise NoHTTP("the answer is not HTTP/1.1")
        status = int(rest[:3])
        if 100 <= status < 200:
            return True  # the answer proper is still to come
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._head = status, headers
        wish = headers.get("connection", "").lower()
        self._keep = "close" not in wish and (version != "HTTP/1.0" or "keep-alive" in wish)
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunked = True
        elif status in (204, 304):
            self._need = 0
        elif "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()) or int(length) > _LONGEST_BODY:
                raise NoHTTP("the length of the answer is no number below 256 MiB")
            self._need = int(length)
        else:
            self._keep = False
        return True

    def _read_body(self) -> bool:
        """Whether the body is whole."""
        buffer = self._buffer
        if self._chunked:
            return self._read_chunks()
        if self._need is None:
            self._take(len(buffer))
            return False
        self._take(min(self._need, len(buffer)))
        return self._need == 0

    def _take(self, count: int) -> None:
        if not count and self._body:
            return
        self._body.append(bytes(self._buffer[:count]))
        del self._buffer[:count]
        self._size += count
        if self._size > _LONGEST_BODY:
            raise NoHTTP("the answer is longer than 256 MiB")
        if self._need is not None:
            self._need -= count

    def _read_chunks(self) -> bool:
        buffer = self._buffer
        while True:
            if self._need is None:
                end = buffer.find(b"\r\n")
                if end < 0:
                    if len(buffer) > _LONGEST_HEAD:
                        raise NoHTTP("a chunk of the answer has no size")
                    return False
                line = bytes(buffer[:end])
                del buffer[: end + 2]
                if self._trailer:
                    if not line:
                        return True
                    continue
                size = line.partition(b";")[0].strip()
                try:
                    # int() alone would take "-1", "+5" and "1_0"
                    count = int(size, 16) if size.isalnum() else -1
                except ValueError:
                    count = -1
                if not 0 <= count <= _LONGEST_BODY:
                    raise NoHTTP("the size of a chunk of the answer is no number below 256 MiB")
                if count == 0:
                    self._trailer = True
                    continue
                self._need = count
            if self._need:
                if not buffer:
                    return False
                self._take(min(self._need, len(buffer)))
                if self._need:
                    return False
            if len(buffer) < 2:
                return False
            if buffer[:2] != b"\r\n":
                raise NoHTTP("a chunk of the answer is longer than its size")
            del buffer[:2]
            self._need = None


class Connections:
    """The connections to one server, opened when needed in the running event loop, the last used
    first."""

    def __init__(self, host: str, port: int, secure: bool, connect_s: float) -> None:
        self.host, self.port, self.connect_s = host, port, connect_s
        self._secure = secure
        self._tls: ssl.SSLContext | None = None
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Semaphore(_CONNECTING)
        self.renewed = 0
        """Requests that met a kept connection which the server had closed, and were sent on a new
        one."""

    async def ask(self, data: bytes) -> Answer:
        """Send the bytes of one request and wait for its answer.

        A kept connection that the server turns out to have closed costs nothing: the request is
        sent on a new one. Raises Broken or NoHTTP; a cancelled request closes its connection.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._idle, self._busy, self._opening = (
                loop,
                [],
                set(),
                asyncio.Semaphore(_CONNECTING),
            )
        kept = self._kept(loop.time())
        if kept is not None:
            try:
                return await self._ask(kept, data, loop)
            except Broken as error:
                if not error.stale:
                    raise
                self.renewed += 1
        return await self._ask(await self._open(loop), data, loop)

    async def _ask(self, wire: Wire, data: bytes, loop: asyncio.AbstractEventLoop) -> Answer:
        self._busy.add(wire)
        try:
            answer = await wire.ask(data)
        except BaseException:
            wire.drop()
            raise
        finally:
            self._busy.discard(wire)
        if wire.reusable:
            wire.freed = loop.time()
            self._idle.append(wire)
        else:
            wire.drop()
        return answer

    def _kept(self, now: float) -> Wire | None:
        while self._idle:
            wire = self._idle.pop()
            if wire.reusable and now - wire.freed < _KEEP_S:
                return wire
            wire.drop()
        return None

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Wire:
        if self._secure and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with self._opening, asyncio.timeout(self.connect_s):
                _, wire = await loop.create_connection(
                    Wire,
                    self.host,
                    self.port,
                    ssl=self._tls,
                    server_hostname=self.host if self._secure else None,
                )
        except TimeoutError as error:
            raise Broken(f"no connection within {self.connect_s:g} s", unmade=True) from error
        except OSError as error:
            # asyncio writes the address into strerror, and joins those of several addresses into
            # one text
            cause = (
                os.strerror(error.errno)
                if error.errno and not isinstance(error, socket.gaierror | ssl.SSLError)
                else error.strerror or str(error)
            )
            raise Broken(cause, unmade=True) from error
        return wire

    def close(self) -> None:
        """Close all connections; a later `ask` opens new ones."""
        wires, self._idle = [*self._idle, *self._busy], []
        if self._loop is not None and not self._loop.is_closed():
            for wire in wires:
                wire.drop()


def unpacked(answer: Answer) -> Answer:
    """The answer as it was before the server compressed it; NoHTTP for what is not what it says,
    unpacks to too much, or is packed in another way."""
    codings = [c.strip().lower() for c in answer.headers.get("content-encoding", "").split(",")]
    body = answer.body
    for coding in reversed([c for c in codings if c not in ("", "identity")]):
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise NoHTTP(
                "the answer is compressed in a way that was not asked for: let the server or "
                "gateway send it as it is (Accept-Encoding: identity)"
            )
        body = _inflated(body, coding)
    return Answer(answer.status, answer.headers, body)


def _inflated(data: bytes, coding: str) -> bytes:
    if not data:
        return data
    # 31: a gzip header; 15: a zlib header; -15: none, which some servers call deflate too
    for bits in (31,) if coding != "deflate" else (15, -15):
        unpack = zlib.decompressobj(bits)
        try:
            body = unpack.decompress(data, _LONGEST_BODY)
        except zlib.error:
            continue
        if unpack.unconsumed_tail:
            raise NoHTTP("the answer is longer than 256 MiB")
        if unpack.eof:
            return body
    raise NoHTTP(f"the answer is said to be {coding} and is not")


def proxy_variable(scheme: str, host: str, port: int) -> str | None:
    """The environment variable that names a proxy for this server; None where there is none,
    NO_PROXY excepts the server, or it is on this machine."""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    proxies = getproxies_environment()
    found = next((kind for kind in (scheme, "all") if kind in proxies), None)
    if found is None or proxy_bypass(f"{host}:{port}"):
        return None
    return f"{found.upper()}_PROXY"
