"""Batches as a pure function of seed and step, and rows distributed to processes by tokens.

So a killed training and an unbroken one are the same: no position in the data has to be stored.
How a batch is split into forward passes never changes its gradient, since every row's weights are
divided by the whole batch's own sums. Needs no torch.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from typing import Generic, TypeVar

from leafe.core import derive_seed
from leafe.distill._config import PARTS, DistillConfig, Part
from leafe.distill._tokens import Encoded, TokenSequence

_T = TypeVar("_T")


class Shuffler(Generic[_T]):
    """Batches of items, epoch after epoch in a new order; `batch(step)` depends on the seed and the
    step alone.

    Args:
        items: What to draw from.
        size: Items of a batch. With a fraction batches differ by one item, and some may be empty.
        seed: Of the orders.
    """

    def __init__(self, items: Sequence[_T], size: int | Fraction, seed: int) -> None:
        self.items = items
        self.size = min(Fraction(size), Fraction(len(items)))
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def batch(self, step: int) -> list[_T]:
        """The items of step 0, 1, 2, ...; a batch may span two epochs."""
        return [
            self.items[self._order(k // len(self.items))[k % len(self.items)]]
            for k in range(self._seen(step), self._seen(step + 1))
        ]

    def epochs(self, steps: int) -> float:
        """Passes over the items after this many steps."""
        return self._seen(steps) / len(self.items)

    def steps(self, epochs: float) -> int:
        """The fewest steps that make at least this many passes."""
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
    """The batches of a training: by sequence (each part drawn by itself) or by task (all samples of
    some tasks).

    Only parts with a weight above 0 are drawn. With `max_steps` a batch by sequence holds each part
    in its own number. With `num_train_epochs` the parts' numbers together are the batch size, and
    each part has its share by its number of sequences, so that all parts are passed over equally
    often. A part may then be absent from a batch, as by task: its term is 0 in that step, and
    `scale` makes up for it in the other steps.
    """

    def __init__(self, encoded: Encoded, config: DistillConfig) -> None:
        drawn: dict[Part, Sequence[TokenSequence]] = {
            p: encoded.parts[p] for p in PARTS if encoded.parts[p] and config.weight(p) > 0
        }
        self.parts: tuple[Part, ...] = tuple(drawn)
        # what is drawn together, by part or all as "tasks"
        groups: dict[str, list[list[TokenSequence]]]
        sizes: dict[str, int | Fraction] = {p: config.batch_size(p) for p in drawn}
        if config.batch_by == "task":
            tasks: dict[str, list[TokenSequence]] = {}
            for sequence in chain(*drawn.values()):
                tasks.setdefault(sequence.task_id, []).append(sequence)
            groups, sizes = {"tasks": list(tasks.values())}, {"tasks": config.tasks_per_batch}
        else:
            groups = {p: [[s] for s in sequences] for p, sequences in drawn.items()}
            if config.max_steps is None:
                number = sum(map(len, drawn.values()))
                share = Fraction(min(number, sum(map(config.batch_size, drawn))), max(1, number))
                sizes = {p: share * len(sequences) for p, sequences in drawn.items()}
        self._shufflers = {
            name: Shuffler(items, sizes[name], derive_seed(config.seed, name))
            for name, items in groups.items()
        }

    def batch(self, step: int) -> list[TokenSequence]:
        """All sequences of the step, for all processes together."""
        return [s for shuffler in self._shufflers.values() for s in chain(*shuffler.batch(step))]

    def scale(self, part: Part) -> float:
        """The factor of a part's mean in a batch that gives it its whole weight over the steps: one
        over the share of batches that hold the part."""
        shuffler = self._shufflers.get(part)
        return 1.0 if shuffler is None else max(1.0, float(1 / shuffler.size))

    def steps(self, epochs: float) -> int:
        """Steps for at least this many passes over each part, or over the tasks."""
        return max(s.steps(epochs) for s in self._shufflers.values())

    def epochs(self, steps: int) -> dict[str, float]:
        """Passes over each part after this many steps."""
        tasks = self._shufflers.get("tasks")
        return {p: (tasks or self._shufflers[p]).epochs(steps) for p in self.parts}


def distribute(
    costs: Sequence[int], lengths: Sequence[int], budget: int | None, ranks: int
) -> list[list[list[int]]]:
    """Assign rows to processes and split each process's rows into forward passes.

    Args:
        costs: Tokens of each row, all passes together.
        lengths: Tokens of each row in the trained policy's pass.
        budget: Most tokens of a pass, padded to its longest row; a single longer row has a pass of
            its own. None: no limit.
        ranks: The number of processes.

    Returns:
        `[rank][nth]`: the rows of a pass, as indices. Every row is in one pass. The ranks' costs
        differ by at most the costliest row. All ranks make equally many passes; a rank without
        rows left makes empty ones.
    """
    loads = [(0, rank) for rank in range(ranks)]
    rows: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)  # the costliest row to the rank with least
        rows[rank].append(row)
        heapq.heappush(loads, (load + costs[row], rank))
    passes = [_passes(sorted(r, key=lambda i: (-lengths[i], i)), lengths, budget) for r in rows]
    number = max(1, *map(len, passes))
    return [[*p, *([] for _ in range(number - len(p)))] for p in passes]


def _passes(rows: Sequence[int], lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Rows of falling length as passes: neighbours have similar lengths, so little is padded."""
    passes: list[list[int]] = []
    for row in rows:
        if passes and (budget is None or lengths[passes[-1][0]] * (len(passes[-1]) + 1) <= budget):
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes
