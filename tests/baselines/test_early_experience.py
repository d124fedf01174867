"""Early Experience: what is collected is what the environment would say, costs what it costs, and
becomes the samples that the paper trains on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from leafe.baselines.early_experience import (
    Collected,
    EarlyConfig,
    by_task,
    collect,
    early_data,
    expert_turns,
    train_early,
)
from leafe.core import (
    Completion,
    Environment,
    Episode,
    ForeignFailure,
    Kind,
    PolicyError,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    Turn,
    UserError,
)
from leafe.distill import DistillConfig, encode, preset
from leafe.explore import EnvPool, ExploreConfig
from leafe.prompts import Prompts, PromptSet, load_prompt_set
from tests.baselines.doors import (
    PROMPTS,
    Killed,
    Sink,
    asked_for,
    counted,
    episodes,
    plain,
    scripted,
    total,
)
from tests.explore.envs import Doors

WORD = "abcb"


def task(number: int) -> Task:
    return Task(f"t{number}", "doors", "train", "open all doors", {"word": WORD})


def played(
    actions: Sequence[str], number: int = 0, index: int = 0, tree: Tree | None = None
) -> Episode:
    """An episode of these actions as the environment plays it; its texts are plain actions in the
    react form."""
    env = Doors()
    first = env.reset(task(number), 0)
    turns: list[Turn] = []
    result = StepResult("")
    for step, action in enumerate(actions):
        result = env.step(action)
        parent = turns[-1].id if turns else None
        turns.append(
            Turn(
                f"t{number}/{index}.{step}",
                parent,
                f"t{number}",
                step,
                Kind.act,
                f"Thought: so.\nAction: {action}",
                action,
                "so.",
                result.observation,
                result.reward,
                result.done,
                result.success,
                result.valid,
                result.progress,
                env_steps=1,
            )
        )
    stop = Stop.success if result.success else Stop.failure if result.done else Stop.horizon
    return Episode(f"t{number}", index, stop, tuple(turns), first)


def forest() -> dict[str, Tree]:
    """t0: a failure, then a win with an invalid action on the way; t1: a failure alone; t2: a
    win."""
    lots = [["abaa", "ab?cb"], ["ccc"], ["abcb"]]
    return {
        f"t{n}": Tree(task(n), [played(actions, n, i) for i, actions in enumerate(lot)])
        for n, lot in enumerate(lots)
    }


def script(request: Request) -> list[Completion] | str:
    """At every state two different other keys, the expert's own, and one of them again; explains in
    words that name the action."""
    what = asked_for(request)
    if what == "explain":
        if request.seed is not None and request.seed % 5 == 0:
            return "Action: a"
        return "Thought: The door wants it.\nSo I say it.\nAction: a"
    assert what == "act"
    assert request.n == 4
    door = sum(m.role == "assistant" for m in request.messages)
    keys = [k for k in "abc" if k != WORD[min(door, 3)]]
    return [
        counted(f"Action: {keys[0]}", 2),
        counted(f"Thought: mine.\nAction: {WORD[min(door, 3)]}", 1),
        counted(keys[1], 1),
    ]


def gather(
    policy: Callable[[Request], list[Completion] | str] = script,
    *,
    make: Callable[[], Environment] = Doors,
    own: EarlyConfig | None = None,
    journal: Sink | None = None,
    known: Mapping[str, Sequence[Episode]] | None = None,
    trees: Mapping[str, Tree] | None = None,
    prompts: Prompts = PROMPTS,
    **settings: object,
) -> Collected:
    config = ExploreConfig(
        **({"limits": {"policy_calls": 1000}, "seed": 0, "concurrency": 2} | settings)
    )  # type: ignore[arg-type]

    async def main() -> Collected:
        envs = EnvPool(make, size=2)
        try:
            return await collect(
                scripted(policy),
                envs,
                trees or forest(),
                prompts,
                config,
                own or EarlyConfig(),
                journal=journal,
                known=known,
            )
        finally:
            envs.close()

    return asyncio.run(main())


def without_snapshots() -> Doors:
    return Doors(snapshots=False)


@pytest.mark.parametrize("make", [Doors, without_snapshots])
def test_every_alternative_is_what_the_env_says_there(make: Callable[[], Environment]) -> None:
    found = gather(make=make)
    assert set(found.trees) == {"t0", "t2"}
    asked = 0
    for task_id, tree in found.trees.items():
        before = forest()[task_id].episodes
        assert plain(tree.episodes[: len(before)]) == plain(before)
        experts = {t.parent: t for t in expert_turns(tree, 1, len(before))}
        assert [t.action for t in experts.values()] == list(WORD)
        for episode in tree.episodes[len(before) :]:
            asked += 1
            [turn] = episode.acts
            assert turn.action != experts[episode.start].action
            env = Doors()
            env.reset(task(0), 0)
            for action in [t.action for t in tree.path(episode.start)]:
                env.step(action)
            result = env.step(turn.action)
            assert (turn.observation, turn.done, turn.success, turn.valid) == (
                result.observation,
                result.done,
                result.success,
                result.valid,
            )
    assert asked == found.counts["alternatives"] == 16
    assert found.counts["states"] == 8
    assert (
        found.counts["proposal: the expert's own action"]
        == found.counts["proposal: proposed already"]
        == 8
    )


@pytest.mark.parametrize("make", [Doors, without_snapshots])
@pytest.mark.parametrize("calls", [3, 4, 9, 13, 1000])
def test_the_journal_sums_to_what_was_spent_and_no_limit_is_passed(
    make: Callable[[], Environment], calls: int
) -> None:
    sink = Sink()
    found = gather(
        make=make,
        own=EarlyConfig(explanations=1),
        journal=sink,
        limits={"policy_calls": calls, "env_steps": 7},
    )
    assert replace(found.spent, seconds=0.0) == replace(
        total(e for line in sink.lines for e in line), seconds=0.0
    )
    for task_id, tree in found.trees.items():
        spent = total(tree.episodes[len(forest()[task_id].episodes) :])
        assert spent.policy_calls <= calls
        assert spent.env_steps <= 7
    if calls == 1000:
        assert found.spent.env_steps == 14
        assert found.counts["proposal: not carried out"] == 2
        # the states after 0..3 and (past the invalid one) 0, 1, 3, 4 steps: twice each without
        # snapshots, but for the last, where one step was left
        if make is without_snapshots:
            assert found.spent.replayed_steps == 2 * (0 + 1 + 2) + 3 + 2 * (0 + 1 + 3) + 4


@pytest.mark.parametrize("make", [Doors, without_snapshots])
def test_killed_at_any_line_it_goes_on_to_the_same_trees(make: Callable[[], Environment]) -> None:
    """Snapshots die with the process: then replays serve, and these alone may be more."""
    whole = Sink()
    own = EarlyConfig(explanations=2)
    expected = gather(make=make, own=own, journal=whole, concurrency=1)

    def known(found: Collected) -> list[object]:
        return plain(
            [
                replace(e, replayed=e.replayed * (make is without_snapshots))
                for e in episodes(found.trees.values())
            ]
        )

    for dies_at in range(len(whole.lines)):
        sink, rest = Sink(dies_at), Sink()
        with pytest.raises(Killed):
            gather(make=make, own=own, journal=sink, concurrency=1)
        found = gather(make=make, own=own, journal=rest, known=by_task(sink.lines), concurrency=1)
        assert known(found) == known(expected)
        assert found.counts == expected.counts
        assert replace(found.spent, seconds=0.0, replayed_steps=0) == replace(
            expected.spent, seconds=0.0, replayed_steps=0
        )
        assert (
            found.spent.replayed_steps
            == total(e for line in (*sink.lines, *rest.lines) for e in line).replayed_steps
        )
        assert len(sink.lines) + len(rest.lines) == len(whole.lines) == 8


def test_the_samples_of_both_variants() -> None:
    own = EarlyConfig(explanations=2)
    found = gather(own=own)
    data = early_data(forest(), found.trees, PROMPTS, own)
    assert len(data.expert.samples) == 8
    assert len(data.world_model.samples) == 16 + 8
    assert {s.part for s in (*data.world_model.samples, *data.mixed.samples)} == {"rehearsal"}
    for sample in data.world_model.samples:
        turn = found.trees[sample.task_id][sample.turn_id]
        assert sample.messages[-1].content.endswith(f"if you do this: {turn.action}")
        assert sample.answer.content == turn.observation
        assert sample.answer.role == "assistant"
    assert data.reasoned.samples
    asked = [
        t for e in episodes(found.trees.values()) for t in e.turns if t.action == "explanation"
    ]
    assert (
        found.counts["explanations"] == sum(t.valid for t in asked) == 16
    )  # where one was empty it was asked for again
    assert (
        found.counts["explanation: the explanation is empty"] == sum(not t.valid for t in asked) > 0
    )
    for sample in data.reasoned.samples:
        assert PROMPTS.parse_action(sample.answer.content) == (
            "The door wants it. So I say it.",
            found.trees[sample.task_id][sample.turn_id].action,
        )
        assert sample.messages in [s.messages for s in data.expert.samples]
        assert "Action B" not in sample.messages[-1].content
    # the two alternatives of a state got the same explanation here: one sample, and the other is
    # counted
    assert (
        len(data.reasoned.samples) + data.reasoned.duplicates.get("rehearsal", 0)
        == found.counts["explanations"]
    )
    assert len(data.mixed.samples) == len(data.expert.samples) + len(data.reasoned.samples)


def test_only_so_many_states_drawn_by_seed() -> None:
    own = EarlyConfig(states=2)
    one, two, other = (
        gather(own=own),
        gather(own=own),
        [gather(own=own, seed=s) for s in range(1, 6)],
    )
    assert one.counts["states"] == 4
    assert plain(episodes(one.trees.values())) == plain(episodes(two.trees.values()))
    assert any(
        plain(episodes(o.trees.values())) != plain(episodes(one.trees.values())) for o in other
    )


class Moody(Doors):
    """Says other things on the way than when the expert went it."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return (
            replace(result, observation=result.observation + " today") if self.at == 2 else result
        )


