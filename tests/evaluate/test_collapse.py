"""The detectors alarm where a figure has fallen under its share of the base's, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.evaluate import DETECTORS, collapses

FIGURES = tuple(d.figure for d in DETECTORS)
rates = st.none() | st.floats(0, 1)


def row(arm: str, role: str = "arm", **more: Any) -> dict[str, Any]:
    return (
        {"arm": arm, "role": role, "temperature": 1.0, "samples": 128}
        | dict.fromkeys(FIGURES, 0.8)
        | more
    )


@given(
    st.lists(st.fixed_dictionaries(dict.fromkeys(FIGURES, rates)), max_size=4),
    st.fixed_dictionaries(dict.fromkeys(FIGURES, rates)),
)
def test_every_alarm_is_one_and_every_fall_gives_one(
    arms: list[dict[str, Any]], base: dict[str, Any]
) -> None:
    rows = [row("base", "base", **base)] + [
        row(f"a{i}", **figures) for i, figures in enumerate(arms)
    ]
    alarms = {(a["arm"], a["figure"]) for a in collapses(rows)}
    for i, figures in enumerate(arms):
        for d in DETECTORS:
            value, before = figures[d.figure], base[d.figure]
            fallen = value is not None and before is not None and value < d.share * before
            assert ((f"a{i}", d.figure) in alarms) == fallen


def test_the_prototypes_policies_are_told_apart() -> None:
    """Following and reflection of the base, of LEAFE and of the anchored arm, which alone
    explored better afterwards."""
    base = row("base", "base", following=0.85, same_step=0.98)
    assert not collapses([base, row("anchored", following=0.83, same_step=0.92)])
    found = collapses([base, row("leafe", following=0.31, same_step=0.3), row("n", following=0.19)])
    assert [(a["arm"], a["figure"]) for a in found] == [
        ("leafe", "following"),
        ("leafe", "same_step"),
        ("n", "following"),
    ]


def test_samples_are_compared_at_one_temperature_and_number_alone() -> None:
    base = row("base", "base")
    fallen: dict[str, Any] = {"entropy": 0.1, "distinct": 0.1}
    assert len(collapses([base, row("a", **fallen)])) == 2
    assert not collapses([base, row("a", temperature=0.6, **fallen)])
    assert not collapses([base, row("a", samples=64, **fallen)])
    assert len(collapses([base, row("a", samples=64, following=0.1, **fallen)])) == 1


@pytest.mark.parametrize("role", ["control", "ceiling", "base"])
def test_only_arms_are_looked_at(role: str) -> None:
    assert not collapses([row("base", "base"), row("other", role, entropy=0.0)])
    assert not collapses([row("a", entropy=0.0)]), "no base to compare with"
