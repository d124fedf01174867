"""Masks cover the action and its end-of-turn token and nothing else; merging changes the rows and
not the targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import ChatTokens, Message, Tree, UserError
from leafe.distill import DistillConfig, Encoded, Sample, build, encode, preset
from tests.distill.toy import PROMPTS, WORDS, chat, forest
from tests.tiny import TEMPLATE, tiny_tokenizer
from tests.trees import Ep, make_tree, trees

ALL = DistillConfig(
    rehearsal="progress_prefix", counterfactuals="all", anchors=True, reflections=True
)


def contexts(encoded: Encoded) -> Counter[tuple[object, ...]]:
    """Each target token with everything before it: what the loss is a function of."""
    return Counter(
        (part, sequence.ids[: at + 1], span.weight)
        for part, sequences in encoded.parts.items()
        for sequence in sequences
        for span in sequence.spans
        for at in range(span.start, span.end)
    )


def test_the_mask_covers_the_action_and_its_end_of_turn_token() -> None:
    data = build(forest(1), PROMPTS, preset("leafe+"), 0)
    tokenizer = chat().tokenizer
    for sample in data.samples:
        encoded = encode([sample], chat(), 512)
        (sequence,) = encoded.parts[sample.part]
        (span,) = sequence.spans
        assert (
            tokenizer.decode(sequence.ids[span.start : span.end])
            == f"{sample.answer.content} <|end|>"
        )
        before = tokenizer.decode(sequence.ids[: span.start])
        assert before.endswith("<|assistant|>")
        assert before.count("<|assistant|>") == 1 + sum(
            m.role == "assistant" for m in sample.messages
        )
        assert span.end == len(sequence.ids)


def test_the_turns_of_an_episode_become_one_sequence() -> None:
    data = build(forest(1), PROMPTS, preset("rehearsal"), 0)
    (sequence,) = encode(data.samples, chat(), 512).parts["rehearsal"]
    texts = [chat().tokenizer.decode(sequence.ids[s.start : s.end]) for s in sequence.spans]
    assert texts == ["go left <|end|>", "take key <|end|>", "open door <|end|>", "walk out <|end|>"]
    # everything that the assistant said is a target, once
    assert sequence.targets == sum(len(t.split()) for t in texts)


@given(trees())
def test_merging_keeps_every_target_in_its_context(tree: Tree) -> None:
    samples = build({"t0": tree}, PROMPTS, ALL, 0).samples
    merged, apart = (encode(samples, chat(), 512, merge=m) for m in (True, False))
    assert contexts(merged) == contexts(apart)
    assert (
        sum(len(s) for s in merged.parts.values())
        <= len(samples)
        == sum(len(s) for s in apart.parts.values())
    )


@given(trees(), st.data())
def test_an_answer_that_was_cut_has_no_end(tree: Tree, data: st.DataObject) -> None:
    ids = data.draw(st.sets(st.sampled_from([t.id for t in tree])))
    episodes = [
        replace(e, turns=tuple(replace(t, finish="length") if t.id in ids else t for t in e.turns))
        for e in tree.episodes
    ]
    samples = build(
        {"t0": Tree(tree.task, episodes)},
        PROMPTS,
        ALL.model_copy(update={"truncated_answers": "without_eos"}),
        0,
    ).samples
    merged, apart = (encode(samples, chat(), 512, merge=m) for m in (True, False))
    assert contexts(merged) == contexts(apart)
    for sample in samples:
        (sequence,) = encode([sample], chat(), 512).parts[sample.part]
        (span,) = sequence.spans
        assert chat().tokenizer.decode(
            sequence.ids[span.start : span.end]
        ) == sample.answer.content + ("" if sample.answer.cut else " <|end|>")


@given(trees())
def test_a_merged_sequence_holds_no_sample_that_another_could_hold(tree: Tree) -> None:
    sequences = encode(build({"t0": tree}, PROMPTS, ALL, 0).samples, chat(), 512).parts["rehearsal"]
    for one in sequences:
        last = one.ids[: one.spans[-1].end]
        assert not any(other is not one and other.ids[: len(last)] == last for other in sequences)


def test_sampled_ids_are_trained_on_as_they_are() -> None:
    ids = chat().tokenizer.convert_tokens_to_ids
    spelled = {
        "go": (ids("go"), ids("<|end|>")),
        "go left": (ids("go"), ids("left")),
        "take": (1_000_000,),
        "use": (ids("fly"), ids("<|end|>")),
    }
    tree = make_tree(Ep("go", "go left", "take", "use"), tokens=lambda text: spelled[text])
    encoded = encode(build({"t0": tree}, PROMPTS, preset("rehearsal"), 0).samples, chat(), 512)
    (sequence,) = encoded.parts["rehearsal"]
    texts = [chat().tokenizer.decode(sequence.ids[s.start : s.end]) for s in sequence.spans]
    # "go left" was cut before its end-of-turn token: none is taught; the last two are not this
    # tokenizer's ids or say something else
    assert texts == ["go <|end|>", "go left", "take <|end|>", "use <|end|>"]
    assert encoded.skipped == {"answers tokenised again: the sampled ids do not spell the text": 2}


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    samples = build(forest(2), PROMPTS, preset("rehearsal"), 0).samples
    lengths = sorted(
        len(s.ids) for s in encode(samples, chat(), 512, merge=False).parts["rehearsal"]
    )
    encoded = encode(samples, chat(), lengths[3])
    assert encoded.skipped == {f"rehearsal: longer than {lengths[3]} tokens": 4}
    assert sum(len(s.spans) for s in encoded.parts["rehearsal"]) == 4
    assert encoded.counts["rehearsal"]["target_tokens"] == sum(
        s.targets for s in encoded.parts["rehearsal"]
    )


def test_a_template_that_changes_earlier_text_in_long_talks_is_refused_by_name() -> None:
    broken = (
        "{% if messages|length > 6 %}<|system|>long<|end|>{% endif %}" + TEMPLATE
    )  # passes the probe on short talks
    strange = ChatTokens(tiny_tokenizer(WORDS, broken), "strange-model")
    with pytest.raises(UserError, match=r"strange-model breaks the prefix rule.*no prefix"):
        encode(build(forest(1), PROMPTS, preset("rehearsal"), 0).samples, strange, 512)


def test_window_prompts_do_not_merge() -> None:
    sample = Sample(
        "rehearsal", "t0", "t0/0.1", (Message("user", "go left"),), Message("assistant", "go")
    )
    other = Sample(
        "rehearsal", "t0", "t0/0.2", (Message("user", "go left go"),), Message("assistant", "go")
    )
    assert [len(s.spans) for s in encode([sample, other], chat(), 512).parts["rehearsal"]] == [1, 1]