class Broken(Doors):
    def step(self, action: str) -> StepResult:
        raise RuntimeError("the floor gave way")


def test_a_cut_answer_is_no_sample() -> None:
    own = EarlyConfig(explanations=2)
    found = gather(own=own)
    whole = early_data(forest(), found.trees, PROMPTS, own)

    def half(tree: Tree, kind: Kind) -> Tree:
        return Tree(
            tree.task,
            [
                replace(
                    e,
                    turns=tuple(
                        replace(t, finish="length") if t.kind is kind else t for t in e.turns
                    ),
                )
                for e in tree.episodes
            ],
        )

    acts, asides = (
        early_data(forest(), {k: half(t, kind) for k, t in found.trees.items()}, PROMPTS, own)
        for kind in (Kind.act, Kind.aside)
    )
    assert (
        acts.world_model.samples == asides.world_model.samples == whole.world_model.samples
    )  # what the environment said is whole
    assert (acts.expert.samples, acts.reasoned.samples, asides.reasoned.samples) == ((), (), ())
    assert asides.expert.samples == whole.expert.samples
    assert acts.expert.skipped == {
        "expert: the answer was cut at its limit of tokens": len(whole.expert.samples)
    }
    assert (
        asides.reasoned.skipped["reasoned: the answer was cut at its limit of tokens"]
        >= len(whole.reasoned.samples)
        > 0
    )


