"""Counted sampling: the same distribution as plain sampling, the same tree whatever the
concurrency, nothing lost in silence."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from leafe.core import Episode, ForeignFailure, JournalError, Kind, Stop, Tree, UserError
from leafe.evaluate import counts, measure
from leafe.runs import Journal, load_trees, write_tasks
from tests.evaluate.envs import (
    Chance,
    Fickle,
    Fragile,
    ListSink,
    Plain,
    Replayed,
    Spell,
    path_chances,
    play,
    said,
)


def chi_square_p(observed: list[float], expected: list[float]) -> float:
    """Upper tail of Pearson's statistic by the Wilson-Hilferty approximation; cells below 5 are put
    together."""
    cells = sorted(zip(expected, observed, strict=True))
    pooled: list[list[float]] = [[0.0, 0.0]]
    for e, o in cells:
        if pooled[-1][0] >= 5:
            pooled.append([0.0, 0.0])
        pooled[-1][0] += e
        pooled[-1][1] += o
    statistic = sum((o - e) ** 2 / e for e, o in pooled)
    df = len(pooled) - 1
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def shape(trees: list[Tree]) -> list[list[dict[str, object]]]:
    """Everything but the times."""
    return [
        [
            {k: v for k, v in e.to_json().items() if k not in ("seconds", "turns")}
            | {"t": _timeless(e)}
            for e in tree.episodes
        ]
        for tree in trees
    ]


def _timeless(episode: Episode) -> list[dict[str, object]]:
    return [{k: v for k, v in t.to_json().items() if k != "seconds"} for t in episode.turns]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("env", [Spell, Replayed, Plain])
def test_counts_add_up(env: type[Spell], counted: bool) -> None:
    for tree in play(env, Chance(counted), word="aba"):
        assert sum(e.count for e in tree.episodes) == 64
        through: Counter[str] = Counter()
        for episode in tree.episodes:
            assert episode.count == (1 if env is Plain else episode.count)
            for turn in tree.trajectory(episode):
                through[turn.id] += episode.count
        assert {t.id: t.count for t in tree} == dict(through)
        paths = [said(tree, e) for e in tree.episodes]
        if env is Plain:
            assert len(paths) == 64
        else:
            assert len(set(paths)) == len(paths) < 64
        assert (
            Tree(tree.task, [Episode.from_json(e.to_json()) for e in tree.episodes]).episodes
            == tree.episodes
        )


@pytest.mark.parametrize("env", [Spell, Replayed])
def test_each_distinct_history_is_asked_and_stepped_once(env: type[Spell]) -> None:
    policy = Chance()
    (tree,) = play(env, policy, number=1, word="aba", samples=200)
    inner = {()} | {tuple(t.action for t in tree.path(turn.parent)) for turn in tree}
    assert len(policy.requests) == len(inner)
    assert sum(r.n for r in policy.requests) == sum(t.count for t in tree)
    assert len({r.seed for r in policy.requests}) == len(policy.requests)
    steps = {tuple(t.action for t in tree.path(turn.id)) for turn in tree}
    assert len(steps) == len(tree) == measure([tree]).computed.env_steps


def test_a_replayed_env_gives_the_tree_of_one_with_snapshots_and_charges_the_replays() -> None:
    quick, slow = play(Spell, word="aba"), play(Replayed, word="aba")
    assert [[(said(t, e), e.count, e.stop) for e in t.episodes] for t in quick] == [
        [(said(t, e), e.count, e.stop) for e in t.episodes] for t in slow
    ]
    assert measure(quick).computed.replayed_steps == 0
    for tree in slow:
        # every branch but the one that stayed in its environment walked to where it left
        expected = sum(len(tree.path(e.start)) for e in tree.episodes if e.start is not None)
        assert sum(e.replayed for e in tree.episodes) == expected > 0


def test_the_tree_does_not_depend_on_timing_or_concurrency() -> None:
    base = shape(play(Replayed, number=5, word="aba"))
    for seed, concurrency, size in ((1, 1, 1), (2, 5, 8), (3, 2, 2)):
        assert (
            shape(
                play(
                    Replayed,
                    Chance(delays=seed),
                    number=5,
                    word="aba",
                    concurrency=concurrency,
                    size=size,
                )
            )
            == base
        )
    assert shape(play(Replayed, number=5, word="aba", seed=1)) != base


@pytest.mark.parametrize(("env", "counted"), [(Spell, True), (Spell, False), (Plain, True)])
def test_paths_have_the_distribution_of_independent_samples(
    env: type[Spell], counted: bool
) -> None:
    chances = path_chances("aba", horizon=5)
    assert math.isclose(sum(chances.values()), 1.0)
    drawn: Counter[str] = Counter()
    number, samples = (1, 20_000) if env is Spell else (20, 100)
    for tree in play(env, Chance(counted), number=number, word="aba", samples=samples, horizon=5):
        for episode in tree.episodes:
            drawn[said(tree, episode)] += episode.count
    assert set(drawn) <= set(chances)
    total = number * samples
    assert chi_square_p([drawn[p] for p in chances], [total * c for c in chances.values()]) > 0.01
    skewed = {p: c * (1.6 if p.startswith("a") else 1.0) for p, c in chances.items()}
    norm = sum(skewed.values())
    assert (
        chi_square_p([drawn[p] for p in chances], [total * c / norm for c in skewed.values()])
        < 0.001
    )  # the test can tell


@pytest.mark.parametrize("env", [Spell, Plain])
def test_successes_of_a_task_scatter_as_independent_samples_do(env: type[Spell]) -> None:
    """Counts that were right on average but not independent (an even split, say) would give another
    spread over tasks."""
    rate = sum(c for p, c in path_chances("ab", horizon=8).items() if p.replace("x", "") == "ab")
    got = counts(play(env, number=600, samples=6, concurrency=64)).c
    binomial = [math.comb(6, c) * rate**c * (1 - rate) ** (6 - c) for c in range(7)]
    assert (
        chi_square_p([float(np.sum(got == c)) for c in range(7)], [600 * p for p in binomial])
        > 0.01
    )


def test_stops() -> None:
    stops = measure(play(word="aba", number=20, samples=100, max_invalid_actions=1)).stops
    assert set(stops) == {"success", "failure", "invalid_limit"}
    assert sum(stops.values()) == 2000
    short = play(word="aba", number=1, horizon=2, samples=100)
    assert all(
        len(short[0].trajectory(e)) == 2 and e.stop is Stop.horizon for e in short[0].episodes
    )


def test_a_failing_policy_loses_its_samples_and_no_others() -> None:
    (tree,) = play(policy=Chance(down="said a"), number=1, word="aba")
    lost = [e for e in tree.episodes if e.stop is Stop.policy_error]
    assert lost
    assert all(
        e.error == "the endpoint is down" and said(tree, e).replace("x", "") == "a" for e in lost
    )
    whole = counts([tree])
    assert whole.lost[0] == sum(e.count for e in lost) > 0
    assert whole.n[0] + whole.lost[0] == 64
    assert np.isnan(whole.pass_at(64)[0])
    assert 0 <= whole.pass_at(1)[0] <= 1


def test_a_breaking_env_loses_its_samples_and_no_others() -> None:
    (tree,) = play(Fragile, number=1, word="aba")
    lost = [e for e in tree.episodes if e.stop is Stop.env_error]
    assert lost
    assert all("the slate broke" in e.error for e in lost)
    assert "c" not in {t.action for t in tree}
    assert sum(e.count for e in tree.episodes) == 64


def test_a_replay_that_does_not_reproduce_is_diverged() -> None:
    (tree,) = play(Fickle, number=1, word="aba")
    stops = Counter[Stop]()
    for episode in tree.episodes:
        stops[episode.stop] += episode.count
    assert stops[Stop.diverged] > 0
    assert sum(stops.values()) == 64
    assert counts([tree]).lost[0] == stops[Stop.diverged]


def test_a_policy_that_gives_too_few_answers_is_a_policy_error() -> None:
    class Short(Chance):
        async def complete(self, request):  # type: ignore[no-untyped-def]
            return (await super().complete(request))[:1]

    with pytest.raises(ForeignFailure, match="samples where 64 were asked for"):
        play(policy=Short(), number=1)


def test_an_endpoint_that_is_down_ends_the_evaluation_and_writes_nothing() -> None:
    sink = ListSink()
    with pytest.raises(
        ForeignFailure,
        match="10 tasks in a row lost all their samples, the last with: the end",
    ):
        play(policy=Chance(down="say a letter"), number=30, journal=sink, concurrency=2)
    assert sink.writes == []
    with pytest.raises(ForeignFailure, match="Every sample of every task"):
        play(policy=Chance(down="say a letter"), number=2, journal=sink)


def test_one_write_a_task_and_a_resume_asks_for_the_rest_only() -> None:
    sink = ListSink()
    whole = play(number=6, journal=sink, concurrency=2)
    assert sorted(w[0].task_id for w in sink.writes) == [f"t{i}" for i in range(6)]
    known = {t.task.id: t for t in whole[:4]}
    rest, policy = ListSink(), Chance()
    assert shape(play(policy=policy, number=6, journal=rest, known=known)) == shape(whole)
    assert sorted(w[0].task_id for w in rest.writes) == ["t4", "t5"]
    assert {r.cache_key for r in policy.requests} == {"t4", "t5"}
    with pytest.raises(UserError, match="holds 64 samples of task 't0' where 65"):
        play(number=6, known=known, samples=65)


def test_a_run_that_was_cut_off_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    class CutOff(Journal):
        def append(self, episodes, **more):  # type: ignore[no-untyped-def]
            super().append(episodes, **more)
            if sum(1 for _ in self.read()) == 2:
                raise KeyboardInterrupt

    whole = play(number=6)
    write_tasks(tmp_path, [t.task for t in whole])
    with CutOff(tmp_path) as journal, pytest.raises(KeyboardInterrupt):
        play(number=6, journal=journal, concurrency=1)
    with Journal(tmp_path) as journal:
        play(number=6, journal=journal, known=load_trees(tmp_path))
    assert shape(list(load_trees(tmp_path).values())) == shape(whole)


def test_a_journal_that_fails_ends_the_evaluation_with_its_error() -> None:
    class Full(ListSink):
        def append(self, episodes):  # type: ignore[no-untyped-def]
            raise JournalError("disk full")

    with pytest.raises(JournalError, match="disk full"):
        play(journal=Full())


def test_a_bug_comes_out_as_it_is_with_its_cause() -> None:
    class Buggy(Chance):
        async def complete(self, request):  # type: ignore[no-untyped-def]
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise RuntimeError("outer") from error

    with pytest.raises(RuntimeError, match="outer") as caught:
        play(policy=Buggy())
    assert isinstance(caught.value.__cause__, KeyError)


def test_progress_counts_samples() -> None:
    seen: list[tuple[int, int, int]] = []
    trees = play(
        number=3, on_progress=lambda p: seen.append((p.tasks_done, p.samples, p.successes))
    )
    assert [s[:2] for s in seen] == [(1, 64), (2, 128), (3, 192)]
    assert seen[-1][2] == sum(counts(trees).c)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="no tasks"):
        play(number=0)
    with pytest.raises(UserError, match="samples = 0"):
        play(samples=0)


def test_the_most_frequent_answer_comes_first() -> None:
    for tree in play(word="aba"):
        first: dict[str | None, int] = {}
        for turn in tree:
            assert turn.kind is Kind.act
            assert turn.experience is None
            assert turn.count <= first.setdefault(turn.parent, turn.count)
