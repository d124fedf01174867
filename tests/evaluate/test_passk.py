"""Pass@k against exact fractions and against samples written out; n < k says nothing."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Episode, Stop, Tree
from leafe.evaluate import counts, pass_at_k
from tests.evaluate.envs import Chance, Spell, play
from tests.trees import make_task


def exact(n: int, c: int, k: int) -> float:
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


@given(
    st.integers(1, 400).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
    )
)
def test_equals_the_exact_fraction(ncK: tuple[int, int, int]) -> None:
    n, c, k = ncK
    assert pass_at_k(n, c, k) == pytest.approx(exact(n, c, k), rel=1e-12, abs=0)


def test_is_the_share_of_subsets_that_hold_a_success() -> None:
    outcomes = [True, False, False, True, False]
    for k in range(1, 6):
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), rel=1e-14)


def test_is_stable_where_factorials_are_not() -> None:
    assert pass_at_k(10**7, 1, 1) == pytest.approx(1e-7, rel=1e-12)
    assert pass_at_k(10**6, 3, 1024) == pytest.approx(exact(10**6, 3, 1024), rel=1e-10)


def test_is_nan_with_fewer_samples_than_k_and_vectorised_over_tasks() -> None:
    got = pass_at_k([128, 127, 0, 128], [1, 127, 0, 0], 128)
    assert got[0] == 1.0
    assert np.isnan(got[1:3]).all()
    assert got[3] == 0.0


def test_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        pass_at_k(3, 1, 0)
    with pytest.raises(ValueError, match="0 <= c <= n"):
        pass_at_k(3, 4, 1)


def expand(tree: Tree) -> Tree:
    """The samples written out one by one, each from the root, counts of 1."""
    out: list[Episode] = []
    for episode in tree.episodes:
        for _ in range(episode.count):
            out.append(Episode(tree.task.id, len(out), episode.stop, ()))
    return Tree(tree.task, out)


_stops = st.lists(
    st.tuples(st.sampled_from(list(Stop)), st.integers(1, 40)), min_size=1, max_size=12
)


@given(_stops)
def test_a_counted_tree_gives_the_estimate_of_its_samples_written_out(
    ends: list[tuple[Stop, int]],
) -> None:
    tree = Tree(
        make_task(),
        [Episode("t0", i, stop, (), count=count) for i, (stop, count) in enumerate(ends)],
    )
    plain = expand(tree)
    for k in (1, 2, 8, 32, 128):
        np.testing.assert_array_equal(counts([tree]).pass_at(k), counts([plain]).pass_at(k))
    lost = {Stop.policy_error, Stop.env_error, Stop.diverged, Stop.budget}
    assert counts([tree]).n[0] == sum(count for stop, count in ends if stop not in lost)
    assert counts([tree]).lost[0] == sum(count for stop, count in ends if stop in lost)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from(["a", "ab", "aba"]))
def test_a_sampled_tree_gives_the_estimate_of_its_samples_written_out(
    seed: int, samples: int, word: str
) -> None:
    trees = play(Spell, Chance(), number=3, word=word, samples=samples, seed=seed)
    plain = [expand(t) for t in trees]
    assert all(len(p.episodes) == samples for p in plain)
    for k in (1, 3, samples, samples + 1):
        np.testing.assert_array_equal(counts(trees).pass_at(k), counts(plain).pass_at(k))
