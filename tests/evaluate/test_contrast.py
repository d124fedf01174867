"""Claims against one row hold as often as they say: by simulation, with what differs between tasks,
seeds and base policies made up and known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from leafe.core import UserError
from leafe.evaluate import Counts, contrast, contrasts, holm
from leafe.evaluate._mean import t_quantile, t_two_sided

# from printed tables: (degrees of freedom, t that is exceeded on both sides together with
# probability 0.05, with 0.001)
TABLE = [
    (1, 12.7062, 636.619),
    (2, 4.3027, 31.599),
    (5, 2.5706, 6.869),
    (10, 2.2281, 4.587),
    (30, 2.0423, 3.646),
    (120, 1.9799, 3.373),
]


@pytest.mark.parametrize(("freedom", "five", "one"), TABLE)
def test_students_t_is_that_of_the_tables(freedom: int, five: float, one: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(five, abs=1e-4)
    assert t_two_sided(five, freedom) == pytest.approx(0.05, abs=1e-5)
    assert t_two_sided(one, freedom) == pytest.approx(0.001, rel=3e-3)
    assert t_two_sided(0.0, freedom) == pytest.approx(1.0)


def drawn(
    rng: np.random.Generator,
    bases: int,
    seeds: int,
    tasks: int,
    base: float = 0.0,
    seed: float = 0.0,
    run: float = 0.0,
    task: float = 0.2,
    noise: float = 0.2,
) -> list[dict[str, float]]:
    """Differences without an effect: each standard deviation is that between bases, seeds, runs,
    tasks (which the bases share), and within a task."""
    of_base, of_seed = rng.normal(0, base, bases), rng.normal(0, seed, seeds)
    of_task = rng.normal(0, task, (seeds, tasks))
    out = []
    for b in range(bases):
        for s in range(seeds):
            values = (
                of_base[b]
                + of_seed[s]
                + rng.normal(0, run)
                + of_task[s]
                + rng.normal(0, noise, tasks)
            )
            out.append({f"{s}/{i}": float(v) for i, v in enumerate(values)})
    return out


def coverage(trials: int, bases: int, seeds: int, **spread: float) -> float:
    rng = np.random.default_rng(1)
    found = [contrast("a", 1, drawn(rng, bases, seeds, 60, **spread)) for _ in range(trials)]
    return sum(c.low <= 0 <= c.high for c in found) / trials


@pytest.mark.parametrize(
    ("bases", "seeds", "spread"),
    [
        (1, 1, {}),  # tasks alone
        (2, 3, {"run": 0.0}),  # nothing between runs, tasks shared by the bases
        (2, 3, {"run": 0.03}),
        (2, 3, {"run": 0.1}),
        (1, 3, {"run": 0.03, "seed": 0.03}),
        (1, 6, {"run": 0.1}),
    ],
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    bases: int, seeds: int, spread: Mapping[str, float]
) -> None:
    assert 0.92 <= coverage(600, bases, seeds, **spread) <= 0.998


def test_over_tasks_alone_it_covers_what_these_runs_would_be_on_all_tasks() -> None:
    """The truth is then what the drawn runs have, whatever lies between them."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        runs, effects = [], rng.normal(0, 0.2, 2)
        of_task = rng.normal(0, 0.2, 60)
        for effect in effects:
            runs.append(
                {str(i): float(effect + v + rng.normal(0, 0.2)) for i, v in enumerate(of_task)}
            )
        found = contrast("a", 1, runs, "tasks")
        hits += found.low <= effects.mean() <= found.high
    assert 0.92 * 400 <= hits <= 0.998 * 400


def test_two_base_policies_are_no_sample_of_base_policies() -> None:
    """What the module says of its limit: where bases differ as much as runs, six runs of two bases
    cover less than 95 %."""
    assert 0.80 <= coverage(600, 2, 3, base=0.05, run=0.05) <= 0.93


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.2))
def test_holm_is_the_step_down_rule(p: list[float], alpha: float) -> None:
    """Written the other way: a hypothesis falls if every one with a smaller or equal p passes its
    own bar."""
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])
    bars = [alpha / (m - place) for place in range(m)]
    expected = sorted(
        i for place, i in enumerate(order) if all(p[order[j]] <= bars[j] for j in range(place + 1))
    )
    got = holm(p, alpha)
    assert got == expected
    assert {i for i in range(m) if p[i] <= alpha / max(1, m)} <= set(got), (
        "it claims what Bonferroni claims"
    )
    assert all(p[i] <= alpha for i in got)


