"""Rollouts as sequences, and batches of them under a budget: the trainer is given what the policy
read and wrote, and no call is made that is not paid for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.baselines.grpo import GrpoConfig, rollout_sequence
from leafe.baselines.grpo._rollouts import Batch, Rollouts
from leafe.core import (
    Budget,
    ChatTokens,
    Completion,
    Environment,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    UserError,
)
from leafe.embedded import base_path
from leafe.envs.gates import Gates, GatesReference
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.hf import load_tokenizer
from leafe.prompts import Prompts, load_prompt_set

PROMPTS = Prompts(load_prompt_set("gates"))
CHAT = ChatTokens(load_tokenizer(base_path()), "base")
END = CHAT.end_of_turn
WORDS = [i for i in range(2, len(CHAT.tokenizer)) if i != END]


class Babbler:
    """Knows the way and leaves it at random: words at random, answers without an end, answers whose
    ids nobody knows. Keeps what it read and wrote."""

    name = "babbler"

    def __init__(self, slips: float = 0.3, nameless: float = 0.0) -> None:
        self.slips, self.nameless, self.calls = slips, nameless, 0
        self.heard: set[tuple[tuple[int, ...], tuple[int, ...] | None]] = set()
        self.knows = GatesReference("habit")

    async def complete(self, request: Request) -> list[Completion]:
        self.calls += 1
        rng = random.Random(request.seed)
        if rng.random() < self.slips:
            tokens: tuple[int, ...] | None = (
                *rng.choices(WORDS, k=rng.randint(1, 4)),
                *((END,) if rng.random() < 0.5 else ()),
            )
            text = CHAT.decode(tokens or ())
        else:
            text = (await self.knows.complete(request))[0].text
            tokens = (*CHAT.tokenizer(text, add_special_tokens=False)["input_ids"], END)
        if rng.random() < self.nameless:
            tokens = None
        self.heard.add((CHAT.prompt(request.messages), tokens))
        return [Completion(text, tokens=tokens)]

    async def close(self) -> None:
        pass


def grown(policy: Babbler, seed: int, count: int = 3, episodes: int = 3) -> dict[str, Tree]:
    config = ExploreConfig(
        strategy="independent", limits={"episodes": episodes}, stop_when="budget", seed=seed
    )

    async def main() -> dict[str, Tree]:
        pool = EnvPool(lambda: Gates("easy", "habit"), size=9)
        return (
            await explore(
                policy, pool, Gates("easy", "habit").tasks("train", count, seed), PROMPTS, config
            )
        ).trees

    return asyncio.run(main())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.6), st.sampled_from([0.0, 0.5]))
def test_a_row_is_what_was_read_and_written_token_by_token(
    seed: int, slips: float, nameless: float
) -> None:
    policy = Babbler(slips, nameless)
    for tree in grown(policy, seed).values():
        for episode in tree.episodes:
            row = rollout_sequence(tree, episode, PROMPTS, CHAT)
            whole = row.prompt + row.completion
            assert len(row.mask) == len(row.completion)
            begins = [i for i, one in enumerate(row.mask) if one and not (i and row.mask[i - 1])]
            known = [t for t in episode.acts if t.tokens is not None]
            assert row.unknown == len(episode.acts) - len(known)
            # what the mask marks are the sampled ids, each after the very prompt that it was
            # sampled at
            marked = [i for i, one in enumerate(row.mask) if one]
            assert [row.completion[i] for i in marked] == [i for t in known for i in t.tokens or ()]
            at = 0
            for turn in known:
                tokens = turn.tokens or ()
                assert (whole[: len(row.prompt) + marked[at]], tokens) in policy.heard
                at += len(tokens)
            assert len(begins) <= len(known)
            assert row.reward == float(episode.success)


def test_observations_are_never_marked() -> None:
    trees = grown(Babbler(0.2), 5)
    for tree in trees.values():
        for episode in tree.episodes:
            row = rollout_sequence(tree, episode, PROMPTS, CHAT)
            unmarked = CHAT.tokenizer.decode(
                [i for i, one in zip(row.completion, row.mask, strict=True) if not one]
            )
            said = " ".join(f"s{t.step + 1} {t.observation}" for t in episode.acts[:-1])
            assert unmarked.replace(" <end>", "").replace("<end> ", "").split() == said.split()


def test_the_envs_reward_is_summed_and_a_lost_rollout_has_none() -> None:
    (tree, *_) = grown(Babbler(0.0), 1).values()
    episode = next(e for e in tree.episodes if e.acts)
    turns = tuple(replace(t, reward=0.25) for t in episode.acts)
    paid = replace(episode, turns=turns)
    other = Tree(tree.task, [replace(paid, index=0)])
    assert rollout_sequence(other, other.episodes[0], PROMPTS, CHAT, "env").reward == 0.25 * len(
        turns
    )
    for stop in Stop:
        lost = Tree(tree.task, [replace(paid, stop=stop)])
        reward = rollout_sequence(lost, lost.episodes[0], PROMPTS, CHAT).reward
        assert reward == {Stop.success: 1.0}.get(
            stop,
            None
            if stop in (Stop.policy_error, Stop.env_error, Stop.diverged, Stop.budget)
            else 0.0,
        )


def test_a_history_that_is_no_sequence_is_refused() -> None:
    (tree, *_) = grown(Babbler(0.0), 1).values()
    with pytest.raises(UserError, match='history = "full"'):
        rollout_sequence(
            tree, tree.episodes[0], Prompts(load_prompt_set("gates"), history="window:1"), CHAT
        )


class Counting(Gates):
    """Counts what is asked of it, whoever asks."""

    steps = 0

    def step(self, action: str) -> StepResult:
        Counting.steps += 1
        return super().step(action)


def batches(
    config: GrpoConfig,
    most: int = 30,
    policy: Babbler | None = None,
    make: Callable[[], Environment] = lambda: Gates("easy", "habit"),
    tasks: Sequence[Task] | None = None,
) -> tuple[list[Batch], Budget, Babbler]:
    policy = policy or Babbler()
    budget = Budget(config.limits)
    out: list[Batch] = []

    async def main() -> None:
        pool = EnvPool(make, size=64)
        rollouts = Rollouts(
            policy,
            CHAT,
            pool,
            tasks or Gates("easy", "habit").tasks("train", 7, 0),
            PROMPTS,
            config,
            budget,
        )
        while budget.reached() is None and len(out) < most:
            out.append(await rollouts.batch(len(out)))

    asyncio.run(main())
    return out, budget, policy


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["policy_calls", "env_steps", "episodes"]),
    st.integers(1, 120),
    st.integers(2, 5),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_a_limit_is_met_exactly_and_no_group_that_it_cuts_is_trained_on(
    name: str, limit: int, group: int, size: int, seed: int
) -> None:
    Counting.steps = 0
    config = GrpoConfig(
        limits={name: limit}, num_generations=group, tasks_per_batch=size, seed=seed
    )
    found, budget, policy = batches(config, most=1000, make=lambda: Counting("easy", "habit"))
    assert getattr(budget.spent, name) == limit
    assert policy.calls == budget.spent.policy_calls == budget.spent.env_steps == Counting.steps
    assert budget.spent.episodes == sum(sum(b.stops.values()) for b in found)
    for batch in found:
        groups = [batch.rollouts[i : i + group] for i in range(0, len(batch.rollouts), group)]
        assert len(groups) == min(size, 7)
        assert sum(any(r.reward is not None for r in g) for g in groups) == batch.complete
        assert all(len({r.reward is None for r in g}) == 1 for g in groups), (
            "a group is whole or not there"
        )
        assert all(sum(r.mask) == 0 for g in groups for r in g if r.reward is None)
    assert all(b.complete == min(size, 7) for b in found[:-1])


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    config = GrpoConfig(limits={"policy_calls": 200}, num_generations=4, tasks_per_batch=3, seed=3)
    first, again, other = (
        batches(c)[0] for c in (config, config, config.model_copy(update={"seed": 4}))
    )
    assert first == again
    assert first[0] != other[0]
    rows = [r.completion for b in first for r in b.rollouts]
    assert len(set(rows)) > len(rows) / 3, "rollouts of a group are drawn apart"


def test_every_epoch_has_every_task_once() -> None:
    tasks = Gates("easy").tasks("train", 12, 0)
    rollouts = Rollouts(
        Babbler(),
        CHAT,
        EnvPool(Gates),
        tasks,
        PROMPTS,
        GrpoConfig(max_steps=1, tasks_per_batch=4),
        Budget(),
    )
    epochs = [
        [t.id for step in range(3 * e, 3 * e + 3) for t in rollouts.tasks_at(step)]
        for e in range(4)
    ]
    assert all(Counter(e) == Counter(t.id for t in tasks) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert len(rollouts.tasks_at(1000)) == 4


def test_the_rollouts_of_a_group_begin_in_the_same_env() -> None:
    began: dict[str, set[int]] = {}

    class Random(Gates):
        deterministic = False

        def reset(self, task: Task, seed: int = 0) -> str:
            began.setdefault(task.id, set()).add(seed)
            return super().reset(task, seed)

    batches(
        GrpoConfig(max_steps=1, limits={"episodes": 28}, tasks_per_batch=7, num_generations=4),
        make=lambda: Random("easy", "habit"),
    )
    assert len(began) == 7
    assert all(len(seeds) == 1 for seeds in began.values())


def test_a_rollout_that_the_env_lost_leaves_the_others_their_group() -> None:
    class Breaks(Gates):
        deterministic = False

        def step(self, action: str) -> StepResult:
            if "scroll" in action:
                raise RuntimeError("the floor gave way")
            return super().step(action)

    class Wanders(Babbler):
        async def complete(self, request: Request) -> list[Completion]:
            answers = await super().complete(request)
            if random.Random((request.seed or 0) + 1).random() < 0.1:
                return [replace(answers[0], text="take scroll", tokens=(WORDS[0], END))]
            return answers

    (batch, *_), _, _ = batches(
        GrpoConfig(max_steps=1, limits={"episodes": 28}, tasks_per_batch=7, num_generations=4),
        policy=Wanders(0.1),
        make=lambda: Breaks("easy", "habit"),
    )
    assert batch.stops["env_error"] > 2
    assert batch.complete == 7
    lost = [r for r in batch.rollouts if r.reward is None]
    assert len(lost) == batch.stops["env_error"]


def test_only_what_can_be_counted_beforehand_is_a_limit() -> None:
    for limits in ({"seconds": 3.0}, {"generated_tokens": 100}, {"policy_calls": 0}):
        with pytest.raises(ValueError, match="limit"):
            GrpoConfig(limits=limits)
    with pytest.raises(ValueError, match="no end"):
        GrpoConfig()
