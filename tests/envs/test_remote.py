"""A remote environment is the environment: turn by turn, from snapshots, in many sessions at once,
over a server of ours and over one without leafe."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import EnvError, Environment, SnapshotGone, StepResult, Task, UserError
from leafe.core.answers import step_result
from leafe.envs import load_tasks, make_env
from leafe.envs.remote import PROTOCOL, Remote, check_server
from leafe.envs.remote._wire import Malformed, decode, encode, result_from_json
from leafe.testing import check_environment
from tests.envs.remote_envs import ROOT, TALLY, Served, Tally, process, serving

GATES = [
    "take mirror",
    "use mirror",
    "take rope",
    "use rope",
    "go left",
    "go up",
    "walk on",
    "walk on",
    "walk on",
    "dance",
    "",
]
MOVES = ["up", "down", "left", "right", "jump", ""]
ENVS = [
    ("gates", {"setting": "easy"}, GATES),
    ("gates", {"setting": "random"}, GATES),
    ("sokoban", {}, MOVES),
]

texts = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
numbers = st.floats(allow_nan=False, allow_infinity=False)
results = st.builds(
    StepResult,
    texts,
    numbers,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.none() | numbers,
    st.dictionaries(texts, texts | st.integers() | st.none()),
)


def play(env: Environment, task: Task, actions: list[str]) -> list[Any]:
    return [env.reset(task, 5), *(env.step(action) for action in actions)]


@given(results)
def test_a_result_comes_through_the_wire_as_it_was(result: StepResult) -> None:
    sent = asdict(step_result(result, "w"))
    assert result_from_json(decode(encode(sent))) == step_result(result, "w")


NAMES = ("observation", "reward", "done", "success", "valid", "progress")
answers = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*NAMES, "info", "else"]), inner)
    ),
)


@given(answers)
def test_an_answer_is_read_or_refused_by_name(answer: Any) -> None:
    said = ""
    try:
        result = result_from_json(decode(json.dumps(answer).encode()))
    except (Malformed, ValueError) as error:
        said = str(error)
    if not isinstance(answer, dict):
        assert "not an object" in said
    elif said:
        assert any(f"{name!r}" in said for name in NAMES)
    else:
        read = asdict(result)
        assert read == {
            **asdict(StepResult("")),
            **{k: v for k, v in answer.items() if k in NAMES and v is not None},
            "info": read["info"],
        }


@pytest.mark.parametrize(("name", "options", "actions"), ENVS)
def test_a_served_env_is_the_local_one(
    name: str, options: dict[str, Any], actions: list[str]
) -> None:
    chance = random.Random(name)
    local = make_env(name, **options)
    with Served(name, **options) as served, Remote(served.url) as one, Remote(served.url) as other:
        for fact in ("name", "deterministic", "horizon", "actions_help", "splits", "can_snapshot"):
            assert getattr(one, fact) == getattr(local, fact), fact
        assert one.versions() == {
            "remote protocol": str(PROTOCOL),
            "env": name,
            "options": json.dumps(options),
            **local.versions(),
        }
        tasks = load_tasks(local, "train", 8, seed=3)
        assert load_tasks(one, "train", 8, seed=3) == tasks
        assert pickle.loads(pickle.dumps(load_tasks(one, "test", 2))) == load_tasks(
            local, "test", 2
        )
        marks: list[tuple[object, object, Environment]] = []
        for task in tasks:
            seed = chance.getrandbits(62)
            assert one.reset(task, seed) == local.reset(task, seed)
            for _ in range(12):
                marks.append((one.snapshot(), local.snapshot(), one))
                action = chance.choice(actions)
                assert one.step(action) == local.step(action)
        for here, there, _ in chance.sample(
            marks, 40
        ):  # any snapshot, any number of times, in either session
            env = chance.choice([one, other])
            env.restore(here)
            local.restore(there)
            for action in chance.choices(actions, k=3):
                assert env.step(action) == local.step(action)


@pytest.mark.parametrize("quick", [True, False])
def test_many_sessions_at_once_do_not_mix(quick: bool) -> None:
    def episodes(number: int) -> bool:
        chance = random.Random(number)
        with Remote(served.url) as env:
            for _ in range(5):
                task = Task("t", "tally", "train", "Add up.", {"from": chance.randrange(1000)})
                actions = [f"add {chance.randrange(1000)}" for _ in range(15)]
                got, again = play(env, task, actions), play(env, task, actions[:7])
                mark = env.snapshot()
                env.step("add 5")
                env.restore(mark)
                again += [env.step(action) for action in actions[7:]]
                if not got == again == play(Tally(), task, actions):
                    return False
        return True

    with Served(TALLY, quick=quick) as served, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(episodes, range(16)))


def test_check_environment_finds_no_fault_in_a_served_env() -> None:
    with Served("gates", setting="easy") as served, Remote(served.url) as env:
        report = check_environment(env, load_tasks(env, "train", 4), GATES)
        assert report.problems == []
        assert set(report.milliseconds) >= {"reset", "step", "snapshot", "restore"}


def test_the_example_server_keeps_the_contract_without_leafe() -> None:
    example = ROOT / "docs" / "examples" / "remote_server.py"
    assert "leafe." not in example.read_text("utf-8").partition('"""\n\n')[2]
    with process([str(example)]) as (_, url), Remote(url) as env, Remote(url) as other:
        tasks = load_tasks(env, "train", 4)
        assert tasks == load_tasks(env, "train")[:4]
        report = check_environment(env, tasks, [f"guess {n}" for n in range(1, 51)])
        assert report.problems == []
        assert env.horizon == 7
        task = tasks[0]
        env.reset(task, 0)
        low, high = 1, 50
        mark = env.snapshot()
        while (result := env.step(f"guess {(low + high) // 2}")).observation != "Right!":
            low, high = (
                ((low + high) // 2 + 1, high)
                if "low" in result.observation
                else (low, (low + high) // 2 - 1)
            )
        assert result == StepResult("Right!", 1.0, True, True)
        assert env.step("guess 1").valid is False
        other.restore(mark)
        assert other.step("guess 50").done is False
        env.release(mark)
        env.reset(task, 0)
        with pytest.raises(SnapshotGone):
            other.restore(mark)
        with pytest.raises(NotImplementedError):
            other.valid_actions()


GUESSES = [f"guess {n}" for n in range(1, 51)]


def test_servers_that_keep_the_protocol() -> None:
    with process([str(ROOT / "docs" / "examples" / "remote_server.py")]) as (_, url):
        assert check_server(url, actions=GUESSES) == []
        with pytest.raises(UserError, match="give check_server some"):
            check_server(url)
    for name, options, _ in ENVS:
        with Served(name, **options) as served:
            assert check_server(served.url) == []
            assert served.server.table.sessions == {}
    with (
        Served("tests.envs.remote_envs:Loose") as served,
        pytest.raises(UserError, match="not deterministic"),
    ):
        check_server(served.url)


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        (
            'if body["call"] == session["call"] + 1:',
            "if True:",
            "sent again with the same number, got",
        ),
        (
            '(session["call"], session["call"] + 1)',
            '(session["call"] + 1,)',
            "sent again with the same number, was refused",
        ),
        (
            'body["call"] not in (session["call"], session["call"] + 1)',
            "False",
            "a number that is left out was accepted",
        ),
        (
            'session["state"]',
            'SNAPSHOTS["one"]',
            "with another session in between, was answered with",
        ),
        (
            'SESSIONS.pop(body.get("session"), None)',
            "pass",
            "a step in a closed session was accepted",
        ),
        ('"/close", "/release"', '"/release",', "close was refused"),
        (
            'return {"error": {"kind": "absent"',
            'return {"none": {"kind": "absent"',
            "a call of no version was accepted",
        ),
        (
            '"kind": "gone"',
            '"kind": "env"',
            "a snapshot that was never taken was refused as 'env'",
        ),
        (
            '"kind": "lost"',
            '"kind": "gone"',
            "in a session that nobody opened was refused as 'gone'",
        ),
        (
            'session["state"] = SNAPSHOTS[body["snapshot"]]',
            "session.setdefault('state', (1, 7))",
            "after a restore in another session",
        ),
        (
            '= SNAPSHOTS[body["snapshot"]]',
            '= SNAPSHOTS.pop(body["snapshot"])',
            "restore, was refused .gone",
        ),
    ],
)
def test_servers_that_do_not_are_found_out(
    line: str, instead: str, says: str, tmp_path: Path
) -> None:
    """The example with one line changed. `Remote` alone would play most of them without a
    complaint."""
    source = (ROOT / "docs" / "examples" / "remote_server.py").read_text("utf-8")
    assert line in source
    (tmp_path / "server.py").write_text(source.replace(line, instead), "utf-8")
    with process([str(tmp_path / "server.py")]) as (_, url):
        try:
            problems = check_server(url, actions=GUESSES)
        except EnvError as error:
            problems = [str(error)]
    assert any(re.search(says, problem) for problem in problems), problems


