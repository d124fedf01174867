"""Intervals cover what they should, pairs are the same tasks, seeds are a second level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.evaluate import (
    Counts,
    contrast,
    mean_rate,
    paired_by_task,
    paired_difference,
    pass_estimate,
    wilson,
)


def made(c: list[int], n: int = 8, names: list[str] | None = None) -> Counts:
    size = len(c)
    return Counts(
        tuple(names or [f"t{i}" for i in range(size)]),
        np.full(size, n),
        np.asarray(c),
        np.zeros(size, dtype=np.int64),
    )


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_own_equation(pair: tuple[int, int]) -> None:
    successes, trials = pair
    got = wilson(successes, trials)
    z = 1.959963984540054
    rate = successes / trials
    assert got.value == rate
    for bound, at_the_end in ((got.low, successes == 0), (got.high, successes == trials)):
        if not at_the_end:
            assert abs(rate - bound) == pytest.approx(
                z * math.sqrt(bound * (1 - bound) / trials), rel=1e-6
            )
    assert 0 <= got.low <= rate <= got.high <= 1
    assert got.high - got.low > 0


def test_wilson_of_nothing_is_nan() -> None:
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="3 successes in 2"):
        wilson(3, 2)


def test_with_many_tasks_it_is_the_normal_interval() -> None:
    values = np.random.default_rng(5).random(400)
    got = mean_rate([{str(i): v for i, v in enumerate(values)}])
    half = 1.96 * values.std() / math.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_tasks_without_enough_samples_are_left_out_and_counted() -> None:
    few = Counts(("a", "b", "c"), np.array([8, 8, 4]), np.array([8, 0, 4]), np.array([0, 0, 4]))
    got = pass_estimate([few], 8)
    assert (got.value, got.tasks) == (0.5, 2)
    nothing = pass_estimate([few], 16)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert nothing.tasks == 0


def test_a_pair_cancels_what_makes_tasks_hard() -> None:
    rng = np.random.default_rng(1)
    hard = rng.integers(0, 60, size=100)
    a, b = made(list(hard + 4), n=64), made(list(hard), n=64)
    difference = paired_difference([a], [b], 1)
    assert difference.value == pytest.approx(4 / 64)
    assert difference.high - difference.low < 0.08  # the same gain on every task
    assert difference.excludes_zero
    apart = pass_estimate([a], 1)
    assert apart.low < pass_estimate([b], 1).high  # the unpaired intervals overlap
    assert not paired_difference([a], [a], 1).excludes_zero


def test_a_pair_goes_by_names_and_not_by_order() -> None:
    a, b = made([1, 5, 3], names=["x", "y", "z"]), made([3, 1, 5], names=["z", "x", "y"])
    assert paired_difference([a], [b], 4).value == 0.0


def test_a_pair_of_different_tasks_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"different tasks in the same run, 2 stand on one side only \(t1, u1\)"
    ):
        paired_difference([made([1, 2])], [made([1, 2], names=["t0", "u1"])], 1)
    with pytest.raises(UserError, match="the same runs"):
        paired_difference([made([1])], [made([1]), made([1])], 1)


def test_seeds_are_a_second_level() -> None:
    rng = np.random.default_rng(2)
    runs = [
        {f"{r}/{i}": v for i, v in enumerate(np.clip(rng.normal(centre, 0.1, 200), 0, 1))}
        for r, centre in enumerate((0.2, 0.5, 0.8))
    ]
    got = mean_rate(runs)
    assert got.value == pytest.approx(np.mean([np.mean(list(r.values())) for r in runs]))
    assert got.tasks == 600
    pooled = mean_rate([{k: v for r in runs for k, v in r.items()}])
    assert got.high - got.low > 5 * (
        pooled.high - pooled.low
    )  # runs that differ are a width that more tasks do not take away
    same_tasks = mean_rate([runs[0]] * 3)
    one = mean_rate([runs[0]])
    assert (same_tasks.low, same_tasks.high) == pytest.approx((one.low, one.high)), (
        "the same tasks again are no further tasks"
    )


def test_a_difference_is_that_of_the_claims_and_nothing_is_nan() -> None:
    a, b = [made([1, 5, 3]), made([2, 2, 8])], [made([1, 1, 1]), made([0, 3, 7])]
    one, other = (
        paired_difference(a, b, 4),
        contrast("a", 4, [paired_by_task(x, y, 4) for x, y in zip(a, b, strict=True)]),
    )
    assert (one.value, one.low, one.high, one.tasks) == (
        other.value,
        other.low,
        other.high,
        other.tasks,
    )
    assert math.isnan(mean_rate([]).value)
    assert math.isnan(mean_rate([{}]).low)
