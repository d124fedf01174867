"""A figure with its 95 % interval: of a rate, of Pass@k, and of a difference on the same tasks.

Intervals are over tasks, since samples of one task are alike, tasks differ, and a claim is about
unseen tasks; over runs as well where there are several. `_mean` computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from leafe.core import UserError
from leafe.evaluate._mean import CONFIDENCE, mean_of
from leafe.evaluate._passk import Counts


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval. NaN throughout where no task allows it."""

    value: float
    low: float
    high: float
    tasks: int
    """How many values (tasks, over all runs) entered it: fewer than all where some had too few
    samples for k."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """A rate with the Wilson score interval, which has a width at 0 and at 1 too. Raises ValueError
    where 0 <= successes <= trials does not hold."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # at the ends the bound is the rate itself; rounding must not put it a hair inside
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Estimate(rate, low, high, trials)


def mean_rate(runs: Sequence[Mapping[str, float]]) -> Estimate:
    """The mean of the runs' mean rates. `runs`: of each run the rates, in [0, 1], by task."""
    return _estimate(runs, 0.0)


def pass_estimate(runs: Sequence[Counts], k: int) -> Estimate:
    """Pass@k of a policy, mean over tasks (and runs). Tasks with n < k are left out (`tasks`)."""
    return mean_rate(
        [
            {
                t: v
                for t, v in zip(run.tasks, run.pass_at(k).tolist(), strict=True)
                if not math.isnan(v)
            }
            for run in runs
        ]
    )


def paired_difference(a: Sequence[Counts], b: Sequence[Counts], k: int) -> Estimate:
    """Pass@k of `a` minus that of `b`, run by run. The interval is that of `contrast`.

    The difference is taken within each task first, so that a task's difficulty cancels. A task
    where either has n < k is left out.

    Raises:
        UserError: The runs or their tasks differ.
    """
    if len(a) != len(b):
        raise UserError(
            f"A paired difference needs the same runs on both sides; there are {len(a)} and "
            f"{len(b)}: evaluate both with the same seeds."
        )
    return _estimate(
        [paired_by_task(left, right, k) for left, right in zip(a, b, strict=True)], -1.0
    )


def paired_by_task(
    a: Counts, b: Counts, k: int, row: str = "One row", reference: str = "the other"
) -> dict[str, float]:
    """Pass@k of `a` minus that of `b` by task, for the tasks of one run that have enough samples on
    both sides. `row` and `reference` name the two in messages.

    Raises:
        UserError: The tasks differ.
    """
    odd = sorted(set(a.tasks) ^ set(b.tasks))
    if odd:
        shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        one_side = f"{len(odd)} stand on one side only ({shown})"
        raise UserError(
            f"{row} and {reference} were sampled on different tasks in the same run, {one_side}: "
            "evaluate both on one split."
        )
    other = dict(zip(b.tasks, b.pass_at(k), strict=True))
    return {
        t: float(v - other[t])
        for t, v in zip(a.tasks, a.pass_at(k), strict=True)
        if not math.isnan(v - other[t])
    }


def _estimate(runs: Sequence[Mapping[str, float]], least: float) -> Estimate:
    found = mean_of(runs, least, 1.0)
    return Estimate(found.value, found.low, found.high, sum(map(len, runs)))
