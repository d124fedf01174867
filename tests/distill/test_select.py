"""Which samples the trees give, and which they never give."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Episode, Kind, Message, Scope, Stop, Tree, UserError
from leafe.distill import PRESETS, Dataset, DistillConfig, OutcomeWeights, Part, build, preset
from leafe.distill._select import require
from leafe.prompts import Prompts, history_before
from leafe.runs import Journal, StoredTrees, load_trees, write_tasks
from tests.distill.toy import PROMPTS, TASKS, forest
from tests.trees import Ep, make_task, make_tree, trees


def targets(data: Dataset, part: Part) -> list[str]:
    """`TURN action` of each sample of the part."""
    return [f"{s.turn_id} {s.answer.content}" for s in data.part(part)]


def select(tree: Tree, **options: object) -> Dataset:
    values: dict[str, object] = {"rehearsal": "none", "counterfactuals": "none"} | options
    return build(
        {tree.task.id: tree},
        PROMPTS,
        DistillConfig.model_construct(**(DistillConfig().model_dump() | values)),
        0,
    )


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


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("all", ["take key", "look", "wait"]), ("improved", ["take key"]), ("success_path", ["look"])],
)
def test_counterfactuals_are_chosen_by_what_became_of_them(
    wanted: str, expected: list[str]
) -> None:
    tree = make_tree(
        Ep("go left", "take lamp", stop=Stop.failure, progress=(1, 1), blame=1, note="take key"),
        Ep("take key", stop=Stop.failure, branch_of=0, progress=(2,)),  # further, but no win
        Ep(
            "look", stop=Stop.failure, branch_of=0, progress=(1,), blame=1, note="wait"
        ),  # no further
        Ep("wait", stop=Stop.failure, branch_of=2, progress=(1,)),
    )
    if wanted == "success_path":  # a win that runs through "look", by a later branch
        tree = make_tree(
            Ep(
                "go left", "take lamp", stop=Stop.failure, progress=(1, 1), blame=1, note="take key"
            ),
            Ep("take key", stop=Stop.failure, branch_of=0, progress=(1,)),
            Ep(
                "look",
                "open box",
                stop=Stop.failure,
                branch_of=0,
                progress=(1, 1),
                blame=2,
                note="wait",
            ),
            Ep("open door", branch_of=2, progress=(2,)),
        )
        expected = ["look", "open door"]
    assert [
        s.answer.content for s in select(tree, counterfactuals=wanted).part("counterfactual")
    ] == expected


def test_rehearsal_of_successes_takes_rescued_episodes_whole_and_once() -> None:
    data = select(make_tree(), rehearsal="successes")
    assert targets(data, "rehearsal") == [
        "t0/0.0 go left",
        "t0/1.1 take key",
        "t0/2.2 open door",
        "t0/2.3 walk out",
    ]
    again = select(
        make_tree(Ep("go", "take"), Ep("go", "take"), Ep("go", "walk")), rehearsal="successes"
    )
    assert targets(again, "rehearsal") == ["t0/0.0 go", "t0/0.1 take", "t0/2.1 walk"]
    assert again.counts["rehearsal"] == {"samples": 3, "tasks": 1, "duplicates": 3}


def test_refused_actions_stay_in_the_history_and_are_no_targets() -> None:
    data = select(make_tree(Ep("!fly", "go")), rehearsal="successes")
    (only,) = data.part("rehearsal")
    assert only.answer.content == "go"
    assert Message("assistant", "!fly") in only.messages
    assert data.skipped == {"rehearsal: the environment refused the action": 1}


@pytest.mark.parametrize(
    ("episode", "expected"),
    [
        (
            Ep("a", "b", "c", "d", stop=Stop.failure, blame=2, note="x"),
            ["a", "b"],
        ),  # the environment reports no progress
        (
            Ep("a", "b", "c", "d", stop=Stop.failure, blame=3, note="x", progress=(1, 2, 2, 2)),
            ["a", "b"],
        ),  # not past the last rise
        (
            Ep("a", "b", "c", "d", stop=Stop.failure, blame=1, note="x", progress=(1, 2, 3, 3)),
            ["a"],
        ),  # not the blamed step
        (
            Ep("a", "b", "c", "d", stop=Stop.failure, progress=(0, 2, 1, 2)),
            ["a", "b"],
        ),  # no reflection: up to the last rise
        (
            Ep("a", "b", stop=Stop.failure, blame=-1, progress=(1, 1)),
            ["a"],
        ),  # an unusable reflection blames nothing
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
    tree = Tree(
        make_task(),
        [
            replace(
                episode, turns=(*episode.acts[:3], early, episode.acts[3], episode.turns[-1], late)
            )
        ],
    )
    assert [
        s.answer.content for s in select(tree, rehearsal="progress_prefix").part("rehearsal")
    ] == ["a"]


def _apart(tree: Tree) -> Tree:
    """The same episodes as imports are explored: without reflections, and each one's reflections in
    a record of their own that follows."""
    records: list[Episode] = []
    for e in tree.episodes:
        records.append(replace(e, index=len(records), turns=e.acts))
        reflections = tuple(t for t in e.turns if t.kind is Kind.reflect)
        if reflections:
            last = e.acts[-1].id if e.acts else e.start
            records.append(
                Episode(
                    e.task_id,
                    len(records),
                    e.stop,
                    reflections,
                    e.first_observation,
                    start=last,
                    depth=e.depth,
                    preamble=e.preamble,
                )
            )
    return Tree(tree.task, records)


@given(
    trees(),
    st.sampled_from(list(PRESETS)),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from(["progress", "blame"]),
    st.integers(0, 3),
)
def test_a_reflection_in_a_record_of_its_own_says_the_same(
    tree: Tree, name: str, fraction: float, rule: str, seed: int
) -> None:
    config = preset(name, rehearsal_fraction=fraction, improvement=rule)
    native, apart = (
        build({"t0": t, "t1": make_tree(task_id="t1")}, PROMPTS, config, seed)
        for t in (tree, _apart(tree))
    )
    assert [replace(s, note="") for s in apart.samples] == [
        replace(s, note="") for s in native.samples
    ]
    assert (apart.duplicates, apart.skipped, apart.agreement) == (
        native.duplicates,
        native.skipped,
        native.agreement,
    )
    for one, other in zip(tree.branches(rule), _apart(tree).branches(rule), strict=True):
        assert (one.improved, one.original, one.revised) == (
            other.improved,
            other.original,
            other.revised,
        )
        assert tree.trajectory(one.outcome_before) == _apart(tree).trajectory(other.outcome_before)
        assert other.outcome_before.acts


def test_what_was_blamed_on_the_way_is_blamed_in_what_went_on_from_there() -> None:
    # reflected on after two steps, and again at the end; a branch from the end goes through what
    # the first reflection blames
    tree = make_tree(
        Ep("a", "b", "c", "d", stop=Stop.failure, blame=3, note="x"),
        Ep("e", stop=Stop.failure, branch_of=0),
    )
    first, second = tree.episodes
    early = replace(first.turns[-1], id="t0/0.2r0", parent=first.acts[1].id, step=2, target=1)
    tree = Tree(
        tree.task, [replace(first, turns=(*first.acts[:2], early, *first.turns[2:])), second]
    )
    assert [tree.blamed(tree.trajectory(e)) for e in tree.episodes] == [1, 1]
    assert [
        s.answer.content for s in select(tree, rehearsal="progress_prefix").part("rehearsal")
    ] == ["a"]


def test_fraction_and_samples_per_task_are_drawn_by_the_seed() -> None:
    many = {t: make_tree(*[Ep(f"go {i}") for i in range(5)], task_id=t) for t in TASKS[:4]}
    config = DistillConfig(rehearsal_fraction=0.2, counterfactuals="none")
    picks = [tuple(targets(build(many, PROMPTS, config, seed), "rehearsal")) for seed in (0, 0, 1)]
    assert len(picks[0]) == 4
    assert picks[0] == picks[1] != picks[2]
    branches = make_tree(
        Ep("a", "b", stop=Stop.failure, blame=1, note="x"),
        *[Ep(f"c{i}", branch_of=0) for i in range(9)],
    )
    assert (
        len(select(branches, counterfactuals="all", samples_per_task=3).part("counterfactual")) == 3
    )


def _said(tree: Tree, **texts: str) -> Tree:
    """The tree with other words of the policy for some actions; what the environment was given
    stays."""
    episodes = []
    for e in tree.episodes:
        turns = [
            replace(
                t, action_text=texts.get(t.id.rpartition("/")[2].replace(".", "_"), t.action_text)
            )
            for t in e.turns
        ]
        episodes.append(replace(e, turns=tuple(turns)))
    return Tree(tree.task, episodes)


SAME = "counterfactual: the revised action is the original one"


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("scope", ["action", "branch"])
@pytest.mark.parametrize(
    ("kind", "original", "revised", "same"),
    [
        ("plain", "take key", "take key", True),
        ("react", "take key", " take   key ", True),
        ("line", "take\tkey", "take key", True),
        ("plain", "take key", "take keys", False),
        ("plain", "take key", "Take key", False),  # some environments tell them apart
        ("code", "def f():\n    return 1", "def f():\n    return 1  \n\n", True),
        ("code", "if a:\n    b()\nc()", "if a:\n    b()\n    c()", False),
        ("code", "print('a  b')", "print('a b')", False),
    ],
)
def test_a_correction_differs_from_what_it_corrects(
    kind: str, original: str, revised: str, same: bool, scope: str, method: str
) -> None:
    if method == "dpo" and scope == "branch":
        return  # no such setting
    tree = make_tree(
        Ep("go", original, stop=Stop.failure, blame=1, note="x"),
        Ep(revised, "walk out", branch_of=0),
    )
    tree = _said(
        tree,
        **{"0_1": f"Thought: hm\nAction: {original}", "1_1": f"Thought: oh\nAction: {revised}"},
    )  # other thoughts make no other action
    prompts = Prompts(PROMPTS.set.model_copy(update={"action": kind}))
    values = DistillConfig().model_dump() | {
        "method": method,
        "rehearsal": "none",
        "counterfactuals": "all",
        "counterfactual_scope": scope,
    }
    data = build({"t0": tree}, prompts, DistillConfig.model_construct(**values), 0)
    assert len(data.part("counterfactual")) == (0 if same else 2 if scope == "branch" else 1)
    assert data.skipped == ({SAME: 1} if same else {})


@pytest.mark.parametrize("seed", range(5))
def test_paper_draws_its_events_among_those_that_teach_something(seed: int) -> None:
    teach = [Ep(f"use {n}", stop=Stop.failure, branch_of=0) for n in ("key", "lamp", "box")]
    repeats = [Ep("use key", stop=Stop.failure, branch_of=0) for _ in range(6)]
    equal = [Ep("take lamp", stop=Stop.failure, branch_of=0) for _ in range(6)]
    refused = [Ep("!fly", stop=Stop.failure, branch_of=0) for _ in range(6)]
    tree = make_tree(
        Ep("go left", "take lamp", stop=Stop.failure, blame=1, note="use key"),
        *repeats,
        *equal,
        *teach,
        *refused,
    )
    data = build({"t0": tree}, PROMPTS, preset("paper"), seed)
    assert sorted(s.answer.content for s in data.part("counterfactual")) == [
        "use box",
        "use key",
        "use lamp",
    ]
    assert data.skipped == {SAME: 6, "counterfactual: the environment refused the action": 6}
    assert data.duplicates == {"counterfactual": 6}


@given(trees(max_episodes=9), st.integers(1, 3), st.integers(0, 3))
def test_as_many_events_as_are_wanted_and_there(tree: Tree, most: int, seed: int) -> None:
    config = DistillConfig(rehearsal="none", counterfactuals="all")
    usable = build({"t0": tree}, PROMPTS, config, seed).part("counterfactual")
    drawn = build(
        {"t0": tree}, PROMPTS, config.model_copy(update={"samples_per_task": most}), seed
    ).part("counterfactual")
    assert len(drawn) == min(most, len(usable))
    assert set(drawn) <= set(usable)
    for sample in usable:
        branch = next(b for b in tree.branches() if b.revised.id == sample.turn_id)
        assert branch.revised.valid
        assert branch.original.action != branch.revised.action


@pytest.mark.parametrize(
    ("thought", "mentions"),
    [
        ("The advice says to take the key.", True),
        ("As suggested, the key first.", True),
        ("In my Previous Attempt I took the lamp.", True),
        ("Last time the door stayed shut", True),
        ("I was told to take the key.", True),
        ("The door is shut, so I need a key.", False),
        ("I use the key now.", False),
        (
            "The sign gives a warning: keys only.",
            False,
        ),  # in the prompt there stands a warning; and "warning" is no mention
        ("The clerk gave a hint.", False),  # the history speaks of a hint
        ("An adviser is here; a hinted door.", True),  # "hinted" is a mention, "adviser" is none
    ],
)
def test_a_thought_may_not_lean_on_advice_that_is_not_there(thought: str, mentions: bool) -> None:
    tree = make_tree(
        Ep("take hint", "take lamp", stop=Stop.failure, blame=1, note="use key"),
        Ep("take key", "walk out", branch_of=0),
    )
    react = Prompts(PROMPTS.set.model_copy(update={"action": "react"}))
    # the same thought everywhere: where no experience stood in the prompt it leans on nothing
    tree = _said(
        tree,
        **{
            f"{e}_{s}": f"Thought: {thought}\nAction: {a}"
            for e, s, a in ((0, 0, "take hint"), (1, 1, "take key"), (1, 2, "walk out"))
        },
    )
    kept, left_out = (
        build(
            {"t0": tree},
            react,
            DistillConfig(rehearsal="successes", counterfactuals="all", mentioned_advice=how),
            0,
        )
        for how in ("keep", "skip")
    )
    reason = "the thought mentions advice that is not in the prompt"
    assert kept.mentions == ({"rehearsal": 1, "counterfactual": 1} if mentions else {})
    assert kept.counts.get("mentions") == (kept.mentions or None)
    assert kept.skipped == left_out.mentions == {}
    assert left_out.skipped == (
        {f"rehearsal: {reason}": 1, f"counterfactual: {reason}": 1} if mentions else {}
    )
    assert {s.turn_id for s in kept.samples} - {s.turn_id for s in left_out.samples} == (
        {"t0/1.1"} if mentions else set()
    )
    quiet = Prompts(react.set.model_copy(update={"mentions": ""}))
    assert build({"t0": tree}, quiet, DistillConfig(mentioned_advice="skip"), 0).mentions == {}


@given(trees())
def test_a_set_whose_answers_are_actions_has_no_thoughts(tree: Tree) -> None:
    said = {
        f"{t.id.rpartition('/')[2].replace('.', '_')}": t.action_text + " as advised"
        for t in tree
        if t.kind is Kind.act
    }
    tree = _said(tree, **said)
    tree = Tree(
        tree.task,
        [
            replace(e, turns=tuple(replace(t, action=t.action_text) for t in e.turns))
            for e in tree.episodes
        ],
    )
    assert not select(tree, **ANYTHING, mentioned_advice="skip").mentions


def _truncated(tree: Tree, *ids: str) -> Tree:
    """The tree in which these answers were cut at their limit of tokens."""
    episodes = [
        replace(e, turns=tuple(replace(t, finish="length") if t.id in ids else t for t in e.turns))
        for e in tree.episodes
    ]
    return Tree(tree.task, episodes)


ANYTHING = {
    "rehearsal": "progress_prefix",
    "counterfactuals": "all",
    "anchors": True,
    "reflections": True,
    "counterfactual_scope": "branch",
}


@given(trees(), st.data())
def test_a_cut_answer_is_no_target(tree: Tree, data: st.DataObject) -> None:
    ids = data.draw(st.sets(st.sampled_from([t.id for t in tree])))
    cut = _truncated(tree, *ids)
    texts = {id_: f"{tree[id_].action_text} half" for id_ in ids}  # a text that no other answer has
    cut = Tree(
        cut.task,
        [
            replace(
                e,
                turns=tuple(
                    replace(t, action_text=texts.get(t.id, t.action_text)) for t in e.turns
                ),
            )
            for e in cut.episodes
        ],
    )
    left_out, kept = (
        select(cut, truncated_answers=how, **ANYTHING) for how in ("skip", "without_eos")
    )
    assert not any(s.answer.cut or s.answer.content.endswith("half") for s in left_out.samples)
    assert all(s.answer.cut == s.answer.content.endswith("half") for s in kept.samples)
    for part in ("rehearsal", "counterfactual", "reflection"):
        whole = [s for s in kept.part(part) if not s.answer.cut]
        assert whole == list(left_out.part(part))
        assert any(
            "was cut" in reason and reason.startswith(part) for reason in left_out.skipped
        ) or whole == list(kept.part(part))


@pytest.mark.parametrize(
    ("cut", "reason"),
    [("t0/0.1", "of the original action, the answer was cut"), ("t0/1.1", "the answer was cut")],
)
def test_a_pair_needs_two_whole_answers(cut: str, reason: str) -> None:
    tree = _truncated(
        make_tree(Ep("go", "a", stop=Stop.failure, blame=1, note="x"), Ep("b", branch_of=0)), cut
    )
    data = build({"t0": tree}, PROMPTS, preset("dpo"), 0)
    assert (data.samples, data.skipped) == (
        (),
        {f"counterfactual: {reason} at its limit of tokens": 1},
    )
    (only,) = build(
        {"t0": tree}, PROMPTS, preset("dpo", truncated_answers="without_eos"), 0
    ).samples
    assert only.cut
    assert only.rejected is not None
    assert [only.answer.cut, only.rejected.cut] == [cut == "t0/1.1", cut == "t0/0.1"]


def test_a_cut_answer_takes_no_whole_ones_place() -> None:
    tree = _truncated(make_tree(Ep("go"), Ep("go"), Ep("go")), "t0/0.0")
    kept = select(tree, rehearsal="successes", truncated_answers="without_eos")
    assert [s.answer.cut for s in kept.samples] == [True, False]
    assert kept.duplicates == {"rehearsal": 1}


def test_a_cut_answer_stays_cut_in_the_file(tmp_path: Path) -> None:
    tree = _truncated(
        make_tree(tokens=lambda text: tuple(range(len(text.split()))) if "key" in text else None),
        "t0/0.0",
        "t0/1.1",
        "t0/2.2",
    )
    data = select(tree, truncated_answers="without_eos", **ANYTHING)
    assert {(s.answer.cut, s.answer.tokens is None) for s in data.samples} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }
    data.save(tmp_path / "data.jsonl")
    assert Dataset.load(tmp_path / "data.jsonl").samples == data.samples


def test_anchors_carry_another_branchs_experience() -> None:
    data = build(forest(3), PROMPTS, preset("leafe+"), 0)
    anchors = data.part("anchor")
    assert len(anchors) == 6
    own = {"take key": "open door", "open door": "take key"}
    for sample in anchors:
        revised = forest(3)[sample.task_id][sample.turn_id]
        # two different notes in all, so that the exchanged one is the other; the answer is what it
        # asks for
        assert sample.messages[-1].content.endswith(f" ; note : {own[revised.action]}")
        assert sample.answer.content == own[revised.action]
    alone = build(
        {"t0": make_tree(Ep("a", stop=Stop.failure, blame=0, note="b"), Ep("b", branch_of=0))},
        PROMPTS,
        preset("leafe+"),
        0,
    )
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


def test_the_rule_of_improvement_governs_branches_and_prefixes() -> None:
    tree = make_tree(
        Ep("a", "b", "c", stop=Stop.failure, progress=(1, 1, 2), blame=1, note="d"),
        Ep(
            "d", "e", stop=Stop.failure, branch_of=0, progress=(2, 2), blame=2, note="x"
        ),  # no further, but blamed later
        Ep(
            "f", stop=Stop.failure, branch_of=0, progress=(3,), blame=0, note="x"
        ),  # further, but blamed earlier
    )
    options = {"rehearsal": "progress_prefix", "counterfactuals": "improved"}
    by_progress, by_blame = (
        select(tree, improvement=rule, **options) for rule in ("progress", "blame")
    )
    assert [s.answer.content for s in by_progress.part("counterfactual")] == ["f"]
    assert [s.answer.content for s in by_blame.part("counterfactual")] == ["d"]
    assert targets(by_progress, "rehearsal") == ["t0/0.0 a", "t0/1.1 d"]
    assert targets(by_blame, "rehearsal") == ["t0/0.0 a", "t0/1.1 d"]
    assert by_progress.agreement == by_blame.agreement == {"progress alone": 1, "blame alone": 1}


@given(trees())
def test_blame_judges_an_env_with_progress_as_one_without(tree: Tree) -> None:
    silent = Tree(
        tree.task,
        [
            replace(e, turns=tuple(replace(t, progress=None) for t in e.turns))
            for e in tree.episodes
        ],
    )
    options = {
        "rehearsal": "progress_prefix",
        "counterfactuals": "improved",
        "counterfactual_scope": "branch",
        "reflections": True,
    }
    blamed = select(tree, improvement="blame", **options)
    assert (
        blamed.samples
        == select(silent, improvement="progress", **options).samples
        == select(silent, improvement="blame", **options).samples
    )
    counted = select(silent).agreement
    assert set(counted) <= {"won", "no progress reported"}
    sound = [
        b
        for b in tree.branches()
        if all(tree.episode_of(t.id).stop is not Stop.diverged for t in tree.path(b.revised.id))
    ]
    assert sum(counted.values()) == sum(blamed.agreement.values()) == len(sound)
    by_progress, by_blame = (
        {b.revised.id for b in tree.branches(rule) if b.improved} & {b.revised.id for b in sound}
        for rule in ("progress", "blame")
    )
    if any(t.progress is not None for t in tree):
        assert blamed.agreement.get("progress alone", 0) == len(by_progress - by_blame)
        assert blamed.agreement.get("blame alone", 0) == len(by_blame - by_progress)
        assert blamed.agreement.get("won", 0) + blamed.agreement.get("both", 0) == len(
            by_progress & by_blame
        )


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        (Ep("c", "d", "e", branch_of=0), ["c", "d", "e"]),  # a win counts whole
        (Ep("c", "!fly", "e", branch_of=0), ["c", "e"]),  # but no refused action
        (Ep("c", "d", "e", stop=Stop.failure, branch_of=0, blame=3, note="x"), ["c", "d"]),
        (
            Ep(
                "c", "d", "e", stop=Stop.failure, branch_of=0, blame=3, note="x", progress=(5, 5, 5)
            ),
            ["c"],
        ),  # not past the last rise
        (
            Ep("c", "d", "e", stop=Stop.failure, branch_of=0, blame=0, note="x"),
            ["c"],
        ),  # the revised action in any case
        (Ep("c", "d", "e", stop=Stop.failure, branch_of=0), ["c"]),
    ],
)
def test_the_rest_of_a_branch_up_to_what_is_known_to_be_right(
    branch: Ep, expected: list[str]
) -> None:
    tree = make_tree(Ep("a", "b", stop=Stop.failure, blame=1, note="use c"), branch)
    data = select(tree, counterfactuals="all", counterfactual_scope="branch", soft_targets=True)
    assert [s.answer.content for s in data.part("counterfactual")] == expected
    for sample in data.samples:
        assert sample.teacher is not None
        assert "note :" not in " ".join(m.content for m in sample.messages)
        # the experience stands where it was put, before the revised action, and nowhere else
        assert [" ; note : use c" in m.content for m in sample.teacher] == [
            False,
            False,
            True,
            *[False] * (len(sample.messages) - 3),
        ]
        assert [m.content.replace(" ; note : use c", "") for m in sample.teacher] == [
            m.content for m in sample.messages
        ]
    assert [
        s.answer.content for s in select(tree, counterfactuals="all").part("counterfactual")
    ] == ["c"]


@given(trees())
def test_the_teacher_of_a_revised_action_is_the_prompt_in_which_it_was_sampled(tree: Tree) -> None:
    hard, soft = (
        select(tree, counterfactuals="all", anchors=True, soft_targets=s) for s in (False, True)
    )
    for sample in soft.part("counterfactual"):
        assert sample.teacher == PROMPTS.act(
            history_before(tree, tree[sample.turn_id], with_experience=True)
        )
    assert {replace(s, teacher=None) for s in soft.part("counterfactual")} >= set(
        hard.part("counterfactual")
    )
    assert all(s.teacher is None for s in hard.part("counterfactual"))
    assert hard.part("anchor") == soft.part("anchor")
    assert all(s.teacher == s.messages for s in hard.part("anchor"))


def test_weights_by_outcome() -> None:
    branches = [
        Ep("won", branch_of=0, progress=(1,)),
        Ep("better", stop=Stop.failure, branch_of=0, progress=(2,)),
        Ep("same", stop=Stop.failure, branch_of=0, progress=(1,)),
        Ep("won", stop=Stop.failure, branch_of=0, progress=(1,)),
    ]
    tree = make_tree(Ep("a", "b", stop=Stop.failure, progress=(1, 1), blame=1, note="c"), *branches)
    weights = OutcomeWeights(improved=0.5, other=0.25)
    data = select(tree, counterfactuals="all", outcome_weights=weights)
    assert [(s.answer.content, s.weight) for s in data.samples] == [
        ("won", 1.0),
        ("better", 0.5),
        ("same", 0.25),
    ]
    assert {s.weight for s in select(tree, counterfactuals="all").samples} == {1.0}
    back = make_tree(
        Ep("a", "b", stop=Stop.failure, progress=(1, 1), blame=1, note="c"), *reversed(branches)
    )
    assert {
        (s.answer.content, s.weight)
        for s in select(back, counterfactuals="all", outcome_weights=weights).samples
    } == {("won", 1.0), ("better", 0.5), ("same", 0.25)}
    none = select(tree, counterfactuals="all", outcome_weights=OutcomeWeights(other=0.0))
    assert [s.answer.content for s in none.samples] == ["won", "better"]
    assert none.skipped == {"counterfactual: its outcome weighs 0": 2}


@given(trees(), st.integers(0, 3))
def test_one_tree_at_a_time_and_messages_shared(tree: Tree, seed: int) -> None:
    forest = {"t0": tree, "t1": make_tree(task_id="t1")}
    data = build(forest, PROMPTS, preset("leafe+", rehearsal_fraction=0.6, soft_targets=True), seed)
    for task in forest:
        held = {
            id(m): m
            for s in data.samples
            if s.task_id == task
            for m in (*s.messages, *(s.teacher or ()), s.answer)
        }
        assert len(set(held.values())) == len(held), "the same message is held twice"


@given(
    st.lists(trees(), min_size=1, max_size=3),
    st.sampled_from(list(PRESETS)),
    st.sampled_from([0.3, 1.0]),
    st.integers(0, 3),
)
def test_trees_read_one_at_a_time_give_the_samples_of_loaded_ones(
    grown: list[Tree], name: str, fraction: float, seed: int
) -> None:
    config = preset(name, rehearsal_fraction=fraction)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_tasks(path, [make_task(f"t{n}") for n in range(len(grown))])
        with Journal(path, fsync=False) as journal:
            for turn in range(6):  # tasks interleaved
                for n, tree in enumerate(grown):
                    if turn < len(tree.episodes):
                        journal.append([_as_task(tree.episodes[turn], f"t{n}")])
        loaded, stored = (
            build(trees, PROMPTS, config, seed) for trees in (load_trees(path), StoredTrees(path))
        )
    assert loaded == stored


@given(trees(), trees(), st.integers(0, 3))
def test_trees_of_several_rounds_count_as_one_task(first: Tree, second: Tree, seed: int) -> None:
    config = preset("leafe+", counterfactuals="all", samples_per_task=2)
    both = build(
        [{"t0": first, "t1": make_tree(task_id="t1")}, {"t0": second}], PROMPTS, config, seed
    )
    again = build([{"t0": first}, {"t0": first}], PROMPTS, config, seed)
    alone = [build({"t0": tree}, PROMPTS, config, seed) for tree in (first, second)]
    for data in (both, again):
        keys = [
            (s.part, s.task_id, tuple((m.role, m.content) for m in s.messages), s.answer.content)
            for s in data.samples
        ]
        assert len(set(keys)) == len(keys)
        assert sum(s.task_id == "t0" for s in data.part("counterfactual")) <= 2
    rehearsed = {(s.messages, s.answer) for s in both.part("rehearsal") if s.task_id == "t0"}
    assert rehearsed == {(s.messages, s.answer) for data in alone for s in data.part("rehearsal")}
    assert again.part("rehearsal") == alone[0].part("rehearsal")


def _as_task(episode: Episode, task_id: str) -> Episode:
    """The episode as one of another task."""
    return Episode.from_json(
        json.loads(json.dumps(episode.to_json()).replace('"t0', f'"{task_id}'))
    )


def _key(messages: tuple[Message, ...], action: str) -> tuple[object, ...]:
    return (tuple((m.role, m.content) for m in messages), action)


@given(trees())
def test_selection_against_a_naive_oracle(tree: Tree) -> None:
    def at(turn_id: str) -> tuple[object, ...]:
        turn = tree[turn_id]
        return _key(
            PROMPTS.act(history_before(tree, turn, with_experience=False)), turn.action_text
        )

    right: set[tuple[object, ...]] = set()
    won: set[tuple[object, ...]] = set()
    revised: set[tuple[object, ...]] = set()
    for episode in tree.episodes:
        path = tree.trajectory(episode)
        if any(tree.episode_of(t.id).stop is Stop.diverged for t in path):
            continue
        if episode.experience is not None and episode.acts[0].valid:
            corrected = tree.path(tree[episode.experience].id)[episode.acts[0].step]
            if corrected.action != episode.acts[0].action:
                revised.add(at(episode.acts[0].id))
        blamed = [
            t.target for t in episode.turns if t.kind is Kind.reflect and t.target is not None
        ]
        for nth, turn in enumerate(path):
            later = [t.progress for t in path[nth:] if t.progress is not None]
            before = max([0.0, *[t.progress for t in path[:nth] if t.progress is not None]])
            advances = bool(later) and max(later) > before
            reports = any(t.progress is not None for t in path)
            known = (
                (advances and all(nth < b for b in blamed))
                if reports
                else any(nth < b for b in blamed)
            )
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
    assert {name: set(keys) for name, keys in found.items()} == {
        "successes": won,
        "prefix": right,
        "cf": revised,
    }


@given(trees())
def test_no_experience_and_no_preamble_in_what_is_imitated(tree: Tree) -> None:
    data = select(
        tree, rehearsal="progress_prefix", counterfactuals="all", anchors=True, reflections=True
    )
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


@given(trees(), st.booleans())
def test_a_dataset_comes_back_from_its_file_as_it_was(tree: Tree, dpo: bool) -> None:
    options: dict[str, object] = (
        {"method": "dpo"}
        if dpo
        else {
            "soft_targets": True,
            "counterfactual_scope": "branch",
            "anchors": True,
            "reflections": True,
        }
    )
    data = select(
        tree,
        rehearsal="progress_prefix",
        counterfactuals="all",
        outcome_weights=OutcomeWeights(improved=0.3, other=0.1),
        **options,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        data.save(path)
        again = Dataset.load(path)
        assert again == data
        lines = path.read_text().splitlines()
        stored = (
            {(p, r, c) for p, r, c, *_ in json.loads(lines[1])["messages"]}
            if data.samples
            else set()
        )
        assert len(stored) == (len(json.loads(lines[1])["messages"]) if data.samples else 0), (
            "a message is written twice"
        )


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"dataset": "leafe", "format": 1, "samples": 0}\n', "[1]\n", None]
)
def test_a_file_that_is_no_dataset_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    build(forest(2), PROMPTS, preset("leafe+"), 0).save(path)
    path.write_text(
        path.read_text().rsplit("\n", 2)[0] + "\n" if text is None else text
    )  # None: a task is missing
    with pytest.raises(
        UserError, match=r"data\.jsonl is no dataset of this version of leafe, or damaged"
    ):
        Dataset.load(path)


def test_scope_branch_keeps_the_note_out_of_later_turns_too() -> None:
    tree = make_tree(
        Ep("a", "b", stop=Stop.failure, blame=0, note="c"),
        Ep("c", "d", branch_of=0, scope=Scope.branch),
    )
    data = select(tree, rehearsal="successes")
    assert [len(s.messages) for s in data.part("rehearsal")] == [1, 3]
    assert not any("note" in m.content for s in data.samples for m in s.messages)


def test_empty_parts_are_said_and_nothing_at_all_is_refused() -> None:
    lost = build({"t0": make_tree(Ep("a", "b", stop=Stop.failure))}, PROMPTS, preset("paper"), 0)
    with pytest.raises(
        UserError, match=r"nothing to train on.*rehearsal \(successes\) and counterfactuals \(all\)"
    ):
        require(lost, preset("paper"))
    won = build({"t0": make_tree(Ep("a"))}, PROMPTS, preset("paper"), 0)
    assert require(won, preset("paper")) == [
        "No samples for counterfactuals (all): training on the other part alone."
    ]
    with pytest.raises(UserError, match="nothing to train on"):
        require(won, preset("paper", rehearsal_weight=0.0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_take_overrides(name: str) -> None:
    assert preset(name).num_train_epochs == 2.0
    changed = preset(name, max_steps=60, learning_rate=1e-3)
    assert (changed.max_steps, changed.num_train_epochs) == (60, None)
    assert changed.learning_rate == 1e-3


def test_wrong_options_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no distillation preset 'leaf'"):
        preset("leaf")
    with pytest.raises(UserError, match=r"distill\.stepz"):
        preset("paper", stepz=3)
    with pytest.raises(UserError, match="not both"):
        preset("paper", max_steps=3, num_train_epochs=1.0)
    with pytest.raises(UserError, match="patience needs eval_steps"):
        preset("paper", early_stopping_patience=3)
    with pytest.raises(UserError, match="compares revised actions"):
        preset("paper", method="dpo", soft_targets=True)
    with pytest.raises(UserError, match=r"distill\.outcome_weights\.other"):
        preset("paper", outcome_weights={"improved": 1.0, "other": -1.0})


def test_selection_needs_no_torch() -> None:
    code = (
        "import sys; from leafe.distill import build, preset, train, encode, export_trl; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
