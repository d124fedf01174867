"""Answers on the wire, cut into pieces anywhere: what comes out does not depend on where."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.policies.http import _http
from leafe.policies.http._http import (
    Answer,
    Broken,
    Connections,
    NoHTTP,
    Wire,
    proxy_variable,
    unpacked,
)
from tests.faulty_server import until

BODY = b'{"choices": [{"message": {"content": "caf\xc3\xa9"}}]}'


def plain(body: bytes, *more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *more, b"", body])


def chunked(body: bytes, sizes: list[int]) -> bytes:
    parts, rest = [], body
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        if piece:
            parts.append(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
    if rest:
        parts.append(b"%X\r\n%b\r\n" % (len(rest), rest))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\nTrailer: x\r\n\r\n"


class Heard(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def fed(pieces: list[bytes], *, end: Exception | bool | None = False) -> tuple[Answer | None, Wire]:
    """What a request gets whose answer comes in these pieces; `end`: how the connection is lost after them, False: it stays."""

    async def go() -> tuple[Answer | None, Wire]:
        wire = Wire()
        wire.connection_made(Heard())
        waiter = wire.ask(b"GET / HTTP/1.1\r\n\r\n")
        for piece in pieces:
            wire.data_received(piece)
        reusable = wire.reusable
        if end is not False:
            wire.connection_lost(None if end is True else end)
        if waiter.done():
            answer = waiter.result()
            assert reusable or end is not False or answer.headers.get("connection") == "close"
            return answer, wire
        return None, wire

    return asyncio.run(go())


def cut(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({min(a, len(data)) for a in at})
    pieces = [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]
    return [p for p in pieces if p]


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=6), st.lists(st.integers(1, 40), max_size=8), st.booleans())
def test_any_body_in_any_pieces_comes_out_whole(body: bytes, at: list[int], sizes: list[int], hello: bool) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" if hello else b""
    for message in (plain(body), chunked(body, sizes)):
        answer, wire = fed(cut(early + message, at))
        assert answer is not None
        assert (answer.status, answer.body) == (200, body)
        assert wire.reusable


@given(st.lists(st.integers(0, 400), max_size=6))
def test_an_answer_that_ends_with_the_connection(at: list[int]) -> None:
    message = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + BODY
    answer, wire = fed(cut(message, at))
    assert answer is None
    answer, wire = fed(cut(message, at), end=True)
    assert answer is not None
    assert answer.body == BODY
    assert not wire.reusable


@pytest.mark.parametrize("message", [plain(BODY), chunked(BODY, [3, 9])])
def test_a_lost_connection_is_never_an_answer(message: bytes) -> None:
    for length in range(len(message)):
        with pytest.raises(Broken):
            fed([message[:length]], end=True)
    with pytest.raises(Broken, match="reset by"):
        fed([message[:20]], end=ConnectionResetError(104, "reset by peer"))


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_what_is_no_http_is_said_to_be_none(message: bytes) -> None:
    with pytest.raises(NoHTTP):
        fed([message])


def test_headers_that_close_and_statuses_without_a_body() -> None:
    answer, wire = fed([plain(BODY, b"Connection: close")])
    assert answer is not None
    assert not wire.reusable
    answer, wire = fed([b"HTTP/1.1 204 No Content\r\nRetry-After:  7 \r\n\r\n"])
    assert answer is not None
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (204, b"", "7")
    assert wire.reusable


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    answer, wire = fed([plain(BODY) + b"HTTP/1.1 408 Request Timeout\r\n\r\n"], end=True)
    assert answer is not None
    assert answer.body == BODY
    assert not wire.reusable


@contextlib.asynccontextmanager
async def server(*answers: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[int]]]:
    """Gives these answers, each connection going on where the others are; an empty one closes. Yields its port and the connection that each request came on."""
    left, seen, number = list(answers), [], 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        mine = number
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                await reader.readuntil(b"\r\n\r\n")
                seen.append(mine)
                answer = left.pop(0)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield listening.sockets[0].getsockname()[1], seen


def test_a_connection_is_used_again_and_one_that_was_closed_costs_nothing() -> None:
    async def go() -> list[int]:
        async with server(
            plain(b"1"), plain(b"2", b"Connection: close"), plain(b"3"), b"", plain(b"4"), b"", b""
        ) as (port, seen):
            connections = Connections("127.0.0.1", port, False, 5.0)
            request = b"GET / HTTP/1.1\r\n\r\n"
            for expected in (
                b"1",
                b"2",
                b"3",
                b"4",
            ):  # the third connection is closed when the fourth request comes
                assert (await connections.ask(request)).body == expected
            with pytest.raises(Broken) as lost:  # the kept one, and the new one too
                await connections.ask(request)
            assert not lost.value.stale
            connections.close()
            return seen

    assert asyncio.run(go()) == [1, 1, 2, 2, 3, 3, 4]


def test_a_connection_that_is_lost_in_mid_answer_is_not_asked_again_by_itself() -> None:
    async def go() -> list[int]:
        async with server(plain(b"1"), plain(b"23")[:-1], plain(b"3")) as (port, seen):
            connections = Connections("127.0.0.1", port, False, 5.0)
            await connections.ask(b"GET / HTTP/1.1\r\n\r\n")
            waiting = asyncio.ensure_future(connections.ask(b"GET / HTTP/1.1\r\n\r\n"))
            await until(lambda: len(seen) == 2)
            (wire,) = connections._busy
            await until(lambda: wire._head)
            assert wire._transport is not None
            wire._transport.close()
            with pytest.raises(Broken):
                await waiting
            connections.close()
            return seen

    assert asyncio.run(go()) == [1, 1]


def test_a_cancelled_request_takes_its_connection_with_it() -> None:
    async def go() -> list[int]:
        async with server(plain(b"1")[:-1], plain(b"2")) as (port, seen):
            connections = Connections("127.0.0.1", port, False, 5.0)
            going = asyncio.ensure_future(connections.ask(b"GET / HTTP/1.1\r\n\r\n"))
            await until(lambda: seen)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            assert (await connections.ask(b"GET / HTTP/1.1\r\n\r\n")).body == b"2"
            connections.close()
            return seen

    assert asyncio.run(go()) == [1, 2]


def test_nobody_listens() -> None:
    async def go(port: int) -> None:
        await Connections("127.0.0.1", port, False, 5.0).ask(b"")

    async def free() -> int:
        async with server() as (port, _):
            return port

    port = asyncio.run(free())
    with pytest.raises(Broken, match="refused"):
        asyncio.run(go(port))
    with pytest.raises(Broken):
        asyncio.run(Connections("no-such-host.invalid", 80, False, 5.0).ask(b""))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no certificate can be made")
def test_a_secure_connection_wants_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def go() -> bytes:
        async with server(plain(b"1"), plain(b"2"), tls=context) as (port, _):
            connections = Connections("127.0.0.1", port, True, 5.0)
            try:
                return (await connections.ask(b"GET / HTTP/1.1\r\n\r\n")).body + (await connections.ask(b"GET / HTTP/1.1\r\n\r\n")).body
            finally:
                connections.close()

    with pytest.raises(Broken, match="certificate verify failed"):
        asyncio.run(go())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(go()) == b"12"


def packed(coding: str, body: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "raw": raw.compress(body) + raw.flush(),
    }[coding]


@given(st.binary(max_size=300), st.sampled_from(["gzip", "x-gzip", "deflate", "raw"]))
def test_a_compressed_answer_is_unpacked(body: bytes, coding: str) -> None:
    said = "deflate" if coding == "raw" else coding
    got = unpacked(Answer(200, {"content-encoding": said.upper()}, packed(coding, body)))
    assert (got.status, got.body) == (200, body)
    twice = unpacked(
        Answer(
            200,
            {"content-encoding": f"{said}, identity, gzip"},
            gzip.compress(packed(coding, body)),
        )
    )
    assert twice.body == body


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"{}"),
        ("gzip", gzip.compress(b"{}" * 40, mtime=0)[:-12]),
        ("deflate", b"\xff\xff"),
        ("br", b"x"),
        ("zstd", b"x"),
        ("gzip", zlib.compress(b"x")),
    ],
)
def test_what_is_not_compressed_as_it_says_is_no_answer(coding: str, body: bytes) -> None:
    with pytest.raises(NoHTTP):
        unpacked(Answer(200, {"content-encoding": coding}, body))


def test_an_answer_unpacks_to_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_LONGEST_BODY", 1000)
    with pytest.raises(NoHTTP, match="longer"):
        unpacked(Answer(200, {"content-encoding": "gzip"}, gzip.compress(b"a" * 100_000)))
    assert unpacked(Answer(200, {"content-encoding": "gzip"}, b"")).body == b""


@pytest.mark.parametrize(
    ("environment", "scheme", "host", "variable"),
    [
        ({"HTTP_PROXY": "http://p"}, "http", "model.example", "HTTP_PROXY"),
        ({"http_proxy": "http://p"}, "http", "model.example", "HTTP_PROXY"),
        ({"HTTPS_PROXY": "http://p"}, "http", "model.example", None),
        ({"HTTPS_PROXY": "http://p"}, "https", "model.example", "HTTPS_PROXY"),
        ({"ALL_PROXY": "socks5://p"}, "https", "model.example", "ALL_PROXY"),
        ({"HTTP_PROXY": "http://p", "NO_PROXY": ".example"}, "http", "model.example", None),
        ({"HTTP_PROXY": "http://p", "NO_PROXY": "model.example:80"}, "http", "model.example", None),
        (
            {"HTTP_PROXY": "http://p", "NO_PROXY": "model.example:81"},
            "http",
            "model.example",
            "HTTP_PROXY",
        ),
        ({"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, "http", "model.example", None),
        ({"HTTP_PROXY": "http://p"}, "http", "127.0.0.1", None),
        ({"HTTP_PROXY": "http://p"}, "http", "localhost", None),
        ({}, "http", "model.example", None),
    ],
)
def test_a_proxy_that_is_passed_by_is_named(
    environment: dict[str, str],
    scheme: str,
    host: str,
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_variable(scheme, host, 80) == variable
