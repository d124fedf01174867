"""ScienceWorld with its JVM: exact replay, the package's own numbers and solutions, and what dies
comes back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from leafe.core import EnvError, Environment, StepResult, Task, UserError
from leafe.envs import make_env
from leafe.envs.scienceworld import ScienceWorld, _jvm
from leafe.envs.scienceworld._variations import SPLITS, VARIATIONS, variations
from leafe.envs.worker import ProcessEnv
from leafe.prompts import load_prompt_set
from leafe.testing import check_environment
from tests.envs.data import needs_scienceworld
from tests.envs.test_prompt_sets import replay
from tests.loop import both_stages

pytestmark = [pytest.mark.real, needs_scienceworld]

FIND = Task("find", "scienceworld", "train", "", {"task": "find-animal", "variation": 94})
"""Starts in the greenhouse, from which the outside with its animals can be reached."""


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorld]:
    """One JVM for all tests that do it no harm; memory enough for the package's own solver."""
    with ScienceWorld(heap=512) as made:
        yield made


def play(env: Environment, task: Task, actions: list[str]) -> list[object]:
    return [env.reset(task, 0), *(told(env.step(action)) for action in actions)]


def told(result: StepResult) -> tuple[object, ...]:
    return (
        result.observation,
        result.reward,
        result.done,
        result.success,
        result.valid,
        result.progress,
    )


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process ends within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_the_variations_are_the_packages(env: ScienceWorld) -> None:
    env.reset(FIND, 0)
    for name in VARIATIONS:
        env._call("load", name, 0, "easy", False)
        theirs = [
            list(getattr(env._jvm._server, f"getVariations{split}")())
            for split in ("Train", "Dev", "Test")
        ]
        assert theirs == [list(variations(name, split)) for split in SPLITS], name


def test_instructions_are_the_packages_own(env: ScienceWorld) -> None:
    tasks = [
        *env.tasks("train", 60, seed=1),
        *(t for t in env.tasks("test", 300, seed=2) if t.payload["task"].startswith("inclined")),
    ][:85]
    for task in tasks:
        env.reset(task, 0)
        assert task.instruction == env._call("getTaskDescription"), task.id
    assert len({task.instruction for task in tasks}) > 40


def test_tasks_are_the_same_for_everybody(env: ScienceWorld) -> None:
    all_of_it = env.tasks("valid", seed=3)
    assert len(all_of_it) == 1796
    with make_env("scienceworld") as other:
        assert list(other.tasks("valid", 40, 3)) == list(all_of_it[:40])
    assert {task.payload["task"] for task in all_of_it[:30]} == set(VARIATIONS)
    assert all(Task.from_json(json.loads(json.dumps(task.to_json()))) == task for task in all_of_it)


def test_it_keeps_the_contract(env: ScienceWorld) -> None:
    def draw(task: Task, observation: str, chance: random.Random) -> str:
        return chance.choice(list(env.valid_actions()))

    report = check_environment(env, env.tasks("train", 4, seed=5), draw, steps=10)
    assert not report.problems, report


