"""An environment in its own process is the environment it hosts, and its end is never ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import EnvError, SnapshotGone, UserError
from leafe.envs import load_tasks, make_env
from leafe.envs.worker import ProcessEnv, _proxy
from tests.envs.hosted import Forked, Hosted

HOSTED, FORKED = "tests.envs.hosted:Hosted", "tests.envs.hosted:Forked"


def hosted(**options: object) -> ProcessEnv:
    env = make_env(HOSTED, **options)
    assert isinstance(env, ProcessEnv)
    return env


def forked() -> ProcessEnv:
    env = make_env(FORKED)
    assert isinstance(env, ProcessEnv)
    return env


def gone(pid: int) -> bool:
    """No such process, or a dead one that its parent has not read yet."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_it_is_the_env_that_it_hosts() -> None:
    with hosted(horizon=9, mood="calm") as env:
        assert (env.name, env.horizon, env.actions_help, env.versions()) == (
            "hosted",
            9,
            "say add (calm)",
            {"hosted": "1"},
        )
        assert not env.quick
        tasks = load_tasks(env, "train", 3)
        here = Hosted()
        assert tasks == list(here.tasks("train", 3))
        with pytest.raises(UserError, match="no split 'test'"):
            load_tasks(env, "test")
        for task in tasks:
            assert env.reset(task, 5) == here.reset(task, 5)
            for action in ("add", "", "add"):
                there, local = env.step(action), here.step(action)
                assert there.info.get("pid", env.pid) == env.pid != os.getpid()
                assert (there.observation, there.valid, there.done) == (
                    local.observation,
                    local.valid,
                    local.done,
                )
            assert env.valid_actions() == ["add", "add more"]


def test_text_of_any_kind_travels() -> None:
    with hosted() as env:
        env.reset(load_tasks(env, "train", 1)[0], 0)
        for action in (
            "x" * 3_000_000,
            "\ud800 half a pair",
            "\x00\x1b[31m",
            "no such \u202e thing",
        ):
            assert env.step(action).observation


def test_mistakes_and_failures_keep_their_kind() -> None:
    with pytest.raises(UserError, match="never picky"):
        hosted(mood="picky")
    with pytest.raises(
        EnvError, match=r"died at its start \(status 3\); its last words: could not find the heart"
    ):
        hosted(mood="stillborn")
    with pytest.raises(UserError, match="no option 'colour'"):
        hosted(colour="red")
    with pytest.raises(UserError, match="plain values"):
        hosted(mood=object())
    with hosted() as env:
        task = load_tasks(env, "train", 1)[0]
        env.reset(task, 0)
        with pytest.raises(EnvError, match="KeyError: 'no such thing'"):
            env.step("raise")
        assert env.step("add").valid, "an exception is not the end of the process"
        pid = env.pid
        with pytest.raises(
            EnvError, match=r"died in step \(status 9\); its last words: the dam broke"
        ):
            env.step("die")
        with pytest.raises(EnvError, match="reset it first"):
            env.step("add")
        assert env.reset(task, 0) == "You are at 0."
        assert env.pid != pid


def test_a_killed_process_is_named_by_its_signal() -> None:
    with hosted() as env:
        env.reset(load_tasks(env, "train", 1)[0], 0)
        assert env.pid is not None
        os.kill(env.pid, signal.SIGKILL)
        with pytest.raises(EnvError, match="SIGKILL"):
            env.step("add")


def test_a_process_that_died_before_the_tasks_were_asked_for_is_made_anew() -> None:
    with hosted() as env:
        assert env.pid is not None
        os.kill(env.pid, signal.SIGKILL)
        assert len(env.tasks("train", 3)) == 3


def test_a_hang_is_ended() -> None:
    with hosted() as env:
        env.reset(load_tasks(env, "train", 1)[0], 0)
        pid = env.pid
        env.timeout = 0.3
        with pytest.raises(EnvError, match=r"no answer to step within 0\.3 s"):
            env.step("hang")
        assert pid is not None
        assert gone(pid)


