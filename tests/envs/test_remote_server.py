"""A server's own settings and its end, and clients that mean ill or are written badly."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import (
    EnvError,
    UserError,
)
from leafe.envs.remote import Remote, serve
from tests.envs.remote_envs import (
    TALLY,
    TASK,
    Served,
    Stuck,
    Tally,
    alive,
    ask,
    process,
    receive,
    serving,
    until,
)

# The server's own settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"host": "0.0.0.0"}, "anybody who reaches it: give it a token"),
        ({"host": ""}, "give it a token"),
        ({"host": "::"}, "give it a token"),
        ({"host": "example.org"}, "give it a token"),
        ({"token": ""}, "one word of printable ASCII"),
        ({"token": "two words"}, "one word of printable ASCII"),
        ({"workers": 0}, "0 workers"),
        ({"port": 70000}, "no port 70000"),
        ({"idle": 0}, "expire after 0 seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        serve(TALLY, {}, **arguments)


def test_an_env_or_a_port_that_cannot_be_had_is_said_at_the_start() -> None:
    with pytest.raises(UserError, match="no option 'colour'"):
        serve("gates", {"colour": "red"})
    with pytest.raises(UserError, match="tally is broken"):
        serve(TALLY, {"broken": "user"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        before = Tally.happened["close"]
        with pytest.raises(
            UserError, match=f"cannot listen at 127.0.0.1, port {taken.getsockname()[1]}"
        ):
            serve(TALLY, {}, port=taken.getsockname()[1])
        assert Tally.happened["close"] == before + 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hung", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_and_its_envs(how: signal.Signals, hung: bool) -> None:
    with (
        process(serving(f"{Stuck.__module__}:Stuck")) as (server, url),
        Remote(url, retries=0) as env,
    ):
        env.reset(TASK, 0)
        mark = env.snapshot()
        pids = [
            int(p)
            for p in subprocess.run(
                ["ps", "-eo", "pid="], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        children = [pid for pid in pids if descends(pid, server.pid)]
        assert len(children) >= 3  # the first environment, this one, and its snapshot
        errors: list[str] = []
        waiting = threading.Thread(
            target=lambda: errors.append(error_of(lambda: env.step("hang" if hung else "add 1")))
        )
        waiting.start()
        time.sleep(0.3)
        server.send_signal(how)
        assert server.wait(30) == 0
        waiting.join(30)
        assert errors == [errors[0]] if hung else [""]
        assert until(lambda: not any(alive(pid) for pid in children))
        for call in (lambda: env.restore(mark), lambda: env.reset(TASK, 0)):
            assert error_of(call)


def test_a_signal_ends_a_server_that_is_still_making_its_env() -> None:
    with process(serving(TALLY, broken="slow")) as (server, word):
        assert word == "making"
        server.terminate()
        assert server.wait(25) == 0


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except EnvError as error:
        return str(error)
    return ""


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return False
        if pid == ancestor:
            return True
    return False


@pytest.mark.slow
def test_an_env_that_never_returns_cannot_keep_the_server_alive() -> None:
    with process(serving(TALLY)) as (server, url), Remote(url, retries=0) as env:
        env.reset(TASK, 0)
        env._transport.timeout = 0.3
        with pytest.raises(EnvError):
            env.step("wait")
        server.terminate()
        assert server.wait(25) == 0


# Clients that mean ill, or are written badly


def test_only_localhost_is_answered_without_a_token_and_no_web_page() -> None:
    with Served() as served:
        connection = HTTPConnection("127.0.0.1", served.server.port, timeout=20)
        for host, status in (
            ("localhost:1", 200),
            ("127.0.0.1", 200),
            ("[::1]:8", 200),
            ("evil.example", 401),
            ("evil.example:80", 401),
        ):
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status, host
        connection.request("POST", "/close", b'{"session": "s"}', {"Content-Type": "text/plain"})
        assert receive(connection)[0] == 400


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "payload", "from", "kind"]), inner)
    ),
    max_leaves=5,
)
FIELDS = {
    "session": st.sampled_from(["s", ""]) | jsons,
    "call": st.integers(-1, 3) | jsons,
    "task": st.just(TASK.to_json()) | jsons,
    "seed": st.integers() | jsons,
    "action": st.just("add 1") | jsons,
    "snapshot": st.text() | jsons,
    "snapshots": st.lists(jsons) | jsons,
    "split": st.just("train") | jsons,
    "count": st.integers(-2, 3) | jsons,
}
PATHS = [
    "tasks",
    "reset",
    "step",
    "valid_actions",
    "snapshot",
    "restore",
    "release",
    "close",
    "",
    "elsewhere",
]


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(PATHS), st.fixed_dictionaries({}, optional=FIELDS)), max_size=6
    )
)
def test_no_request_breaks_the_server(requests: list[tuple[str, dict[str, Any]]]) -> None:
    served = _shared()
    connection = HTTPConnection("127.0.0.1", served.server.port, timeout=20)
    try:
        for path, body in requests:
            status, answer = ask(connection, path, **body)
            if status != 200:
                assert answer["error"]["kind"] in ("user", "env", "lost", "gone", "absent"), (
                    path,
                    body,
                )
                assert answer["error"]["message"].endswith("."), answer
        ask(connection, "close", session="s")
        with Remote(served.url) as env:
            assert env.reset(TASK, 0).startswith("You have 0")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"7", b'{"session": ' + b"[" * 100_000, b"\xff\xfe", b'{"seed": NaN}']
)
def test_bodies_that_are_no_json_object_are_refused(raw: bytes) -> None:
    connection = HTTPConnection("127.0.0.1", _shared().server.port, timeout=20)
    connection.request("POST", "/reset", raw, {"Content-Type": "application/json"})
    status, answer = receive(connection)
    assert (status, answer["error"]["kind"]) == (400, "user")


_server_of_all: list[Served] = []


def _shared() -> Served:
    if not _server_of_all:
        _server_of_all.append(Served(TALLY, workers=64).__enter__())
    return _server_of_all[0]


def teardown_module() -> None:
    for server in _server_of_all:
        server.__exit__()