def test_a_server_that_closes_every_connection_will_do(tmp_path: Path) -> None:
    source = (ROOT / "docs" / "examples" / "remote_server.py").read_text("utf-8")
    header = '        self.send_header("Content-Length", str(len(raw)))\n'
    assert header in source
    (tmp_path / "server.py").write_text(
        source.replace('"HTTP/1.1"', '"HTTP/1.0"').replace(header, ""), "utf-8"
    )
    with process([str(tmp_path / "server.py")]) as (_, url):
        assert check_server(url, actions=GUESSES) == []


def test_what_an_env_has_not_is_told_as_it_would_be_at_home() -> None:
    task = Task("t", "loose", "train", "Go.")
    with Served("tests.envs.remote_envs:Loose") as served, Remote(served.url) as env:
        assert (env.name, env.deterministic, env.can_snapshot, env.splits) == (
            "loose",
            False,
            False,
            (),
        )
        with pytest.raises(UserError, match="has no task list"):
            load_tasks(env, "train")
        assert env.reset(task, 0) == "Loose."
        for missing in (env.valid_actions, env.snapshot):
            with pytest.raises(NotImplementedError):
                missing()
        assert env.step("x") == StepResult("So.", done=True)  # and it is still there
    with Served() as served, Remote(served.url) as env:
        assert env.tasks("train") == Tally().tasks("train")
        with pytest.raises(UserError, match="no split 'elsewhere'"):
            env.tasks("elsewhere")
        with pytest.raises(UserError, match="no seed 13"):
            env.reset(Tally().tasks("train")[0], 13)
        env.reset(Tally().tasks("train")[0], 14)
        assert env.valid_actions() == ["add 1", "add 2"]
        assert env.step("odd").info == {"path": "x", "nan": "nan"}


