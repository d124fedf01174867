"""Sokoban: its sentences, its certain losses, and real levels."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Task, UserError
from leafe.envs.sokoban import Sokoban
from leafe.envs.sokoban._board import MOVES, build, deadlock, shift
from leafe.envs.sokoban._files import read_levels
from leafe.testing import check_environment
from tests.envs.data import BOXOBAN, needs_boxoban


def level(*rows: str) -> Task:
    return Task("level", "sokoban", "train", "Push every box onto a goal.", {"level": list(rows)})


def play(task: Task, actions: str | Sequence[str]) -> list[str]:
    env = Sokoban()
    env.reset(task, 0)
    words = dict(zip("udlr", MOVES, strict=True))
    return [env.step(words.get(a, a)).observation.split("\n")[0] for a in actions]


ROOM = level("######", "#@   #", "# $  #", "#  . #", "######")


def test_a_level_is_solved() -> None:
    env = Sokoban()
    assert env.reset(ROOM, 0) == (
        "# # # # # #\n# P _ _ _ #\n# _ X _ _ #\n# _ _ O _ #\n# # # # # #\nBoxes on goals: 0 of 1."
    )
    for action in ("down", "Right", "move up", "go right!"):
        result = env.step(action)
        assert (result.valid, result.done, result.reward, result.progress) == (
            True,
            False,
            0.0,
            0.0,
        )
    result = env.step("push down")
    assert (result.done, result.success, result.reward, result.progress) == (True, True, 1.0, 1.0)
    assert result.observation.startswith(
        "You pushed a box down, onto a goal. All boxes are on goals: the level is solved."
    )
    assert not env.step("up").valid


@pytest.mark.parametrize(
    ("task", "actions", "says"),
    [
        (ROOM, "u", "You cannot move up: there is a wall above you. Nothing changed."),
        (
            level("#####", "#@$ #", "# $.#", "#  .#", "#####"),
            "dlr",
            "You pushed a box right, onto a goal.",
        ),
        (
            level("######", "#@$$ #", "# .. #", "######"),
            "r",
            (
                "You cannot push the box to the right of you: there is another box behind it. "
                "Nothing changed."
            ),
        ),
        (
            level("#####", "#@$##", "# $.#", "#  .#", "#####"),
            "r",
            (
                "You cannot push the box to the right of you: there is a wall behind it. "
                "Nothing changed."
            ),
        ),
        (
            ROOM,
            ["north"],
            "There is no action 'north': say up, down, left or right. Nothing changed.",
        ),
        (
            ROOM,
            ["up " * 30],
            "There is no action 'up up up up up up up up up up up up up u...': say up",
        ),
        (ROOM, [""], "There is no action '': say up, down, left or right. Nothing changed."),
        (
            level("######", "#@*. #", "#  $ #", "######"),
            "r",
            "You pushed a box right, onto a goal.",
        ),
        (
            level("#######", "#@*  ##", "#  $. #", "#######"),
            "r",
            "You pushed a box right, off its goal.",
        ),
    ],
)
def test_sentences(task: Task, actions: str | Sequence[str], says: str) -> None:
    assert play(task, actions)[-1].startswith(says)


def test_corner_and_block_lose() -> None:
    corner = play(ROOM, "rdrd")
    assert not any("lost" in told for told in corner)
    lost = play(level("######", "#    #", "#@$  #", "# .  #", "######"), "rr")
    assert lost[-1] == (
        "You pushed a box right. The box at row 2, column 4 stands where it can no longer "
        "be brought to any goal. "
        "The level can no longer be solved: you have lost."
    )
    lost = play(level("#####", "#   #", "#.$ #", "# @ #", "#####"), "u")
    assert "can no longer be brought to any goal" in lost[-1]
    lost = play(level("#####", "#.  #", "#@$ #", "#####"), "r")
    assert "is in a corner that is no goal and cannot be moved again" in lost[-1]
    lost = play(
        level("########", "#      #", "#  $   #", "#@$  . #", "#  $.. #", "#      #", "########"),
        ["right"],
    )
    assert "lost" not in lost[-1]
    lost = play(
        level(
            "#########",
            "#       #",
            "#   $$  #",
            "# @$ $  #",
            "#  ...  #",
            "#       #",
            "#########",
        ),
        ["right"],
    )
    assert "form a block of two by two, in which no box can be moved" in lost[-1]


def solvable(
    rows: tuple[str, ...], player: tuple[int, int], boxes: frozenset[tuple[int, int]]
) -> bool:
    """By exhaustion: the slow truth that the environment's claims are held against."""
    fixed = build(rows)
    seen, todo = {(player, boxes)}, [(player, boxes)]
    while todo:
        at, now = todo.pop()
        if now <= fixed.goals:
            return True
        for move in MOVES:
            to = shift(at, move)
            after = now
            if to in fixed.walls:
                continue
            if to in now:
                behind = shift(to, move)
                if behind in fixed.walls or behind in now:
                    continue
                after = now - {to} | {behind}
            if (to, after) not in seen:
                seen.add((to, after))
                todo.append((to, after))
    return False


