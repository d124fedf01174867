"""Generates rooms, each solved backwards from all its solved states.

The rooms follow gym-sokoban, as verl-agent plays them at 6x6 with one box. A random walk clears the
floor, goals are drawn, and boxes are pulled off them as far as possible. The player starts where he
let go, or up to three steps aside. gym-sokoban searches depth-first for one good state and starts
again if it finds none. Here a breadth-first search, over the states of many rooms in one numpy
array, gives the length of the shortest solution of every state. A level is drawn among those that
can be solved within the horizon.

Two levels are the same if one is the other rotated, mirrored or moved within its frame of wall. The
split follows from walls, goals and boxes up to this symmetry: it does not depend on a seed, and no
two splits share a level, not even with the player elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import permutations

import numpy as np
import numpy.typing as npt

from leafe.core import derive_seed

Ints = npt.NDArray[np.int64]

VERSION = 1
"""To be raised whenever the same seed gives other levels than before."""
MAX_STATES = 2**25
"""The most states of one room, reachable or not (one byte each)."""
SPLITS = ("train", "train", "valid", "test")
"""By a hash of walls, goals and boxes modulo 4."""
_TURN = 0.35
"""Probability that the walk which clears the floor turns. This and its length are gym-sokoban's."""
_ASIDE, _ASIDE_NEAR, _ON, _STEPS = 0.5, 0.8, 0.5, 3
"""Probability that the player steps aside (`_ASIDE_NEAR` if the box is one square off its goal) and
goes on, and the most steps: verl-agent's."""
_BRUSHES = (
    ((0, -1), (0, 1)),
    ((-1, 0), (1, 0)),
    ((0, -1), (1, 0)),
    ((0, -1), (1, -1), (1, 0)),
    ((0, 1), (1, 0)),
)
"""Offsets (row, column) that are cleared beside the walk's square: one of these sets at each
step."""
_MAX_FAILURES = 2000
"""Rooms in a row without a new level of the split after which generation ends."""
_UNKNOWN = 255


@dataclass(frozen=True, slots=True)
class Room:
    """A generated level."""

    rows: tuple[str, ...]
    """In Boxoban's symbols."""
    moves: int
    """Length of the shortest solution, in moves."""
    key: str
    """Twelve hex digits, the same for a level that is rotated, mirrored or moved."""


def states(rows: int, columns: int, boxes: int) -> int:
    """How many states a room of that size has: squares of boxes and player, reachable or not."""
    return int(((rows - 2) * (columns - 2)) ** (boxes + 1))