def test_a_released_snapshot_is_freed_there_and_gone() -> None:
    task = Tally().tasks("train")[0]
    with Served() as served, Remote(served.url) as env, Remote(served.url) as other:
        env.reset(task, 0)
        kept, freed = env.snapshot(), env.snapshot()
        env.release(freed)
        before = Tally.happened["release"]
        env.reset(task, 0)
        env.step("add 1")
        assert Tally.happened["release"] == before + 1
        with pytest.raises(SnapshotGone):
            env.restore(freed)
        env.close()
        other.restore(kept)  # it outlives the session in which it was taken
        assert other.step("add 1").info == {"total": 1}
        other.release(kept)
        other.close()
        deadline = 400
        while Tally.happened["release"] < before + 2 and deadline:
            deadline -= 1
            other.tasks("train")  # something that its thread does after it
        assert Tally.happened["release"] == before + 2


def test_a_closed_env_frees_its_place_and_can_be_used_again() -> None:
    task = Tally().tasks("train")[0]
    with Served(workers=1) as served, Remote(served.url) as one, Remote(served.url) as two:
        for _ in range(4):
            for env in (one, two):
                assert env.reset(task, 0).startswith("You have 0")
                env.close()
                env.close()
        assert served.server.table.sessions == {}


def test_the_documented_exchange_is_what_goes_over_the_wire() -> None:
    lines = (
        (ROOT / "docs" / "remote.md")
        .read_text("utf-8")
        .partition("```text\n")[2]
        .partition("```")[0]
        .splitlines()
    )
    names: dict[str, str] = {}
    with Served("gates", setting="easy") as served:
        connection = HTTPConnection("127.0.0.1", served.server.port, timeout=20)
        for asked, said in zip(lines[::2], lines[1::2], strict=True):
            for documented, real in names.items():
                asked = asked.replace(documented, real)
            method, path, body = (asked.removeprefix("> ") + " ").split(" ", 2)
            connection.request(method, path, body or None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            got, (status, wanted) = json.loads(answer.read()), said.removeprefix("< ").split(" ", 1)
            if path == "/snapshot":
                names[json.loads(wanted)["snapshot"]] = got["snapshot"]
                continue
            assert (answer.status, got) == (int(status), json.loads(wanted)), asked
    assert names


def test_importing_the_client_brings_no_server() -> None:
    code = "import sys, leafe.envs.remote; assert 'aiohttp.web' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_step_before_reset_says_what_to_do() -> None:
    with (
        Served() as served,
        Remote(served.url) as env,
        pytest.raises(EnvError, match="reset the environment first"),
    ):
        env.step("add 1")


@settings(max_examples=20)
@given(st.data())
def test_any_walk_over_snapshots_ends_where_the_local_one_does(walk: st.DataObject) -> None:
    """Reset, step, snapshot and restore in any order on two sessions, against plain numbers."""
    task = Task("t", "tally", "train", "Add up.", {"from": 0})
    with (
        Remote(_shared().url) as one,
        Remote(_shared().url) as other,
    ):  # closed too where hypothesis gives an example up
        envs = [one, other]
        totals: list[int | None] = [None, None]
        marks: list[tuple[object, int]] = []
        for _ in range(walk.draw(st.integers(1, 25))):
            which = walk.draw(st.integers(0, 1))
            env, total = envs[which], totals[which]
            match walk.draw(st.sampled_from(["reset", "step", "snapshot", "restore"])):
                case "reset":
                    env.reset(task, 0)
                    totals[which] = 0
                case "step" if total is not None:
                    add = walk.draw(st.integers(-5, 5))
                    totals[which] = total + add
                    assert env.step(f"add {add}").info == {"total": total + add}
                case "snapshot" if total is not None:
                    marks.append((env.snapshot(), total))
                case "restore" if marks:
                    mark, totals[which] = walk.draw(st.sampled_from(marks))
                    env.restore(mark)


_server: list[Served] = []


def _shared() -> Served:
    if not _server:
        _server.append(Served(TALLY, quick=True).__enter__())
    return _server[0]


def teardown_module() -> None:
    for server in _server:
        server.__exit__()


@pytest.mark.slow
def test_both_stages_in_a_remote_env(tmp_path: Path) -> None:
    from tests.envs.test_gates import winning
    from tests.loop import both_stages

    with process(serving("gates", setting="easy")) as (_, url):
        recipe = tmp_path / "far.toml"
        recipe.write_text(
            f'name = "far"\nprompts = "plain"\nstrategies = ["tree"]\npolicy = {{ model = '
            f'"embedded" }}\ntasks = {{ train = 2, test = 2 }}\n'
            f'env = {{ name = "remote", options = {{ url = "{url}" }} '
            f'}}\n[arms.leafe]\npreset = "paper"\n',
            "utf-8",
        )
        trees = both_stages(
            str(recipe), tmp_path, solve=lambda _, task: winning(task), wrong="walk on"
        )
        assert all(tree.solved for tree in trees.values())
