"""What an exploration found for what it spent: tasks solved at least once, and the same as a curve
over the spending.

The curve is read off the trees: a task's turns stand in the order in which they were made, so the
cost of its first success is known
after the fact, and one exploration gives the coverage at every smaller budget for each task.
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
    """The fraction of tasks that were solved at least once, with the Wilson interval."""
    return wilson(sum(t.solved for t in trees), len(trees))


@dataclass(frozen=True, slots=True)
class CoverageCurve:
    """Coverage when every task may spend `budget`: a step function. Starts at budget 0."""

    budget: tuple[int, ...]
    solved: tuple[int, ...]
    tasks: int
    end: int
    """The most that any task spent: right of it the curve says nothing."""

    def at(self, budget: int) -> float:
        """Coverage, as a fraction, with this much spent on each task."""
        if not self.tasks:
            return float("nan")
        return (
            self.solved[int(np.searchsorted(self.budget, budget, side="right")) - 1] / self.tasks
            if budget >= 0
            else 0.0
        )


def coverage_curve(
    trees: Sequence[Tree], cost: Literal["policy_calls", "env_steps"] = "policy_calls"
) -> CoverageCurve:
    """Coverage against what was spent on each task, in the order in which its turns were made.

    policy_calls: completions, reflections included. env_steps: environment steps, as the budget
    counts them. Replays are counted
    apart: how many there were hangs on snapshots that were still held, and a run that was stopped
    has more of them.
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
    """(cost up to and with the winning turn of the first success or None, cost of the whole
    tree)."""
    spent, first = 0, None
    for episode in tree.episodes:
        for turn in episode.turns:
            spent += 1 if cost == "policy_calls" else turn.env_steps
            if first is None and turn.success:
                first = spent
    return first, spent


def spent(trees: Sequence[Tree]) -> Spent:
    """What the recorded episodes cost, added up; `seconds` stays 0: they overlapped, and wall time
    is the caller's to take."""
    out = Spent()
    for tree in trees:
        for episode in tree.episodes:
            add_cost(out, episode)
    return out
