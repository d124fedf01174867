"""No limit on counted things is ever passed; tokens pass theirs by the turn in flight at most; a
parent binds its children."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import LIMITS, Budget, Spent

COUNTED = ("episodes", "env_steps", "policy_calls", "replayed_steps")
amounts = st.dictionaries(st.sampled_from(COUNTED), st.integers(0, 5), min_size=1)
limits = st.dictionaries(st.sampled_from(COUNTED), st.integers(0, 12))


@given(limits, st.lists(amounts))
def test_take_meets_limits_exactly(limit: dict[str, float], asked: list[dict[str, float]]) -> None:
    budget, spent = Budget(limit), dict.fromkeys(COUNTED, 0.0)
    for amount in asked:
        fits = all(
            spent[name] + amount.get(name, 0) <= most
            for name, most in limit.items()
            if name in amount
        )
        assert budget.admits(**amount) == fits
        assert budget.take(**amount) == fits
        if fits:
            spent = {name: spent[name] + amount.get(name, 0) for name in COUNTED}
        assert {name: getattr(budget.spent, name) for name in COUNTED} == spent
    assert all(spent[name] <= most for name, most in limit.items())


@given(limits)
def test_one_at_a_time_a_limit_is_used_up_and_no_more(limit: dict[str, float]) -> None:
    for name, most in limit.items():
        budget = Budget({name: most})
        while budget.reached() is None:
            assert budget.take(**{name: 1})
        assert getattr(budget.spent, name) == most
        assert budget.reached() == name


@given(st.integers(0, 100), st.lists(st.integers(1, 30)))
def test_tokens_pass_their_limit_by_the_turn_in_flight_at_most(most: int, turns: list[int]) -> None:
    budget, longest = Budget({"generated_tokens": most}), 0
    for tokens in turns:
        if budget.take(policy_calls=1):
            assert budget.spent.generated_tokens < most
            budget.charge(generated_tokens=tokens)
            longest = max(longest, tokens)
        else:
            assert budget.spent.generated_tokens >= most
    assert budget.spent.generated_tokens < most + longest or not longest


@given(limits, limits, st.lists(st.tuples(st.booleans(), amounts)))
def test_a_parent_sums_its_children_and_binds_them(
    whole: dict[str, float], part: dict[str, float], asked: list[tuple[bool, dict[str, float]]]
) -> None:
    parent = Budget(whole)
    children = [Budget(part, parent), Budget(part, parent)]
    for which, amount in asked:
        before = [parent.snapshot(), *(c.snapshot() for c in children)]
        if not children[which].take(**amount):
            after = [parent.snapshot(), *(c.snapshot() for c in children)]
            assert [_counted(s) for s in after] == [_counted(s) for s in before]
    for name in COUNTED:
        assert getattr(parent.spent, name) == sum(getattr(c.spent, name) for c in children)
    assert all(getattr(parent.spent, name) <= most for name, most in whole.items())
    assert all(getattr(c.spent, name) <= most for c in children for name, most in part.items())


def test_a_parent_at_its_limit_is_reached_in_the_child() -> None:
    parent = Budget({"episodes": 1})
    child = Budget({"episodes": 5}, parent)
    assert child.reached() is None
    assert parent.take(episodes=1)
    assert child.reached() == "episodes"


def test_seconds_spent_before_a_resume_count() -> None:
    budget = Budget({"seconds": 100.0})
    assert budget.reached() is None
    budget.charge(seconds=100.0)
    assert budget.reached() == "seconds"
    assert not budget.take(policy_calls=1)
    assert budget.snapshot().seconds >= 100.0


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="no such limit: steps"):
        Budget({"steps": 3})
    assert set(Spent().to_json()) == set(LIMITS)


def _counted(spent: Spent) -> dict[str, float]:
    return {name: getattr(spent, name) for name in COUNTED}
