"""Samples to token sequences with masked spans: exact ids, and samples of one path merged into one
sequence.

A sample whose prompt and answer are a prefix of another's prompt becomes one more span in that
sequence. So an episode of T actions is one sequence, not
T; a batch is counted in these. What the sequences of a batch have in common is the packing's
business (`_pack`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leafe.core import ChatTokens, Message, UserError
from leafe.distill._config import PARTS, Part
from leafe.distill._select import Sample
from leafe.distill._shorten import Shortener

TOKENISED_AGAIN = "answers tokenised again: the sampled ids do not spell the text"


@dataclass(frozen=True, slots=True)
class Span:
    """ids[start:end] are an answer: the action's tokens and its end-of-turn token, nothing else."""

    start: int
    end: int
    weight: float = 1.0
    teacher: tuple[int, ...] | None = None
    """The prompt at which the start policy says what the answer's tokens should be (KL); None: they
    are as they are (cross-entropy)."""


@dataclass(slots=True)
class TokenSequence:
    """One row of a batch. Loss falls on the spans alone; they do not overlap and none begins at
    0."""

    part: Part
    task_id: str
    ids: tuple[int, ...]
    spans: list[Span]

    @property
    def targets(self) -> int:
        """Tokens that carry loss."""
        return sum(s.end - s.start for s in self.spans)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The sequences by part, in the order of their first sample, with what was left out."""

    parts: Mapping[Part, Sequence[TokenSequence]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    known: int = 0
    """Different sampled answers that came with their ids."""

    @property
    def counts(self) -> dict[str, Any]:
        """For a printed table: by part its sequences, spans, tokens and target tokens; under
        `skipped` the reasons with their counts."""
        out: dict[str, Any] = {}
        for part in PARTS:
            mine = self.parts[part]
            out[part] = {
                "sequences": len(mine),
                "spans": sum(len(s.spans) for s in mine),
                "tokens": sum(len(s.ids) for s in mine),
                "target_tokens": sum(s.targets for s in mine),
            }
        out["skipped"] = dict(self.skipped)
        return out


def encode(
    samples: Sequence[Sample],
    chat: ChatTokens,
    max_length: int,
    merge: bool = True,
    too_long: Literal["skip", "truncate"] = "skip",
) -> Encoded:
    """The samples as token sequences of at most `max_length` tokens, the teacher's prompt with the
    answer included.

    Longer ones are left out, or lose the oldest turns of their prompts (`_shorten`); both are
    counted. One whose last turn alone is too long is left out.

    Sampled ids are used as they are, where they decode to the text that stands beside them; else
    (another tokenizer's ids, or a text that the engine
    cut at a stop string) the text is tokenised, and counted as "tokenised again".
    """
    talks = list({s.task_id: s.messages for s in samples}.values())  # one of each task
    encoder = _Encoder(
        chat,
        max_length,
        Shortener(chat, max_length, talks) if talks and too_long == "truncate" else None,
    )
    return Encoded(
        {part: encoder.part([s for s in samples if s.part == part], part, merge) for part in PARTS},
        dict(encoder.skipped),
        encoder.known,
    )


class _Encoder:
    def __init__(self, chat: ChatTokens, max_length: int, shortener: Shortener | None) -> None:
        self.chat = chat
        self.max_length = max_length
        self.shortener = shortener
        self.skipped: Counter[str] = Counter()
        self.known = 0
        self._checked: dict[tuple[str, tuple[int, ...]], bool] = {}

    def part(self, samples: Sequence[Sample], part: Part, merge: bool) -> list[TokenSequence]:
        sequences: list[tuple[int, TokenSequence]] = []
        owners: dict[
            int, TokenSequence
        ] = {}  # hash of messages up to and with an answer -> the sequence that holds them
        # the longest talks first: whatever can be merged finds its owner there already
        for nth in sorted(range(len(samples)), key=lambda i: (-len(samples[i].messages), i)):
            sample = samples[nth]
            messages = tuple(self._exact(m) for m in sample.messages)
            answer = self._exact(sample.answer)
            answer_ids = self.chat.answer(answer)
            if not answer_ids:
                self.skipped[f"{part}: the answer has no tokens"] += 1
                continue
            teacher = self._teacher(sample, messages)
            if self._tokens(messages, answer) > self.max_length or (
                teacher is not None and self._tokens(teacher, answer) > self.max_length
            ):
                fitting = self._fitting(messages, teacher, answer)
                if fitting is None:
                    self.skipped[f"{part}: longer than {self.max_length} tokens"] += 1
                    continue
                self.skipped[
                    f"{part}: without the oldest turns, to fit {self.max_length} tokens"
                ] += 1
                messages, teacher = fitting
            prompt_ids = self.chat.prompt(messages)
            teacher_ids = (
                prompt_ids
                if teacher == messages
                else None
                if teacher is None
                else self.chat.prompt(teacher)
            )
            ids = prompt_ids + answer_ids
            span = Span(len(prompt_ids), len(ids), sample.weight, teacher_ids)
            keys = _prefix_keys((*messages, answer))
            owner = owners.get(keys[-1]) if merge else None
            if owner is not None and all(
                span.end <= s.start or span.start >= s.end for s in owner.spans
            ):
                if owner.ids[: len(ids)] != ids:
                    raise UserError(
                        f"The chat template of {self.chat.name} breaks the prefix rule: "
                        f"the prompt of turn {sample.turn_id} with its action is no prefix "
                        "of "
                        "the next turn's prompt. Use a template that only appends."
                    )
                owner.spans.append(span)
                continue
            sequence = TokenSequence(part, sample.task_id, ids, [span])
            sequences.append((nth, sequence))
            for key in keys[:-1]:
                owners.setdefault(key, sequence)
        for _, sequence in sequences:
            sequence.spans.sort(key=lambda s: s.start)
        return [sequence for _, sequence in sorted(sequences, key=lambda pair: pair[0])]

    def _teacher(self, sample: Sample, messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
        if sample.teacher is None:
            return messages if sample.part == "anchor" else None
        return (
            messages
            if sample.teacher == sample.messages
            else tuple(self._exact(m) for m in sample.teacher)
        )

    def _tokens(self, messages: Sequence[Message], answer: Message) -> int:
        return len(self.chat.prompt(messages)) + len(self.chat.answer(answer))

    def _fitting(
        self, messages: tuple[Message, ...], teacher: tuple[Message, ...] | None, answer: Message
    ) -> tuple[tuple[Message, ...], tuple[Message, ...] | None] | None:
        """Both prompts without their oldest turns; None where that does not help or is not
        wanted."""
        if self.shortener is None:
            return None
        mine = self.shortener.shortened(messages, answer)
        theirs = (
            mine
            if teacher == messages
            else None
            if teacher is None
            else self.shortener.shortened(teacher, answer)
        )
        return None if mine is None or (theirs is None and teacher is not None) else (mine, theirs)

    def _exact(self, message: Message) -> Message:
        """The message with its sampled ids where they are this tokenizer's and say what the text
        says; else without ids."""
        if message.tokens is None:
            return message
        key = (message.content, message.tokens)
        fits = self._checked.get(key)
        if fits is None:
            fits = (
                max(message.tokens, default=0) < len(self.chat.tokenizer)
                and self.chat.decode(message.tokens).strip() == message.content.strip()
            )
            self._checked[key] = fits
            self.known += 1
            if not fits:
                self.skipped[TOKENISED_AGAIN] += 1
        return message if fits else Message(message.role, message.content, cut=message.cut)


def _prefix_keys(messages: Sequence[Message]) -> list[int]:
    """One hash for each assistant message: of all messages up to and with it, sampled ids
    included."""
    out: list[int] = []
    running = 0
    for message in messages:
        running = hash((running, message.role, message.content, message.tokens))
        if message.role == "assistant":
            out.append(running)
    return out