def test_a_state_that_cannot_be_brought_back_is_counted_and_gives_no_sample() -> None:
    sink = Sink()
    found = gather(make=Moody, journal=sink)
    assert (
        found.counts["failed: the state could not be brought back"] == 4
    )  # the two last states of each
    assert replace(found.spent, seconds=0.0) == replace(
        total(e for line in sink.lines for e in line), seconds=0.0
    )
    assert all(
        t.step < 2
        for tree in found.trees.values()
        for e in tree.episodes
        for t in e.acts
        if e.start is not None
    )


def test_failures_outside_and_bad_input() -> None:
    def dead(request: Request) -> str:
        raise PolicyError("nobody is at home")

    many = {f"t{n}": Tree(task(n), [played(WORD, n)]) for n in range(4)}
    with pytest.raises(ForeignFailure, match="nobody is at home"):
        gather(dead, trees=many)
    with pytest.raises(ForeignFailure, match="the floor gave way"):
        gather(make=Broken, trees=many)
    with pytest.raises(UserError, match="No tree holds a success"):
        gather(trees={"t1": forest()["t1"]})
    with pytest.raises(UserError, match="no room for thoughts"):
        gather(own=EarlyConfig(explanations=1), prompts=Prompts(load_prompt_set("gates")))
    with pytest.raises(UserError, match="no explanations"):
        train_early(
            "nowhere",
            "nowhere",
            early_data(forest(), gather().trees, PROMPTS, EarlyConfig()),
            "reflection",
            preset("rehearsal"),
        )


