"""Every row of a table against one of them: paired differences that cover other tasks, seeds and
base policies, and claims that stay right together.

A row's difference in a run is the mean over its tasks; intervals and p values are those of `_mean`.
Where two base policies differ as much as runs do, six
runs of them cover 86 %: two are no sample of base policies, and no interval makes them one.

Intervals are 95 % each. The claims (above, below, not decided) are Holm's over all rows and all k
of the table: with 95 % nothing claimed is false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from leafe.core import UserError
from leafe.evaluate._intervals import paired_by_task
from leafe.evaluate._mean import Over, mean_of
from leafe.evaluate._passk import Counts

Claim = Literal["above", "below", "not decided"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Pass@k of `row` minus that of the reference, on the same tasks of the same runs. NaN where
    nothing allows it."""

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
        return {
            name: None
            if isinstance(v, float) and math.isnan(v)
            else round(v, 6)
            if isinstance(v, float)
            else v
            for name, v in asdict(self).items()
        }


def contrasts(
    rows: Mapping[str, Mapping[str, Counts]],
    reference: str,
    ks: Sequence[int],
    alpha: float = 0.05,
    over: Over = "runs",
) -> list[Contrast]:
    """All rows but the reference, each at every k, over the runs that both have (rows without any
    are left out). `rows`: by name, the counts of each run by the
    run's name. UserError where there is no such reference, or a run's tasks differ between two
    rows."""
    if reference not in rows:
        raise UserError(
            f"There is no row {reference!r} to compare with: choose one of {', '.join(rows)}."
        )
    found = []
    for row, mine in rows.items():
        shared = [run for run in mine if run in rows[reference]]
        if row != reference and shared:
            for k in ks:
                pairs = [
                    paired_by_task(mine[run], rows[reference][run], k, row, reference)
                    for run in shared
                ]
                found.append(contrast(row, k, [d for d in pairs if d], over))
    for nth in holm([c.p for c in found], alpha):
        found[nth] = replace(found[nth], claim="above" if found[nth].value > 0 else "below")
    return found


def holm(p: Sequence[float], alpha: float = 0.05) -> list[int]:
    """Indices of the hypotheses that are rejected, so that with probability 1 - `alpha` none of
    these is true; NaN is none."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    kept = []
    for nth, i in enumerate(order):
        if p[i] > alpha / (len(order) - nth):
            break
        kept.append(i)
    return sorted(kept)


def contrast(
    row: str, k: int, runs: Sequence[Mapping[str, float]], over: Over = "runs"
) -> Contrast:
    """The mean of the runs' means of these differences, each by its task; the claim is left open,
    since Holm's correction is the caller's."""
    runs = [run for run in runs if run]
    found = mean_of(runs, -1.0, 1.0, over)
    agree = sum(np.sign(np.mean(list(run.values()))) == np.sign(found.value) for run in runs)
    return Contrast(
        row,
        k,
        found.value,
        found.low,
        found.high,
        found.p,
        "not decided",
        len(runs),
        int(agree),
        sum(map(len, runs)),
    )