def test_closed_while_it_hangs_in_another_thread() -> None:
    env = hosted()
    env.reset(load_tasks(env, "train", 1)[0], 0)
    pid = env.pid
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(env.step, "hang")
        threading.Event().wait(0.2)
        env.close()
        with pytest.raises(EnvError):
            hanging.result(20)
    assert pid is not None
    assert gone(pid)
    env.close()
    env.close()


def test_close_lets_the_env_close(tmp_path: Path) -> None:
    env = hosted(folder=str(tmp_path))
    pid = env.pid
    env.close()
    assert (tmp_path / f"closed-{pid}").exists()
    assert pid is not None
    assert gone(pid)


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        f"from leafe.envs import make_env; import os, signal\n"
        f"w = make_env({FORKED!r}, folder={str(tmp_path)!r}); w.reset(w.tasks('train', "
        "1)[0], 0); w.step('add'); s = w.snapshot(); w.restore(s)\n"
        f"print(w.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert gone(int(done.stdout)), done.stderr
    assert gone(int(next(tmp_path.glob("open-*")).name.removeprefix("open-")))


@pytest.mark.parametrize("copied", [False, True])
def test_hung_it_still_ends_with_the_process_that_started_it(copied: bool, tmp_path: Path) -> None:
    """And so does what it started: nobody is left to kill it from outside."""
    program = f"""
from leafe.envs import make_env; import os, pathlib, signal, threading, time
folder = pathlib.Path({str(tmp_path)!r})
w = make_env({FORKED if copied else HOSTED!r}, folder=str(folder))
w.reset(w.tasks('train', 1)[0], 0); w.step('add')
if {copied}: w.restore(w.snapshot())
threading.Thread(target=w.step, args=['hang with a child'], daemon=True).start()
while not list(folder.glob('child-*')): time.sleep(0.01)
print(w.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    child = int(next(tmp_path.glob("child-*")).name.removeprefix("child-"))
    try:
        assert gone(int(done.stdout)), done.stderr
        assert gone(child)
    finally:
        for pid in (int(done.stdout), child):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["add", "snapshot", "restore", "release"]), max_size=25),
    st.randoms(use_true_random=False),
)
def test_a_fork_is_a_snapshot(moves: list[str], chance: object) -> None:
    """Against the same environment here, brought back by replay."""
    import random

    assert isinstance(chance, random.Random)
    global _shared
    env, local = _env(), Forked()
    task = Forked().tasks("train", 1)[0]
    env.reset(task, 3)
    local.reset(task, 3)
    played = 0
    held: list[tuple[object, int]] = []
    for move in moves:
        if move == "add":
            assert env.step("add").observation == local.step("add").observation
            played += 1
        elif move == "snapshot":
            held.append((env.snapshot(), played))
        elif held and move == "restore":
            snapshot, played = chance.choice(held)
            env.restore(snapshot)
            local.reset(task, 3)
            for _ in range(played):
                local.step("add")
        elif held:
            snapshot, _ = held.pop(chance.randrange(len(held)))
            env.release(snapshot)
            with pytest.raises(SnapshotGone):
                env.restore(snapshot)
    for snapshot, _ in held:
        env.release(snapshot)


_shared: ProcessEnv | None = None


def _env() -> ProcessEnv:
    global _shared
    if _shared is None:
        _shared = forked()
    return _shared


@pytest.fixture(autouse=True, scope="module")
def _close_shared() -> object:
    yield
    if _shared is not None:
        _shared.close()


def test_a_snapshot_outlives_its_env_and_serves_another() -> None:
    first, second = forked(), forked()
    task = first.tasks("train", 1)[0]
    first.reset(task, 3)
    for _ in range(3):
        first.step("add")
    snapshot = first.snapshot()
    after = first.step("add").observation
    first.close()
    second.restore(snapshot)
    assert second.step("add").observation == after
    second.close()
    third = forked()
    third.restore(snapshot)
    assert third.step("add").observation == after
    pid = third.pid
    third.release(snapshot)
    assert third.step("add").valid, "an environment goes on without the snapshot that it came from"
    third.close()
    assert pid is not None
    assert gone(pid)


def test_a_snapshot_taken_in_the_last_moment_outlives_its_env_too() -> None:
    """The copy must have left the environment's process group before anybody is told that there is
    one."""
    with forked() as second:
        task = second.tasks("train", 1)[0]
        for _ in range(8):
            first = forked()
            first.reset(task, 3)
            snapshot = first.snapshot()
            first.close()
            second.restore(snapshot)
            assert second.step("add").valid
            second.release(snapshot)


def test_snapshots_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proxy, "MAX_SNAPSHOTS", 3)
    with forked() as env:
        env.reset(env.tasks("train", 1)[0], 3)
        held = []
        for _ in range(5):
            held.append(env.snapshot())
            env.step("add")
        for snapshot in held[:2]:
            with pytest.raises(SnapshotGone, match="made room"):
                env.restore(snapshot)
        for snapshot in held[2:]:
            env.restore(snapshot)
            env.release(snapshot)


def test_a_killed_snapshot_is_gone_and_the_env_plays_on() -> None:
    with forked() as env:
        env.reset(env.tasks("train", 1)[0], 3)
        snapshot = env.snapshot()
        assert isinstance(snapshot, int)
        os.kill(_proxy._snapshots[snapshot].pid, signal.SIGKILL)
        with pytest.raises(SnapshotGone):
            env.restore(snapshot)
        assert env.step("add").valid


def test_many_restores_leave_no_processes_behind() -> None:
    with forked() as env:
        env.reset(env.tasks("train", 1)[0], 3)
        snapshot = env.snapshot()
        pids = []
        for _ in range(20):
            env.restore(snapshot)
            pids.append(env.pid)
        assert len(set(pids)) == 20
        assert all(gone(pid) for pid in pids[:-1] if pid is not None)
        env.release(snapshot)


SHOWS = "tests.envs.shows_environment:Shows"


def test_its_process_inherits_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "MY_OWN", "MY_KEY"):
        monkeypatch.setenv(name, f"hush-{name}-0123456789")
    with make_env(SHOWS) as env:
        (task,) = load_tasks(env, "train")
        shown = env.reset(task, 0)
        assert "hush" not in shown
        assert f"PATH={os.environ['PATH']}" in shown
        assert env.step("PYTHONPATH").observation == os.environ.get("PYTHONPATH", "unset")
    with make_env(SHOWS, env_vars=["MY_OWN", "MY_KEY", "ABSENT"]) as env:
        shown = env.reset(task, 0)
        assert "MY_OWN=hush-MY_OWN-0123456789" in shown
        assert "MY_KEY=hush" in shown
        assert "HF_TOKEN" not in shown


@pytest.mark.parametrize(
    ("env", "names", "says"),
    [
        (SHOWS, "MY_OWN", "no list of names"),
        (SHOWS, [3], "no list of names"),
        (SHOWS, [""], "no list of names"),
        ("tests.envs.shows_environment:Beside", ["MY_OWN"], "leafe's own process"),
        ("gates", ["MY_OWN"], "leafe's own process"),
    ],
)
def test_names_of_variables_that_do_not_fit(env: str, names: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_env(env, env_vars=names)


def test_the_checks_of_an_env_pass_its_variables_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from leafe.testing import check_environment

    monkeypatch.setenv("MY_OWN", "hush-hush-hush")
    monkeypatch.setenv("HF_TOKEN", "hush-hush-hush")
    options = {"env_vars": ["MY_OWN"]}
    report = check_environment(
        SHOWS, options=options, actions=["MY_OWN", "HF_TOKEN"], count=1, steps=2
    )
    assert not [p for p in report.problems if "other processes" in str(p)], report
