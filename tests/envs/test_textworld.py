"""TextWorld games: made from a seed, played in their own words, undone where a command is not
taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "textworld", reason="textworld is not installed: pip install 'leafe[textworld]'"
)

from leafe.core import EnvError, Environment, Task, UserError
from leafe.envs.adapters import textworld as adapter
from leafe.envs.adapters.textworld import TextWorld
from leafe.prompts import load_prompt_set
from leafe.testing import check_environment
from tests.envs.test_prompt_sets import replay
from tests.loop import both_stages

COOKING = "cooking:recipe=1,take=0,go=1,cut"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("textworld")


@pytest.fixture(scope="module")
def coin(cache: Path) -> Iterator[TextWorld]:
    env = TextWorld(make="coin:level=2", cache=str(cache))
    yield env
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one of its options games .* and make"),
        ({"make": "coin:level=1", "games": "x"}, "needs one of its options"),
        (
            {"make": "chess:level=1"},
            (
                "cannot make 'chess': the option make begins with one of coin, treasure, "
                "cooking, simple"
            ),
        ),
        ({"make": "coin:level=1,output=x"}, "'output=x', which is no setting of tw-coin_collector"),
        ({"make": "coin:level=1,--force"}, "'--force', which is no setting"),
        ({"make": "coin:level=1", "horizon": 0}, "horizon = 0"),
        ({"games": "nowhere"}, "finds no .z8 file at nowhere"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        TextWorld(**options)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_played_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.ulx").touch()
    with pytest.raises(UserError, match=r"only .ulx files, which textworld plays no more"):
        TextWorld(games=str(tmp_path))
    (tmp_path / "a.z8").write_bytes(b"x" * 10)
    with pytest.raises(UserError, match=r"a.z8 has no .json beside it"):
        TextWorld(games=str(tmp_path))
    (tmp_path / "a.json").write_text('{"objective": "Win')
    with pytest.raises(UserError, match=r"a.z8 cannot be read .*make it again"):
        TextWorld(games=str(tmp_path)).tasks("train")
    (tmp_path / "a.json").write_text('{"objective": "Win."}')
    with pytest.raises(UserError, match=r"too short to be a game"):
        TextWorld(games=str(tmp_path / "*.z8")).tasks("train")


def test_splits_of_files(tmp_path: Path) -> None:
    for name in [f"game{n:02}" for n in range(20)]:
        (tmp_path / f"{name}.z8").write_bytes(b"x" * 2000)
        (tmp_path / f"{name}.json").write_text(json.dumps({"objective": f"Win {name}."}))
    (tmp_path / "valid").mkdir()
    for suffix in ("z8", "json"):
        shutil.copy(tmp_path / f"game00.{suffix}", tmp_path / "valid" / f"one.{suffix}")
    env = TextWorld(games=str(tmp_path))
    ids = {split: sorted(t.id for t in env.tasks(split)) for split in env.splits}
    assert ids["valid"] == ["textworld-game08", "textworld-game18", "textworld-valid-one"]
    assert ids["test"] == ["textworld-game09", "textworld-game19"]
    assert len(ids["train"]) == 16
    assert {t.instruction for t in env.tasks("test")} == {"Win game09.", "Win game19."}
    some = TextWorld(games=str(tmp_path / "game0*.z8"))
    assert sum(len(some.tasks(split)) for split in some.splits) == 10


def test_made_games_have_lists_before_they_are_made(cache: Path) -> None:
    env = TextWorld(make="treasure:level=3", cache=str(cache))
    for split, size in adapter.SIZES.items():
        everything = env.tasks(split, seed=1)
        assert len({t.id for t in everything}) == size
        assert list(env.tasks(split, 7, seed=1)) == list(everything[:7])
    assert not list(cache.rglob("treasure*/*.z8"))


def test_a_setting_that_tw_make_does_not_know(cache: Path) -> None:
    env = TextWorld(make="coin:levle=5", cache=str(cache))
    with pytest.raises(
        UserError,
        match=r"tw-make cannot make a game 'coin:levle=5' \(.*--level\): correct the option make",
    ):
        env.reset(env.tasks("train", 1)[0], 0)


def test_a_maker_that_hangs_is_ended(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MAKE_SECONDS", 0.05)
    env = TextWorld(make="coin:level=9", cache=str(cache))
    with pytest.raises(EnvError, match=r"did not make the game 'coin:level=9' within 0.05 s"):
        env.reset(env.tasks("train", 1)[0], 0)
    assert not list(cache.rglob("*.z8.part"))


def solution(env: Environment, task: Task) -> Sequence[str]:
    """What the game's own file says wins; the worker's environment has made it by then."""
    options = getattr(env, "options", None)
    inner = TextWorld(**options) if options is not None else env
    assert isinstance(inner, TextWorld)
    inner.reset(task, 0)
    assert inner._playing is not None
    return list(
        json.loads(inner._playing.with_suffix(".json").read_text())["metadata"]["walkthrough"]
    )


@pytest.mark.real
def test_a_coin_is_found(coin: TextWorld) -> None:
    task = coin.tasks("train", 1)[0]
    first = coin.reset(task, 0)
    assert "$$" not in first
    assert "take" in first or "pick" in first or "lift" in first or "retrieve" in first
    assert not first.rstrip().endswith(">")
    *way, last = solution(coin, task)
    for action in way:
        assert action in coin.valid_actions()
        result = coin.step(action)
        assert (result.valid, result.done, result.progress) == (True, False, 0.0)
    result = coin.step(last)
    assert (result.valid, result.done, result.success, result.reward, result.progress) == (
        True,
        True,
        True,
        1.0,
        1.0,
    )
    assert "*** The End ***" in result.observation
    assert "RESTART" not in result.observation
    over = coin.step("look")
    assert (over.valid, over.done, over.progress) == (False, True, 1.0)
    assert coin.reset(task, 0) == first


@pytest.mark.real
def test_what_is_not_taken_changes_nothing_not_even_the_count_of_turns(
    coin: TextWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = coin.tasks("train", 1)[0]
    *way, last = solution(coin, task)

    def ending(between: Sequence[str]) -> str:
        coin.reset(task, 0)
        for action in way:
            for bad in between:
                before = coin.valid_actions()
                result = coin.step(bad)
                assert not result.valid, bad
                assert not result.done
                assert "Nothing changed." in result.observation
                assert coin.valid_actions() == before
            coin.step(action)
        return coin.step(last).observation

    assert "turns" in ending([])
    bad = [
        "",
        "no such action at all",
        "take zebra",
        "go up",
        "take",
        "xyzzy",
        "wait",
        "save",
        "undo",
        "restart",
        "quit",
        "tw-print x",
        "look. look",
        "again",
    ]
    bad += [
        "\\x",
        "\\s",
        "\\help",
        "script",
        "go to \\x",
        "\0look",
        "look\0",
        "l\u00f6\u00f6k",
        "\ud800",
        "look\x1b[A",
        "look " * 60,
        "take " + "a" * 100_000,
    ]
    assert ending(bad) == ending([])
    assert list(tmp_path.iterdir()) == []  # neither saved games nor transcripts


@pytest.mark.real
def test_lost_games_and_partial_scores(cache: Path) -> None:
    with TextWorld(make=COOKING, cache=str(cache)) as env:
        task = next(t for t in env.tasks("train") if t.payload["number"] == 375)
        actions = solution(env, task)
        env.reset(task, 0)
        progress = [env.step(action).progress for action in actions]
        assert progress == sorted(progress)  # type: ignore[type-var]
        assert progress[-1] == 3.0
        env.reset(task, 0)
        env.step("take knife from counter")
        assert env.step("dice parsley with knife").progress == 1.0
        lost = env.step("eat parsley")
        assert (lost.done, lost.success, lost.reward, lost.progress) == (True, False, 0.0, 1.0)
        assert "You lost!" in lost.observation


@pytest.mark.real
def test_examples_are_what_the_game_says(cache: Path) -> None:
    with TextWorld(make=COOKING, cache=str(cache)) as env:
        task = next(t for t in env.tasks("train") if t.payload["number"] == 375)
        assert replay(load_prompt_set("textworld"), env, [task, task]) == [
            (True, False),
            (True, True),
        ]


@pytest.mark.real
def test_a_game_is_the_same_wherever_it_is_made(cache: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from leafe.envs.adapters.textworld import TextWorld\n"
        f"env = TextWorld(make={COOKING!r}, cache=sys.argv[1]); task = [t for t in "
        "env.tasks('train') if t.payload['number'] == 375][0]\n"
        "print(env.reset(task, 0))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "5"},
    )
    with TextWorld(make=COOKING, cache=str(cache)) as env:
        task = next(t for t in env.tasks("train") if t.payload["number"] == 375)
        assert said.stdout.strip() == env.reset(task, 0)
    (theirs,), (ours,) = (
        [p for p in root.rglob("train-375.z8") if "cooking" in str(p)] for root in (tmp_path, cache)
    )
    assert theirs.read_bytes() == ours.read_bytes()


@pytest.mark.slow
@pytest.mark.real
def test_the_contract(cache: Path) -> None:
    report = check_environment(
        "textworld", options={"make": "coin:level=3", "cache": str(cache)}, count=3, steps=20
    )
    assert not report.problems, str(report)
    assert not report.left_out, str(report)


@pytest.mark.slow
@pytest.mark.real
def test_both_stages(cache: Path, tmp_path: Path) -> None:
    both_stages(
        "textworld",
        tmp_path,
        solve=solution,
        wrong="look",
        options={"make": "coin:level=2", "cache": str(cache)},
    )
