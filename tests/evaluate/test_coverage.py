"""Coverage and its curve over the spending; means by counts beside what was computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Kind, Stop, Tree
from leafe.evaluate import coverage, coverage_curve, measure, spent
from tests.evaluate.envs import Chance, Plain, Spell, play
from tests.trees import Ep, make_tree, trees


def test_the_curve_steps_up_where_tasks_were_first_solved() -> None:
    solved = make_tree(task_id="t0")  # 3 actions, a reflection; 2, a reflection; 2: won with call 9
    at_once = make_tree(Ep("a", "b"), Ep("c"), task_id="t1")
    never = make_tree(Ep(*"abcdefghijk", stop=Stop.horizon), task_id="t2")
    curve = coverage_curve([solved, at_once, never])
    assert (curve.budget, curve.solved, curve.tasks, curve.end) == ((0, 2, 9), (0, 1, 2), 3, 11)
    assert [curve.at(b) for b in (-1, 0, 1, 2, 8, 9, 100)] == [
        0.0,
        0.0,
        0.0,
        1 / 3,
        1 / 3,
        2 / 3,
        2 / 3,
    ]
    assert coverage([solved, at_once, never]).value == 2 / 3
    assert math.isnan(coverage_curve([]).at(3))


@given(st.lists(trees(), min_size=1, max_size=4))
def test_the_curve_ends_at_the_coverage_and_never_falls(some: list[Tree]) -> None:
    for cost in ("policy_calls", "env_steps"):
        curve = coverage_curve(some, cost)  # type: ignore[arg-type]
        assert list(curve.solved) == sorted(curve.solved)
        assert curve.at(curve.end) == pytest.approx(coverage(some).value)
    assert coverage_curve(some).end == max(sum(len(e.turns) for e in t.episodes) for t in some)
    assert spent(some).policy_calls == sum(len(t) for t in some)
    assert spent(some).episodes == sum(len(t.episodes) for t in some)


def test_means_go_by_samples_and_costs_by_what_was_computed() -> None:
    counted, plain = (
        measure(play(Spell, Chance(), number=20, samples=100)),
        measure(play(Plain, Chance(), number=20, samples=100)),
    )
    assert counted.samples == plain.samples == 2000
    for name in ("turns", "invalid", "tokens"):
        assert getattr(counted, name) == pytest.approx(getattr(plain, name), rel=0.05, abs=0.04)
    assert plain.plain_steps == pytest.approx(plain.computed.env_steps)
    assert plain.plain_tokens == pytest.approx(plain.computed.generated_tokens)
    assert counted.computed.env_steps < counted.plain_steps / 3
    assert counted.computed.generated_tokens < counted.plain_tokens / 3
    assert counted.tokens == pytest.approx(2 * counted.turns)


def test_means_by_hand() -> None:
    tree = make_tree(Ep("a", "!b", stop=Stop.failure, count=3), Ep("a"))
    got = measure([tree])
    assert got.samples == 4
    assert got.stops == {"failure": 3, "success": 1}
    acts = [t for t in tree if t.kind is Kind.act]
    assert got.turns == sum(t.count for t in acts) / 4
    assert got.invalid == sum(t.count for t in acts if not t.valid) / 4 > 0
    assert math.isnan(measure([]).turns)