@pytest.mark.parametrize("name", ["codecontests", "sokoban", "webshop", "plain"])
def test_reason_and_action_read_back_in_the_built_in_forms(name: str) -> None:
    from leafe.prompts import fill

    words = load_prompt_set(name)
    action = "print(1)\nprint(2)" if words.action == "code" else "click[buy now]"
    text = fill(words.reasoned, {"thought": "It is right.", "action": action})
    assert Prompts(words).parse_action(text) == ("It is right.", action)


def test_both_phases_are_trained_and_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("torch").set_num_threads(1)
    from leafe.core import ChatTokens
    from tests.tiny import tiny_checkpoint, tiny_tokenizer

    words = (
        "open all doors door 0 1 2 3 4 out trap: needed a b c Thought: so. mine. Action: say "
        "The wants it. So I now s0 s1 s2 s3 s4"
    )
    vocabulary = words.split()
    prompts = Prompts(
        PromptSet(
            name="tiny",
            first="{instruction} s{step} {observation}",
            turn="s{step} {observation}",
            predict=" say {action}",
            explain="why is action A",
            reasoned="Thought: {thought}\nAction: {action}",
        )
    )
    model = tiny_checkpoint(tmp_path / "model", words=vocabulary)
    own = EarlyConfig(explanations=1)
    found = gather(own=own, prompts=prompts)
    data = early_data(forest(), found.trees, prompts, own)
    encoded = encode(data.world_model.samples, ChatTokens(tiny_tokenizer(vocabulary), "tiny"), 128)
    assert encoded.counts["rehearsal"]["spans"] == len(data.world_model.samples)
    config: DistillConfig = preset(
        "rehearsal",
        max_steps=6,
        rehearsal_batch_size=4,
        learning_rate=1e-2,
        eval_steps=2,
        valid_fraction=0.5,
    )
    results = train_early(model, tmp_path / "w", data, "world_model", config)
    assert list(results) == ["world_model", "expert"]
    assert json.loads((tmp_path / "w" / "world_model" / "train.json").read_text())
    assert (tmp_path / "w" / "checkpoint" / "model.safetensors").is_file()
    assert results["world_model"].valid_loss is None
    assert results["expert"].valid_loss is not None
    assert (
        train_early(model, tmp_path / "w", data, "world_model", config)["expert"]
        == results["expert"]
    )