def test_replay_is_exact_in_another_process(env: ScienceWorld) -> None:
    """Ten tasks, twelve random valid actions each, recorded in a JVM that has played before and
    listed actions at each step; replayed in a fresh one, in
    another order, under another hash seed, with another heap, with nonsense in between."""
    episodes = []
    for task in env.tasks("train", 10, seed=6):
        chance = random.Random(task.id)
        env.reset(task, 0)
        actions: list[str] = []
        while len(actions) < 12:
            actions.append(chance.choice(list(env.valid_actions())))
            if env.step(actions[-1]).done:
                break
        episodes.append((task, actions, play(env, task, actions)))
    code = """
import json, sys
from leafe.core import Task
from leafe.envs.scienceworld import ScienceWorld
from tests.envs.test_scienceworld_real import told
with ScienceWorld() as env:
    out = []
    for task, actions in json.load(sys.stdin):
        seen = [env.reset(Task.from_json(task), 0)]
        for action in actions:
            for nonsense in ("", "no such action at all", "open sesame", "77"):
                answer = env.step(nonsense)
                assert not answer.valid and not answer.done, answer
            seen.append(told(env.step(action)))
        out.append(seen)
print(json.dumps(out))
"""
    backwards = episodes[::-1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([(task.to_json(), actions) for task, actions, _ in backwards]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps([seen for _, _, seen in backwards]))


def test_it_says_and_scores_what_the_package_does(env: ScienceWorld) -> None:
    """The package's interface as its Python class uses it (load, reset, look around, step), action
    by action: only what we add differs."""
    compared = 0
    for task in env.tasks("valid", 5, seed=8):
        actions = ["sing", *env.gold_actions(task)[:20], "focus on agent"]
        ours = [
            r
            for r in (env.reset(task, 0), *(env.step(action) for action in actions))
            if isinstance(r, StepResult)
        ]
        env._call("load", task.payload["task"], task.payload["variation"], "easy", False)
        env._call("reset")
        env._call("step", "look around")
        score = env._score()
        for action, result in zip(actions, ours, strict=True):
            theirs = str(env._call("step", action)).strip()
            if theirs.startswith("Ambiguous request"):
                break  # from here on ours is another, see below
            assert result.observation.strip().startswith(theirs), (task.id, action)
            assert result.valid is not theirs.startswith("No known action")
            before, score = score, env._score()
            assert round(100 * result.reward) == score - before
            assert result.done is (env._call("getCompleted") or score < 0)
            assert result.success is (score == 100)
            compared += 1
            if result.done:
                break
    assert compared > 30


@pytest.mark.parametrize(
    "task", ["mendelian-genetics-known-plant", "grow-fruit", "find-animal", "power-component"]
)
def test_looking_aside_changes_nothing(env: ScienceWorld, task: str) -> None:
    """A list of valid actions, of tasks or a solution, asked for in the middle of an episode."""
    chosen = Task("x", "scienceworld", "train", "", {"task": task, "variation": 3})
    actions = [
        "teleport to greenhouse",
        "look around",
        "wait",
        "objects",
        "look around",
        "teleport to outside",
        "wait1",
        "look around",
        "inventory",
    ]
    plain = play(env, chosen, actions)
    seen: list[object] = [env.reset(chosen, 0)]
    for number, action in enumerate(actions):
        assert env.valid_actions()
        if number % 3 == 1:
            env._instructions.clear()
            env.tasks("test", 3, seed=number)
            env.gold_actions(FIND)
        seen.append(told(env.step(action)))
    assert seen == plain


def test_an_ambiguous_request_takes_a_number_or_anything_else(env: ScienceWorld) -> None:
    before = ["teleport to kitchen", "open cupboard"]
    asked = [*before, "pick up cup"]
    question = play(env, FIND, asked)[-1]
    assert isinstance(question, tuple)
    assert "or any other action" in question[0]
    assert "pick up ceramic cup (in cupboard, in kitchen)" in question[0]
    number = question[0].split(":\tpick up ceramic cup")[0].rsplit("\n", 1)[-1]
    for nonsense in ("", "99", "sing", "pick up nothing of the kind"):
        answer = env.step(nonsense)
        assert not answer.valid
        assert not answer.done
    assert told(env.step(number))[:1] == ("You move the ceramic cup to the inventory.",)
    assert "ceramic cup" in env.step("inventory").observation
    assert not env.step(number).valid, "the question is settled"
    # any other action is taken, and the question has cost nothing
    assert (
        play(env, FIND, [*asked, "wait1", "look around"])[-2:]
        == play(env, FIND, [*before, "wait1", "look around"])[-2:]
    )
    play(env, FIND, [*asked, "look around"])
    assert not env.step(number).valid, "the question was left"


def test_a_wrong_focus_fails_and_the_score_is_the_sum_of_the_rewards(env: ScienceWorld) -> None:
    env.reset(FIND, 0)
    start = env._score() / 100
    results = [
        env.step(action) for action in ("teleport to outside", "look around", "focus on ground")
    ]
    assert [r.done for r in results] == [False, False, True]
    last = results[-1]
    assert not last.success
    assert last.valid
    assert "The task has failed: what you focused on" in last.observation
    assert last.progress == results[0].progress == 100 * (start + results[0].reward)
    assert start + sum(r.reward for r in results) == pytest.approx(-1.0)
    over = env.step("look around")
    assert (over.done, over.valid, over.success) == (True, False, False)
    assert "over" in over.observation


ODD = [
    "open the\ncupboard",
    "\x00",
    "\ud800",
    "é" * 50,
    "go " * 90,
    "look around " * 500,
    '"',
    "\\n",
    "!xreturn\n",
    "9" * 250,
    "٣",
]


@pytest.mark.parametrize(
    "action", [*ODD, "help", "objects", "task", "reset task"], ids=range(len(ODD) + 4)
)
def test_no_text_breaks_it(env: ScienceWorld, action: str) -> None:
    first = env.reset(FIND, 0)
    env.step("teleport to kitchen")
    result = env.step(action)
    assert result.observation.strip()
    assert not result.done
    assert result.progress is not None
    assert env.step("look around").valid
    assert env.reset(FIND, 0) == first


@pytest.mark.slow
def test_the_packages_solutions_win(env: ScienceWorld) -> None:
    """Twelve tasks: a solution wins in the environment as it is, with a heap of its own size."""
    won = {}
    with ScienceWorld() as plain:
        for task in env.tasks("test", 12, seed=4):
            results = [
                plain.reset(task, 0),
                *(plain.step(action) for action in env.gold_actions(task)),
            ]
            last = next(r for r in results if isinstance(r, StepResult) and r.done)
            won[task.payload["task"]] = last.success
            assert (last.progress == 100) is last.success
    assert all(won.values()), [name for name, success in won.items() if not success]


def test_one_jvm_for_all_episodes_and_none_after_close() -> None:
    env = ScienceWorld()
    assert env._jvm is None, "it starts when it is needed"
    pids = set()
    for variation in range(3):
        env.reset(
            Task("x", "scienceworld", "train", "", {"task": "boil", "variation": variation}), 0
        )
        assert env._jvm is not None
        pids.add(env._jvm.pid)
    assert len(pids) == 1
    env.close()
    env.close()
    assert gone(pids.pop())
    env.reset(FIND, 0)
    env.close()


def test_a_jvm_killed_in_mid_episode_is_an_error_and_the_next_reset_heals(
    env: ScienceWorld,
) -> None:
    actions = ["teleport to kitchen", "open cupboard", "look around"]
    plain = play(env, FIND, actions)
    with ScienceWorld() as mine:
        play(mine, FIND, actions[:1])
        assert mine._jvm is not None
        os.kill(mine._jvm.pid, signal.SIGKILL)
        with pytest.raises(
            EnvError,
            match=(
                r"JVM of the environment 'scienceworld' gave no answer to step \(exit status "
                r"-9\)"
            ),
        ):
            mine.step("open cupboard")
        with pytest.raises(RuntimeError, match="before reset"):
            mine.step("open cupboard")
        assert play(mine, FIND, actions) == plain


def test_a_jvm_that_hangs_is_an_error() -> None:
    with ScienceWorld() as mine:
        mine.reset(FIND, 0)
        assert mine._jvm is not None
        pid = mine._jvm.pid
        connections = list(mine._jvm._gateway._gateway_client.deque)
        assert [c.socket.gettimeout() for c in connections] == [_jvm.ANSWER_SECONDS]
        connections[0].socket.settimeout(1.0)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EnvError, match="gave no answer to step"):
            mine.step("look around")
        assert gone(pid)
        assert mine.reset(FIND, 0)


