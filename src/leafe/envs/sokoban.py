"""Sokoban on Boxoban levels: a puzzle of irreversible mistakes, told as a text grid.

A move is a word. A move that cannot be made gets a sentence that says what is in the way, and changes nothing. A push after which the
level can no longer be solved ends the episode with a sentence that names the box and the reason; only certain cases are claimed: a square
from which no goal can be reached even on an empty board (corners are the plainest kind), and a 2x2 block of boxes and walls with a box off its goal.
Levels are the published text files (`#` wall, `@` player, `$` box, `.` goal, `*` box on goal, `+` player on goal, a line `; N` before each).
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs._data import data_path

Cell = tuple[int, int]
"""(row, column), from 0."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
DIFFICULTIES = ("unfiltered", "medium", "hard", "any")
_SIDE = {"up": "above", "down": "below", "left": "to the left of", "right": "to the right of"}
_ACTION = re.compile(r"(?:(?:move|push|go|walk|step) )?(up|down|left|right)[.! ]*", re.IGNORECASE)
_HELP = (
    "Each action is one word: up, down, left or right. You walk one square, and push the box that stands there if the square behind it is free. "
    "You cannot pull, and you cannot push two boxes at once.\n"
    "The grid: # wall, _ floor, O goal, X box, √ box on a goal, P you, S you on a goal. Rows and columns count from 0 at the top left."
)


