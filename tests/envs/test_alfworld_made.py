"""ALFWorld's generator and planner, and the environment on generated games: the words are
textworld's own, and every way back leads to the same state."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("alfworld", reason="alfworld is not installed: pip install 'leafe[alfworld]'")

from leafe.core import Environment, Task, UserError
from leafe.envs import make_env
from leafe.envs.alfworld import AlfWorld, make_games
from leafe.envs.alfworld._make import MAX_DRAWS, _contents, _write
from leafe.envs.alfworld._planner import Planner
from leafe.envs.alfworld._scenes import TASK_TYPES, draw_game, floor_plans
from leafe.envs.alfworld._setup import FOLDERS, GAME, MARKER, TRAJECTORY
from leafe.testing import check_environment
from tests.loop import both_stages

FORGETFUL = """
import json, pathlib, sys, time
seen = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    if not seen.exists():
        seen.touch()
        time.sleep(600)
    print(json.dumps(["look"]), flush=True)
"""
"""A planner that hangs on its first game and finds every other one easy."""
HUNG = (sys.executable, "-c", "import time; time.sleep(600)")


def files(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_planner_that_hangs_is_killed(tmp_path: Path) -> None:
    with Planner(0.2, HUNG) as planner:
        assert planner.win(tmp_path / GAME, "") is None
        assert planner._process is None
        planner.seconds = 30.0
        planner.command = (
            sys.executable,
            "-c",
            "import os; print([str(os.getpid())], flush=True)".replace(
                "[str(os.getpid())]", "'[\"%d\"]' % os.getpid()"
            ),
        )
        said = planner.win(tmp_path / GAME, "")
        assert said is not None
        assert int(said[0]) > 0
    assert not alive(int(said[0]))


def test_a_planner_that_dies_counts_as_no_plan(tmp_path: Path) -> None:
    with Planner(
        30.0, (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    ) as planner:
        assert planner.win(tmp_path / GAME, "") is None
        assert planner.win(tmp_path / GAME, "") is None


def test_a_game_on_which_the_planner_hangs_is_dropped_and_counted(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    with Planner(2.0, (sys.executable, "-c", FORGETFUL, str(tmp_path / "seen"))) as planner:
        told = make_games(
            tmp_path / "out",
            games=3,
            seed=1,
            planner=planner,
            progress=lambda done, of: said.append((done, of)),
        )
    assert told["dropped"] == 1
    assert told["games"] == dict.fromkeys(FOLDERS, 1)
    assert said == [(1, 3), (2, 3), (3, 3)]
    assert json.loads((tmp_path / "out" / MARKER).read_text()) == told
    assert len(list((tmp_path / "out").rglob(GAME))) == 3
    plain = tmp_path / "plain"
    with Planner(30.0, (sys.executable, "-c", FORGETFUL, str(tmp_path / "seen"))) as planner:
        assert make_games(plain, games=3, seed=1, planner=planner)["dropped"] == 0
    kept, replaced = files(tmp_path / "out"), files(plain)
    assert {name for name in kept if "valid" in name} == {
        name for name in replaced if "valid" in name
    }
    assert {name for name in kept if name.startswith("train")} != {
        name for name in replaced if name.startswith("train")
    }


def test_what_is_left_half_way_is_no_data_and_can_be_finished(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen"
    seen.touch()
    with (
        pytest.raises(
            UserError, match=rf"could win none of {MAX_DRAWS} games drawn for train, number 0"
        ),
        Planner(0.05, HUNG) as planner,
    ):
        make_games(out, games=3, planner=planner)
    with pytest.raises(UserError, match="holds none of the ALFWorld splits"):
        AlfWorld(data=str(out))
    (out / "train").mkdir()
    with pytest.raises(UserError, match="were not all made"):
        AlfWorld(data=str(out))
    with pytest.raises(UserError, match="is not empty and holds other things"):
        make_games(out, games=4)
    with Planner(30.0, (sys.executable, "-c", FORGETFUL, str(seen))) as planner:
        told = make_games(out, games=3, planner=planner)
    assert told["complete"]
    assert len(AlfWorld(data=str(out)).tasks("train")) == 1
    before = files(out)
    assert make_games(out, games=3) == told  # nothing is left to do
    assert files(out) == before


@pytest.mark.parametrize(("games", "message"), [(2, "2 games cannot fill three splits")])
def test_wrong_arguments(tmp_path: Path, games: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_games(tmp_path / "out", games=games)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        make_games(tmp_path / "out", games=3)
    with pytest.raises(UserError, match=r"mine\.txt/x cannot be made"):
        make_games(tmp_path / "out" / "mine.txt" / "x", games=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten real games: six train, one of each task type."""
    out = tmp_path_factory.mktemp("made") / "games"
    make_games(out, games=10, seed=2)
    return out