def rooms(
    rows: int, columns: int, boxes: int, horizon: int, split: str, seed: int
) -> Iterator[Room]:
    """Levels of the split, drawn by `seed` without repetition, each solvable within `horizon`
    moves. Ends when no more are found."""
    batch = max(1, min(64, (1 << 20) // states(rows, columns, boxes)))
    seen: set[str] = set()
    at = failures = 0
    while failures < _MAX_FAILURES:
        for room in _draw(
            rows,
            columns,
            boxes,
            horizon,
            split,
            [derive_seed(seed, "sokoban-room", at + i) for i in range(batch)],
        ):
            failures += 1
            if room is not None and room.key not in seen:
                seen.add(room.key)
                failures = 0
                yield room
        at += batch


def _draw(
    rows: int, columns: int, boxes: int, horizon: int, split: str, seeds: Sequence[int]
) -> list[Room | None]:
    """One level for each seed; None if the drawn room has none, or one of another split."""
    draws = [random.Random(seed) for seed in seeds]
    height, width = rows - 2, columns - 2
    floors = [sorted(_floor(draw, height, width)) for draw in draws]
    fit = [i for i, floor in enumerate(floors) if len(floor) > 2 * boxes]
    out: list[Room | None] = [None] * len(seeds)
    if not fit:
        return out
    chosen = [floors[i] for i in fit]
    goals = [sorted(draws[i].sample(floor, boxes)) for i, floor in zip(fit, chosen, strict=True)]
    distance = solution_lengths(height, width, chosen, goals, horizon)
    for i, floor, goal, known in zip(fit, chosen, goals, distance, strict=True):
        out[i] = _choose(draws[i], height, width, floor, goal, known, split)
    return out


def _floor(draw: random.Random, height: int, width: int) -> set[int]:
    """The squares of floor, numbered row by row."""
    row, column = draw.randrange(height), draw.randrange(width)
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    step = draw.choice(steps)
    cells: set[tuple[int, int]] = set()
    for _ in range(int(1.7 * (height + width + 4))):
        if draw.random() < _TURN:
            step = draw.choice(steps)
        row, column = (
            min(max(row + step[0], 0), height - 1),
            min(max(column + step[1], 0), width - 1),
        )
        cells.add((row, column))
        cells.update((row + r, column + c) for r, c in draw.choice(_BRUSHES))
    return {r * width + c for r, c in cells if 0 <= r < height and 0 <= c < width}


def solution_lengths(
    height: int,
    width: int,
    floors: Sequence[Sequence[int]],
    goals: Sequence[Sequence[int]],
    most: int,
) -> npt.NDArray[np.uint8]:
    """The shortest solution of every state of every room.

    A state is a number in base height*width: the squares of its boxes in ascending order, then the
    player's. All solved states have length 0. A state of length m + 1 leads by a move or push to
    one of length m, and is found by taking that move back.

    Returns:
        Array (room, state) of lengths; 255 if there is no solution of at most `most` moves.
    """
    squares, boxes = height * width, len(goals[0])
    size = squares ** (boxes + 1)
    # the last square stands for everything outside
    floor = np.zeros((len(floors), squares + 1), dtype=bool)
    for i, cells in enumerate(floors):
        floor[i, list(cells)] = True
    beside = _neighbours(height, width)
    weights = np.array([squares**p for p in range(boxes, 0, -1)], dtype=np.int64)
    known = np.full((len(floors), size), _UNKNOWN, dtype=np.uint8)
    flat = known.reshape(-1)
    placed = [i * size + int(np.dot(weights, goals[i])) for i in range(len(floors))]
    frontier = np.array(
        [
            code + cell
            for code, cells, goal in zip(placed, floors, goals, strict=True)
            for cell in cells
            if cell not in goal
        ],
        dtype=np.int64,
    )
    flat[frontier] = 0
    for moves in range(1, min(most, _UNKNOWN - 1) + 1):
        room, rest = np.divmod(frontier, size)
        player = rest % squares
        where = rest[:, None] // weights % squares
        found = []
        for way in range(4):
            to, behind = beside[way, player], beside[way ^ 1, player]
            free = floor[room, to] & ~(where == to[:, None]).any(axis=1)
            found.append((frontier - player + to)[free])  # a move from there
            pulled = (where == behind[:, None]) & free[:, None]
            some = pulled.any(axis=1)
            after = np.sort(np.where(pulled[some], player[some, None], where[some]), axis=1)
            found.append(room[some] * size + after @ weights + to[some])  # a push from there
        new = np.concatenate(found)
        frontier = np.unique(new[flat[new] == _UNKNOWN])
        if not frontier.size:
            break
        flat[frontier] = moves
    return known


@cache
def _neighbours(height: int, width: int) -> Ints:
    """(direction, square) -> square; directions up, down, left, right; height*width is outside."""
    number = np.full((height + 2, width + 2), height * width, dtype=np.int64)
    number[1:-1, 1:-1] = np.arange(height * width).reshape(height, width)
    sides = (number[:-2, 1:-1], number[2:, 1:-1], number[1:-1, :-2], number[1:-1, 2:])
    return np.stack([np.append(side.reshape(-1), height * width) for side in sides])


def _choose(
    draw: random.Random,
    height: int,
    width: int,
    floor: Sequence[int],
    goals: Sequence[int],
    known: npt.NDArray[np.uint8],
    split: str,
) -> Room | None:
    """A state whose boxes are all off their goals and as far from them as possible; None if there
    is none, or if it is of another split."""
    squares, boxes = height * width, len(goals)
    codes = np.flatnonzero((known != _UNKNOWN) & (known > 0))
    where = np.stack([codes // squares**p % squares for p in range(boxes, 0, -1)], axis=1)
    is_goal = np.zeros(squares, dtype=bool)
    is_goal[list(goals)] = True
    off = ~is_goal[where].any(axis=1)
    codes, where = codes[off], where[off]
    if not codes.size:
        return None
    far = np.full(len(codes), np.iinfo(np.int64).max)
    for order in permutations(goals):
        goal = np.array(order)
        steps = (abs(where // width - goal // width) + abs(where % width - goal % width)).sum(
            axis=1
        )
        far = np.minimum(far, steps)
    best = np.flatnonzero(far == far.max())
    beside = _neighbours(height, width).tolist()
    free = set(floor)
    let_go = []  # states in which the player can just have pulled a box
    for at in best.tolist():
        player, taken = int(codes[at]) % squares, set(where[at].tolist())
        for way in range(4):
            box = beside[way][player]
            if box in taken and beside[way][box] in free - taken:
                let_go.append(at)
                break
    if not let_go:
        return None
    at = let_go[draw.randrange(len(let_go))]
    placed = where[at].tolist()
    player = _aside(
        draw,
        int(codes[at]) % squares,
        free - set(placed),
        beside,
        _ASIDE_NEAR if far.max() == 1 else _ASIDE,
    )
    moves = int(known[codes[at] - codes[at] % squares + player])
    if moves == _UNKNOWN:
        return None
    board = ["#"] * squares
    for cells, symbol in ((floor, " "), (goals, "."), (placed, "$")):
        for cell in cells:
            board[cell] = symbol
    if SPLITS[int(_key(board, width)[:2], 16) % len(SPLITS)] != split:
        return None
    board[player] = "+" if board[player] == "." else "@"
    wall = "#" * (width + 2)
    rows = (wall, *(f"#{line}#" for line in _lines(board, width)), wall)
    return Room(rows, moves, _key(board, width))


def _aside(
    draw: random.Random, player: int, free: set[int], beside: Sequence[Sequence[int]], often: float
) -> int:
    """Where the player starts: where he is, or up to three steps away, never twice on a square."""
    been = {player}
    for step in range(_STEPS):
        if draw.random() >= (_ON if step else often):
            break
        ways = [
            to for to in (beside[way][player] for way in range(4)) if to in free and to not in been
        ]
        if not ways:
            break
        player = draw.choice(ways)
        been.add(player)
    return player


def _lines(board: Sequence[str], width: int) -> list[str]:
    return ["".join(board[at : at + width]) for at in range(0, len(board), width)]


def _key(board: Sequence[str], width: int) -> str:
    lines = _lines(board, width)
    for _ in range(4):
        while not lines[0].strip("#"):
            lines = lines[1:]
        lines = _turned(lines)
    every = []
    for _ in range(4):
        lines = _turned(lines)
        every += ["\n".join(lines), "\n".join(line[::-1] for line in lines)]
    return blake2b(min(every).encode(), digest_size=6).hexdigest()


def _turned(lines: Sequence[str]) -> list[str]:
    return ["".join(column) for column in zip(*lines[::-1], strict=True)]