def test_nan_is_never_claimed_and_costs_nothing() -> None:
    assert holm([math.nan, 0.04]) == [1]
    assert holm([math.nan]) == holm([]) == []


def test_of_twenty_rows_without_an_effect_hardly_ever_one_is_claimed() -> None:
    """The family-wise error, and the same without the correction for contrast."""
    rng = np.random.default_rng(3)
    claimed = single = 0
    for _ in range(150):
        p = [contrast("a", 1, drawn(rng, 2, 3, 40, run=0.03)).p for _ in range(20)]
        claimed += bool(holm(p))
        single += min(p) < 0.05
    assert claimed <= 0.10 * 150 < 0.4 * 150 <= single


def made(c: NDArray[np.int64], n: int = 8, tasks: tuple[str, ...] = ()) -> Counts:
    return Counts(
        tasks or tuple(f"t{i}" for i in range(len(c))),
        np.full(len(c), n),
        c,
        np.zeros(len(c), dtype=np.int64),
    )


def test_a_sure_gain_is_claimed_a_sure_loss_too_and_noise_is_not() -> None:
    rng = np.random.default_rng(4)
    hard = [rng.integers(2, 40, size=80) for _ in range(6)]
    rows = {
        "reference": {f"run{i}": made(h, 64) for i, h in enumerate(hard)},
        "better": {
            f"run{i}": made(h + rng.integers(3, 9, size=80), 64) for i, h in enumerate(hard)
        },
        "worse": {
            f"run{i}": made(np.maximum(h - rng.integers(2, 9, size=80), 0), 64)
            for i, h in enumerate(hard)
        },
        "same": {f"run{i}": made(h + rng.integers(-2, 3, size=80), 64) for i, h in enumerate(hard)},
        "fewer": {"run1": made(hard[1] + 4, 64), "elsewhere": made(hard[0][:3], 64)},
        "other tasks": {"elsewhere": made(hard[0][:3], 64)},
    }
    found = {c.row: c for c in contrasts(rows, "reference", [1])}
    assert set(found) == {"better", "worse", "same", "fewer"}
    assert {row: c.claim for row, c in found.items()} == {
        "better": "above",
        "worse": "below",
        "same": "not decided",
        "fewer": "above",
    }
    assert (found["better"].runs, found["better"].agree, found["better"].tasks) == (6, 6, 480)
    assert (found["fewer"].runs, found["fewer"].tasks) == (1, 80)
    assert found["better"].low < found["better"].value < found["better"].high


@given(st.lists(st.lists(st.integers(0, 8), min_size=4, max_size=4), min_size=1, max_size=4))
def test_swapping_row_and_reference_turns_the_sign(runs: list[list[int]]) -> None:
    zero = {str(i): made(np.full(4, 4)) for i in range(len(runs))}
    mine = {str(i): made(np.asarray(r)) for i, r in enumerate(runs)}
    there, back = (
        contrasts({"a": mine, "b": zero}, "b", [1, 8, 16]),
        contrasts({"a": mine, "b": zero}, "a", [1, 8, 16]),
    )
    for one, other in zip(there, back, strict=True):
        assert one.p == pytest.approx(other.p, nan_ok=True)
        assert [one.value, one.low, one.high] == pytest.approx(
            [-other.value, -other.high, -other.low], nan_ok=True
        )
        assert (one.k == 16) == math.isnan(one.value), (
            "k of more samples than there are says nothing"
        )
        assert one.k != 16 or (one.claim, one.runs) == ("not decided", 0)


def test_one_task_of_one_run_says_nothing_of_others() -> None:
    found = contrasts({"a": {"r": made(np.array([8]))}, "b": {"r": made(np.array([0]))}}, "b", [1])[
        0
    ]
    assert (found.value, found.low, found.high, found.p) == (1.0, -1.0, 1.0, 1.0)
    assert found.claim == "not decided"


def test_other_tasks_in_one_run_are_refused() -> None:
    with pytest.raises(UserError, match="a and b were sampled on different tasks"):
        contrasts(
            {
                "a": {"r": made(np.array([1, 2]))},
                "b": {"r": made(np.array([1, 2]), tasks=("t0", "x"))},
            },
            "b",
            [1],
        )
    with pytest.raises(UserError, match="no row 'c' to compare with: choose one of a"):
        contrasts({"a": {}}, "c", [1])
