"""Every row of a table against one of them: paired differences that cover other tasks, seeds and base policies, and claims that stay right together.

A *run* is one seed of one base policy; a row's difference in a run is the mean over its tasks. Two things make the mean of the runs uncertain, and each has
its own interval. From run to run: Student's t over the runs' means, which holds whatever comes between runs (seeds, training, base policies, tasks), as long
as they are draws like any other. From task to task: the mean of the tasks that are there, a task that several runs share counted as one. The interval is the
wider of the two, and p the larger: with few runs that agree by luck the tasks still have their say, and one run has nothing else. By simulation
(tests/evaluate/test_contrast.py) such an interval covers the truth in 93 to 97 % where runs are independent or share their tasks; a bootstrap of runs and
then tasks in 81 to 98 %. Where two base policies differ as much as runs do, six runs of them cover 86 %: two are no sample of base policies, and no interval
makes them one.

Intervals are 95 % each. The claims (above, below, not decided) are Holm's over all rows and all k of the table: with 95 % nothing claimed is false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leafe.core import UserError
from leafe.evaluate._passk import Counts

Floats = NDArray[np.float64]
Claim = Literal["above", "below", "not decided"]
Over = Literal["runs", "tasks"]
"""What a claim is about. runs: other seeds and base policies too. tasks: other tasks alone, for these very trainings: all that two or three runs allow."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Pass@k of `row` minus that of the reference, on the same tasks of the same runs. NaN where nothing allows it."""

    row: str
    k: int
    value: float
    low: float
    high: float
    p: float
    """Two-sided, of no difference, before Holm's correction."""
    claim: Claim
    """By Holm's correction over the whole table."""
    runs: int
    agree: int
    """Runs whose own difference has the sign of `value`."""
    tasks: int
    """Pairs of a run and a task."""

    def to_json(self) -> dict[str, Any]:
        return {name: None if isinstance(v, float) and math.isnan(v) else round(v, 6) if isinstance(v, float) else v for name, v in asdict(self).items()}


def contrasts(rows: Mapping[str, Mapping[str, Counts]], reference: str, ks: Sequence[int], alpha: float = 0.05, over: Over = "runs") -> list[Contrast]:
    """All rows but the reference, each at every k, over the runs that both have (rows without any are left out). `rows`: by name, the counts of each run by the
    run's name. UserError where there is no such reference, or a run's tasks differ between two rows."""
    if reference not in rows:
        raise UserError(f"There is no row {reference!r} to compare with: choose one of {', '.join(rows)}.")
    found = []
    for row, mine in rows.items():
        shared = [run for run in mine if run in rows[reference]]
        if row != reference and shared:
            for k in ks:
                pairs = [paired_by_task(mine[run], rows[reference][run], k, row, reference) for run in shared]
                found.append(contrast(row, k, [d for d in pairs if d], over))
    for nth in holm([c.p for c in found], alpha):
        found[nth] = replace(found[nth], claim="above" if found[nth].value > 0 else "below")
    return found


def holm(p: Sequence[float], alpha: float = 0.05) -> list[int]:
    """Indices of the hypotheses that are rejected, so that with probability 1 - `alpha` none of these is true; NaN is none."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    kept = []
    for nth, i in enumerate(order):
        if p[i] > alpha / (len(order) - nth):
            break
        kept.append(i)
    return sorted(kept)


def paired_by_task(a: Counts, b: Counts, k: int, row: str, reference: str) -> dict[str, float]:
    """Pass@k of `row` minus that of `reference` on every task of one run that has enough samples on both sides; UserError where the tasks differ."""
    if set(a.tasks) != set(b.tasks):
        raise UserError(f"{row} and {reference} were sampled on different tasks in the same run: evaluate both on one split.")
    other = dict(zip(b.tasks, b.pass_at(k), strict=True))
    return {t: float(v - other[t]) for t, v in zip(a.tasks, a.pass_at(k), strict=True) if not math.isnan(v - other[t])}


def contrast(row: str, k: int, runs: Sequence[Mapping[str, float]], over: Over = "runs") -> Contrast:
    """The mean of the runs' means of these differences, each by its task; the claim is left open, since Holm's correction is the caller's."""
    tasks = sum(map(len, runs))
    if not runs:
        nan = math.nan
        return Contrast(row, k, nan, nan, nan, nan, "not decided", 0, 0, 0)
    means = np.asarray([np.mean(list(run.values())) for run in runs])
    value = float(means.mean())
    half, p = 0.0, 0.0
    between = _over_runs(means) if over == "runs" else (0.0, 0)
    for error, freedom in (between, _over_tasks(runs, means)):
        if freedom > 0:
            half = max(half, t_quantile(0.975, freedom) * error)
            p = max(p, t_two_sided(abs(value) / error, freedom) if error > 0 else float(value == 0))
    if between[1] <= 0 and tasks < 2:
        half = p = math.nan  # one task of one run says nothing of others
    agree = int(np.sum(np.sign(means) == np.sign(value)))
    low, high = (value - half, value + half) if math.isnan(half) else (max(-1.0, value - half), min(1.0, value + half))
    return Contrast(row, k, value, low, high, p, "not decided", len(runs), agree, tasks)


def _over_runs(means: Floats) -> tuple[float, int]:
    """(standard error of the mean, degrees of freedom)."""
    n = len(means)
    return (float(means.std(ddof=1)) / math.sqrt(n), n - 1) if n > 1 else (0.0, 0)


def _over_tasks(runs: Sequence[Mapping[str, float]], means: Floats) -> tuple[float, int]:
    """(standard error of the mean of the runs' means, degrees of freedom), with the runs as they are and a task of several runs as one draw."""
    shares: dict[str, float] = {}
    for run, mean in zip(runs, means, strict=True):
        for task, value in run.items():
            shares[task] = shares.get(task, 0.0) + (value - float(mean)) / len(run) / len(runs)
    n = len(shares)
    return (math.sqrt(n / (n - 1) * sum(s * s for s in shares.values())), n - 1) if n > 1 else (0.0, 0)


def t_two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t is further from 0 than `t`: with t = sqrt(f) tan(a) its density is that of cos(a)^(f - 1)."""
    return _cosines(math.atan(t / math.sqrt(freedom)), math.pi / 2, freedom) / _cosines(0.0, math.pi / 2, freedom)


@lru_cache(maxsize=64)
def t_quantile(probability: float, freedom: float) -> float:
    """The t that is exceeded with probability 1 - `probability` (above 0.5), by halving."""
    low, high = 0.0, 1.0
    while 1 - t_two_sided(high, freedom) / 2 < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_two_sided(middle, freedom) / 2 < probability else (low, middle)
    return (low + high) / 2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def _cosines(start: float, end: float, freedom: float) -> float:
    """The integral of cos(a)^(freedom - 1) from `start` to `end`."""
    half = (end - start) / 2
    angles = start + half * (_NODES + 1)
    return float(half * np.sum(_WEIGHTS * np.cos(angles) ** (freedom - 1)))