@dataclass(frozen=True, slots=True)
class _State:
    player: Cell
    boxes: frozenset[Cell]
    best: int
    """Most boxes that stood on goals at once so far: the progress."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Level:
    """What never changes in a level, rows and columns of mere wall at the rim left out but for one."""

    rows: int
    columns: int
    walls: frozenset[Cell]
    goals: frozenset[Cell]
    dead: frozenset[Cell]
    """Floor from which a box can reach no goal, whatever the other boxes do."""
    start: _State


class Sokoban(Environment):
    """Sokoban on Boxoban level files: push every box onto a goal.

    Options: `levels`, a level file (plain or gzip) or a folder of them, by default `boxoban` in the data folder; `difficulty`, which
    files of a folder count, by name (unfiltered, medium, hard; any: all of them); `horizon`, steps.

    Splits, by a file's name: 'train' in it makes it train; 'valid' in it gives its even levels to valid and its odd ones to test
    (Boxoban publishes no test files for medium); 'test' in it makes it test; any other file gives levels N with N mod 10 = 8 to
    valid, 9 to test, the rest to train.
    """

    name = "sokoban"
    deterministic = True
    quick = True
    can_snapshot = True
    actions_help = _HELP
    horizon = 40
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")
    needs: ClassVar[str] = "Boxoban level files (google-deepmind/boxoban-levels) in LEAFE_DATA/boxoban or at the option levels"

    def __init__(self, levels: str | None = None, difficulty: str = "unfiltered", horizon: int = 40) -> None:
        if difficulty not in DIFFICULTIES:
            raise UserError(f"The world 'sokoban' has no difficulty {difficulty!r}: give one of {', '.join(DIFFICULTIES)}.")
        if not isinstance(horizon, int) or horizon < 1:
            raise UserError(f"The world 'sokoban' cannot have horizon {horizon!r}: give a whole number of steps from 1.")
        self.levels = levels
        self.difficulty = difficulty
        self.horizon = horizon
        self._level: _Level | None = None
        self._state: _State | None = None

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's levels in an order drawn by `seed`; a smaller count is a prefix of a larger one."""
        if split not in self.splits:
            raise UserError(f"The world 'sokoban' has no split {split!r}: its splits are {', '.join(self.splits)}.")
        found = [
            Task(id=f"sokoban-{label}-{number}", env=self.name, split=split, instruction="Push every box onto a goal.", payload={"level": list(rows)})
            for path, label in self._files()
            for number, rows in _read_levels(path)
            if _split_of(label, number) == split
        ]
        random.Random(derive_seed(seed, "sokoban", split)).shuffle(found)
        return found[:count]

    def reset(self, task: Task, seed: int) -> str:
        self._level = _build(tuple(task.payload["level"]))
        self._state = self._level.start
        return self._view()

    def step(self, action: str) -> StepResult:
        level, state = self._level, self._state
        if level is None or state is None:
            raise RuntimeError("step before reset")
        if state.done:
            return self._refused("The level is over.")
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            shown = action.strip() if len(action) <= 40 else action.strip()[:40] + "..."
            return self._refused(f"There is no action {shown!r}: say up, down, left or right.")
        word = match[1].lower()
        to = _shift(state.player, word)
        if to in level.walls:
            return self._refused(f"You cannot move {word}: there is a wall {_SIDE[word]} you.")
        if to not in state.boxes:
            self._state = _State(to, state.boxes, state.best)
            return self._moved(f"You moved {word}.")
        behind = _shift(to, word)
        if behind in level.walls or behind in state.boxes:
            what = "a wall" if behind in level.walls else "another box"
            return self._refused(f"You cannot push the box {_SIDE[word]} you: there is {what} behind it.")
        boxes = state.boxes - {to} | {behind}
        on_goals = len(boxes & level.goals)
        stuck = _deadlock(level, boxes, behind)
        won = on_goals == len(boxes)
        self._state = _State(to, boxes, max(state.best, on_goals), done=won or stuck is not None)
        said = f"You pushed a box {word}" + (", onto a goal." if behind in level.goals else ", off its goal." if to in level.goals else ".")
        if won:
            return self._moved(f"{said} All boxes are on goals: the level is solved.", reward=1.0, done=True, success=True)
        if stuck is not None:
            return self._moved(f"{said} {stuck} The level can no longer be solved: you have lost.", done=True)
        return self._moved(said)

    def snapshot(self) -> object:
        return (self._level, self._state)

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, tuple)
        self._level, self._state = snapshot

    def _refused(self, why: str) -> StepResult:
        assert self._state is not None
        return StepResult(f"{why} Nothing changed.\n{self._view()}", valid=False, done=self._state.done, progress=float(self._state.best))

    def _moved(self, said: str, reward: float = 0.0, done: bool = False, success: bool = False) -> StepResult:
        assert self._state is not None
        return StepResult(f"{said}\n{self._view()}", reward=reward, done=done, success=success, progress=float(self._state.best))

    def _view(self) -> str:
        level, state = self._level, self._state
        assert level is not None
        assert state is not None
        lines = []
        for row in range(level.rows):
            line = []
            for column in range(level.columns):
                cell = (row, column)
                goal = cell in level.goals
                if cell in level.walls:
                    line.append("#")
                elif cell == state.player:
                    line.append("S" if goal else "P")
                elif cell in state.boxes:
                    line.append("√" if goal else "X")
                else:
                    line.append("O" if goal else "_")
            lines.append(" ".join(line))
        lines.append(f"Boxes on goals: {len(state.boxes & level.goals)} of {len(state.boxes)}.")
        return "\n".join(lines)

    def _files(self) -> list[tuple[Path, str]]:
        """Level files with their labels: the path below the folder, `/` written `-`, endings left off."""
        root = Path(self.levels) if self.levels else data_path("boxoban", "Boxoban levels", "levels")
        if root.is_file():
            return [(root, _label(root.name))]
        if not root.is_dir():
            raise UserError(f"The world 'sokoban' finds no level file or folder at {root}: correct the option levels.")
        every = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith((".txt", ".txt.gz")))
        labelled = [(p, _label(p.relative_to(root).as_posix())) for p in every]
        chosen = [(p, label) for p, label in labelled if self.difficulty == "any" or self.difficulty in label]
        if not chosen:
            raise UserError(f"The folder {root} holds no level file (*.txt, *.txt.gz) with {self.difficulty!r} in its name: set levels or difficulty.")
        return chosen


def _label(path: str) -> str:
    return path.removesuffix(".gz").removesuffix(".txt").replace("/", "-")


def _split_of(label: str, number: int) -> str:
    if "train" in label:
        return "train"
    if "valid" in label:
        return "valid" if number % 2 == 0 else "test"
    if "test" in label:
        return "test"
    return {8: "valid", 9: "test"}.get(number % 10, "train")


