"""What a reflection is shown: every failure is reflected on, whatever its length; what was followed
in vain is told; both stand in the journal."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import (
    FAILED,
    Completion,
    ContextFull,
    Kind,
    Message,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    Turn,
    UserError,
)
from leafe.distill import DistillConfig, build
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.pipeline import plan
from leafe.pipeline._acting import make_pool
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import (
    Prompts,
    PromptSet,
    history_before,
    load_prompt_set,
    prompt_sets,
    shortened,
    shortenings,
    tried_advice,
)
from leafe.recipes import load_recipe
from tests.explore.envs import Doors
from tests.trees import Ep, make_tree

WORDS = PromptSet(name="test", system="Open the doors.")


class Wordy(Doors):
    """Doors whose every answer is long; nobody ever gets out."""

    horizon = 9

    def __init__(self, length: int = 300) -> None:
        super().__init__()
        self.length = length

    def step(self, action: str) -> StepResult:
        self.at += 1
        return StepResult(f"door {self.at} " + "." * self.length, progress=self.at)


def size(request: Request) -> int:
    return sum(len(m.content) for m in request.messages) + request.max_tokens


@dataclass
class Short:
    """A policy whose context holds so many characters. Keeps the prompts that it answered."""

    room: int
    step: int = 0
    told: dict[tuple[int, bool], tuple[Message, ...]] = field(default_factory=dict)

    def __call__(self, request: Request) -> list[Completion]:
        if size(request) > self.room:
            raise ContextFull(f"{size(request)} are more than {self.room}")
        assert request.seed is not None
        self.told[request.seed, request.schema is not None] = request.messages
        if request.schema is not None:
            last = request.schema["properties"]["step"]["maximum"]
            step = min(self.step, last) if self.step >= 0 else request.seed % (last + 1)
            return [Completion(f'{{"step": {step}, "experience": "look {request.seed % 5}"}}')]
        return [Completion(f"Action: {'abc'[request.seed % 3]}")]


def grow(
    policy: object, config: ExploreConfig, words: PromptSet = WORDS, **pool: object
) -> list[Tree]:
    async def main() -> list[Tree]:
        envs = EnvPool(Wordy, size=2, **pool)  # type: ignore[arg-type]
        try:
            found = await explore(
                ScriptedPolicy(policy), envs, Wordy().tasks("train", 2), Prompts(words), config
            )  # type: ignore[arg-type]
        finally:
            envs.close()
        return list(found.trees.values())

    return asyncio.run(main())


def same_texts(asked: tuple[Message, ...], told: tuple[Message, ...]) -> bool:
    return [(m.role, m.content) for m in asked] == [(m.role, m.content) for m in told]


@settings(max_examples=15)
@given(
    st.integers(1600, 6000),
    st.integers(0, 5),
    st.sampled_from(["tree", "reflexion"]),
    st.sampled_from(["full", "window:3"]),
    st.sampled_from(["action", "branch"]),
    st.sampled_from([0, 2]),
)
def test_every_failure_is_reflected_on_and_what_the_policy_read_can_be_read_again(
    room: int, step: int, strategy: str, history: str, scope: str, every: int
) -> None:
    policy = Short(room, step)
    config = ExploreConfig(
        strategy=strategy,
        limits={"policy_calls": 40},
        max_depth=3,
        scope=scope,
        reflect_every=every,
        max_attempts_in_prompt=2,
    )  # type: ignore[arg-type]

    async def main() -> list[Tree]:
        envs = EnvPool(Wordy, size=2)
        found = await explore(
            ScriptedPolicy(policy), envs, Wordy().tasks("train", 2), prompts, config
        )
        envs.close()
        return list(found.trees.values())

    prompts = Prompts(WORDS, history=history)
    if strategy == "reflexion":
        prompts = prompts.with_texts(preamble=prompts.set.advice)
    trees = asyncio.run(main())
    told = list(policy.told.values())
    for tree in trees:
        for episode in tree.episodes:
            due = strategy == "reflexion" or episode.depth < 3
            if episode.stop in FAILED and episode.acts and due and episode is not tree.episodes[-1]:
                assert any(
                    t.kind is Kind.reflect and t.parent == episode.acts[-1].id and t.valid
                    for t in episode.turns
                ), episode.stop
        for turn in tree:
            read = history_before(tree, turn, with_experience=True)
            asked = prompts.reflect(read) if turn.kind is Kind.reflect else prompts.act(read)
            assert any(same_texts(asked, each) for each in told), (
                turn.id,
                turn.left_out,
                turn.tried,
            )
            if turn.kind is Kind.reflect and turn.left_out and history == "full":
                labels = [m.content.split("]")[0] for m in asked if m.role == "user"]
                assert labels == [labels[0], *(f"[Step {i + 1}" for i in range(turn.step))]


def test_an_episode_that_fills_the_context_grows_a_branch_and_stage_2_trains_on_it() -> None:
    policy = Short(2600, -1)
    trees = grow(policy, ExploreConfig(limits={"policy_calls": 80}))
    ended = [e for tree in trees for e in tree.episodes]
    assert {e.stop for e in ended[:-1]} >= {Stop.context_full}
    assert any(e.depth for e in ended)
    assert all(e.error for e in ended if e.stop is Stop.context_full)
    found = build(
        {tree.task.id: tree for tree in trees},
        Prompts(WORDS),
        DistillConfig(reflections=True, improvement="blame"),
        seed=0,
    )
    taken = [sample for sample in found.samples if sample.part == "reflection"]
    by_id = {turn.id: turn for tree in trees for turn in tree}
    assert any(by_id[sample.turn_id].left_out for sample in taken)
    assert any(by_id[sample.turn_id].tried for sample in taken)
    for sample in taken:
        assert any(same_texts(sample.messages, each) for each in policy.told.values())


@given(st.integers(1, 12))
def test_each_shortening_leaves_out_more_and_the_last_leaves_nothing(steps: int) -> None:
    turns = [
        Turn(f"t/0.{i}", None, "t", i, Kind.act, f"do {i}", observation=f"saw {i + 1}", tokens=(1,))
        for i in range(steps)
    ]
    counts = shortenings(steps)
    assert counts == sorted(set(counts))
    assert counts[-1] == 2 * steps + 1
    assert len(counts) <= 2 * steps.bit_length() + 2
    for count in range(2 * steps + 2):
        first, kept = shortened("saw 0", turns, count, "-")
        seen, done = [first, *(t.observation for t in kept)], [t.action_text for t in kept]
        assert seen.count("-") + done.count("-") == count
        assert [t.step for t in kept] == list(range(steps))
        if count <= steps:
            assert seen == ["-"] * count + [f"saw {i}" for i in range(count, steps + 1)]
            assert done == [t.action_text for t in turns]
        assert all(t.tokens is None for t in kept if t.action_text == "-")


def test_without_room_even_then_the_episode_is_whole_and_the_reflection_unusable() -> None:
    def full_on_reflecting(request: Request) -> list[Completion]:
        if request.schema is not None:
            raise ContextFull("no room")
        return [Completion("Action: a")]

    for tree in grow(full_on_reflecting, ExploreConfig(limits={"policy_calls": 12})):
        assert tree.episodes[0].stop is Stop.horizon
        assert [t.valid for t in tree.reflections] == [False] * len(tree.reflections)
        assert {t.observation for t in tree.reflections} == {"no room"}


def test_refinement_begins_with_fewer_earlier_attempts_where_all_do_not_fit() -> None:
    policy = Short(3000)
    long = WORDS.model_copy(update={"attempt_chars": 1500})
    trees = grow(
        policy,
        ExploreConfig(strategy="refine", limits={"policy_calls": 60}, max_attempts_in_prompt=3),
        long,
    )
    for tree in trees:
        assert all(e.acts for e in tree.episodes[:-1]), "no attempt is lost for its beginning alone"
        assert any(len(e.preamble) == 1 for e in tree.episodes[2:])
        for episode in tree.episodes:
            shown = (
                Prompts(long).act(history_before(tree, episode.acts[0], with_experience=True))
                if episode.acts
                else None
            )
            assert shown is None or any(same_texts(shown, each) for each in policy.told.values())


# --- advice that was followed already


def test_a_second_reflection_is_told_what_was_followed_at_which_step() -> None:
    failed = {"stop": Stop.failure}
    tree = make_tree(
        Ep("a", "b", "c", blame=1, note="first", **failed),  # type: ignore[arg-type]
        Ep("d", "e", branch_of=0, blame=2, note="second", **failed),  # type: ignore[arg-type]
        Ep("f", branch_of=1, blame=0, note="third", **failed),  # type: ignore[arg-type]
    )
    last = tree.episodes[2].turns[-1]
    assert tried_advice(tree, tree.path(last.id), 2, tree.episodes[2].experience) == (
        (1, "first"),
        (2, "second"),
    )
    assert tried_advice(tree, tree.path(last.id), 2) == ((1, "first"),), (
        "what this very episode follows is not in the tree yet"
    )
    elsewhere = make_tree(Ep("x", "y", "z", **failed)).episodes[0]  # type: ignore[arg-type]
    other = [replace(t, id=f"other{t.step}") for t in elsewhere.acts]
    assert tried_advice(tree, other, 3) == (), "that advice was given for another history"
    words = Prompts(WORDS)
    read = history_before(tree, last, with_experience=True)
    assert words.reflect(read)[:-1] == words.act(read)[:-1]
    assert "followed already" not in words.reflect(read)[-1].content, (
        "a journal of before says nothing of advice"
    )


def test_advice_that_once_helped_is_not_called_vain() -> None:
    tree = make_tree(
        Ep("a", "b", stop=Stop.failure, blame=0, note="n"),
        Ep("c", branch_of=0),
        Ep("d", branch_of=0, stop=Stop.failure),
    )
    assert tried_advice(tree, tree.path(tree.episodes[0].acts[-1].id), 3) == ()


@pytest.mark.parametrize("name", prompt_sets())
def test_the_text_sets_tell_it_and_the_embedded_one_cannot(name: str) -> None:
    words = load_prompt_set(name)
    assert bool(words.tried) == (name != "gates")
    policy = Short(10**6)
    trees = grow(
        policy,
        ExploreConfig(limits={"policy_calls": 40}, max_depth=3),
        words.model_copy(update={"reflection": "json"}),
    )
    told = [m[-1].content for (_, reflecting), m in policy.told.items() if reflecting]
    assert any("look" in text for text in told) == (name != "gates")
    assert any(t.tried for tree in trees for t in tree.reflections) == (name != "gates")


@pytest.mark.parametrize(
    "name", [n for n in prompt_sets() if load_prompt_set(n).action in ("react", "code")]
)
def test_who_acts_under_advice_is_asked_to_think_without_naming_it(name: str) -> None:
    task = Task("t", "e", "train", "do it")
    history = replace(
        history_before(make_tree(), make_tree().episodes[0].acts[0], with_experience=False),
        task=task,
        notes={0: "take the key"},
    )
    last = Prompts(load_prompt_set(name)).act(history)[-1].content
    assert last.index("take the key") < last.index("as if you had found it out yourself")
    assert "without a word of this advice" in last


# --- observations that are cut


@pytest.mark.parametrize("snapshots", [True, False])
@pytest.mark.parametrize("most", [None, 100, 200])
def test_long_observations_are_cut_say_so_and_are_counted(
    most: int | None, snapshots: bool
) -> None:
    async def main() -> tuple[list[Tree], int]:
        envs = EnvPool(make, size=2, max_observation=most)
        found = await explore(
            ScriptedPolicy(Short(10**6, 2)),
            envs,
            Wordy().tasks("train", 2),
            Prompts(WORDS),
            ExploreConfig(limits={"policy_calls": 40}),
        )
        envs.close()
        return list(found.trees.values()), envs.cut

    def make() -> Wordy:
        env = Wordy()
        env.can_snapshot = snapshots  # type: ignore[misc]
        return env

    trees, cut = asyncio.run(main())
    turns = [t for tree in trees for t in tree if t.kind is Kind.act]
    assert not any(e.stop is Stop.diverged for tree in trees for e in tree.episodes)
    assert any(e.replayed for tree in trees for e in tree.episodes) != snapshots
    if most is None:
        assert cut == 0
        return
    assert cut == len(turns) + sum(e.replayed for tree in trees for e in tree.episodes)
    for turn in turns:
        assert len(turn.observation) <= most
        assert turn.observation.startswith(f"door {turn.step + 1} .")
        said = re.search(r"\[\.\.\. (\d+) characters cut \.\.\.\]", turn.observation)
        assert said is not None
        whole = len(f"door {turn.step + 1} " + "." * 300)
        assert len(turn.observation) - len(said[0]) - 2 + int(said[1]) == whole


def test_a_recipe_bounds_its_observations() -> None:
    recipe = load_recipe("demo", ["env.max_observation=100"])
    pool = make_pool(recipe, plan(recipe)[0].variant, 1)
    assert pool.max_observation == 100
    pool.close()
    with pytest.raises(UserError, match="max_observation"):
        load_recipe("demo", ["env.max_observation=5"])


def test_an_imported_history_whose_observations_were_not_cut_is_replayed() -> None:
    async def main() -> list[Tree]:
        before = EnvPool(plain, size=1)
        config = ExploreConfig(limits={"policy_calls": 8})
        task = Wordy().tasks("train", 1)
        first = await explore(ScriptedPolicy(Short(10**6, 2)), before, task, Prompts(WORDS), config)
        after = EnvPool(plain, size=1, max_observation=120)
        more = config.model_copy(update={"limits": {"policy_calls": 30.0}})
        found = await explore(
            ScriptedPolicy(Short(10**6, 2)), after, task, Prompts(WORDS), more, known=first.trees
        )
        return list(found.trees.values())

    def plain() -> Wordy:
        env = Wordy()
        env.can_snapshot = False  # type: ignore[misc]
        return env

    (tree,) = asyncio.run(main())
    assert any(e.replayed for e in tree.episodes)
    assert not any(e.stop is Stop.diverged for e in tree.episodes)