def test_a_jvm_without_memory_is_an_error_and_not_an_answer() -> None:
    with ScienceWorld(heap=64) as mine, pytest.raises(EnvError, match="gave no answer to load"):
        mine.gold_actions(Task("x", "scienceworld", "train", "", {"task": "boil", "variation": 3}))


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_killed_worker_leaves_no_jvm_and_is_made_anew() -> None:
    env = make_env("scienceworld")
    assert isinstance(env, ProcessEnv)
    with env:
        env.reset(FIND, 0)
        assert env.pid is not None
        worker = env.pid
        (jvm,) = children(worker)
        assert b"GatewayServer" in Path(f"/proc/{jvm}/cmdline").read_bytes()
        os.kill(worker, signal.SIGKILL)
        assert gone(jvm)
        with pytest.raises(EnvError):
            env.step("look around")
        env.reset(FIND, 0)
        assert env.step("teleport to kitchen").valid
        (jvm,) = children(env.pid)
        os.kill(jvm, signal.SIGKILL)
        with pytest.raises(EnvError, match="gave no answer to step"):
            env.step("look around")
        env.reset(FIND, 0)
        (jvm,) = children(env.pid)
    assert gone(jvm)


def test_the_users_java_options_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:hashCode=0 -Xmx8m")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx8m")
    with ScienceWorld() as mine:
        assert mine.reset(FIND, 0)


def test_a_simulator_of_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import scienceworld.constants

    monkeypatch.setitem(VARIATIONS, "boil", 31)
    with (
        ScienceWorld() as mine,
        pytest.raises(
            UserError,
            match=r"variations of boil: 30 and not 31\): run pip install 'scienceworld==1.2.3'",
        ),
    ):
        mine.tasks("train", 1)
    monkeypatch.undo()
    for content in (b"", b"half a jar"):
        jar = tmp_path / "scienceworld.jar"
        jar.write_bytes(content)
        monkeypatch.setattr(scienceworld.constants, "JAR_PATH", str(jar))
        with ScienceWorld() as mine, pytest.raises(UserError, match="damaged, or another version"):
            mine.tasks("train", 1)
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("scienceworld/README", "no classes")
    with ScienceWorld() as mine, pytest.raises(UserError, match="damaged, or another version"):
        mine.tasks("train", 1)
    monkeypatch.setattr(scienceworld.constants, "JAR_PATH", str(tmp_path / "none.jar"))
    with pytest.raises(UserError, match="no simulator at"):
        ScienceWorld()


def test_prompt_examples_are_what_the_env_says(env: ScienceWorld) -> None:
    tasks = {task.id: task for task in env.tasks("train")}
    plant, paint = (
        tasks["scienceworld-find-plant-17"],
        tasks["scienceworld-chemistry-mix-paint-secondary-color-10"],
    )
    assert replay(load_prompt_set("scienceworld"), env, [plant, plant, paint]) == [
        (True, False),
        (True, True),
        (True, True),
    ]


@pytest.mark.slow
def test_both_stages(env: ScienceWorld, tmp_path: Path) -> None:
    trees = both_stages(
        "scienceworld",
        tmp_path,
        solve=lambda _, task: env.gold_actions(task),
        wrong="look at agent",
        options={"only": ["find-living-thing", "chemistry-mix-paint-secondary-color"]},
    )
    assert len(trees) == 2
