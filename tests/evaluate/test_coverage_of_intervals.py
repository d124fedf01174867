"""Intervals cover the truth as often as they say where it is hard: few tasks, few seeds, figures
that are 0 or 1, figures that are nearly always the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.evaluate import Counts, contrast, contrasts, mean_rate, paired_difference, pass_estimate
from leafe.evaluate._mean import mean_of

Draw = Callable[[np.random.Generator, int], "np.ndarray"]
TRIALS = 250
ENOUGH = 0.93 - 2 * math.sqrt(0.93 * 0.07 / TRIALS)
"""93 %, and two standard errors of a simulation of this size. One of 600 trials over 540 settings
had 94.5 at the least."""


def of(*values: float, p: tuple[float, ...]) -> tuple[Draw, float]:
    """(draws of figures that are these with these chances, their mean)."""
    return (lambda rng, n: rng.choice(values, size=n, p=p)), float(np.dot(values, p))


DIFFERENCES = {
    "never": of(-1, 0, 1, p=(0, 1, 0)),
    "hardly ever": of(-1, 0, 1, p=(0, 0.98, 0.02)),
    "seldom": of(-1, 0, 1, p=(0, 0.9, 0.1)),
    "both ways, seldom": of(-1, 0, 1, p=(0.05, 0.9, 0.05)),
    "a coin": of(-1, 0, 1, p=(0.3, 0.4, 0.3)),
    "nearly always": of(-1, 0, 1, p=(0.05, 0, 0.95)),
    "small, and seldom large": of(0.0, 1 / 128, 1.0, p=(0.5, 0.45, 0.05)),
}


def runs_of(
    rng: np.random.Generator, draw: Draw, runs: int, tasks: int, shared: bool
) -> list[dict[str, float]]:
    one = draw(rng, tasks)
    values = [one if shared else draw(rng, tasks) for _ in range(runs)]
    return [
        {f"{0 if shared else r}/{i}": float(v) for i, v in enumerate(run)}
        for r, run in enumerate(values)
    ]


@pytest.mark.parametrize(("runs", "shared"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("tasks", [2, 6, 30])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_of_differences(name: str, tasks: int, runs: int, shared: bool) -> None:
    draw, truth = DIFFERENCES[name]
    rng = np.random.default_rng(1)
    found = [contrast("a", 1, runs_of(rng, draw, runs, tasks, shared)) for _ in range(TRIALS)]
    assert sum(c.low - 1e-9 <= truth <= c.high + 1e-9 for c in found) / TRIALS >= ENOUGH
    if truth == 0:
        assert sum(c.p < 0.05 for c in found) / TRIALS <= 1 - ENOUGH


@pytest.mark.parametrize("tasks", [3, 30])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.97])
def test_of_pass_at_k(rate: float, tasks: int) -> None:
    """One sample a task: 0 or 1."""
    rng = np.random.default_rng(2)
    one, none = np.ones(tasks, dtype=np.int64), np.zeros(tasks, dtype=np.int64)
    names = tuple(map(str, range(tasks)))
    hits = 0
    for _ in range(TRIALS):
        found = pass_estimate(
            [Counts(names, one, (rng.random(tasks) < rate).astype(np.int64), none)], 1
        )
        assert 0 <= found.low <= found.value <= found.high <= 1
        hits += found.low <= rate <= found.high
    assert hits / TRIALS >= ENOUGH


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_of_other_seeds(seeds: int, spread: float) -> None:
    """Every seed has a rate of its own, and tasks that say 0 or 1; the truth is what all seeds have
    on the mean."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(TRIALS):
        runs = []
        for seed in range(seeds):
            gain = 0.2 + rng.uniform(-spread, spread)
            runs.append({f"{seed}/{i}": float(v) for i, v in enumerate(rng.random(20) < gain)})
        found = contrast("a", 1, runs)
        hits += found.low <= 0.2 <= found.high
    assert hits / TRIALS >= ENOUGH


def test_no_variance_is_no_certainty() -> None:
    """Two tasks that differ by 1 each were [1, 1] with p = 0."""
    names, none = tuple(map(str, range(12))), np.zeros(12, dtype=np.int64)
    for tasks, claimed in ((1, False), (2, False), (5, False), (12, True)):
        mine = Counts(names[:tasks], none[:tasks] + 4, none[:tasks] + 4, none[:tasks])
        other = Counts(names[:tasks], none[:tasks] + 4, none[:tasks], none[:tasks])
        for runs in (1, 2):
            (found,) = contrasts(
                {
                    "a": {str(r): mine for r in range(runs)},
                    "b": {str(r): other for r in range(runs)},
                },
                "b",
                [1],
            )
            assert (found.value, found.high) == (1.0, 1.0)
            assert (found.p < 0.05, found.low > 0, found.claim == "above") == (claimed,) * 3
            apart = paired_difference([mine] * runs, [other] * runs, 1)
            assert (apart.low, apart.high) == (found.low, found.high)
            assert pass_estimate([mine] * runs, 1).low < 1.0
            assert pass_estimate([other] * runs, 1).high > 0.0
    same = mean_rate([dict.fromkeys("abcdefghij", 0.0)])
    assert 0.25 < same.high < 0.4, "about the rule of three"


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdefg"), st.floats(-1, 1), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["runs", "tasks"]),
)
def test_interval_and_p_say_the_same_and_turn_with_the_sign(
    runs: list[dict[str, float]], over: str
) -> None:
    found = mean_of(runs, -1, 1, over)  # type: ignore[arg-type]
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert 0 <= found.p <= 1
    if abs(found.low) > 1e-9 and abs(found.high) > 1e-9:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    turned = mean_of([{t: -v for t, v in run.items()} for run in runs], -1, 1, over)  # type: ignore[arg-type]
    assert [turned.value, turned.low, turned.high, turned.p] == pytest.approx(
        [-found.value, -found.high, -found.low, found.p], abs=1e-9
    )
