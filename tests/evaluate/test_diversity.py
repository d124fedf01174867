"""Entropy and distinct episodes are those of the samples written out one by one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import LOST, Completion, Request, Stop, Tree
from leafe.evaluate import diversity
from tests.evaluate.envs import LETTERS, Chance, Spell, path_chances, play
from tests.trees import Ep, make_tree, trees


@given(st.lists(trees(), min_size=1, max_size=2))
def test_distinct_episodes_are_counted_on_whole_trajectories(grown: list[Tree]) -> None:
    shares, largest = [], []
    for tree in grown:
        paths = Counter(
            tuple(t.action for t in tree.trajectory(e)) for e in tree.episodes if e.stop not in LOST
        )
        if paths:
            shares.append(len(paths) / paths.total())
            largest.append(max(paths.values()) / paths.total())
    got = diversity(grown)
    assert (got.distinct is None) == (not shares)
    if shares:
        assert got.distinct == pytest.approx(sum(shares) / len(shares))
        assert got.largest == pytest.approx(sum(largest) / len(largest))
    assert got.entropy is None, "no log-probabilities in these trees"


def test_counts_weigh_and_lost_samples_do_not() -> None:
    tree = make_tree(
        Ep("a", "b", stop=Stop.failure, count=6),
        Ep("c", count=2),
        Ep("a", "b", stop=Stop.env_error, count=40),
    )
    got = diversity([tree])
    assert (got.distinct, got.largest) == (2 / 8, 6 / 8)
    assert diversity([make_tree(Ep("a", stop=Stop.env_error))]).distinct is None
    assert diversity([]).to_json() == dict.fromkeys(
        ("entropy", "entropy_turn", "distinct", "largest")
    )


class Surprised(Chance):
    """Says how likely its answers were."""

    async def complete(self, request: Request) -> list[Completion]:
        chances = dict(zip(LETTERS, self.chances(request.messages[-1].content), strict=True))
        return [
            replace(a, logprob=math.log(chances[a.text])) for a in await super().complete(request)
        ]


@pytest.mark.parametrize("counted", [True, False])
def test_entropy_is_the_policys_own(counted: bool) -> None:
    """The chain rule: the entropy of whole paths, over the mean number of turns of one. Here every
    path and its chance are known."""
    paths = path_chances("ab", Spell.horizon)
    whole = -sum(p * math.log(p) for p in paths.values())
    turns = sum(p * len(path) for path, p in paths.items())
    got = diversity(play(Spell, Surprised(counted=counted), number=4, samples=500))
    assert got.entropy_turn == pytest.approx(whole / turns, abs=0.03)
    assert got.entropy == pytest.approx((got.entropy_turn or 0.0) / 2), "a letter is two tokens"
