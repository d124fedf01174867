"""What was lost is sampled again: n becomes whole, the draws stay those of plain sampling, a
resumed
evaluation is the unbroken one, and what stays short is counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from leafe.core import (
    Completion,
    Environment,
    PolicyError,
    Request,
    StepResult,
    Stop,
    Tree,
    derive_seed,
)
from leafe.evaluate import Evaluated, counts, pass_at_k, summarise
from tests.evaluate.envs import (
    Chance,
    Fragile,
    ListSink,
    Plain,
    Replayed,
    Spell,
    path_chances,
    play,
    said,
)

ENVS = [Spell, Replayed, Plain]


class Flaky(Chance):
    """Fails a share of its requests, by their seed."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.failed = share, 0

    async def complete(self, request: Request) -> list[Completion]:
        if random.Random(derive_seed(request.seed or 0, "fails")).random() < self.share:
            self.failed += 1
            raise PolicyError("the request was lost")
        return await super().complete(request)


@pytest.mark.parametrize("env", ENVS)
def test_lost_requests_leave_n_whole_and_the_draws_as_they_are(env: type[Spell]) -> None:
    policy = Flaky(0.15)
    trees = play(env, policy, number=30, samples=32)
    assert policy.failed > 10
    found = counts(trees)
    assert found.n.tolist() == [32] * 30
    assert found.lost.tolist() == [0] * 30
    chances = path_chances("ab", horizon=8)
    exact = sum(c for p, c in chances.items() if p.replace("x", "") == "ab")
    assert abs(found.c.sum() / 960 - exact) < 4 * np.sqrt(exact * (1 - exact) / 960)


@pytest.mark.parametrize("env", [Spell, Replayed])
def test_what_is_lost_most_is_not_what_is_drawn_least(env: type[Spell]) -> None:
    """An environment that mostly breaks on the winning action: to begin such samples anew would
    halve the rate."""
    chance = random.Random(7)

    class Breaks(env):  # type: ignore[misc, valid-type]
        def step(self, action: str) -> StepResult:
            result = super().step(action)
            if result.success and chance.random() < 0.7:
                raise RuntimeError("broke")
            return result

    def rate_of(trees: Sequence[Tree]) -> float:
        return float(counts(trees).c.sum() / counts(trees).n.sum())

    healthy, broken = play(env, number=40, samples=32), play(Breaks, number=40, samples=32)
    assert counts(broken).n.sum() >= 0.98 * 40 * 32
    assert rate_of(broken) == pytest.approx(rate_of(healthy), abs=0.05)


@pytest.mark.parametrize("env", ENVS)
def test_resumed_at_any_task_it_is_the_unbroken_evaluation(env: type[Spell]) -> None:
    def plain(trees: Sequence[Tree]) -> list[Any]:
        out = [[e.to_json() for e in t.episodes] for t in trees]
        for tree in out:
            for episode in tree:
                for each in (episode, *episode["turns"]):
                    each.pop("seconds", None)
                episode.pop("replayed", None)
        return out

    sink = ListSink()
    whole = play(env, Flaky(0.2), number=4, samples=8, journal=sink)
    assert all(sum(e.count for e in t.episodes) == 8 for t in whole)
    for cut in range(len(sink.writes)):
        held = {w[0].task_id: w for w in sink.writes[:cut]}
        known = {t.task.id: Tree(t.task, held[t.task.id]) for t in whole if t.task.id in held}
        assert plain(play(env, Flaky(0.2), number=4, samples=8, known=known)) == plain(whole)


@pytest.mark.parametrize("env", [Spell, Replayed])
def test_a_journal_that_lacks_samples_is_filled_up(env: type[Spell]) -> None:
    sink = ListSink()
    short = play(env, Chance(down="said a"), number=3, word="aba", samples=24, journal=sink)
    assert counts(short).lost.min() > 0
    assert counts(short).asked == 24
    more = ListSink()
    known = {t.task.id: t for t in short}
    filled = play(env, Chance(), number=3, word="aba", samples=24, journal=more, known=known)
    found = counts(filled)
    assert (found.n.tolist(), found.lost.tolist(), found.asked) == ([24] * 3, [0] * 3, 24)
    writes = {w[0].task_id: w for w in more.writes}
    for before, after in zip(short, filled, strict=True):
        written = writes[after.task.id]
        assert after.episodes[: len(before.episodes)] == before.episodes
        assert after.episodes[len(before.episodes) :] == written
        again = Counter(e.again for e in written for _ in range(e.count))
        assert again == {e.index: e.count for e in before.episodes if e.stop is Stop.policy_error}
        lost = {e.index: said(before, e) for e in before.episodes}
        assert all(said(after, e).startswith(lost[e.again or 0]) for e in written)
    third = ListSink()
    play(env, Chance(down="said a"), number=3, word="aba", samples=24, journal=third, known=known)
    assert third.writes == [], "nothing sound came of it"


def test_what_stays_short_is_shown_and_leaves_no_mean_in_silence() -> None:
    class Once(Environment):
        """Its second task breaks at every action."""

        name, quick, can_snapshot = "once", True, False

        def reset(self, task: Any, seed: int) -> str:
            self.bad = task.id == "t1"
            return "say a letter"

        def step(self, action: str) -> StepResult:
            if self.bad and action == "b":
                raise RuntimeError("broke")
            return StepResult("done", done=True, success=action == "a")

    trees = play(Once, number=3, samples=16)
    found = counts(trees)
    assert found.lost[1] > 0
    assert found.short.tolist() == [0, int(found.lost[1]), 0]
    summary = summarise([], [Evaluated("arm", [trees])], ks=(1, 16)).to_json()
    row = summary["evaluate"][0]
    assert row["lost"] == found.lost[1]
    assert row["short"] == 1
    curve = {point["k"]: point["tasks"] for point in summary["details"]["evaluate"][0]["curve"]}
    assert (curve[1], curve[16]) == (3, 2)
    nothing = [trees[0], Tree(trees[1].task), trees[2]]
    row = summarise([], [Evaluated("arm", [nothing])], ks=(1, 16)).to_json()["evaluate"][0]
    assert (row["lost"], row["short"]) == (16, 1)


def test_a_breaking_action_is_taken_again_and_then_counted_as_lost() -> None:
    (tree,) = play(Fragile, number=1, word="aba")
    assert counts([tree]).lost[0] == sum(e.count for e in tree.episodes if e.stop is Stop.env_error)
    assert pass_at_k(counts([tree]).n, counts([tree]).c, 1)[0] >= 0
