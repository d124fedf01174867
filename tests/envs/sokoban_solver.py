"""Sokoban solved forwards, by A* over text boards: an oracle that shares nothing with the
environment or its generator but the rules."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

STEPS = {"up": -1j, "down": 1j, "left": -1, "right": 1}


def solve(rows: Sequence[str]) -> list[str] | None:
    """A shortest solution in moves, None where there is none. The bound: each box off its goal
    needs at least its distance to the nearest goal."""
    board = {complex(x, y): symbol for y, row in enumerate(rows) for x, symbol in enumerate(row)}
    free = {at for at, symbol in board.items() if symbol != "#"}
    goals = {at for at, symbol in board.items() if symbol in ".*+"}
    start = (
        next(at for at, symbol in board.items() if symbol in "@+"),
        frozenset(at for at, symbol in board.items() if symbol in "$*"),
    )

    def bound(boxes: frozenset[complex]) -> int:
        return sum(int(min(abs((b - g).real) + abs((b - g).imag) for g in goals)) for b in boxes)

    order = count()
    todo: list[tuple[int, int, list[str], complex, frozenset[complex]]] = [
        (bound(start[1]), next(order), [], *start)
    ]
    cheapest = {start: 0}
    while todo:
        _, _, path, player, boxes = heapq.heappop(todo)
        if boxes <= goals:
            return path
        if len(path) > cheapest[player, boxes]:
            continue
        for word, by in STEPS.items():
            to, after = player + by, boxes
            if to not in free:
                continue
            if to in boxes:
                if to + by not in free or to + by in boxes:
                    continue
                after = boxes - {to} | {to + by}
            if len(path) + 1 < cheapest.get((to, after), 1 << 30):
                cheapest[to, after] = len(path) + 1
                heapq.heappush(
                    todo, (len(path) + 1 + bound(after), next(order), [*path, word], to, after)
                )
    return None