@pytest.mark.real
def test_every_made_game_is_won_by_its_walkthrough(made: Path) -> None:
    env = AlfWorld(data=str(made))
    kinds: dict[str, set[str]] = {}
    rooms: dict[str, set[int]] = {}
    for split in FOLDERS:
        for task in env.tasks(split):
            game = json.loads((made / task.payload["game"]).read_text())
            trajectory = json.loads((made / task.payload["game"]).with_name(TRAJECTORY).read_text())
            kinds.setdefault(split, set()).add(trajectory["task_type"])
            rooms.setdefault(split, set()).add(trajectory["scene"]["scene_num"])
            assert "walkthrough" not in json.dumps(task.to_json())
            assert env.reset(task, 0).endswith(task.instruction)
            results = [env.step(action) for action in game["walkthrough"]]
            assert all(r.valid for r in results)
            assert [r.success for r in results] == [False] * (len(results) - 1) + [True]
            progress = [r.progress for r in results]
            assert progress == sorted(progress)  # type: ignore[type-var]
            assert len(results) <= env.horizon
    env.close()
    assert kinds["train"] == set(TASK_TYPES)
    assert rooms["train"] | rooms["valid_seen"] <= set(floor_plans(seen=True))
    assert rooms["valid_unseen"] <= set(floor_plans(seen=False))


@pytest.mark.real
def test_the_same_seed_gives_the_same_bytes_in_another_process(made: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from leafe.envs.alfworld import make_games; make_games(sys.argv[1], "
        "games=5, seed=2)"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "again")],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "77"},
        timeout=300,
    )
    whole = files(made)
    fewer = {name: digest for name, digest in files(tmp_path / "again").items() if name != MARKER}
    assert len(fewer) == 10
    assert all(
        whole[name] == digest for name, digest in fewer.items()
    )  # fewer games are the first of more


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_words_and_possible_commands_are_those_of_textworld(task_type: str, tmp_path: Path) -> None:
    """Side by side with alfworld's own chain of wrappers."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    from leafe.envs.alfworld._engine import Engine

    file = tmp_path / GAME
    game = draw_game(task_type, floor_plans(seen=True), 11)
    _write(file, _contents(game))
    theirs = AlfredDemangler(
        PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False
    )
    theirs.load(str(file))
    state = theirs.reset()
    ours = Engine()
    assert ours.start(file) == state.feedback
    chance = random.Random(task_type)
    for step in range(14):
        assert ours.commands == state.admissible_commands
        assert ours.won == state.won
        known = [c for c in ours.commands if not c.startswith(("go to", "examine"))]
        action = (
            "go nowhere" if step % 5 == 4 else chance.choice(known if step % 2 else ours.commands)
        )
        state = theirs.step(action)[0]
        assert ours.act(action) == state.feedback
    assert ours.start(file) == theirs.reset().feedback
    ours.close()


@pytest.fixture
def worker(made: Path) -> Iterator[Environment]:
    with make_env("alfworld", data=str(made)) as env:
        yield env


@pytest.mark.slow
@pytest.mark.real
def test_the_contract(made: Path) -> None:
    report = check_environment("alfworld", options={"data": str(made)}, count=4, steps=20)
    assert not report.problems, str(report)
    assert not report.left_out, str(report)


@pytest.mark.real
def test_the_env_has_one_thread_and_no_children(worker: Environment) -> None:
    task = worker.tasks("train", 1)[0]
    worker.reset(task, 0)
    pid = worker.pid  # type: ignore[attr-defined]
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    worker.close()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


@pytest.mark.real
def test_a_killed_env_begins_anew(worker: Environment) -> None:
    from leafe.core import EnvError

    task = worker.tasks("train", 1)[0]
    first = worker.reset(task, 0)
    os.kill(worker.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match="died in step"):
        worker.step("look")
    assert worker.reset(task, 0) == first


def walkthrough(env: Environment, task: Task) -> Sequence[str]:
    root = Path(env.options["data"])  # type: ignore[attr-defined]
    return list(json.loads((root / task.payload["game"]).read_text())["walkthrough"])


@pytest.mark.slow
@pytest.mark.real
def test_both_stages(made: Path, tmp_path: Path) -> None:
    both_stages("alfworld", tmp_path, solve=walkthrough, wrong="look", options={"data": str(made)})
