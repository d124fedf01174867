"""What a step learns from: batches that are a pure function of the seed and the step, and rows
dealt to processes by tokens.

That makes a killed training and an unbroken one the same training: no position in the data has to
be stored. How a batch is dealt and cut into forward
passes never changes its gradient, since every row carries weights that are divided by the whole
batch's own sums. Needs no torch.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from leafe.core import derive_seed
from leafe.distill._config import PARTS, DistillConfig, Part
from leafe.distill._tokens import Encoded, TokenSequence

_T = TypeVar("_T")


class Shuffler(Generic[_T]):
    """Batches of some items: epoch after epoch in a new order. `batch(step)` depends on the seed
    and the step alone.

    A batch holds `size` items, which may be a fraction: then batches differ by one item, and some
    may be empty.
    """

    def __init__(self, items: Sequence[_T], size: int | Fraction, seed: int) -> None:
        self.items = items
        self.size = min(Fraction(size), Fraction(len(items)))
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def batch(self, step: int) -> list[_T]:
        """The items of step 0, 1, 2, ...; a batch may hold the end of one epoch and the start of
        the next."""
        return [
            self.items[self._order(k // len(self.items))[k % len(self.items)]]
            for k in range(self._seen(step), self._seen(step + 1))
        ]

    def epochs(self, steps: int) -> float:
        """Passes over the items after so many steps."""
        return self._seen(steps) / len(self.items)

    def steps(self, epochs: float) -> int:
        """Steps that make at least so many passes, to the item."""
        return max(1, math.ceil(Fraction(str(epochs)) * len(self.items) / self.size))

    def _seen(self, steps: int) -> int:
        return math.floor(steps * self.size)

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            order = list(range(len(self.items)))
            random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch]


class Batches:
    """The batches of a training, by sequence (each part drawn by itself) or by task (all that some
    tasks hold).

    Only parts with a weight above 0 are drawn. Where the training is counted in steps, a batch by
    sequence has each part in
    its own number. Where it is counted in epochs, these numbers together are the batch's size, and
    each part has its share
    of it by the number of its sequences: so every part is passed over as often as every other. A
    part may then be absent
    from a batch, as by task: its term is 0 in that step, and `scale` makes up for it in the steps
    that have it.
    """

    def __init__(self, encoded: Encoded, config: DistillConfig) -> None:
        drawn: dict[Part, Sequence[TokenSequence]] = {
            p: encoded.parts[p] for p in PARTS if encoded.parts[p] and config.weight(p) > 0
        }
        self.parts: tuple[Part, ...] = tuple(drawn)
        self._by_part: dict[Part, Shuffler[TokenSequence]] = {}
        self._by_task: Shuffler[list[TokenSequence]] | None = None
        if config.batch_by == "sequence":
            sizes: dict[Part, int | Fraction] = {p: config.batch(p) for p in drawn}
            if config.max_steps is None:
                number = sum(map(len, drawn.values()))
                share = Fraction(min(number, sum(config.batch(p) for p in drawn)), max(1, number))
                sizes = {p: share * len(mine) for p, mine in drawn.items()}
            self._by_part = {
                p: Shuffler(mine, sizes[p], derive_seed(config.seed, p))
                for p, mine in drawn.items()
            }
        else:
            tasks: dict[str, list[TokenSequence]] = {}
            for mine in drawn.values():
                for sequence in mine:
                    tasks.setdefault(sequence.task_id, []).append(sequence)
            self._by_task = Shuffler(
                list(tasks.values()), config.tasks_per_batch, derive_seed(config.seed, "tasks")
            )

    def batch(self, step: int) -> list[TokenSequence]:
        """All sequences of the step, for all processes together."""
        if self._by_task is not None:
            return [s for task in self._by_task.batch(step) for s in task]
        return [s for shuffler in self._by_part.values() for s in shuffler.batch(step)]

    def scale(self, part: Part) -> float:
        """What a part's mean in a batch is multiplied with, so that over the steps it has its whole
        weight in the objective: one over
        the share of batches that hold the part, where a batch by sequence holds less than one of
        its sequences."""
        shuffler = self._by_part.get(part)
        return 1.0 if shuffler is None else max(1.0, float(1 / shuffler.size))

    def steps(self, epochs: float) -> int:
        """Steps for at least so many passes over each part, or over the tasks."""
        if self._by_task is not None:
            return self._by_task.steps(epochs)
        return max(s.steps(epochs) for s in self._by_part.values())

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each part after so many steps."""
        if self._by_task is not None:
            return dict.fromkeys(self.parts, self._by_task.epochs(steps))
        return {p: s.epochs(steps) for p, s in self._by_part.items()}


def deal(
    costs: Sequence[int], lengths: Sequence[int], budget: int | None, ranks: int
) -> list[list[list[int]]]:
    """Rows as forward passes of each rank: `deal(...)[rank][nth]` are the rows of a pass, as
    indices. `costs`: their tokens in all; `lengths`: in this pass.

    Every row is in one pass. A pass, padded to its longest row, holds at most `budget` tokens, or a
    single row that alone is longer. The ranks' costs
    differ by no more than the costliest row, and every rank makes as many passes: one that runs out
    of rows makes empty ones.
    """
    loads = [(0, rank) for rank in range(ranks)]
    mine: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(
        range(len(costs)), key=lambda i: (-costs[i], i)
    ):  # the costliest first, each to the rank that has least
        load, rank = heapq.heappop(loads)
        mine[rank].append(row)
        heapq.heappush(loads, (load + costs[row], rank))
    passes = [_cut(sorted(rows, key=lambda i: (-lengths[i], i)), lengths, budget) for rows in mine]
    number = max(1, *map(len, passes))
    return [[*p, *([] for _ in range(number - len(p)))] for p in passes]


def _cut(rows: Sequence[int], lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Rows in falling length as passes: neighbours are of like length, so that little is padded."""
    passes: list[list[int]] = []
    for row in rows:
        if passes and (budget is None or lengths[passes[-1][0]] * (len(passes[-1]) + 1) <= budget):
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes
