"""Which samples the trees give, and which they never give."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from leafe.core import Kind, Message, Scope, Stop, Tree, UserError
from leafe.distill import PRESETS, Dataset, DistillConfig, Part, build, preset
from leafe.distill._select import require
from leafe.prompts import history_before
from tests.distill.toy import PROMPTS, TASKS, forest
from tests.trees import Ep, make_task, make_tree, trees


def targets(data: Dataset, part: Part) -> list[str]:
    """`TURN action` of each sample of the part."""
    return [f"{s.turn_id} {s.answer.content}" for s in data.part(part)]


def select(tree: Tree, **options: object) -> Dataset:
    values: dict[str, object] = {"rehearsal": "none", "counterfactuals": "none"} | options
    return build({tree.task.id: tree}, PROMPTS, DistillConfig.model_construct(**(DistillConfig().model_dump() | values)), 0)


def test_counterfactual_targets_stand_at_the_history_without_the_experience() -> None:
    data = select(make_tree(), counterfactuals="all")
    first, second = data.part("counterfactual")
    assert first.messages == (
        Message("user", "leave the house t0 ; s0 ; start t0"),
        Message("assistant", "go left"),
        Message("user", "s1 ; seen go left"),
    )
    assert first.answer.content == "take key"
    assert second.answer.content == "open door"
    assert [m.content for m in second.messages if m.role == "assistant"] == ["go left", "take key"]


@pytest.mark.parametrize(("wanted", "expected"), [("all", ["take key", "look", "wait"]), ("improved", ["take key"]), ("success_path", ["look"])])
def test_counterfactuals_are_chosen_by_what_became_of_them(wanted: str, expected: list[str]) -> None:
    tree = make_tree(
        Ep("go left", "take lamp", stop=Stop.failure, progress=(1, 1), blame=1, note="take key"),
        Ep("take key", stop=Stop.failure, branch_of=0, progress=(2,)),  # further, but no win
        Ep("look", stop=Stop.failure, branch_of=0, progress=(1,), blame=1, note="wait"),  # no further
        Ep("wait", stop=Stop.failure, branch_of=2, progress=(1,)),
    )
    if wanted == "success_path":  # a win that runs through "look", by a later branch
        tree = make_tree(
            Ep("go left", "take lamp", stop=Stop.failure, progress=(1, 1), blame=1, note="take key"),
            Ep("take key", stop=Stop.failure, branch_of=0, progress=(1,)),
            Ep("look", "open box", stop=Stop.failure, branch_of=0, progress=(1, 1), blame=2, note="wait"),
            Ep("open door", branch_of=2, progress=(2,)),
        )
        expected = ["look", "open door"]
    assert [s.answer.content for s in select(tree, counterfactuals=wanted).part("counterfactual")] == expected


def test_rehearsal_of_successes_takes_rescued_episodes_whole_and_once() -> None:
    data = select(make_tree(), rehearsal="successes")
    assert targets(data, "rehearsal") == ["t0/0.0 go left", "t0/1.1 take key", "t0/2.2 open door", "t0/2.3 walk out"]
    again = select(make_tree(Ep("go", "take"), Ep("go", "take"), Ep("go", "walk")), rehearsal="successes")
    assert targets(again, "rehearsal") == ["t0/0.0 go", "t0/0.1 take", "t0/2.1 walk"]
    assert again.counts["rehearsal"] == {"samples": 3, "tasks": 1, "duplicates": 3}


def test_refused_actions_stay_in_the_history_and_are_no_targets() -> None:
    data = select(make_tree(Ep("!fly", "go")), rehearsal="successes")
    (only,) = data.part("rehearsal")
    assert only.answer.content == "go"
    assert Message("assistant", "!fly") in only.messages
    assert data.skipped == {"rehearsal: the world refused the action": 1}


@pytest.mark.parametrize(
    ("episode", "expected"),
    [
        (Ep("a", "b", "c", "d", stop=Stop.failure, blame=2, note="x"), ["a", "b"]),  # the world reports no progress
        (Ep("a", "b", "c", "d", stop=Stop.failure, blame=3, note="x", progress=(1, 2, 2, 2)), ["a", "b"]),  # not past the last rise
        (Ep("a", "b", "c", "d", stop=Stop.failure, blame=1, note="x", progress=(1, 2, 3, 3)), ["a"]),  # not the blamed step
        (Ep("a", "b", "c", "d", stop=Stop.failure, progress=(0, 2, 1, 2)), ["a", "b"]),  # no reflection: up to the last rise
        (Ep("a", "b", stop=Stop.failure, blame=-1, progress=(1, 1)), ["a"]),  # an unusable reflection blames nothing
        (Ep("a", "b", stop=Stop.failure), []),
        (Ep("a", "b", stop=Stop.failure, blame=0, note="x", progress=(1, 2)), []),
        (Ep("a", "b", stop=Stop.failure, progress=(0, 0)), []),
        (Ep("a", "b", progress=(0, 0)), ["a", "b"]),  # a win counts whole
        (Ep("a", "b", stop=Stop.diverged, blame=1, note="x"), []),
    ],
)
def test_progress_prefix(episode: Ep, expected: list[str]) -> None:
    data = select(make_tree(episode), rehearsal="progress_prefix")
    assert [s.answer.content for s in data.part("rehearsal")] == expected
    assert bool(data.skipped) == (not expected)


def test_of_several_reflections_on_one_episode_the_earliest_blame_counts() -> None:
    episode = make_tree(Ep("a", "b", "c", "d", stop=Stop.failure, blame=3, note="x")).episodes[0]
    early = replace(episode.turns[-1], id="t0/0.3r0", parent=episode.acts[2].id, step=3, target=1)
    late = replace(episode.turns[-1], id="t0/0.4r1", target=2)
    tree = Tree(make_task(), [replace(episode, turns=(*episode.acts[:3], early, episode.acts[3], episode.turns[-1], late))])
    assert [s.answer.content for s in select(tree, rehearsal="progress_prefix").part("rehearsal")] == ["a"]


def test_fraction_and_samples_per_task_are_drawn_by_the_seed() -> None:
    many = {t: make_tree(*[Ep(f"go {i}") for i in range(5)], task_id=t) for t in TASKS[:4]}
    config = DistillConfig(rehearsal_fraction=0.2, counterfactuals="none")
    picks = [tuple(targets(build(many, PROMPTS, config, seed), "rehearsal")) for seed in (0, 0, 1)]
    assert len(picks[0]) == 4
    assert picks[0] == picks[1] != picks[2]
    branches = make_tree(Ep("a", "b", stop=Stop.failure, blame=1, note="x"), *[Ep(f"c{i}", branch_of=0) for i in range(9)])
    assert len(select(branches, counterfactuals="all", samples_per_task=3).part("counterfactual")) == 3


def test_anchors_carry_another_branchs_experience() -> None:
    data = build(forest(3), PROMPTS, preset("leafe+"), 0)
    anchors = data.part("anchor")
    assert len(anchors) == 6
    own = {"take key": "open door", "open door": "take key"}
    for sample in anchors:
        revised = forest(3)[sample.task_id][sample.turn_id]
        # two different notes in all, so that the exchanged one is the other; the answer is what it asks for
        assert sample.messages[-1].content.endswith(f" ; note : {own[revised.action]}")
        assert sample.answer.content == own[revised.action]
    alone = build({"t0": make_tree(Ep("a", stop=Stop.failure, blame=0, note="b"), Ep("b", branch_of=0))}, PROMPTS, preset("leafe+"), 0)
    assert alone.part("anchor") == ()
    assert alone.skipped["anchor: there is no other experience to exchange with"] == 1


def test_reflections_are_learnt_where_their_branch_improved() -> None:
    tree = make_tree(
        Ep("a", "b", stop=Stop.failure, progress=(1, 1), blame=1, note="c"),
        Ep("c", stop=Stop.failure, branch_of=0, progress=(1,), blame=0, note="d"),
        Ep("d", branch_of=1, progress=(5,)),
    )
    (only,) = select(tree, reflections=True).part("reflection")
    assert only.answer.content == "s0 : d"
    assert only.messages[-1].content == "s2 ; seen a c ; reflect"


def _key(messages: tuple[Message, ...], action: str) -> tuple[object, ...]:
    return (tuple((m.role, m.content) for m in messages), action)


@given(trees())
def test_selection_against_a_naive_oracle(tree: Tree) -> None:
    def at(turn_id: str) -> tuple[object, ...]:
        turn = tree[turn_id]
        return _key(PROMPTS.act(history_before(tree, turn, with_experience=False)), turn.action_text)

    right: set[tuple[object, ...]] = set()
    won: set[tuple[object, ...]] = set()
    revised: set[tuple[object, ...]] = set()
    for episode in tree.episodes:
        path = tree.trajectory(episode)
        if any(tree.episode_of(t.id).stop is Stop.diverged for t in path):
            continue
        if episode.experience is not None and episode.acts[0].valid:
            revised.add(at(episode.acts[0].id))
        blamed = [t.target for t in episode.turns if t.kind is Kind.reflect and t.target is not None]
        for nth, turn in enumerate(path):
            later = [t.progress for t in path[nth:] if t.progress is not None]
            before = max([0.0, *[t.progress for t in path[:nth] if t.progress is not None]])
            advances = bool(later) and max(later) > before
            reports = any(t.progress is not None for t in path)
            known = (advances and all(nth < b for b in blamed)) if reports else any(nth < b for b in blamed)
            if turn.valid and episode.success:
                won.add(at(turn.id))
            if turn.valid and (episode.success or known):
                right.add(at(turn.id))

    found = {
        name: [_key(s.messages, s.answer.content) for s in select(tree, **options).samples]
        for name, options in {
            "successes": {"rehearsal": "successes"},
            "prefix": {"rehearsal": "progress_prefix"},
            "cf": {"counterfactuals": "all"},
        }.items()
    }
    assert all(len(set(keys)) == len(keys) for keys in found.values())
    assert {name: set(keys) for name, keys in found.items()} == {"successes": won, "prefix": right, "cf": revised}


@given(trees())
def test_no_experience_and_no_preamble_in_what_is_imitated(tree: Tree) -> None:
    data = select(tree, rehearsal="progress_prefix", counterfactuals="all", anchors=True, reflections=True)
    for sample in data.samples:
        text = " ".join(m.content for m in sample.messages)
        if sample.part in ("rehearsal", "counterfactual"):
            assert "note :" not in text
            assert "earlier :" not in text
        elif sample.part == "anchor":
            assert " ; note : " in sample.messages[-1].content
        else:
            assert sample.messages[-1].content.endswith(" ; reflect")


def test_split_parts_the_tasks_and_files_come_back(tmp_path: Path) -> None:
    tree = make_tree(task_id="t9", tokens=lambda text: tuple(range(len(text.split()))))
    data = build(forest(6) | {"t9": tree}, PROMPTS, preset("leafe+"), 0)
    train, valid = data.split(0.3, 1)
    tasks = [{s.task_id for s in d.samples} for d in (train, valid)]
    assert [len(t) for t in tasks] == [5, 2]
    assert not tasks[0] & tasks[1]
    assert set(train.samples) | set(valid.samples) == set(data.samples)
    assert data.split(0.3, 1) == (train, valid) != data.split(0.3, 2)
    assert data.split(0, 1)[1].samples == ()
    data.save(tmp_path / "data.jsonl")
    assert Dataset.load(tmp_path / "data.jsonl") == data


def test_scope_branch_keeps_the_note_out_of_later_turns_too() -> None:
    tree = make_tree(Ep("a", "b", stop=Stop.failure, blame=0, note="c"), Ep("c", "d", branch_of=0, scope=Scope.branch))
    data = select(tree, rehearsal="successes")
    assert [len(s.messages) for s in data.part("rehearsal")] == [1, 3]
    assert not any("note" in m.content for s in data.samples for m in s.messages)


def test_empty_parts_are_said_and_nothing_at_all_is_refused() -> None:
    lost = build({"t0": make_tree(Ep("a", "b", stop=Stop.failure))}, PROMPTS, preset("paper"), 0)
    with pytest.raises(UserError, match=r"nothing to train on.*rehearsal \(successes\) and counterfactuals \(all\)"):
        require(lost, preset("paper"))
    won = build({"t0": make_tree(Ep("a"))}, PROMPTS, preset("paper"), 0)
    assert require(won, preset("paper")) == ["No samples for counterfactuals (all): training on the other part alone."]
    with pytest.raises(UserError, match="nothing to train on"):
        require(won, preset("paper", beta=0.0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_take_overrides(name: str) -> None:
    assert preset(name).epochs == 2.0
    changed = preset(name, steps=60, learning_rate=1e-3)
    assert (changed.steps, changed.epochs, changed.learning_rate) == (60, None, 1e-3)


def test_wrong_options_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no distillation preset 'leaf'"):
        preset("leaf")
    with pytest.raises(UserError, match=r"distill\.stepz"):
        preset("paper", stepz=3)
    with pytest.raises(UserError, match="not both"):
        preset("paper", steps=3, epochs=1.0)
    with pytest.raises(UserError, match="patience needs eval_every"):
        preset("paper", patience=3)


def test_selection_needs_no_torch() -> None:
    code = "import sys; from leafe.distill import build, preset, train, encode, export_trl; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