@given(st.data())
def test_a_claimed_loss_is_certain(data: st.DataObject) -> None:
    height, width, boxes = (
        data.draw(st.integers(3, 4)),
        data.draw(st.integers(3, 4)),
        data.draw(st.integers(1, 3)),
    )
    cells = [(r, c) for r in range(height) for c in range(width)]
    order = data.draw(st.permutations(cells))
    symbols = (
        dict.fromkeys(order[:boxes], "$")
        | dict.fromkeys(order[boxes : 2 * boxes], ".")
        | {order[2 * boxes]: "@"}
    )
    symbols |= dict.fromkeys(
        order[2 * boxes + 1 : 2 * boxes + 1 + data.draw(st.integers(0, 2))], "#"
    )
    rows = (
        "#" * (width + 2),
        *(
            "#" + "".join(symbols.get((r, c), " ") for c in range(width)) + "#"
            for r in range(height)
        ),
        "#" * (width + 2),
    )
    env = Sokoban()
    env.reset(level(*rows), 0)
    for move in data.draw(st.lists(st.sampled_from(list(MOVES)), max_size=25)):
        result = env.step(move)
        if result.done and not result.success:
            assert env._state is not None
            assert not solvable(rows, env._state.player, env._state.boxes)
        if result.done:
            return


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("; 0\n####\n#@$#\n#x.#\n####\n", 4, "'x' is no symbol"),
        ("; 0\n####\n#@$.#\n####\n\n; 1\n#####\n#@@$.#\n######\n", 7, "2 players"),
        ("; 0\n####\n# $.#\n#####\n", 2, "0 players"),
        ("; 0\n#####\n#@$ #\n#####\n", 2, "1 boxes for 0 goals"),
        ("; 0\n#####\n#@* #\n#####\n", 2, "no box off its goal"),
        ("; 0\n#####\n#@$.\n#####\n", 2, "a gap in the wall"),
        ("; one\n#####\n#@$.#\n#####\n", 1, "a level begins with '; NUMBER'"),
    ],
)
def test_bad_level_files_are_named_by_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        Sokoban(levels=str(file)).tasks("train")
    assert f"{file}, line {line}:" in str(caught.value)
    assert says in str(caught.value)


