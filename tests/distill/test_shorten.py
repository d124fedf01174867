"""Long talks lose their oldest turns and nothing else, and go on sharing their prefixes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Message
from leafe.distill import Sample, encode
from tests.distill.toy import chat

SYSTEM = Message("system", "leave the house")
SHOTS = (Message("user", "start"), Message("assistant", "go"))
WORD = st.sampled_from(["go", "left", "take key", "open the door", "walk"])


def episode(task: str, words: list[tuple[str, str]]) -> list[Sample]:
    """The samples of one path: (observation, action) a turn."""
    messages = [SYSTEM, *SHOTS]
    samples = []
    for nth, (seen, action) in enumerate(words):
        messages.append(Message("user", f"{task} ; {seen}" if nth == 0 else seen))
        samples.append(
            Sample(
                "rehearsal",
                task,
                f"{task}/{nth}",
                tuple(messages),
                Message("assistant", action),
                note=str(nth),
            )
        )
        messages.append(Message("assistant", action))
    return samples


def texts(ids: tuple[int, ...]) -> list[str]:
    return [
        m.strip()
        for m in chat().tokenizer.decode(ids).replace("<|", "\n<|").split("\n<|end|>")
        if m.strip()
    ]


@given(st.lists(st.tuples(WORD, WORD), min_size=2, max_size=40), st.integers(22, 120))
@settings(max_examples=40)
def test_what_is_kept_of_a_long_talk(words: list[tuple[str, str]], most: int) -> None:
    samples = [*episode("t0", words), *episode("t1", words[:1])]
    whole = {s.turn_id: encode([s], chat(), 10_000).parts["rehearsal"][0] for s in samples}
    found = encode(samples, chat(), most, merge=False, too_long="truncate")
    kept = found.parts["rehearsal"]
    lost = found.skipped.get(f"rehearsal: longer than {most} tokens", 0)
    assert len(kept) + lost == len(samples)
    if lost:  # even head, last turn and answer do not fit somewhere
        return
    for sample, sequence in zip(samples, kept, strict=True):
        full = whole[sample.turn_id]
        assert len(sequence.ids) <= most
        if len(full.ids) <= most:
            assert sequence.ids == full.ids
            continue
        says, said = texts(sequence.ids), texts(full.ids)
        cut = len(said) - len(says)
        assert cut > 0
        assert cut % 2 == 0
        assert says[:4] == said[:4]  # the system message, the example, the task
        assert says[4:] == said[4 + cut :]  # then the rest of the talk, oldest turns missing
        assert len(says) >= 7  # the last action and its observation are there
    assert found.skipped.get(
        f"rehearsal: without the oldest turns, to fit {most} tokens", 0
    ) == sum(len(s.ids) > most for s in whole.values())


@given(st.lists(st.tuples(WORD, WORD), min_size=30, max_size=60))
@settings(max_examples=20)
def test_a_long_episode_stays_a_few_sequences(drawn: list[tuple[str, str]]) -> None:
    words = [
        (f"s{n % 9} t{n // 9} ; {seen}", action) for n, (seen, action) in enumerate(drawn)
    ]  # no two turns are alike
    samples = [*episode("t0", words), *episode("t1", words[:1])]
    most = 100
    merged = encode(samples, chat(), most, too_long="truncate")
    apart = encode(samples, chat(), most, merge=False, too_long="truncate")
    assert sum(len(s.spans) for s in merged.parts["rehearsal"]) == len(samples)
    total = sum(len(f"{a} {b}".split()) + 4 for a, b in words)
    assert len(merged.parts["rehearsal"]) <= 3 + total / (
        most / 2 - 15
    )  # each cut frees half the room, and a turn has at most 13 tokens
    assert sum(len(s.ids) for s in merged.parts["rehearsal"]) < 0.5 * sum(
        len(s.ids) for s in apart.parts["rehearsal"]
    )


def test_the_cut_does_not_depend_on_the_other_samples() -> None:
    words = [("go", "left")] * 40
    samples = [*episode("t0", words), *episode("t1", words[:1])]
    found = encode(samples, chat(), 80, merge=False, too_long="truncate").parts["rehearsal"]
    some = encode([samples[30], samples[-1]], chat(), 80, merge=False, too_long="truncate").parts[
        "rehearsal"
    ]
    assert some[0].ids == found[30].ids


def test_a_teacher_is_cut_too() -> None:
    words = [("go", "left")] * 20
    last = episode("t0", words)[-1]
    other = episode("t1", words[:1])[0]
    with_note = (*last.messages[:-1], Message("user", "go ; note : take key"))
    sample = Sample("counterfactual", "t0", "x", last.messages, last.answer, teacher=with_note)
    found = encode([sample, other], chat(), 60, too_long="truncate")
    (sequence,) = found.parts["counterfactual"]
    (span,) = sequence.spans
    assert span.teacher is not None
    assert len(span.teacher) + span.end - span.start <= 60
    assert texts(span.teacher)[:4] == texts(sequence.ids)[:4]
    assert "note : take key" in chat().tokenizer.decode(span.teacher)
