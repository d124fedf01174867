"""Whatever is sent to a served environment, its answer is a 4xx with a sentence, and nothing is
logged."""

from __future__ import annotations

import json
import logging
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.envs.remote_envs import Served

CALLS = ("tasks", "reset", "step", "valid_actions", "snapshot", "restore", "release", "close")
GOOD: dict[str, dict[str, Any]] = {
    "tasks": {"split": "train", "count": 1, "seed": 0},
    "reset": {"session": "s", "call": 1, "seed": 0, "task": {"id": "t", "payload": {"from": 0}}},
    "step": {"session": "s", "call": 1, "action": "1"},
    "valid_actions": {"session": "s", "call": 1},
    "snapshot": {"session": "s", "call": 1},
    "restore": {"session": "s", "call": 1, "snapshot": "x"},
    "release": {"snapshots": ["x"]},
    "close": {"session": "s"},
}
ODD = [
    7,
    -1,
    0,
    10**400,
    -(10**400),
    1.5,
    True,
    None,
    "",
    "x" * 300,
    "\ud800",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
]


@pytest.fixture(scope="module")
def served() -> Any:
    with Served() as made:
        yield made


def exchange(url: str, sent: bytes, cut: bool = False) -> int | None:
    """The status of the first answer; None where the connection was closed without one."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(sent)
        if cut:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return None
        answer = wire.recv(4096)
    return int(answer.split()[1]) if answer else None


def post(
    url: str, path: str, body: bytes, *headers: bytes, length: int | None = None, cut: bool = False
) -> int | None:
    lines = [f"POST /{path} HTTP/1.1".encode(), b"Host: 127.0.0.1", *headers]
    if not any(h.lower().startswith(b"content-type") for h in headers):
        lines.append(b"Content-Type: application/json")
    lines.append(b"Content-Length: %d" % (len(body) if length is None else length))
    return exchange(url, b"\r\n".join([*lines, b"", body]), cut)


def well(url: str) -> bool:
    return exchange(url, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == 200


@pytest.mark.parametrize("call", CALLS)
def test_odd_values_in_every_field(
    call: str, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for field in GOOD[call]:
        for value in ODD:
            status = post(served.url, call, json.dumps(GOOD[call] | {field: value}).encode())
            assert status is not None
            assert status < 500, (call, field, value)
        without = {k: v for k, v in GOOD[call].items() if k != field}
        assert post(served.url, call, json.dumps(without).encode()) in (200, 400, 404, 410)
    assert post(served.url, "release", json.dumps({"snapshots": 7}).encode()) == 400
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert well(served.url)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(CALLS),
    st.binary(max_size=80) | ANY.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=30).filter(lambda b: b"\r" not in b and b"\n" not in b and b"\0" not in b),
)
def test_any_body_and_header(served: Served, call: str, body: bytes, header: bytes) -> None:
    for name in (b"Authorization", b"Content-Type", b"X-Other"):
        status = post(served.url, call, body, name + b": " + header)
        assert status is None or 400 <= status < 500 or status == 200


@pytest.mark.parametrize(
    "headers",
    [
        (b"Authorization: Bearer \xff\xfe",),
        (b"Content-Type: application/json; charset=\xff",),
        (b"Content-Type: \xff",),
        (b"Content-Encoding: gzip",),
        (b"Content-Encoding: deflate",),
        (b"Content-Encoding: no-such",),
        (b"Transfer-Encoding: chunked",),
        (b"Content-Length: x",),
        (b"Host: [::1",),
        (b"Expect: something",),
        (b"Cookie: \xff",),
        (b"Upgrade: websocket",),
    ],
)
def test_odd_headers(
    headers: tuple[bytes, ...], served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for call in ("release", "tasks"):
        status = post(served.url, call, json.dumps(GOOD[call]).encode(), *headers)
        assert status is None or 400 <= status < 500 or status == 200
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert well(served.url)


def test_a_token_that_is_no_text_is_refused() -> None:
    with Served(token="secret") as served:
        body = json.dumps(GOOD["release"]).encode()
        assert post(served.url, "release", body, b"Authorization: Bearer \xff\xfe") == 401
        assert post(served.url, "release", body, b"Authorization: Bearer secret") == 200


def test_a_connection_lost_in_mid_body(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    for call in CALLS:
        body = json.dumps(GOOD[call]).encode()
        post(served.url, call, body[:5], length=len(body), cut=True)
        post(served.url, call, body, length=10 * len(body), cut=True)
        chunked = (
            b"POST /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            % call.encode()
        )
        exchange(served.url, chunked + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", cut=True)
        exchange(served.url, chunked + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{")
    assert well(served.url)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
