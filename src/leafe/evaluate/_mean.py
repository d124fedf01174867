"""How certain the mean of bounded figures is: the one interval and the one p value of all figures.

A *run* is one seed of one base policy; its figure is the mean over its tasks, and the overall
figure is the mean of the runs'. There are three sources of uncertainty; the interval is as wide as
the widest:

- from run to run: Student's t over the runs' means, which holds whatever comes between runs (seeds,
  training, base policies, tasks), as long as they are draws like any other;
- from task to task: Student's t over the tasks that are there, a task of several runs counted once;
- tasks of a kind that was not seen: the same with one more task, which is as far on the other side
  as a figure can be. No variance is no certainty: ten tasks at 0 say little about a kind of which
  one task in ten is. For figures of -1, 0 and 1 this is McNemar's test with the continuity
  correction, for figures that are all 1 about the sign test, for n zeros about the rule of three.

By simulation (tests/evaluate/test_coverage_of_intervals.py) a 95 % interval covers the truth in 93
% or more, from two tasks on, with figures that are nearly always the same, and with few seeds.
Where tasks are few it is rather too wide (98 to 99 % at 60 ordinary tasks). A bootstrap over three
differing seeds covers 81 %, and over tasks of one and the same figure only that figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Over = Literal["runs", "tasks"]
"""What an interval is about. runs: other tasks, seeds and base policies. tasks: other tasks alone,
for these very trainings, which is all that two or three runs allow."""

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Mean:
    """NaN throughout where there is no figure."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, of a mean of 0."""


@dataclass(frozen=True, slots=True)
class _Uncertainty:
    """Student's t around a centre."""

    centre: float
    error: float
    freedom: int

    def bound(self, sign: int) -> float:
        """The end of the interval below (`sign` -1) or above (1) the centre."""
        return self.centre + sign * t_quantile(0.5 + CONFIDENCE / 2, self.freedom) * self.error

    def beyond(self, sign: int) -> float:
        """One-sided p: the chance of a centre so far on that side of 0, were the truth 0."""
        distance = sign * self.centre
        if self.error == 0:
            return float(distance <= 0)
        tail = t_two_sided(abs(distance) / self.error, self.freedom) / 2
        return tail if distance > 0 else 1 - tail


def mean_of(
    runs: Sequence[Mapping[str, float]], least: float, most: float, over: Over = "runs"
) -> Mean:
    """The mean of the runs' means, with its 95 % interval and p.

    Args:
        runs: Of each run its figures by task, without NaN; runs without a task are left out.
        least: No figure can be below this.
        most: Nor above this.
        over: Whether the interval is to hold for other runs or for these alone.
    """
    runs = [run for run in runs if run]
    if not runs:
        return Mean(math.nan, math.nan, math.nan, math.nan)
    means = np.asarray([np.mean(list(run.values())) for run in runs])
    value = float(means.mean())
    tasks, squares = _over_tasks(runs, means)
    both = []
    if tasks > 1:
        both.append(_Uncertainty(value, math.sqrt(tasks / (tasks - 1) * squares), tasks - 1))
    if over == "runs" and len(runs) > 1:
        both.append(
            _Uncertainty(value, float(means.std(ddof=1)) / math.sqrt(len(runs)), len(runs) - 1)
        )
    below = [*both, _one_more(value, tasks, squares, least)]
    above = [*both, _one_more(value, tasks, squares, most)]
    low = max(least, min(d.bound(-1) for d in below))
    high = min(most, max(d.bound(1) for d in above))
    p = 2 * min(max(d.beyond(1) for d in below), max(d.beyond(-1) for d in above))
    return Mean(value, min(low, value), max(high, value), min(1.0, p))


def _over_tasks(
    runs: Sequence[Mapping[str, float]], means: NDArray[np.float64]
) -> tuple[int, float]:
    """The number of distinct tasks, and the sum of the squares of what each adds to the mean; a
    task of several runs is one draw."""
    shares: dict[str, float] = {}
    for run, mean in zip(runs, means, strict=True):
        for task, value in run.items():
            shares[task] = shares.get(task, 0.0) + (value - float(mean)) / len(run) / len(runs)
    return len(shares), sum(s * s for s in shares.values())


def _one_more(value: float, tasks: int, squares: float, far: float) -> _Uncertainty:
    """The uncertainty with one more task, whose figure is `far`."""
    n = tasks + 1
    spread = tasks * tasks * squares + (value - far) ** 2 * tasks / n
    return _Uncertainty((tasks * value + far) / n, math.sqrt(spread / (n * tasks)), tasks)


def t_two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t is further from 0 than `t`. With t = sqrt(f) tan(a) its density
    is that of cos(a)^(f - 1)."""
    return _cosines(math.atan(t / math.sqrt(freedom)), math.pi / 2, freedom) / _all_cosines(freedom)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: float) -> float:
    """The t that is exceeded with probability 1 - `probability` (above 0.5), by halving."""
    low, high = 0.0, 1.0
    while 1 - t_two_sided(high, freedom) / 2 < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if 1 - t_two_sided(middle, freedom) / 2 < probability else (low, middle)
        )
    return (low + high) / 2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@lru_cache(maxsize=4096)
def _all_cosines(freedom: float) -> float:
    return _cosines(0.0, math.pi / 2, freedom)


def _cosines(start: float, end: float, freedom: float) -> float:
    """The integral of cos(a)^(freedom - 1) from `start` to `end`."""
    half = (end - start) / 2
    angles = start + half * (_NODES + 1)
    return float(half * np.sum(_WEIGHTS * np.cos(angles) ** (freedom - 1)))
