"""What a client makes of answers that are none, of servers that are none, of options and of the
token."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from leafe.core import (
    EnvError,
    StepResult,
    UserError,
)
from leafe.envs import make_env
from leafe.envs.remote import PROTOCOL, Remote, _server, _transport
from tests.envs.remote_envs import (
    FACTS,
    TASK,
    BadNetwork,
    Served,
    free_port,
    process,
)

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
