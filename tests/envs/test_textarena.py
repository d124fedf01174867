"""The TextArena adapter: what its games do, what is taken back, what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs import make_env
from leafe.testing import check_environment

pytest.importorskip("textarena", reason="needs pip install 'leafe[textarena]'")

from leafe.envs.adapters.textarena import TextArena

GAMES = [
    "2048-v0-ultra-easy",
    "Blackjack-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0-random",
    "GuessTheNumber-v0",
    "LightsOut-v0",
    "Mastermind-v0",
    "Minesweeper-v0",
    "PegJump-v0",
    "Secretary-v0-long",
    "Sokoban-v0",
    "Sudoku-v0-easy",
    "ThreeCardMonte-v0",
    "TowerOfHanoi-v0",
]


def hidden(env: TextArena, mine: bool) -> list[str]:
    """Cells that are still hidden, mines or others: by the game's own board, which no observation
    shows."""
    grid, shown = env.env.grid, env.env.revealed
    return [
        f"{r} {c}"
        for r, row in enumerate(grid)
        for c, value in enumerate(row)
        if not shown[r][c] and (value == -1) is mine
    ]


def solve_mines(env: Environment, task: Task) -> list[str]:
    own = TextArena()
    own.reset(task, 0)
    moves = ["2 2"]
    result = own.step("2 2")
    while not result.done:
        moves.append(hidden(own, mine=False)[0])
        result = own.step(moves[-1])
    assert result.success
    return moves


def test_minesweeper_is_won_and_lost() -> None:
    env = TextArena()
    for task in env.tasks("train", 10):
        moves = solve_mines(env, task)
        assert env.reset(task, 5).startswith("You are playing the Minesweeper game.")
        results = [env.step(f"[{move}]") for move in moves]
        assert [r.done for r in results] == [False] * (len(moves) - 1) + [True]
        assert (results[-1].success, results[-1].reward) == (True, 1.0)
        assert results[-1].observation.endswith("The game is over. You have won.")
        assert env.step("0 0") == StepResult(
            "The game is over. You have won. Nothing changed.", valid=False, done=True
        )
        env.reset(task, 5)
        if len(moves) > 1:
            env.step("2 2")
            mine = hidden(env, mine=True)[0]
            lost = env.step(mine)
            where = mine.replace(" ", ", ")
            assert lost == StepResult(
                f"You hit a mine at ({where}).\n\nThe game is over. You have lost.", done=True
            )


def test_observations_hold_what_is_new() -> None:
    env = TextArena("Mastermind-v0")
    task = env.tasks("train", 1)[0]
    rules = env.reset(task, 0)
    assert "You are playing Mastermind" in rules
    for guess in ("[1 2 3 4]", "4 3 2 1"):
        said = env.step(guess).observation
        assert "You are playing" not in said
        assert said.startswith("Submitted")
    env.reset(task, 0)
    code = " ".join(map(str, env.env.state.game_state["secret_code"]))
    assert code not in rules
    assert env.step(code).success


def test_invalid_moves_never_end_or_change_a_game() -> None:
    """TextArena ends a game at the second one in a row."""
    env = TextArena("GuessTheNumber-v0")
    task = env.tasks("train", 1)[0]
    env.reset(task, 0)
    secret = env.env.game_number
    other = secret % 20 + 1
    first = env.step(f"[{other}]").observation
    for move in ("no idea", "[99]", "", f"[{other}]", "[" * 5000, "[²]") * 3:
        refused = env.step(move)
        assert (refused.valid, refused.done) == (False, False)
        assert refused.observation.endswith(" Nothing changed.")
        assert len(refused.observation) < 200
    env.reset(task, 0)
    assert env.step(f"[{other}]").observation == first
    assert env.step(str(secret)).success


def test_a_part_of_the_way_is_no_success() -> None:
    env = TextArena("GuessTheNumber-v0", horizon=12)
    assert TextArena("GuessTheNumber-v0").horizon == 10
    env.reset(env.tasks("test", 1)[0], 0)
    guesses = [n for n in range(1, 21) if n != env.env.game_number][
        :11
    ]  # its limit of 10 ends the 11th
    results = [env.step(str(n)) for n in guesses]
    assert (results[-1].done, results[-1].success) == (True, False)
    assert 0 < results[-1].reward < 1
    assert "The turn limit has been reached." in results[-1].observation
    easy = TextArena("GuessTheNumber-v0", success=0.1)
    easy.reset(easy.tasks("test", 1)[0], 0)
    assert [easy.step(str(n)) for n in guesses][-1].success


def test_global_chance_is_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    env = TextArena("2048-v0")
    task = env.tasks("train", 1)[0]
    seen = [
        env.reset(task, 0),
        *(env.step(move).observation for move in ("up", "left", "down", "right") * 3),
    ]
    assert random.getstate() == before
    random.seed(4)
    assert [
        env.reset(task, 1),
        *(env.step(move).observation for move in ("up", "left", "down", "right") * 3),
    ] == seen


def test_games_whose_notes_are_no_texts() -> None:
    """Countdown notes the player's number for what he said, and its score for the reason of a
    refusal."""
    env = TextArena("Countdown-v0")
    env.reset(env.tasks("train", 1)[0], 0)
    refused = env.step("add them")
    assert (
        refused.observation
        == "This is no valid move: the game's first message has its rules. Nothing changed."
    )
    taken = env.step("[0 1 +]")
    assert taken.valid
    assert "add them" not in taken.observation


@pytest.mark.slow
def test_contract_in_a_process_of_its_own() -> None:
    report = check_environment("textarena", count=4, steps=10)
    assert not report.problems, report
    assert report.rollback_method == "fork"


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_contract_of_every_game(game: str) -> None:
    report = check_environment("textarena", options={"game": game}, count=3, steps=20)
    assert not report.problems, report


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"game": "Minesweper-v0"}, "no game 'Minesweper-v0': did you mean one of Minesweeper-v0"),
        ({"game": "x"}, "did you mean one of Minesweeper-v0-small"),
        ({"game": "TicTacToe-v0"}, "plays games for one player, and 'TicTacToe-v0' is for more"),
        ({"game": "QuantumTicTacToe-v0"}, "for one player"),
        ({"game": "PublicGoodsGame-v0"}, "for one player"),
        ({"game": "TwentyQuestions-v0"}, "asks a language model over the network"),
        ({"game": "BabyAiText-v0"}, "cannot make 'BabyAiText-v0'"),
        ({"game": "Sudoku-v0", "kwargs": {"colour": 3}}, "correct game or kwargs"),
        ({"game": ["Mastermind-v0"]}, "game as a text"),
        ({"kwargs": "hard"}, "kwargs as a table"),
        ({"success": "yes"}, "cannot have success = 'yes'"),
        ({"horizon": -1}, "cannot have horizon = -1"),
        ({"tasks": 0}, "cannot have tasks = 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        TextArena(**options)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_word_list_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk  # type: ignore[import-untyped]

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.data, "path", [])
    for game in ("Hangman-v0", "Wordle-v0", "WordSearch-v0"):
        with pytest.raises(UserError, match=r"run python -m nltk\.downloader words"):
            TextArena(game)
    assert nltk.download is refuse


def test_a_word_game_is_played_where_its_list_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the form of NLTK's corpus, which cannot be had here: a file of words."""
    lists = tmp_path / "corpora" / "words"
    lists.mkdir(parents=True)
    for name in ("en", "en-basic"):
        (lists / name).write_text("apple\nriver\nstone\n")
    program = """
import nltk
from leafe.envs.adapters.textarena import TextArena
env = TextArena("Hangman-v0")
task = env.tasks("train", 1)[0]
print(env.reset(task, 0))
wrong = env.step("[z]")
assert "not in the word" in wrong.observation, wrong
assert not env.step("[z]").valid, "guessed already"
won = env.step(env.env.state.game_state["target_word"])
assert won.success, won
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NLTK_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "You are playing Hangman" in done.stdout


def test_python_too_old_for_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    import textarena

    def broken(*args: object, **options: object) -> None:
        raise SyntaxError("invalid syntax")

    monkeypatch.setattr(textarena, "make", broken)
    with pytest.raises(UserError, match="written for a later Python than this one"):
        TextArena()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(UserError, match=r"pip install 'leafe\[textarena\]'"):
        TextArena()


def test_rollback_by_a_copy_of_the_process() -> None:
    """The mines are laid by the first move: a copy from before it lays them anew, in the same
    places."""
    with make_env("textarena") as env:
        env.reset(env.tasks("train", 1)[0], 0)
        here = env.snapshot()
        seen = [env.step(move).observation for move in ("2 2", "nothing")]
        for _ in range(2):
            env.restore(here)
            assert [env.step(move).observation for move in ("2 2", "nothing")] == seen
        env.release(here)


@pytest.mark.slow
def test_both_stages(tmp_path: Path) -> None:
    from tests.loop import both_stages

    both_stages("textarena", tmp_path, solve=solve_mines, wrong="0 0", horizon=5)