def _read_levels(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(number, rows) of each level; UserError with file and line for anything that is not a level."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:  # BadGzipFile is an OSError
        raise UserError(f"The level file {path} cannot be read: {error}.") from error
    number, begun, rows = -1, 0, list[str]()
    for at, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith(";") or not line.strip():
            if rows:
                _check(rows, path, begun)
                yield number, tuple(rows)
                rows, number = [], number + 1
            if line.startswith(";"):
                title = line[1:].strip()
                if not title.isdecimal():
                    raise UserError(f"{path}, line {at}: a level begins with '; NUMBER', not {line!r}.")
                number = int(title)
        else:
            bad = set(line) - set("#@$.*+ ")
            if bad:
                raise UserError(f"{path}, line {at}: {min(bad)!r} is no symbol of a Sokoban level (# @ $ . * + and space).")
            if not rows:
                begun, number = at, max(number, 0)
            rows.append(line)


def _check(rows: Sequence[str], path: Path, line: int) -> None:
    text = "".join(rows)
    players, boxes, goals = (sum(text.count(c) for c in symbols) for symbols in ("@+", "$*", ".*+"))
    if players != 1:
        wrong = f"{players} players"
    elif boxes != goals:
        wrong = f"{boxes} boxes for {goals} goals"
    elif "$" not in text:
        wrong = "no box off its goal"
    elif _inside(rows) is None:
        wrong = "a gap in the wall around it"
    else:
        return
    raise UserError(f"{path}, line {line}: the level that begins here has {wrong}: correct or remove it.")


def _inside(rows: Sequence[str]) -> set[Cell] | None:
    """The squares that the player could reach if there were no boxes; None where he could walk off the edge of the text."""
    start = next((r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol in "@+")
    seen, todo = {start}, [start]
    while todo:
        cell = todo.pop()
        for move in MOVES:
            row, column = to = _shift(cell, move)
            if not (0 <= row < len(rows) and 0 <= column < len(rows[row])):
                return None
            if rows[row][column] != "#" and to not in seen:
                seen.add(to)
                todo.append(to)
    return seen


@lru_cache(maxsize=4096)
def _build(rows: tuple[str, ...]) -> _Level:
    """The level, cropped to the inside and one square of wall around it."""
    inside = _inside(rows) or set()
    top, left = min(r for r, _ in inside) - 1, min(c for _, c in inside) - 1
    bottom, right = max(r for r, _ in inside) + 1, max(c for _, c in inside) + 1
    cells = {
        (r - top, c - left): rows[r][c] if (r, c) in inside else "#" for r in range(top, bottom + 1) for c in range(left, right + 1)
    }
    walls = frozenset(cell for cell, symbol in cells.items() if symbol == "#")
    goals = frozenset(cell for cell, symbol in cells.items() if symbol in ".*+")
    boxes = frozenset(cell for cell, symbol in cells.items() if symbol in "$*")
    player = next(cell for cell, symbol in cells.items() if symbol in "@+")
    alive, todo = set(goals), list(goals)
    while todo:  # pull a box back from every goal, on a board without other boxes
        box = todo.pop()
        for move in MOVES:
            source = _shift(box, move)
            if source not in walls and source not in alive and cells.get(_shift(source, move), "#") != "#":
                alive.add(source)
                todo.append(source)
    dead = frozenset(cells) - walls - alive
    return _Level(bottom - top + 1, right - left + 1, walls, goals, dead, _State(player, boxes, len(boxes & goals)))


def _shift(cell: Cell, move: str) -> Cell:
    row, column = MOVES[move]
    return cell[0] + row, cell[1] + column


def _deadlock(level: _Level, boxes: frozenset[Cell], pushed: Cell) -> str | None:
    """Why the push that ended at `pushed` lost the level; None where that is not certain."""
    row, column = pushed
    if pushed in level.dead:
        vertical = {(row - 1, column), (row + 1, column)} & level.walls
        horizontal = {(row, column - 1), (row, column + 1)} & level.walls
        if vertical and horizontal:
            return f"The box at row {row}, column {column} is in a corner that is no goal and cannot be moved again."
        return f"The box at row {row}, column {column} stands where it can no longer be brought to any goal."
    for top in (row - 1, row):
        for left in (column - 1, column):
            square = {(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)}
            if square <= boxes | level.walls and (square & boxes) - level.goals:
                return f"The boxes and walls around row {row}, column {column} form a block of two by two, in which no box can be moved."
    return None
