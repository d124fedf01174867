"""How sure a figure is: intervals over tasks, over seeds and tasks, and of a difference on the same tasks.

The task is the unit that is drawn again: samples of one task are alike, tasks are not, and a claim is about tasks that
nobody has seen. Where several runs are given, runs are drawn first and tasks within them (hierarchical bootstrap). All bootstrap
intervals are percentile intervals, seeded, and the same for the same input. A bootstrap of values that are all equal has no width: for a
coverage, where that happens at 0 and 1, use `wilson`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leafe.core import UserError
from leafe.evaluate._passk import Counts

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CACHED = 4_000_000  # entries of a resampling matrix that is kept; larger ones are made piece by piece


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval. NaN throughout where no task allows it."""

    value: float
    low: float
    high: float
    tasks: int
    """How many values (tasks, over all runs) entered it: less than all where some had too few samples for k."""

    @property
    def excludes_zero(self) -> bool:
        """The interval lies wholly on one side of 0."""
        return self.low > 0 or self.high < 0


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """A rate with the Wilson score interval: has a width at 0 and at 1 too."""
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


def bootstrap(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Estimate:
    """The mean over tasks of one run; NaN values (n < k) are left out and seen in `tasks`."""
    return hierarchical_bootstrap([values], seed=seed, resamples=resamples, confidence=confidence)


def hierarchical_bootstrap(runs: Sequence[ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of the runs' means: runs are drawn with replacement, then tasks within each drawn run.

    `runs` holds one array over tasks for each run (seed); they may differ in length. One run: the plain bootstrap over tasks.
    """
    kept = [v[~np.isnan(v)] for v in (np.asarray(r, dtype=np.float64).ravel() for r in runs)]
    kept = [v for v in kept if v.size]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(np.mean([v.mean() for v in kept]))
    # each slot of a resample is filled by one run, whose tasks are drawn afresh for that slot
    chosen = np.random.default_rng(seed).integers(len(kept), size=(resamples, len(kept)))
    means = np.zeros(resamples)
    for slot in range(len(kept)):
        for run, values in enumerate(kept):
            rows = chosen[:, slot] == run
            means[rows] += _task_means(values, resamples, (seed, slot))[rows] / len(kept)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), sum(v.size for v in kept))


def _task_means(values: Floats, resamples: int, seed: tuple[int, int]) -> Floats:
    """Means of `resamples` draws of the tasks with replacement; shape (resamples,)."""
    if values.size * resamples <= _CACHED:
        return _weights(values.size, resamples, seed) @ values
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    rows = max(1, _CACHED // values.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        out[start:stop] = values[rng.integers(values.size, size=(stop - start, values.size))].mean(axis=1)
    return out


@lru_cache(maxsize=4)
def _weights(size: int, resamples: int, seed: tuple[int, int]) -> Floats:
    """How often each task was drawn, over the number of tasks; shape (resamples, size). The same for every k and every arm of one summary."""
    drawn = np.random.default_rng(seed).integers(size, size=(resamples, size))
    drawn += np.arange(resamples)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size) / size


def pass_estimate(runs: Sequence[Counts], k: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Pass@k of a policy, mean over tasks (and runs), with its 95 % interval."""
    return hierarchical_bootstrap([r.pass_at(k) for r in runs], seed=seed, resamples=resamples)


def paired_difference(a: Sequence[Counts], b: Sequence[Counts], k: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Pass@k of `a` minus that of `b` on the same tasks, run by run; UserError where the tasks differ.

    A task where either has n < k is left out. The difference is taken within each task first, so that what makes a task hard cancels.
    """
    return hierarchical_bootstrap(paired_values(a, b, k), seed=seed, resamples=resamples)


def paired_values(a: Sequence[Counts], b: Sequence[Counts], k: int) -> list[Floats]:
    """Per run, the difference of Pass@k of every task, in the task order of `a`; UserError where the tasks differ."""
    if len(a) != len(b):
        raise UserError(f"A paired difference needs the same runs on both sides; there are {len(a)} and {len(b)}: evaluate both with the same seeds.")
    out = []
    for left, right in zip(a, b, strict=True):
        where = {task: i for i, task in enumerate(right.tasks)}
        odd = sorted(set(left.tasks) ^ set(right.tasks))
        if odd:
            shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
            raise UserError(f"A paired difference needs the same tasks on both sides; {len(odd)} stand on one side only ({shown}): evaluate both on one split.")
        out.append(left.pass_at(k) - right.pass_at(k)[[where[t] for t in left.tasks]])
    return out
