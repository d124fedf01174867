"""Answers as servers frame, cut and compress them; connections, certificates and proxies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import shutil
import ssl
import subprocess
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from leafe.core import Message, PolicyError, Request, UserError
from leafe.policies.http import HTTPPolicy, _client
from leafe.policies.http._client import Answer, Failed, HTTPClient, StaleConnection, proxy_of
from tests.faulty_server import until

T = TypeVar("T")
BODY = b'{"choices": [{"message": {"content": "caf\xc3\xa9"}}]}'


def plain(body: bytes, *more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *more, b"", body])


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x;ext=1\r\n%b\r\n" % (len(p), p) for p in parts)
        + b"0\r\nTrailer: x\r\n\r\n"
    )


@contextlib.asynccontextmanager
async def server(
    *answers: bytes, tls: ssl.SSLContext | None = None, closes: bool = False
) -> AsyncIterator[tuple[URL, list[int], list[bytes]]]:
    """Gives these answers, each connection going on where the others are; an empty one closes.
    Yields its address, the connection that each request came on, and the requests."""
    left, seen, heads, number = list(answers), [], [], 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        mine = number
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.append(mine)
                heads.append(head)
                answer = left.pop(0)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
                if closes:
                    break
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield URL(f"http{'s' if tls else ''}://127.0.0.1:{port}/v1"), seen, heads


def with_client(
    work: Callable[[HTTPClient], Awaitable[T]], *, connect_s: float = 5.0, secure: bool = False
) -> T:
    async def go() -> T:
        client = HTTPClient(None, connect_s, secure=secure)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(go())


def fetched(message: bytes) -> Answer:
    """The answer that the server sends before it closes the connection."""

    async def go(client: HTTPClient) -> Answer:
        async with server(message, closes=True) as (url, _, _):
            return await client.fetch(url, None, 5.0)

    return with_client(go)


@pytest.mark.parametrize(
    "message",
    [
        plain(BODY),
        plain(BODY, b"Connection: close"),
        chunked(BODY, 3),
        b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + BODY,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(BODY),
    ],
)
def test_a_body_comes_out_however_it_is_framed(message: bytes) -> None:
    answer = fetched(message)
    assert (answer.status, answer.body) == (200, BODY)


def test_a_status_without_a_body() -> None:
    answer = fetched(b"HTTP/1.1 204 No Content\r\nRetry-After:  7 \r\n\r\n")
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (204, b"", "7")


@pytest.mark.parametrize("message", [plain(BODY), chunked(BODY, 9)])
def test_a_lost_connection_is_never_an_answer(message: bytes) -> None:
    for length in range(1, len(message) - 1, 9):
        with pytest.raises(Failed) as raised:
            fetched(message[:length])
        assert raised.value.kind in ("connection", "garbage")
        assert not raised.value.unreachable


@pytest.mark.parametrize(
    "message",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x0a\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_failure_that_shows_none_of_it(message: bytes) -> None:
    with pytest.raises(Failed) as raised:
        fetched(message)
    assert raised.value.__cause__ is None
    assert raised.value.cause in (
        "the answer is not HTTP/1.1",
        "the server speaks TLS: write https",
        "the connection failed (the server closed it in mid-answer)",
    )
    assert ("TLS" in raised.value.cause) == message.startswith(b"\x15")


# --- connections


def test_a_connection_is_used_again_and_one_that_was_closed_costs_nothing() -> None:
    ok = b'{"choices": [{"message": {"content": "%d"}}]}'

    async def go() -> tuple[list[int], int, dict[str, int]]:
        async with server(
            plain(ok % 1),
            plain(ok % 2, b"Connection: close"),
            plain(ok % 3),
            b"",  # the third connection is closed when the fourth request comes
            plain(ok % 4),
            b"",
            b"",
        ) as (url, seen, _):
            policy = HTTPPolicy(str(url), "m", api_key_env=None, retries=0)
            ask = Request((Message("user", "hi"),))
            try:
                texts = [(await policy.complete(ask))[0].text for _ in range(4)]
                assert texts == ["1", "2", "3", "4"]
                with pytest.raises(PolicyError):  # the kept connection, and the new one too
                    await policy.complete(ask)
            finally:
                await policy.close()
            return seen, policy.report()[0]["renewed"], dict(policy.stats)

    seen, renewed, stats = asyncio.run(go())
    assert (seen[:5], renewed) == ([1, 1, 2, 2, 3], 2)
    assert stats == {"requests": 5, "connection": 1, "given_up": 1}


def test_a_connection_that_is_lost_in_mid_answer_is_a_failure() -> None:
    async def cut(client: HTTPClient) -> list[int]:
        async with server(plain(b"23")[:-1], closes=True) as (url, seen, _):
            with pytest.raises(Failed, match="in mid-answer"):
                await client.fetch(url, b"{}", 5.0)
            return seen

    assert with_client(cut) == [1]


def test_a_kept_connection_that_is_closed_is_told_from_a_new_one() -> None:
    async def go(client: HTTPClient) -> None:
        async with server(plain(b"1"), b"", b"") as (url, _, _):
            await client.fetch(url, b"{}", 5.0)
            with pytest.raises(StaleConnection):
                await client.fetch(url, b"{}", 5.0)
            with pytest.raises(Failed, match="connection failed") as raised:
                await client.fetch(url, b"{}", 5.0)
            assert not raised.value.unreachable

    with_client(go)


def test_a_cancelled_request_takes_its_connection_with_it() -> None:
    async def go(client: HTTPClient) -> list[int]:
        async with server(plain(b"1")[:-1], plain(b"2")) as (url, seen, _):
            going = asyncio.ensure_future(client.fetch(url, None, 5.0))
            await until(lambda: seen)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            assert (await client.fetch(url, None, 5.0)).body == b"2"
            return seen

    assert with_client(go) == [1, 2]


def test_an_answer_that_does_not_come_or_end_in_time() -> None:
    async def go(client: HTTPClient) -> None:
        async with server(plain(b"1")[:-1], b"") as (url, _, _):
            with pytest.raises(Failed, match=r"no answer within 0\.2 s"):
                await client.fetch(url, None, 0.2)

    with_client(go)


def test_nobody_listens() -> None:
    async def go(client: HTTPClient) -> None:
        async with server() as (url, _, _):
            pass
        with pytest.raises(Failed, match=r"\(Connection refused\)") as raised:
            await client.fetch(url, None, 5.0)
        assert raised.value.unreachable
        with pytest.raises(Failed) as raised:
            await client.fetch(URL("http://no-such-host.invalid/"), None, 5.0)
        assert (raised.value.kind, raised.value.unreachable) == ("connection", True)

    with_client(go)


def test_a_bounded_number_of_connections_is_opened_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_client, "_MAX_CONNECTING", 2)
    opening, most = 0, 0
    real = _client.aiohttp.TCPConnector._create_connection

    async def create(*args: object) -> object:
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await asyncio.sleep(0.01)
        try:
            return await real(*args)  # type: ignore[arg-type]
        finally:
            opening -= 1

    monkeypatch.setattr(_client.aiohttp.TCPConnector, "_create_connection", create)

    async def go(client: HTTPClient) -> list[Answer]:
        async with server(*[plain(b"1")] * 8) as (url, _, _):
            return await asyncio.gather(*(client.fetch(url, None, 5.0) for _ in range(8)))

    assert len(with_client(go)) == 8
    assert most == 2


def test_a_policy_that_was_not_closed_works_in_another_loop() -> None:
    ok = b'{"choices": [{"message": {"content": "x"}}]}'
    client = HTTPClient(None)

    async def go() -> bytes:
        async with server(plain(ok)) as (url, _, _):
            return (await client.fetch(url, None, 5.0)).body

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert asyncio.run(go()) == asyncio.run(go()) == ok


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed: no certificate can be made"
)
def test_a_secure_connection_wants_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=here", "-addext"]
    made += ["subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def go(client: HTTPClient) -> bytes:
        async with server(plain(b"1"), plain(b"2"), tls=context) as (url, seen, _):
            first, second = [(await client.fetch(url, None, 5.0)).body for _ in range(2)]
            assert seen == [1, 1]
            return first + second

    with pytest.raises(Failed, match="certificate verify failed") as raised:
        with_client(go, secure=True)
    assert raised.value.unreachable
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert with_client(go, secure=True) == b"12"


# --- compression and size


def packed(coding: str, body: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return {
        "gzip": gzip.compress(body, mtime=0),
        "deflate": zlib.compress(body),
        "raw": raw.compress(body) + raw.flush(),
    }[coding]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_a_compressed_answer_is_unpacked(coding: str) -> None:
    name = b"deflate" if coding == "raw" else coding.encode()
    got = fetched(plain(packed(coding, BODY), b"Content-Encoding: " + name.upper()))
    assert (got.status, got.body) == (200, BODY)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", b"{}"),
        (b"deflate", b"\xff\xff"),
        (b"gzip", zlib.compress(b"x")),
        (b"x-unknown", b"\x00x"),
        (b"gzip, gzip", gzip.compress(gzip.compress(BODY, mtime=0), mtime=0)),
    ],
)
def test_what_is_not_compressed_as_it_says_is_no_answer(coding: bytes, body: bytes) -> None:
    async def go() -> None:
        message = plain(body, b"Content-Encoding: " + coding)
        async with server(message, closes=True) as (url, _, _):
            policy = HTTPPolicy(str(url), "m", api_key_env=None, retries=0)
            try:
                with pytest.raises(PolicyError):
                    await policy.complete(Request((Message("user", "hi"),)))
                assert policy.stats["garbage"] == 1
            finally:
                await policy.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    "message",
    [
        plain(b"a" * 1001),
        chunked(b"a" * 1001, 100),
        plain(gzip.compress(b"a" * 100_000, mtime=0), b"Content-Encoding: gzip"),
    ],
)
def test_an_answer_has_a_bounded_size(message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "_MAX_BODY", 1000)
    with pytest.raises(Failed, match="longer"):
        fetched(message)
    assert len(fetched(plain(b"a" * 1000)).body) == 1000


# --- proxies


@pytest.fixture
def no_proxy_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environment", "scheme", "host", "variable"),
    [
        ({"HTTP_PROXY": "http://p"}, "http", "model.example", "HTTP_PROXY"),
        ({"http_proxy": "p"}, "http", "model.example", "HTTP_PROXY"),
        ({"HTTPS_PROXY": "http://p"}, "http", "model.example", None),
        ({"HTTPS_PROXY": "http://p"}, "https", "model.example", "HTTPS_PROXY"),
        ({"ALL_PROXY": "http://p"}, "https", "model.example", "ALL_PROXY"),
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
        ({"HTTP_PROXY": ""}, "http", "model.example", None),
        ({}, "http", "model.example", None),
    ],
)
@pytest.mark.usefixtures("no_proxy_set")
def test_the_proxy_for_a_server(
    environment: dict[str, str],
    scheme: str,
    host: str,
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(scheme, host, 80)
    assert found == (variable and (variable, "http://p"))


@pytest.mark.usefixtures("no_proxy_set")
def test_a_proxy_that_cannot_be_used_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:hush@p:1")
    with pytest.raises(UserError, match="ALL_PROXY names a proxy") as raised:
        HTTPPolicy("http://model.example/v1", "m")
    assert "hush" not in str(raised.value)
    HTTPPolicy("http://127.0.0.1:1/v1", "m")


@pytest.mark.usefixtures("no_proxy_set")
def test_requests_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> bytes:
        async with server(plain(BODY)) as (url, _, heads):
            monkeypatch.setenv("HTTP_PROXY", f"http://user:hush@127.0.0.1:{url.port}")
            policy = HTTPPolicy("http://model.example.invalid/v1", "m", api_key_env=None, retries=0)
            try:
                assert (await policy.complete(Request((Message("user", "hi"),))))[0].text == "café"
            finally:
                await policy.close()
            return heads[0]

    head = asyncio.run(go())
    assert head.startswith(b"POST http://model.example.invalid/v1/chat/completions HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:hush") in head


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.usefixtures("no_proxy_set")
def test_a_proxy_that_does_not_answer_is_named(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go(policy: HTTPPolicy) -> None:
        try:
            await policy.complete(Request((Message("user", "hi"),)))
        finally:
            await policy.close()

    variable = f"{scheme.upper()}_PROXY"
    monkeypatch.setenv(variable, "http://user:hush@127.0.0.1:1")
    policy = HTTPPolicy(f"{scheme}://model.example.invalid/v1", "m", retries=0)
    with pytest.raises(PolicyError, match=f"through the proxy that {variable} names") as raised:
        asyncio.run(go(policy))
    assert "hush" not in f"{raised.value} {raised.value.__cause__!r}"


@pytest.mark.usefixtures("no_proxy_set")
def test_a_proxy_that_refuses_the_tunnel_is_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        refusal = b"HTTP/1.1 407 hush\r\nContent-Length: 0\r\n\r\n"
        async with server(refusal) as (url, _, heads):
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{url.port}")
            policy = HTTPPolicy("https://model.example.invalid/v1", "m", retries=0)
            try:
                with pytest.raises(PolicyError, match="refused the tunnel with status 407"):
                    await policy.complete(Request((Message("user", "hi"),)))
            finally:
                await policy.close()
            assert heads[0].startswith(b"CONNECT model.example.invalid:443 ")

    asyncio.run(go())


# --- any bytes at all


@given(st.binary(max_size=200))
def test_whatever_bytes_come_it_is_an_answer_or_a_failure(data: bytes) -> None:
    for message in (data, plain(data), plain(BODY, b"X: " + data)):
        try:
            answer = fetched(message)
        except Failed:
            continue
        assert isinstance(json.dumps(answer.status), str)
