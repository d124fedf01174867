"""The life of a server that leafe starts: it comes up, it comes back, and it never stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from leafe.core import Message, PolicyError, Request, UserError
from leafe.policies.http import HTTPPolicy
from leafe.policies.server import Launched, check_command, load_adapter, serve, stop_all

FAKE = Path(__file__).parents[1] / "fake_server.py"
ASK = Request((Message("user", "who are you?"),), seed=7)


def command(*more: str) -> str:
    return f"{shlex.join([sys.executable, str(FAKE)])} {{checkpoint}} {{port}} {' '.join(more)}"


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    stop_all()


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*pids: int) -> bool:
    """Whether all go; the deadline is one for a machine that does hardly anything else."""
    deadline = time.monotonic() + 200
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pids_in(log: Path) -> list[int]:
    return [
        int(pid)
        for pid in re.findall(r"^(?:fake server|child) (\d+)", log.read_text(), re.MULTILINE)
    ]


def ready(server: Launched) -> Launched:
    asyncio.run(server.ready())
    return server


def says(server: Launched, model: str, **extra: object) -> str:
    async def go() -> str:
        policy = HTTPPolicy(
            server.base_url, model, api_key_env=None, extra=extra, ready=server.ready
        )
        try:
            return (await policy.complete(ASK))[0].text
        finally:
            await policy.close()

    return asyncio.run(go())


def test_it_starts_answers_and_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", "sk-hush-hush-1234")
    server = ready(
        Launched(
            command("--child"),
            "weights of mine",
            tmp_path / "logs" / "server.log",
            secrets=["FAKE_KEY"],
        )
    )
    assert says(server, "weights of mine") == "I am weights of mine; 7."
    pids = pids_in(server.log)
    assert server.pid == pids[0]
    assert len(pids) == 2
    assert os.getpgid(pids[0]) == pids[0] != os.getpgid(0)
    server.stop()
    server.stop()
    assert gone(*pids)
    assert server.state == "stopped"
    text = server.log.read_text()
    assert "my key is ***" in text
    assert "hush" not in text
    assert "# leafe, " in text
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))
    with pytest.raises(UserError, match="was stopped"):
        asyncio.run(server.ready())


@pytest.mark.parametrize("name", ["HF_TOKEN", "OTHER_SECRET", "DB_PASSWORD", "SOME_KEY"])
def test_the_log_hides_the_value_of_every_variable_that_says_secret(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "hush/hush+0123456789"
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_KEY", "short")
    spelled = [
        value,
        json.dumps(value).replace("/", "\\/"),
        "".join(f"\\u{ord(c):04x}" for c in value),
        quote(value, safe=""),
    ]
    more = command(
        "--dies", shlex.quote(" ".join(spelled)), "--api-key", "sk-on-the-line-0123456789"
    )
    server = Launched(more, "w", tmp_path / "log")
    with pytest.raises(UserError) as raised:
        ready(server)
    server.stop()
    text = server.log.read_text() + str(raised.value)
    # the note of the command is the user's own words; the server's are in the lines after it
    said = "".join(line for line in text.splitlines() if not line.startswith("# leafe, "))
    assert "hush" not in said
    assert "0075\\u" not in said
    assert said.count("***") >= 4
    assert "sk-on-the-line" not in text


def test_a_server_that_will_not_end_is_killed(tmp_path: Path) -> None:
    server = ready(Launched(command("--stubborn", "--child"), "w", tmp_path / "log", stop_s=0.3))
    pids = pids_in(server.log)
    server.stop()
    assert gone(*pids)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            command("--dies", "'no GPU found'"),
            (
                r"^The server of policy\.launch ended with code 3 before it answered; the end "
                r"of .*log: 'no GPU found'\.$"
            ),
        ),
        (
            "no-such-program {checkpoint} {port}",
            r"cannot be started \(No such file or directory: no-such-program\)",
        ),
        (command("--silent"), r"did not answer within 0\.5 s \(policy\.launch_timeout\)"),
    ],
)
def test_a_server_that_does_not_come_up_is_one_sentence(
    line: str, sentence: str, tmp_path: Path
) -> None:
    server = Launched(
        line, "w", tmp_path / "log", start_s=0.5 if "silent" in line else 60, stop_s=1
    )
    with pytest.raises(UserError, match=sentence) as raised:
        ready(server)
    assert "\n" not in str(raised.value)
    assert gone(*pids_in(server.log))


def test_a_killed_server_is_started_again_and_requests_wait_for_it(tmp_path: Path) -> None:
    server = ready(Launched(command("--delay", "0.3"), "w", tmp_path / "log"))

    async def go() -> list[str]:
        policy = HTTPPolicy(
            server.base_url, "w", api_key_env=None, ready=server.ready, retries=9, backoff_s=0.3
        )
        texts = []
        try:
            for round_ in range(3):
                if round_:
                    assert server.pid is not None
                    os.kill(server.pid, signal.SIGKILL)
                texts += [
                    c.text
                    for got in await asyncio.gather(*(policy.complete(ASK) for _ in range(20)))
                    for c in got
                ]
            return texts
        finally:
            await policy.close()

    assert asyncio.run(go()) == ["I am w; 7."] * 60
    assert server.deaths == 2
    assert server.log.read_text().count("was killed by SIGKILL and is started again") == 2
    assert len(set(pids_in(server.log))) == 3
    server.stop()
    assert gone(*pids_in(server.log))


def test_a_server_that_hangs_is_started_again(tmp_path: Path) -> None:
    server = ready(
        Launched(command("--child"), "w", tmp_path / "log", hung_s=2.0, stop_s=0.3, restarts=1000)
    )
    before = pids_in(server.log)
    os.kill(before[0], signal.SIGSTOP)  # it lives, and answers nothing
    assert says(server, "w") == "I am w; 7."  # from the next one: the request was sent again
    assert (
        server.deaths >= 1
    )  # on a busy machine a healthy one is silent for two seconds now and then
    assert "did not answer for 2 s and is started again" in server.log.read_text()
    assert gone(*before)
    server.stop()
    assert gone(*pids_in(server.log))


def test_a_server_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    server = ready(Launched(command("--child"), "w", tmp_path / "log", restarts=0))
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def go() -> None:
        while server.state == "up":
            await asyncio.sleep(0.02)
        await server.ready()

    with pytest.raises(PolicyError, match=r"was killed by SIGKILL, as it did 0 times before"):
        asyncio.run(go())
    assert gone(*pids_in(server.log))


def test_one_server_at_a_time_and_the_same_one_for_the_same_weights(tmp_path: Path) -> None:
    first = ready(serve(command(), "a", tmp_path))
    assert serve(command(), "a", tmp_path) is first
    second = ready(serve(command(), "b", tmp_path))
    assert second is not first
    assert first.state == "stopped"
    assert gone(*pids_in(first.log))
    assert says(second, "b") == "I am b; 7."
    assert len(list(tmp_path.glob("server-*.log"))) == 2
    stop_all()
    assert gone(*pids_in(second.log))


HOLDER = """
import asyncio, sys, time
from pathlib import Path
from leafe.policies.server import serve
server = serve(sys.argv[1], "w", Path(sys.argv[2]))
asyncio.run(server.ready())
print(server.log, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_no_server_outlives_its_leafe(how: signal.Signals, tmp_path: Path) -> None:
    holder = [sys.executable, "-c", HOLDER, command("--child"), str(tmp_path)]
    with subprocess.Popen(
        holder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as leafe:
        assert leafe.stdout is not None
        log = Path(leafe.stdout.readline().strip())
        pids = pids_in(log)
        assert len(pids) == 2
        assert all(map(alive, pids))
        leafe.send_signal(how)
        leafe.wait(200)
    assert gone(*pids)


def test_a_killed_guard_takes_the_server_with_it_and_a_new_one_comes(tmp_path: Path) -> None:
    server = ready(Launched(command("--child"), "w", tmp_path / "log"))
    before = pids_in(server.log)
    assert server._guard is not None
    server._guard.kill()
    assert gone(*before)
    while not (server.deaths and server.state == "up"):  # until the test's own time limit
        time.sleep(0.02)
    assert says(server, "w") == "I am w; 7."
    server.stop()
    assert gone(*pids_in(server.log))


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve {checkpoint}",
        "vllm serve m --port {port}",
        "vllm serve '{checkpoint} --port {port}",
        "",
    ],
)
def test_a_command_that_cannot_be_one_is_the_users_mistake(line: str) -> None:
    with pytest.raises(UserError, match=r"policy\.launch"):
        check_command(line)


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    server = ready(
        Launched(command(), f"w; touch {tmp_path}/made; $(touch {tmp_path}/made)", tmp_path / "log")
    )
    assert server.command[2] == server.checkpoint
    assert not (tmp_path / "made").exists()
    server.stop()


# --- adapters


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama.cpp", "none"])
def test_an_adapter_is_loaded_by_the_route_that_the_server_documents(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    adapter.mkdir()
    monkeypatch.setenv("LORA_FILES", f"{other}:{adapter}")
    server = ready(Launched(command("--lora", kind), "base", tmp_path / "log"))
    found = load_adapter(server.base_url, "base", "mine", str(adapter))
    again = load_adapter(server.base_url, "base", "mine", str(adapter))
    assert found == again
    if kind == "none":
        assert found is None
    else:
        assert found is not None
        model, extra = found
        assert model == {"vllm": "mine", "sglang": "base:mine", "llama.cpp": "base"}[kind]
        said = says(server, model, **extra)
        assert said == (
            "I am base with adapter 1; 7." if kind == "llama.cpp" else f"I am {adapter}; 7."
        )
    assert load_adapter(server.base_url, "base", "absent", str(tmp_path / "absent")) is None
    assert says(server, "base") == "I am base; 7."
    server.stop()
