"""Lost answers, dead and forgetful servers: nothing steps twice, every failure is a sentence, and
an episode over a bad network is the episode."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
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
    Stop,
    Task,
    Tree,
    UserError,
)
from leafe.envs import make_env
from leafe.envs.gates import GatesReference
from leafe.envs.remote import Remote, _sessions, _transport
from leafe.evaluate import evaluate
from leafe.explore import EnvPool
from leafe.prompts import Prompts, load_prompt_set
from tests.envs.remote_envs import (
    PASSING,
    TASK,
    BadNetwork,
    Served,
    Stuck,
    Tally,
    alive,
    ask,
    free_port,
    process,
    receive,
    send,
    serving,
    until,
)

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
