"""Stage 1: strategies, rollback, budgets, determinism, typed stops, resume."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from leafe.core import (
    Completion,
    ContextFull,
    Environment,
    Episode,
    ForeignFailure,
    JournalError,
    Kind,
    PolicyError,
    Request,
    Stop,
    Tree,
    Turn,
    UserError,
)
from leafe.evaluate import coverage_curve
from leafe.explore import EnvPool, Exploration, ExploreConfig, Plan, cost_of, explore, make_strategy
from leafe.prompts import Prompts, PromptSet, history_before
from tests.explore.envs import Doors, Forgetful, Raising, Slow, answer

PROMPTS = Prompts(PromptSet(name="doors"))


class Script:
    """A policy around a function, with delays that shuffle the order in which tasks advance."""

    name = "script"

    def __init__(
        self, respond: Callable[[Request], list[Completion]] = answer, delays: int | None = None
    ) -> None:
        self.respond, self.rng, self.seen = respond, random.Random(delays), list[Request]()
        self.delays = delays is not None

    async def complete(self, request: Request) -> list[Completion]:
        self.seen.append(request)
        if self.delays:
            await asyncio.sleep(self.rng.random() * 0.002)
        return self.respond(request)

    async def close(self) -> None:
        pass


class ListSink:
    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def append(self, episodes: Sequence[Episode]) -> None:
        self.episodes += episodes


def run(
    env: Callable[[], Environment] = Doors,
    policy: Script | None = None,
    sink: ListSink | None = None,
    known: dict[str, Tree] | None = None,
    count: int = 8,
    prompts: Prompts | None = None,
    **settings: object,
) -> Exploration:
    config = ExploreConfig(**({"limits": {"policy_calls": 40}, "horizon": 12} | settings))  # type: ignore[arg-type]

    async def main() -> Exploration:
        pool = EnvPool(env, size=4)
        try:
            return await explore(
                policy or Script(),
                pool,
                Doors().tasks("train", count),
                prompts or PROMPTS,
                config,
                journal=sink,
                known=known,
            )
        finally:
            pool.close()

    return asyncio.run(main())


def plain(trees: dict[str, Tree]) -> list[object]:
    """Everything in the trees but times and replays."""
    episodes = [e for tree in trees.values() for e in tree.episodes]
    return [
        replace(
            e, seconds=0.0, replayed=0, turns=tuple(replace(t, seconds=0.0) for t in e.turns)
        ).to_json()
        for e in episodes
    ]


@pytest.mark.parametrize("strategy", ["tree", "independent", "refine"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_journal_whatever_the_concurrency(strategy: str, seed: int) -> None:
    alone = run(strategy=strategy, seed=seed, concurrency=1)
    many = run(env=Slow, policy=Script(delays=seed), strategy=strategy, seed=seed, concurrency=7)
    assert plain(alone.trees) == plain(many.trees)
    assert alone.stops == many.stops
    assert replace(alone.spent, seconds=0, replayed_steps=0) == replace(
        many.spent, seconds=0, replayed_steps=0
    )


@pytest.mark.parametrize("scope", ["action", "branch"])
@pytest.mark.parametrize("window", ["full", "window:1", "window:3"])
def test_a_turn_names_the_experience_that_stood_in_its_prompt_and_no_other(
    window: str, scope: str
) -> None:
    policy = Script()
    prompts = Prompts(PROMPTS.set, history=window)
    found = run(policy=policy, prompts=prompts, scope=scope)
    heard = {request.messages for request in policy.seen}
    later = 0
    for tree in found.trees.values():
        for turn in (t for e in tree.episodes for t in e.acts):
            messages = prompts.act(history_before(tree, turn, with_experience=True))
            assert messages in heard
            episode = tree.episode_of(turn.id)
            if episode.experience is None:
                assert turn.experience is None
                continue
            without = prompts.act(
                replace(history_before(tree, turn, with_experience=True), notes={})
            )
            assert (turn.experience is not None) == (messages != without)
            later += turn.experience is not None and turn is not episode.acts[0]
    assert bool(later) == (scope == "branch" and window == "full")


def test_how_an_answer_ended_is_kept() -> None:
    def half(request: Request) -> list[Completion]:
        (completion,) = answer(request)
        return [replace(completion, finish="length" if (request.seed or 0) % 3 else "stop")]

    policy, sink = Script(half), ListSink()
    run(policy=policy, sink=sink)
    turns = [
        Turn.from_json(json.loads(json.dumps(t.to_json()))) for e in sink.episodes for t in e.turns
    ]
    assert {(t.kind, t.finish) for t in turns} == {
        (k, f) for k in (Kind.act, Kind.reflect) for f in ("stop", "length")
    }
    assert sum(t.cut for t in turns) == sum(bool((r.seed or 0) % 3) for r in policy.seen)
    assert not any(
        "finish" in t.to_json() for t in turns if not t.cut
    )  # what a journal of 0.1.0 says of no turn


def test_snapshot_and_replay_grow_the_same_tree() -> None:
    by_snapshot = run()
    by_replay = run(env=lambda: Doors(snapshots=False))
    assert plain(by_snapshot.trees) == plain(by_replay.trees)
    assert by_snapshot.spent.replayed_steps == 0
    assert (
        by_replay.spent.replayed_steps
        == sum(len(t.path(e.start)) for t in by_replay.trees.values() for e in t.episodes)
        > 0
    )


def test_the_budget_is_met_exactly_and_is_what_the_journal_sums_to() -> None:
    for calls in (1, 2, 5, 13):
        sink = ListSink()
        found = run(sink=sink, stop_when="budget", limits={"policy_calls": calls})
        assert found.spent.policy_calls == 8 * calls
        sums = [cost_of(e) for e in sink.episodes]
        for name in sums[0]:
            assert getattr(found.spent, name) == sum(s[name] for s in sums), name


def test_limits_on_steps_and_episodes() -> None:
    assert (
        run(stop_when="budget", strategy="independent", limits={"env_steps": 7}).spent.env_steps
        == 8 * 7
    )
    found = run(stop_when="budget", limits={"episodes": 3})
    assert [len(t.episodes) for t in found.trees.values()] == [3] * 8


def test_run_limit_stops_the_stage() -> None:
    found = run(stop_when="budget", run_limits={"policy_calls": 30}, concurrency=3)
    assert found.spent.policy_calls == 30
    assert found.cut_short == "policy_calls"


def test_a_branch_starts_where_the_reflection_says_and_sees_the_experience_once() -> None:
    policy = Script()
    found = run(policy=policy, max_depth=4)
    branches = [b for t in found.trees.values() for b in t.branches()]
    assert branches
    for branch in branches:
        tree = found.trees[branch.task_id]
        assert branch.revised.step == branch.reflection.target
        assert branch.revised.experience == branch.reflection.id
        later = [t for t in branch.outcome_after.acts if t.step > branch.revised.step]
        assert all(t.experience is None for t in later)
        prompt = PROMPTS.act(history_before(tree, branch.revised, with_experience=True))
        assert any(r.messages == prompt for r in policy.seen), (
            "what history_before rebuilds is what was sent"
        )
        bare = PROMPTS.act(history_before(tree, branch.revised, with_experience=False))
        assert "Advice" in prompt[-1].content
        assert prompt[:-1] == bare[:-1]
        assert prompt[-1].content.startswith(bare[-1].content), (
            "the experience comes after the history"
        )
        for turn in later:
            assert "Advice" not in "".join(
                m.content for m in PROMPTS.act(history_before(tree, turn, with_experience=True))
            )


def test_scope_branch_keeps_the_experience_in_place() -> None:
    policy = Script()
    found = run(policy=policy, scope="branch")
    checked = 0
    for tree in found.trees.values():
        for episode in tree.episodes:
            if episode.experience is None:
                continue
            for turn in episode.acts:
                assert turn.experience == episode.experience
                prompt = PROMPTS.act(history_before(tree, turn, with_experience=True))
                assert any(r.messages == prompt for r in policy.seen)
                advice = [
                    i
                    for i, m in enumerate(m for m in prompt if m.role == "user")
                    if "Advice" in m.content
                ]
                assert episode.acts[0].step in advice
                checked += 1
    assert checked > 5


def test_queue_is_first_in_first_out_and_respects_depth_and_width() -> None:
    found = run(
        stop_when="budget", max_depth=2, branches_per_reflection=2, limits={"policy_calls": 60}
    )
    for tree in found.trees.values():
        assert max(e.depth for e in tree.episodes) <= 2
        used = [e.experience for e in tree.episodes if e.experience]
        assert all(used.count(r) <= 2 for r in used)
        order = {r.id: i for i, r in enumerate(tree.reflections)}
        pending = [order[r] for r in used]
        assert pending == sorted(pending)


def test_reflects_every_k_steps() -> None:
    found = run(reflect_every=1, reflect_on_failure=False, stop_when="budget", count=3)
    steps = {t.step for tree in found.trees.values() for t in tree.reflections}
    assert {1, 2} <= steps
    only_on_failure = run(reflect_every=0, stop_when="budget", count=3)
    for tree in only_on_failure.trees.values():
        for reflection in tree.reflections:
            assert tree.episode_of(reflection.id).acts[-1].id == reflection.parent


def test_refine_shows_earlier_feedback_and_independent_does_not() -> None:
    refined, fresh = Script(), Script()
    run(policy=refined, strategy="refine", max_attempts_in_prompt=2, stop_when="budget")
    run(policy=fresh, strategy="independent", stop_when="budget")
    shown = [r.messages[0].content.count("An earlier attempt") for r in refined.seen]
    assert max(shown) == 2
    assert not any("An earlier attempt" in m.content for r in fresh.seen for m in r.messages)
    assert not any(
        "Which of the steps" in r.messages[-1].content for r in refined.seen + fresh.seen
    )


def test_unusable_reflections_are_turns_and_bounded() -> None:
    def mute(request: Request) -> list[Completion]:
        return (
            [Completion("no idea")]
            if "Which of the steps" in request.messages[-1].content
            else answer(request)
        )

    found = run(policy=Script(mute), max_reflection_attempts=3, strategy="tree")
    bad = [t for tree in found.trees.values() for t in tree.reflections]
    assert bad
    assert all(
        not t.valid and t.observation == "the answer holds no JSON object" and t.target is None
        for t in bad
    )
    assert found.unusable_reflections == len(bad)
    assert all(e.start is None for tree in found.trees.values() for e in tree.episodes), (
        "no reflection, no branch: fresh roots"
    )
    for tree in found.trees.values():
        for episode in tree.episodes:
            assert sum(t.kind is Kind.reflect for t in episode.turns) <= 3


def test_a_replay_that_does_not_reproduce_diverges() -> None:
    found = run(env=Forgetful)
    stops = [e.stop for tree in found.trees.values() for e in tree.episodes if e.start is not None]
    assert stops
    assert set(stops) == {Stop.diverged}
    diverged = next(
        e for tree in found.trees.values() for e in tree.episodes if e.stop is Stop.diverged
    )
    assert not diverged.turns
    assert "after reset the environment said" in diverged.error
    assert not any(tree.branches() for tree in found.trees.values())


def test_an_env_that_raises_is_a_typed_stop() -> None:
    sink = ListSink()
    for count in (8, 2):
        with pytest.raises(ForeignFailure, match="the floor gave way"):
            run(env=Raising, sink=sink, count=count)
    assert {e.stop for e in sink.episodes} == {Stop.env_error}


def test_policy_failures_are_bounded_counted_and_charged_nothing() -> None:
    def down(request: Request) -> list[Completion]:
        raise PolicyError("http://127.0.0.1:9 refuses connections")

    sink = ListSink()
    with pytest.raises(ForeignFailure, match="10 episodes in a row failed"):
        run(policy=Script(down), sink=sink)
    assert {e.stop for e in sink.episodes} == {Stop.policy_error}
    assert all(not e.turns for e in sink.episodes)
    few = ListSink()
    with pytest.raises(ForeignFailure, match="refuses connections"):
        run(policy=Script(down), count=1, sink=few)
    assert [e.index for e in few.episodes] == list(range(6)), (
        "put off once, though there is no other task"
    )


def test_context_full_ends_the_episode_only() -> None:
    def small(request: Request) -> list[Completion]:
        if len(request.messages) > 4:
            raise ContextFull("the prompt has 90 tokens and the context 64")
        return answer(request)

    found = run(policy=Script(small), strategy="independent", limits={"episodes": 2})
    assert found.stops["context_full"] > 0
    assert all(len(e.acts) <= 2 for t in found.trees.values() for e in t.episodes)


def test_invalid_actions_and_horizon_end_an_episode() -> None:
    found = run(
        policy=Script(lambda r: [Completion("Action: x")]),
        strategy="independent",
        max_invalid_actions=3,
        limits={"episodes": 1},
    )
    assert found.stops == {"invalid_limit": 8}
    assert all(len(e.acts) == 3 for t in found.trees.values() for e in t.episodes)
    found = run(
        policy=Script(lambda r: [Completion("Action: x")]),
        strategy="independent",
        max_invalid_actions=9,
        horizon=4,
        limits={"episodes": 1},
    )
    assert found.stops == {"horizon": 8}


def test_resume_goes_on_to_the_same_trees() -> None:
    whole = run()
    for cut in (0, 1, 5, 11):
        sink = ListSink()
        run(sink=sink)
        kept: dict[str, Tree] = {t.id: Tree(t) for t in Doors().tasks("train", 8)}
        for episode in sink.episodes[:cut]:
            kept[episode.task_id].add(episode)
        policy = Script()
        resumed = run(known=kept, policy=policy)
        assert plain(resumed.trees) == plain(whole.trees)
        for cost in (
            "policy_calls",
            "env_steps",
        ):  # replays, of which a resumed run has more, are counted apart
            curves = [
                coverage_curve(list(found.trees.values()), cost) for found in (resumed, whole)
            ]  # type: ignore[arg-type]
            assert curves[0] == curves[1]
        assert len(policy.seen) == whole.spent.policy_calls - sum(
            int(cost_of(e)["policy_calls"]) for e in sink.episodes[:cut]
        )


def test_a_disk_that_fails_ends_the_stage_with_its_own_error() -> None:
    class Full(ListSink):
        writes = 0

        def append(self, episodes: Sequence[Episode]) -> None:
            if self.writes >= 3:
                raise JournalError("disk full")
            self.writes += 1
            super().append(episodes)

    sink = Full()
    with pytest.raises(JournalError, match="disk full"):
        run(sink=sink)
    assert sink.writes == 3
    assert sink.episodes
    whole = plain(run().trees)
    assert all(_as_plain(e) in whole for e in sink.episodes)


def _as_plain(episode: Episode) -> object:
    return replace(
        episode,
        seconds=0.0,
        replayed=0,
        turns=tuple(replace(t, seconds=0.0) for t in episode.turns),
    ).to_json()


def test_many_finished_episodes_share_one_write() -> None:
    class Slow(ListSink):
        writes = 0

        def append(self, episodes: Sequence[Episode]) -> None:
            time.sleep(0.02)
            self.writes += 1
            super().append(episodes)

    sink = Slow()
    found = run(sink=sink)
    assert sorted(map(str, map(_as_plain, sink.episodes))) == sorted(map(str, plain(found.trees)))
    assert sink.writes < len(sink.episodes)
    assert found.waits.journal > 0


class Counts(Script):
    """How many requests were under way at once, at most."""

    most = 0
    now = 0

    async def complete(self, request: Request) -> list[Completion]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        try:
            return await super().complete(request)
        finally:
            self.now -= 1


def test_branches_of_one_reflection_run_side_by_side_and_grow_the_same_tree() -> None:
    policy = Counts()
    settings: dict[str, object] = {
        "limits": {"policy_calls": 400, "episodes": 9},
        "branches_per_reflection": 4,
        "stop_when": "budget",
    }
    wide = run(policy=policy, count=1, **settings)
    assert policy.most == 4
    tree = next(iter(wide.trees.values()))
    asked = [e.experience for e in tree.episodes if e.experience is not None]
    assert max(Counter(asked).values()) == 4
    assert [e.index for e in tree.episodes] == list(range(9))
    # with a limit that only time decides, they follow one another: the tree is the same
    alone = Counts()
    settings["limits"] = {"policy_calls": 400, "episodes": 9, "generated_tokens": 10**9}
    assert plain(run(policy=alone, count=1, **settings).trees) == plain(wide.trees)
    assert alone.most == 1


def test_independent_episodes_of_a_given_number_run_side_by_side_and_grow_the_same_tree() -> None:
    wide, alone, solved = Counts(), Counts(), Counts()
    settings: dict[str, object] = {
        "strategy": "independent",
        "limits": {"episodes": 4},
        "stop_when": "budget",
        "concurrency": 1,
    }
    together = run(policy=wide, **settings)
    assert wide.most == 4
    assert all([e.index for e in tree.episodes] == [0, 1, 2, 3] for tree in together.trees.values())
    # a run's limit is shared with other tasks: they follow one another, and the trees are the same
    assert plain(run(policy=alone, **settings, run_limits={"policy_calls": 10_000}).trees) == plain(
        together.trees
    )
    assert alone.most == 1
    run(policy=solved, **(settings | {"stop_when": "solved"}))
    assert solved.most == 1, "a success would have spared the later ones"


@pytest.mark.parametrize("calls", [9, 23, 40, 60])
def test_siblings_do_not_pass_the_budget(calls: int) -> None:
    found = run(limits={"policy_calls": calls}, branches_per_reflection=3, stop_when="budget")
    for tree in found.trees.values():
        assert sum(len(e.turns) for e in tree.episodes) <= calls
    assert found.spent.policy_calls == sum(
        len(e.turns) for t in found.trees.values() for e in t.episodes
    )
    assert found.spent.policy_calls == 8 * calls, "and use it up"


def test_trees_of_finished_tasks_can_be_let_go() -> None:
    async def main(sink: ListSink) -> Exploration:
        pool = EnvPool(Doors, size=4)
        config = ExploreConfig(limits={"policy_calls": 40}, horizon=12)
        return await explore(
            Script(), pool, Doors().tasks("train", 8), PROMPTS, config, journal=sink, keep=False
        )

    kept, sink = ListSink(), ListSink()
    whole = run(sink=kept)
    found = asyncio.run(main(sink))
    assert found.trees == {}
    assert sorted(map(str, map(_as_plain, sink.episodes))) == sorted(
        map(str, map(_as_plain, kept.episodes))
    )
    assert replace(found.spent, seconds=0) == replace(whole.spent, seconds=0)


def test_waits_add_up() -> None:
    class Slow(Script):
        async def complete(self, request: Request) -> list[Completion]:
            await asyncio.sleep(0.003)
            return await super().complete(request)

    waits = run(policy=Slow()).waits
    assert waits.engine >= 0.003 * 8
    assert waits.total >= waits.engine + waits.envs + waits.slots + waits.journal - 1e-6
    assert set(waits.to_json()) == {"engine", "envs", "slots", "journal", "total", "leafe"}


def test_users_mistakes() -> None:
    with pytest.raises(UserError, match="no tasks"):
        run(count=0)
    with pytest.raises(UserError, match="no strategy 'forest'"):
        run(strategy="forest")


def test_a_strategy_is_a_function_of_the_tree() -> None:
    found = run(stop_when="budget")
    strategy = make_strategy(ExploreConfig(), PromptSet(name="any"))
    for tree in found.trees.values():
        for cut in range(len(tree.episodes)):
            begun = Tree(tree.task, tree.episodes[:cut])
            plan = strategy.next(begun)
            assert plan is not None
            done = tree.episodes[cut]
            assert plan == Plan(done.start, done.experience, done.depth, done.preamble)