def test_level_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "######\n#@ $.#\n######\n"
    (tmp_path / "mine.txt").write_text("\n".join(f"; {n}\n{one}" for n in range(20)))
    env = Sokoban(levels=str(tmp_path / "mine.txt"))
    ids = {split: [t.id for t in env.tasks(split)] for split in env.splits}
    assert {split: len(found) for split, found in ids.items()} == {
        "train": 16,
        "valid": 2,
        "test": 2,
    }
    assert sorted(ids["valid"]) == ["sokoban-mine-18", "sokoban-mine-8"]
    assert [t.id for t in env.tasks("train", 5, seed=3)] == [
        t.id for t in env.tasks("train", None, seed=3)
    ][:5]
    assert [t.id for t in env.tasks("train", seed=3)] != [t.id for t in env.tasks("train", seed=4)]
    with pytest.raises(UserError, match="'unfiltered' in its name"):
        Sokoban(levels=str(tmp_path)).tasks("train")
    assert len(Sokoban(levels=str(tmp_path), difficulty="any").tasks("train")) == 16
    with pytest.raises(UserError, match="no level file or folder at"):
        Sokoban(levels=str(tmp_path / "nothing")).tasks("train")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(one.encode())[:20])
    with pytest.raises(UserError, match=r"torn\.txt\.gz cannot be read"):
        Sokoban(levels=str(tmp_path / "torn.txt.gz")).tasks("train")
    (tmp_path / "none.txt").write_text("\n")
    assert Sokoban(levels=str(tmp_path / "none.txt")).tasks("train") == []
    (tmp_path / "latin.txt").write_bytes(b"; 0\n####\n#@\xe4#\n####\n")
    with pytest.raises(UserError, match=r"latin\.txt cannot be read"):
        Sokoban(levels=str(tmp_path / "latin.txt")).tasks("train")
    monkeypatch.setenv("LEAFE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="set LEAFE_DATA to the folder that holds boxoban"):
        Sokoban(levels="boxoban").tasks("train")


def test_outside_of_a_level_is_cut_off() -> None:
    env = Sokoban()
    shown = env.reset(
        level("##########", "##########", "###@ $.###", "##########", "   ####   "), 0
    )
    assert shown.split("\n")[:-1] == ["# # # # # #", "# P _ X O #", "# # # # # #"]


@needs_boxoban
@pytest.mark.parametrize("difficulty", ["unfiltered", "medium", "hard"])
def test_boxoban_levels(difficulty: str) -> None:
    env = Sokoban(levels=str(BOXOBAN), difficulty=difficulty)
    splits = {split: env.tasks(split) for split in env.splits}
    ids = [t.id for found in splits.values() for t in found]
    assert len(set(ids)) == len(ids) == (1000 if difficulty == "hard" else 2000)
    for task in (*splits["train"], *splits["test"]):
        fixed = build(tuple(task.payload["level"]))
        assert len(fixed.start.boxes) == len(fixed.goals) == 4
        # published levels can be solved, so that no claim of a loss may hold at their start
        assert not any(deadlock(fixed, fixed.start.boxes, box) for box in fixed.start.boxes)
    report = check_environment(env, splits["valid"][:8], list(MOVES), steps=40)
    assert not report.problems, report


@needs_boxoban
def test_moves_agree_with_a_second_implementation() -> None:
    """A string-based stepper, written apart from the environment's, over random play on real
    levels."""
    task = Sokoban(levels=str(BOXOBAN)).tasks("train", 1)[0]
    number = int(task.id.rsplit("-", 1)[1])
    rows = dict(read_levels(BOXOBAN / "unfiltered-train-000.txt.gz"))[number]
    assert list(rows) == task.payload["level"]
    for seed in range(30):
        draw = random.Random(seed)
        env = Sokoban()
        env.reset(task, 0)
        board = {(r, c): s for r, row in enumerate(rows) for c, s in enumerate(row)}
        for _ in range(60):
            move = draw.choice(list(MOVES))
            result = env.step(move)
            moved = _reference_step(board, MOVES[move])
            assert result.valid is moved
            assert result.observation.count("√") == sum(s == "*" for s in board.values())
            assert env._state is not None
            if result.done:
                break


def _reference_step(board: dict[tuple[int, int], str], by: tuple[int, int]) -> bool:
    r, c = next(cell for cell, s in board.items() if s in "@+")
    to, behind = (r + by[0], c + by[1]), (r + 2 * by[0], c + 2 * by[1])
    if board[to] == "#" or (board[to] in "$*" and board[behind] not in " ."):
        return False
    if board[to] in "$*":
        board[behind] = "*" if board[behind] == "." else "$"
        board[to] = "." if board[to] == "*" else " "
    board[to] = "+" if board[to] == "." else "@"
    board[r, c] = "." if board[r, c] == "+" else " "
    return True
