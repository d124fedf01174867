"""Every row of a table against one of them: paired differences that cover other tasks, seeds and
base policies, and claims that hold jointly.

A row's difference in a run is the mean over its tasks; intervals and p values are those of `_mean`.
Where two base policies differ as much as runs do, six runs of them cover 86 %: two base policies
are no sample of base policies.

Each interval is a 95 % one. The claims (above, below, not decided) are corrected by Holm's method
over all rows and all k of the table: with 95 % no claim is false.
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
    """Pass@k of `row` minus that of the reference, on the same tasks of the same runs. NaN where no
    task has enough samples."""

    row: str
    k: int
    value: float
    low: float
    high: float
    p: float
    """Two-sided p of no difference, before Holm's correction."""
    claim: Claim
    """By Holm's correction over the whole table."""
    runs: int
    agree: int
    """Runs whose own difference has the sign of `value`."""
    tasks: int
    """Pairs of a run and a task."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, rounded to six digits; NaN is null."""
        return {
            name: (None if math.isnan(v) else round(v, 6)) if isinstance(v, float) else v
            for name, v in asdict(self).items()
        }


def contrasts(
    rows: Mapping[str, Mapping[str, Counts]],
    reference: str,
    ks: Sequence[int],
    alpha: float = 0.05,
    over: Over = "runs",
) -> list[Contrast]:
    """Compare all rows with the reference, each at every k, over the runs that both have.

    Args:
        rows: By name, the counts of each run by the run's name. Rows without a run in common are
            left out.
        reference: The row to compare with.
        ks: The k of Pass@k.
        alpha: The chance of any false claim.
        over: What the intervals are about.

    Raises:
        UserError: There is no such reference, or a run's tasks differ between two rows.
    """
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
    """Holm's method: the indices of the rejected hypotheses, so that with probability 1 - `alpha`
    none of these is true. NaN is not rejected."""
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
    """The mean of the runs' means of these differences. The claim stays `not decided`: Holm's
    correction needs all of a table's p values.

    Args:
        row: Its name.
        k: The k of Pass@k.
        runs: Of each run the differences by task.
        over: What the interval is about.
    """
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
