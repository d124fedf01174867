"""What goes wrong between a remote environment and its server: nothing steps twice, everything is
said in a sentence, nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
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
    Completion,
    EnvError,
    LeafeError,
    Request,
    SnapshotGone,
    StepResult,
    Stop,
    Task,
    Tree,
    UserError,
)
from leafe.envs import make_env
from leafe.envs.gates import GatesReference
from leafe.envs.remote import PROTOCOL, Remote, _server, _sessions, _transport, serve
from leafe.evaluate import evaluate
from leafe.explore import EnvPool
from leafe.prompts import Prompts, load_prompt_set
from tests.envs.remote_envs import TALLY, BadNetwork, Served, Stuck, Tally, process, serving

TASK = Task("t", "tally", "train", "Add up.", {"from": 0})
PASSING = ["before", "after", "half", "500", "503", "garbage", "list", "html"]
"""What passes by itself when it is asked again."""
FACTS = {
    "protocol": PROTOCOL,
    "name": "tally",
    "deterministic": True,
    "horizon": 9,
    "snapshots": True,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Lost answers


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("at", ["reset", "step", "snapshot", "restore"])
def test_whatever_is_lost_on_the_way_happens_once(
    fault: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_BACKOFF_S", 0.001)
    with Served() as served, BadNetwork(served.url) as network, Remote(network.url) as env:
        calls = ["reset", "step", "snapshot", "step", "restore", "step"]
        before = Tally.happened.copy()
        network.script = [*(["ok"] * calls.index(at)), fault, fault]
        assert env.reset(TASK, 1).startswith("You have 0")
        assert env.step("add 3").info == {"total": 3}
        mark = env.snapshot()
        assert env.step("add 4").info == {"total": 7}
        env.restore(mark)
        assert env.step("add 5").info == {"total": 8}
        assert Tally.happened - before == {"made": 1, "reset": 1, "step": 3, "snapshot": 1}
        assert network.script == []


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([*PASSING, *["ok"] * 8]), max_size=60).filter(
        lambda s: not any(all(f != "ok" for f in s[i : i + 5]) for i in range(len(s)))
    )
)
def test_an_episode_over_a_bad_network_is_the_episode(script: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_transport, "_BACKOFF_S", 0.0005)
        with (
            Served(quick=True) as served,
            BadNetwork(served.url) as network,
            Remote(network.url) as env,
        ):
            network.script = list(script)
            local, chance, before = Tally(), random.Random(len(script)), Tally.happened["step"]
            assert env.reset(TASK, 1) == local.reset(TASK, 1)
            for n in range(12):
                action = chance.choice(["add 1", "add -7", "sing"])
                assert env.step(action) == local.step(action), n
            assert Tally.happened["step"] == before + 24


def test_a_call_sent_again_while_it_runs_waits_for_its_answer() -> None:
    Tally.go_on.clear()
    with Served() as served:
        before = Tally.happened["step"]
        first, second = (
            HTTPConnection("127.0.0.1", served.server.port, timeout=20) for _ in range(2)
        )
        ask(first, "reset", session="s", call=1, task=TASK.to_json(), seed=0)
        send(first, "step", session="s", call=2, action="wait")
        assert until(lambda: Tally.happened["step"] == before + 1)
        send(second, "step", session="s", call=2, action="wait")
        Tally.go_on.set()
        assert receive(first) == receive(second)
        assert Tally.happened["step"] == before + 1
        status, answer = ask(
            first, "step", session="s", call=2, action="add 1"
        )  # the number of the last call, but another call
        assert (status, answer["error"]["kind"]) == (404, "lost")
        status, answer = ask(first, "step", session="s", call=4, action="add 1")
        assert (status, answer["error"]["kind"]) == (404, "lost")
        assert ask(first, "step", session="s", call=3, action="add 2")[1]["info"] == {"total": 2}


def send(connection: HTTPConnection, path: str, **body: Any) -> None:
    connection.request("POST", f"/{path}", json.dumps(body), {"Content-Type": "application/json"})


def receive(connection: HTTPConnection) -> tuple[int, dict[str, Any]]:
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def ask(connection: HTTPConnection, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    send(connection, path, **body)
    return receive(connection)


# Servers that die, hang or have forgotten


def test_a_server_killed_in_mid_episode_and_started_again() -> None:
    port = free_port()
    with process(serving("gates", port, setting="easy")) as (server, url):
        env = Remote(url, retries=1)
        task = env.tasks("train", 1)[0]
        local = make_env("gates", setting="easy")
        first = env.reset(task, 0)
        assert (first, env.step("walk on")) == (local.reset(task, 0), local.step("walk on"))
        mark = env.snapshot()
        server.send_signal(signal.SIGKILL)
        server.wait()
        with pytest.raises(
            EnvError, match=f"127.0.0.1:{port} gave no answer to step after 2 tries"
        ):
            env.step("walk on")
        for call in (
            lambda: env.step("walk on"),
            env.snapshot,
            lambda: env.restore(mark),
            lambda: env.reset(task, 0),
        ):
            with pytest.raises(EnvError):
                call()
    with process(serving("gates", port, setting="easy")):
        with pytest.raises(EnvError, match="reset the environment first"):
            env.step("walk on")
        with pytest.raises(SnapshotGone):
            env.restore(mark)
        assert env.reset(task, 0) == first
        local.reset(task, 0)
        assert env.step("take rope") == local.step("take rope")
        env.close()
    with process(serving("gates", port, setting="easy")) as (server, _):
        assert env.reset(task, 0) == first
        server.kill()
        server.wait()
    with process(serving("sokoban", port)):
        with pytest.raises(EnvError, match="not known here"):
            env.step("walk on")
        with pytest.raises(
            UserError, match=r"now offers another environment than before \(other: .*name"
        ):
            env.reset(task, 0)
    env.close()


def test_a_hung_step_ends_at_the_time_out_and_its_place_is_free_when_it_ends() -> None:
    Tally.go_on.clear()
    with (
        Served(workers=2) as served,
        Remote(served.url, retries=1) as env,
        Remote(served.url) as other,
    ):
        env.reset(TASK, 0)
        env._transport.timeout = 0.3
        other.reset(TASK, 0)
        before = Tally.happened["close"]
        with pytest.raises(EnvError, match=r"no answer to step within 0\.3 s"):
            env.step("wait")
        env._transport.timeout = 20.0
        assert other.step("add 1").info == {"total": 1}  # nobody else waits
        with pytest.raises(EnvError, match="All 2 environments of this server are in use"):
            env.reset(TASK, 0)
        Tally.go_on.set()
        assert until(lambda: Tally.happened["close"] > before)
        assert env.reset(TASK, 0).startswith("You have 0")


@pytest.mark.slow
def test_a_hung_env_with_a_process_of_its_own_frees_its_place_at_once() -> None:
    with (
        Served(f"{Stuck.__module__}:Stuck", workers=1) as served,
        Remote(served.url, timeout=20.0) as env,
    ):
        env.reset(TASK, 0)
        env.step("add 2")
        mark = env.snapshot()
        pid = next(iter(served.server.table.sessions.values())).env.pid  # type: ignore[union-attr]
        env._transport.timeout = 0.3
        with pytest.raises(EnvError, match=r"within 0\.3 s"):
            env.step("hang")
        assert until(lambda: not alive(pid))
        env._transport.timeout = 20.0
        env.restore(mark)
        assert env.step("add 1").info == {"total": 3}


def test_an_idle_session_expires_and_a_reset_opens_another() -> None:
    with Served(idle=0.2) as served, Remote(served.url) as env:
        env.reset(TASK, 0)
        env.step("add 2")
        mark = env.snapshot()
        before = Tally.happened["close"]
        assert until(lambda: Tally.happened["close"] == before + 1)
        with pytest.raises(EnvError, match="expired"):
            env.step("add 1")
        env.restore(mark)
        assert env.step("add 1").info == {"total": 3}
        assert until(lambda: not served.server.table.sessions)
        assert env.reset(TASK, 0).startswith("You have 0")
        assert env.step("add 1").info == {"total": 1}


def test_snapshots_make_room_for_newer_ones_and_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sessions, "MAX_SNAPSHOTS", 3)
    with Served() as served, Remote(served.url) as env:
        env.reset(TASK, 0)
        marks = []
        for n in range(3):
            env.step("add 1")
            marks.append((n + 1, env.snapshot()))
        env.restore(marks[0][1])
        before = Tally.happened["release"]
        marks.append((1, env.snapshot()))
        assert env.step("add 1").info == {"total": 2}
        assert Tally.happened["release"] == before + 1
        with pytest.raises(SnapshotGone, match="no longer held"):
            env.restore(marks[1][1])  # the least recently used
        for total, mark in (marks[0], marks[2], marks[3]):
            env.restore(mark)
            assert env.step("add 1").info == {"total": total + 1}


def test_a_full_server_says_so_and_has_room_again_when_a_client_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Served(workers=1) as served, Remote(served.url, retries=1) as env:
        other = Remote(served.url, retries=1)
        other.reset(TASK, 0)
        with pytest.raises(EnvError, match="start it with more workers"):
            env.reset(TASK, 0)
        other._transport.close()  # as a killed client would
        with pytest.raises(EnvError, match="start it with more workers"):
            env.reset(TASK, 0)
        monkeypatch.setattr(_sessions, "_ORPHAN_S", 0.0)
        assert env.reset(TASK, 0).startswith("You have 0")
        with pytest.raises(EnvError):
            other.step("add 1")
        with pytest.raises(
            EnvError, match="start it with more workers"
        ):  # a connected client keeps its place
            other.reset(TASK, 0)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("raise it", "It raised ValueError: so it is it"),
        ("exit now", "RuntimeError: SystemExit: 3"),
        ("none", "step returned None, not a StepResult"),
        ("number", "observation is 7, not a string"),
        ("nan", "reward is nan"),
        ("add x", "It raised ValueError"),
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_an_env_that_fails_is_an_env_error_and_begins_anew(
    action: str, says: str, quick: bool
) -> None:
    with Served(quick=quick) as served, Remote(served.url) as env:
        env.reset(TASK, 0)
        with pytest.raises(EnvError, match=says) as raised:
            env.step(action)
        assert "\n" not in str(raised.value)
        with pytest.raises(EnvError, match="reset the environment first"):
            env.step("add 1")
        env.reset(TASK, 0)
        assert env.step("add 1").info == {"total": 1}


def test_a_fresh_instance_in_mid_run_takes_a_dead_server_for_a_failure_that_may_pass() -> None:
    port = free_port()
    with process(serving("gates", port)) as (_, url):
        first = Remote(url, retries=0)
    second = Remote(url, retries=0)  # as the pool makes one for an environment that failed
    task = Task(
        "t",
        "gates",
        "train",
        "get orb",
        {"stages": [["gate", "golden", "axe", 0]], "object": "orb"},
    )
    for env in (first, second):
        with pytest.raises(EnvError, match="gave no answer"):
            env.reset(task, 0)
    with process(serving("gates", port)):
        assert first.reset(task, 0) == second.reset(task, 0) == "golden gate"
        first.release(second.snapshot())
        first.close()
    with process(serving("gates", port, setting="easy")):
        for env in (first, second):
            with pytest.raises(
                UserError, match=r"now offers another environment than before \(other: versions\)"
            ):
                env.reset(task, 0)
    second.close()
    with process(serving("sokoban", port)) as (_, url):
        assert Remote(url).name == "sokoban"  # all others are gone
    with pytest.raises(UserError, match="no environment server to be reached"):
        Remote(url, retries=0)


# Answers that are none


@pytest.mark.parametrize("fault", ["before", "500", "garbage", "list", "html", "half"])
def test_what_does_not_pass_is_given_up_after_the_retries(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_BACKOFF_S", 0.001)
    with (
        Served() as served,
        BadNetwork(served.url) as network,
        Remote(network.url, retries=2) as env,
    ):
        env.reset(TASK, 0)
        network.paths.clear()
        network.script = [fault] * 99
        with pytest.raises(EnvError, match="gave no answer to step after 3 tries"):
            env.step("add 1")
        # one more where the kept connection was found closed, and the farewell
        assert 3 <= network.paths.count("/step") <= 4
        assert network.paths.count("/close") <= 2
        network.script = []
        env.reset(TASK, 0)


@pytest.mark.parametrize("fault", ["hang", "drip", "drip-head"])
def test_no_answer_takes_longer_than_the_time_out(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Served() as served,
        BadNetwork(served.url) as network,
        Remote(network.url, timeout=20.0) as env,
    ):
        env.reset(TASK, 0)
        network.script = [fault]
        env._transport.timeout = 0.4
        with pytest.raises(EnvError, match=r"gave no answer to step within 0\.4 s"):
            env.step("add 1")


@pytest.mark.parametrize("fault", ["declared", "endless"])
def test_an_answer_without_bounds_is_not_read(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transport, "MAX_BODY", 2**22)
    with Served() as served, BadNetwork(served.url) as network, Remote(network.url) as env:
        env.reset(TASK, 0)
        network.script = [fault]
        with pytest.raises(EnvError, match="longer than the 4 MiB"):
            env.step("add 1")


def test_a_request_or_a_task_list_without_bounds_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_server, "MAX_BODY", 2**20)
    with Served() as served, Remote(served.url) as env:
        env.reset(TASK, 0)
        with pytest.raises(UserError, match="longer than 1 MiB"):
            env.step("add 1" + " " * 2**20)
        env.reset(TASK, 0)
        assert env.step("add 1").info == {"total": 1}
        with pytest.raises(UserError, match="ask for fewer"):
            env.tasks("train", 20_000)
        monkeypatch.setattr(_transport, "MAX_BODY", 2**20)
        with pytest.raises(UserError, match="a request of 1 MiB is longer"):
            env.step("add 1" + " " * 2**20)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({}, "'observation' is absent, not text"),
        ({"observation": None}, "'observation' is absent"),
        ({"observation": "So.", "done": 1}, "'done' is a JSON int"),
        ({"observation": "So.", "reward": "1"}, "'reward' is a JSON str"),
        ({"observation": "So.", "reward": 10**400}, "'reward' is a JSON int"),
        ({"observation": "So.", "progress": True}, "'progress' is a JSON bool"),
        ({"error": {}}, "status 200"),
        ({"error": {"kind": "of its own", "message": "Alas."}}, "Alas"),
    ],
)
def test_an_answer_against_the_protocol_is_named(answer: dict[str, Any], says: str) -> None:
    with (
        BadNetwork(
            script=[FACTS, {"observation": "Go."}, answer, {}, FACTS, {"observation": "Go."}]
        ) as network,
        Remote(network.url) as env,
    ):
        assert env.reset(TASK, 0) == "Go."
        with pytest.raises(EnvError, match=says):
            env.step("x")
        assert env.reset(TASK, 0) == "Go."


def test_unknown_fields_are_ignored_and_absent_ones_have_defaults() -> None:
    with BadNetwork(
        script=[
            FACTS | {"colour": "red"},
            {"observation": "Go.", "more": 1},
            {"observation": "So.", "else": [1]},
        ]
    ) as network:
        env = Remote(network.url)
        assert (env.name, env.actions_help, env.splits) == ("tally", "", ())
        assert env.reset(TASK, 0) == "Go."
        assert env.step("x") == StepResult("So.")
        network.script = [{}]
        env.close()


# At construction


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            [FACTS | {"protocol": 7}],
            rf"speaks version 7 of the protocol and this leafe version {PROTOCOL}",
        ),
        ([FACTS | {"protocol": "1"}], "speaks version '1'"),
        ([{"hello": "env"}], "no environment server .'protocol' is absent"),
        ([FACTS | {"horizon": 0}], "'horizon' is 0"),
        ([{k: v for k, v in FACTS.items() if k != "deterministic"}], "'deterministic' is absent"),
        ([FACTS | {"name": 3}], "'name' is a JSON int"),
        (["404"], "no environment server .*404"),
        (["302"], "302"),
        (["html"] * 3, "does not work: .* no JSON"),
        (["500"] * 3, "does not work: .* status 500"),
        (["before"] * 4, "no environment server to be reached: .* after 3 tries"),
        (["hang"], r"no environment server to be reached: .* within 0\.5 s"),
        (["drip-head"], r"within 0\.5 s"),
    ],
)
def test_a_server_that_is_none_is_the_users_to_mend(
    script: list[Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_BACKOFF_S", 0.001)
    with BadNetwork(script=script) as network, pytest.raises(UserError, match=says) as raised:
        Remote(network.url, timeout=0.5 if "0\\.5" in says else 20.0, retries=2)
    assert network.url in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nobody_there_names_the_address_and_the_command() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        UserError, match=rf"{url} gave no answer .*start it \(leafe envs serve NAME --port N\)"
    ):
        make_env("remote", url=url, retries=0)


def test_a_server_that_starts_slowly_is_waited_for() -> None:
    port = free_port()
    served = Served(port=port)
    starting = threading.Timer(0.7, served.__enter__)
    starting.start()
    try:
        with Remote(f"http://127.0.0.1:{port}") as env:
            assert env.reset(TASK, 0).startswith("You have 0")
    finally:
        starting.join()
        served.__exit__()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:80"}, "no web address"),
        ({"url": "ftp://localhost"}, "no web address"),
        ({"url": "http://"}, "no web address"),
        ({"url": "http://localhost:port"}, "no web address"),
        ({"url": "http://local host:1"}, "no web address"),
        ({"url": 7}, "no web address"),
        ({"url": None}, "no web address"),
        ({"url": "http://localhöst:1"}, "no web address"),
        ({"url": "http://localhost:1/\r\nX: y"}, "no web address"),
        ({"url": f"http://{'a' * 64}:1", "retries": 0}, "no host can have that name"),
        (
            {"url": "http://no-such-host.invalid:1", "retries": 0},
            "no environment server to be reached",
        ),
        ({"url": "http://me:secret@localhost:1"}, "token_env"),
        ({"url": "http://localhost:1/?key=secret"}, "token_env"),
        ({"url": "http://localhost:1", "timeout": 0}, "timeout 0"),
        ({"url": "http://localhost:1", "timeout": float("inf")}, "timeout inf"),
        ({"url": "http://localhost:1", "retries": -1}, "retries -1"),
        (
            {"url": "http://localhost:1", "token_env": "LEAFE_NO_SUCH_TOKEN"},
            "LEAFE_NO_SUCH_TOKEN is empty",
        ),
        ({}, "needs the option 'url'"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        make_env("remote", **options)
    assert "secret" not in str(raised.value)


# The token


def test_the_token_opens_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(token="s3same-open") as served:
        with pytest.raises(
            UserError, match="token is missing or wrong; correct the options url and token_env"
        ):
            Remote(served.url)
        for wrong in ("other", "s3same-ope", "s3same-open2"):
            monkeypatch.setenv("DOOR", wrong)
            with pytest.raises(UserError, match="token is missing or wrong"):
                Remote(served.url, token_env="DOOR")
        monkeypatch.setenv("DOOR", "s3same-open\n")
        with Remote(served.url, token_env="DOOR") as env:
            env.reset(TASK, 0)
            monkeypatch.setenv("DOOR", "changed")
            with pytest.raises(UserError, match="token is missing or wrong"):
                env.step("add 1")
        monkeypatch.setenv("DOOR", "two\nlines")
        with pytest.raises(UserError, match="characters that no token has"):
            Remote(served.url, token_env="DOOR")


def test_a_token_that_is_echoed_stays_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "s3same-open")
    with (
        BadNetwork(script=["echo"]) as network,
        pytest.raises(UserError, match=r"not Bearer \*\*\*") as raised,
    ):
        Remote(network.url, token_env="DOOR")
    assert "s3same" not in str(raised.value)
    for spelled in (
        "s3same-open",
        r"\u0073\u0033same-open",
        "".join(f"\\u{ord(c):04x}" for c in "s3same-open"),
    ):
        with BadNetwork(
            script=[FACTS, b'{"observation": "the key is %s"}' % spelled.encode()]
        ) as network:
            assert Remote(network.url, token_env="DOOR").reset(TASK, 0) == "the key is ***"
    with BadNetwork(script=[FACTS, *[b"key s3same-o"] * 9]) as network:
        with pytest.raises(EnvError) as cut:
            Remote(network.url, token_env="DOOR").reset(TASK, 0)
        assert "s3same" not in str(cut.value)
    with BadNetwork(
        script=[
            FACTS,
            {"observation": "Go."},
            {"error": {"kind": "env", "message": "key s3same-open"}},
        ]
    ) as network:
        env = Remote(network.url, token_env="DOOR")
        env.reset(TASK, 0)
        with pytest.raises(EnvError, match=r"key \*\*\*"):
            env.step("x")
        assert "s3same" not in json.dumps([repr(env), repr(vars(env)), str(env.versions())])


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


@pytest.mark.slow
def test_random_faults_and_kills_never_change_an_episode() -> None:
    """A server that is killed at random moments, and a network that loses answers: after each
    EnvError reset and replay, as the pool does."""
    chance, port, deaths = random.Random(7), free_port(), 0
    local = make_env("gates", setting="hard")
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, "-c", serving("gates", port, setting="hard")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with (
            BadNetwork(f"http://127.0.0.1:{port}") as network,
            Remote(network.url, retries=5) as env,
        ):
            task = env.tasks("train", 1)[0]
            for _ in range(12):
                network.script = [chance.choice([*PASSING, *["ok"] * 12]) for _ in range(20)]
                first, actions = (
                    local.reset(task, 0),
                    [
                        chance.choice(["take rope", "use rope", "go left", "walk on", "go up"])
                        for _ in range(10)
                    ],
                )
                wanted = [local.step(action) for action in actions]
                got: list[Any] = []
                played = False
                while len(got) < len(actions):
                    try:
                        if not played:
                            assert env.reset(task, 0) == first
                            assert [env.step(action) for action in actions[: len(got)]] == got
                            played = True
                        if chance.random() < 0.02:
                            server.kill()
                            server.wait()
                            deaths += 1
                            server = subprocess.Popen(
                                command, stdout=subprocess.PIPE, text=True, env=environment
                            )
                        got.append(env.step(actions[len(got)]))
                    except LeafeError:
                        played = False
                assert got == wanted
        assert deaths
    finally:
        server.kill()
        server.communicate()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https_is_spoken_with_a_certificate_that_is_trusted_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Served() as served, BadNetwork(served.url) as network:
        network.server.socket = context.wrap_socket(network.server.socket, server_side=True)
        url = network.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(UserError, match="certificate verify failed"):
            Remote(url, retries=0)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with Remote(f"{url}/") as env:
            env.reset(TASK, 0)
            assert env.step("add 1").info == {"total": 1}
            network.script = ["hang"]
            env._transport.timeout = 0.3
            with pytest.raises(EnvError, match=r"within 0\.3 s"):
                env.step("add 1")


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_the_address_that_is_printed_is_the_one_to_use(host: str) -> None:
    code = f"from leafe.envs.remote import serve; serve('gates', {{}}, host={host!r})"
    with process(code) as (_, url), Remote(url) as env:
        assert host in url
        assert env.reset(env.tasks("train", 1)[0], 0)


@pytest.mark.slow
def test_an_evaluation_outlives_its_server_and_finds_the_same() -> None:
    """The pool replays what a killed server forgot: turn for turn the trees of a run at home."""
    port, options = free_port(), {"setting": "hard"}
    begun = threading.Event()

    def look(url: str | None) -> list[tuple[Any, ...]]:
        async def run() -> list[Tree]:
            pool = EnvPool(
                (lambda: Remote(url, retries=6)) if url else (lambda: make_env("gates", **options)),
                size=4,
            )
            prompts = Prompts(load_prompt_set("gates"), "")
            try:
                return await evaluate(
                    Slowly(begun if url else None),
                    pool,
                    pool.facts.tasks("test", 6, 1),
                    prompts,
                    samples=12,
                    seed=3,
                )
            finally:
                pool.close()

        trees = asyncio.run(run())
        assert all(
            episode.stop in (Stop.success, Stop.failure)
            for tree in trees
            for episode in tree.episodes
        )
        turns = [turn for tree in trees for episode in tree.episodes for turn in episode.turns]
        return sorted(
            (t.id, t.parent or "", t.action, t.observation, t.count, t.done, t.success)
            for t in turns
        )

    def start() -> None:
        servers.append(
            subprocess.Popen(
                [sys.executable, "-c", serving("gates", port, **options)],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert servers[-1].stdout is not None
        servers[-1].stdout.readline()

    def kill() -> None:
        assert begun.wait(60)
        servers[0].kill()
        servers[0].wait()
        start()

    servers: list[subprocess.Popen[str]] = []
    chance = random.Random(3)
    at_home = look(None)
    try:
        start()
        killer = threading.Thread(target=kill)
        killer.start()
        with BadNetwork(
            f"http://127.0.0.1:{port}",
            ["ok"] * 8 + [chance.choice([*PASSING, *["ok"] * 30]) for _ in range(600)],
        ) as network:
            far = look(network.url)
            assert len(network.paths) > 200
        killer.join()
        assert len(servers) == 2
        assert far == at_home
    finally:
        for server in servers:
            server.kill()
            server.communicate()


class Slowly(GatesReference):
    """Takes its time, so that there is a middle in which a server can die."""

    def __init__(self, begun: threading.Event | None) -> None:
        super().__init__()
        self.begun, self.asked = begun, 0

    async def complete(self, request: Request) -> list[Completion]:
        if self.begun is not None:
            self.asked += 1
            await asyncio.sleep(0.02)
            if self.asked >= 40:
                self.begun.set()
        return await super().complete(request)
