"""The fixed part of a level: walls, goals, and the squares from which no box can be saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Cell = tuple[int, int]
"""(row, column), from 0."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True, slots=True)
class State:
    """What changes in a level."""

    player: Cell
    boxes: frozenset[Cell]
    best: int
    """The most boxes that were on goals at once: the progress."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """A level. Of a level from a file, the rim is cropped to one square of wall; a generated room
    keeps its full size."""

    rows: int
    columns: int
    walls: frozenset[Cell]
    goals: frozenset[Cell]
    dead: frozenset[Cell]
    """Floor squares from which a box can reach no goal, whatever the other boxes do."""
    start: State


def shift(cell: Cell, move: str) -> Cell:
    row, column = MOVES[move]
    return cell[0] + row, cell[1] + column


def inside(rows: Sequence[str]) -> set[Cell] | None:
    """The squares that the player could reach without boxes; None if the wall has a gap."""
    start = next(
        (r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol in "@+"
    )
    seen, todo = {start}, [start]
    while todo:
        cell = todo.pop()
        for move in MOVES:
            row, column = to = shift(cell, move)
            if not (0 <= row < len(rows) and 0 <= column < len(rows[row])):
                return None
            if rows[row][column] != "#" and to not in seen:
                seen.add(to)
                todo.append(to)
    return seen


@lru_cache(maxsize=4096)
def build(rows: tuple[str, ...], whole: bool = False) -> Level:
    """Read a level in Boxoban's symbols, cropped to the inside and one square of wall unless
    `whole`."""
    within = inside(rows) or set()
    top, left, bottom, right = 0, 0, len(rows) - 1, len(rows[0]) - 1
    if not whole:
        top, left = min(r for r, _ in within) - 1, min(c for _, c in within) - 1
        bottom, right = max(r for r, _ in within) + 1, max(c for _, c in within) + 1
    cells = {
        (r - top, c - left): rows[r][c] if (r, c) in within else "#"
        for r in range(top, bottom + 1)
        for c in range(left, right + 1)
    }
    walls = frozenset(cell for cell, symbol in cells.items() if symbol == "#")
    goals = frozenset(cell for cell, symbol in cells.items() if symbol in ".*+")
    boxes = frozenset(cell for cell, symbol in cells.items() if symbol in "$*")
    player = next(cell for cell, symbol in cells.items() if symbol in "@+")
    alive, todo = set(goals), list(goals)
    while todo:  # pull a box back from every goal, alone on the board
        box = todo.pop()
        for move in MOVES:
            source = shift(box, move)
            if (
                source not in walls
                and source not in alive
                and cells.get(shift(source, move), "#") != "#"
            ):
                alive.add(source)
                todo.append(source)
    dead = frozenset(cells) - walls - alive
    return Level(
        bottom - top + 1,
        right - left + 1,
        walls,
        goals,
        dead,
        State(player, boxes, len(boxes & goals)),
    )


def deadlock(level: Level, boxes: frozenset[Cell], pushed: Cell) -> str | None:
    """Why the push that ended at `pushed` lost the level; None if that is not certain."""
    row, column = pushed
    if pushed in level.dead:
        vertical = {(row - 1, column), (row + 1, column)} & level.walls
        horizontal = {(row, column - 1), (row, column + 1)} & level.walls
        if vertical and horizontal:
            return (
                f"The box at row {row}, column {column} is in a corner that is no goal and "
                "cannot be moved again."
            )
        return (
            f"The box at row {row}, column {column} stands where it can no longer be brought "
            "to any goal."
        )
    for top in (row - 1, row):
        for left in (column - 1, column):
            square = {(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)}
            if square <= boxes | level.walls and (square & boxes) - level.goals:
                return (
                    f"The boxes and walls around row {row}, column {column} form a block of "
                    "two by two, in which no box can be moved."
                )
    return None
