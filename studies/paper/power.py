"""How many tasks a comparison needs, from the spread of its paired differences.

A paired difference of `effect` is found with the wanted power when its standard error is effect /
(z_alpha/2 + z_power). Another task adds one draw of the spread within runs, another run one of the
spread between runs. The normal approximation plus Guenther's z^2 / 2 for Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

EFFECT, POWER, ALPHA = 0.05, 0.8, 0.05
"""Five points, at 80 %, two-sided at 5 %, before any correction for several claims."""


@dataclass(frozen=True, slots=True)
class RequiredSize:
    """The tasks and runs that a difference of `EFFECT` needs. None: the data cannot say (fewer than
    two tasks or runs, or no spread at all)."""

    spread: float | None
    """Standard deviation of the difference from task to task, within runs; a fraction."""
    tasks: int | None
    """Tasks, over all runs together, if runs did not differ."""
    run_spread: float | None
    """Standard deviation of the runs' mean differences."""
    runs: int | None
    """Runs of as many tasks as these have."""


def required_size(
    runs: Sequence[Mapping[str, float]],
    effect: float = EFFECT,
    power: float = POWER,
    alpha: float = ALPHA,
) -> RequiredSize:
    """The required size, from each run's differences by task.

    Args:
        runs: a run's paired differences by task, as fractions of 1.
        effect: the difference to find, a fraction of 1.
        power: the probability of finding it.
        alpha: the two-sided level of the test.
    """
    values = [np.asarray(list(run.values()), dtype=np.float64) for run in runs if run]
    freedom = sum(len(v) - 1 for v in values)
    spread = (
        math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in values) / freedom)
        if freedom > 0
        else None
    )
    between = float(np.std([v.mean() for v in values], ddof=1)) if len(values) > 1 else None
    return RequiredSize(
        spread, _draws(spread, effect, power, alpha), between, _draws(between, effect, power, alpha)
    )


def _draws(spread: float | None, effect: float, power: float, alpha: float) -> int | None:
    if not spread:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2)
    reach = z + NormalDist().inv_cdf(power)
    return max(2, math.ceil((reach * spread / effect) ** 2 + z * z / 2))
