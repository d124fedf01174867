"""What an exploration found for what it spent: tasks solved at least once, also as a curve over the
spending.

The curve is read off the trees: a task's turns stand in the order in which they were made, so the
cost of its first success is known afterwards, and one exploration gives the coverage at every
smaller budget per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leafe.core import Spent, Tree
from leafe.evaluate._intervals import Estimate, wilson
from leafe.explore import add_cost


def coverage(trees: Sequence[Tree]) -> Estimate:
    """The fraction of tasks solved at least once, with the Wilson interval."""
    return wilson(sum(t.solved for t in trees), len(trees))


@dataclass(frozen=True, slots=True)
class CoverageCurve:
    """Coverage over the budget of each task: a step function that starts at budget 0."""

    budget: tuple[int, ...]
    solved: tuple[int, ...]
    tasks: int
    end: int
    """The most that any task spent: beyond it the curve is undefined."""

    def at(self, budget: int) -> float:
        """Coverage, as a fraction, with this much spent on each task; NaN without tasks."""
        if not self.tasks:
            return float("nan")
        if budget < 0:
            return 0.0
        return self.solved[int(np.searchsorted(self.budget, budget, "right")) - 1] / self.tasks


def coverage_curve(
    trees: Sequence[Tree], cost: Literal["policy_calls", "env_steps"] = "policy_calls"
) -> CoverageCurve:
    """Coverage against what was spent on each task.

    Args:
        trees: One for each task.
        cost: policy_calls: completions, reflections included. env_steps: environment steps as the
            budget counts them, without replays, whose number depends on the snapshots that were
            still held.
    """
    firsts, ends = [], [0]
    for tree in trees:
        first, spent = _first_success(tree, cost)
        ends.append(spent)
        if first is not None:
            firsts.append(first)
    budgets, new = np.unique(np.asarray([0, *firsts], dtype=np.int64), return_counts=True)
    new[0] -= 1  # the budget 0 that starts the curve solves nothing
    return CoverageCurve(
        tuple(int(b) for b in budgets), tuple(int(s) for s in np.cumsum(new)), len(trees), max(ends)
    )


def _first_success(tree: Tree, cost: str) -> tuple[int | None, int]:
    """The cost up to and with the winning turn of the first success (None: no success), and the
    cost of the whole tree."""
    spent, first = 0, None
    for episode in tree.episodes:
        for turn in episode.turns:
            spent += 1 if cost == "policy_calls" else turn.env_steps
            if first is None and turn.success:
                first = spent
    return first, spent


def spent(trees: Sequence[Tree]) -> Spent:
    """The cost of all recorded episodes. `seconds` stays 0: episodes overlap, so the caller
    measures wall time."""
    out = Spent()
    for tree in trees:
        for episode in tree.episodes:
            add_cost(out, episode)
    return out
