"""Samples to token sequences with masked spans: exact ids, and samples of one path merged into one
sequence.

A sample whose prompt and answer are a prefix of another's prompt becomes one more span of that
sequence. So an episode of T actions is one sequence, not T; batches are counted in sequences. What
different sequences share is left to packing (`_pack`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leafe.core import ChatTokens, Message, UserError
from leafe.distill._config import PARTS, Part
from leafe.distill._dataset import Sample
from leafe.distill._shorten import Shortener

TOKENISED_AGAIN = "answers tokenised again: the sampled ids do not spell the text"
_Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """ids[start:end] are an answer: the action's tokens and its end-of-turn token, nothing else."""

    start: int
    end: int
    weight: float = 1.0
    teacher: tuple[int, ...] | None = None
    """The prompt at which the start policy's distributions are the targets (KL); None: the tokens
    are (cross-entropy)."""


@dataclass(slots=True)
class TokenSequence:
    """One sequence of a batch. The spans alone carry loss; they do not overlap, and none begins at
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
    """The sequences by part, in the order of their first sample, and what was left out."""

    parts: Mapping[Part, Sequence[TokenSequence]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    known: int = 0
    """Different sampled answers that came with their ids."""

    @property
    def counts(self) -> dict[str, Any]:
        """For a table: by part `sequences`, `spans`, `tokens` and `target_tokens`; then
        `skipped`."""
        out: dict[str, Any] = {
            part: {
                "sequences": len(sequences),
                "spans": sum(len(s.spans) for s in sequences),
                "tokens": sum(len(s.ids) for s in sequences),
                "target_tokens": sum(s.targets for s in sequences),
            }
            for part, sequences in ((part, self.parts[part]) for part in PARTS)
        }
        return out | {"skipped": dict(self.skipped)}


def encode(
    samples: Sequence[Sample],
    chat: ChatTokens,
    max_length: int,
    merge: bool = True,
    too_long: Literal["skip", "truncate"] = "skip",
) -> Encoded:
    """Encode samples as token sequences.

    Sampled ids are used as they are if they decode to the text beside them. Otherwise (another
    tokenizer's ids, or a text that the engine cut at a stop string) the text is tokenized and
    counted as "tokenised again".

    Args:
        samples: What to encode.
        chat: The chat template.
        max_length: Most tokens of a sequence, and of a teacher's prompt with the answer.
        merge: Merge samples of one path into one sequence.
        too_long: Longer samples are left out ("skip") or lose the oldest turns of their prompts
            ("truncate"); both are counted. A sample whose last turn alone is too long is left out.

    Returns:
        The sequences by part.

    Raises:
        UserError: The chat template changes earlier messages later on.
    """
    one_per_task = list({s.task_id: s.messages for s in samples}.values())
    shortener = None
    if one_per_task and too_long == "truncate":
        shortener = Shortener(chat, max_length, one_per_task)
    encoder = _Encoder(chat, max_length, shortener)
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
        owners: dict[int, TokenSequence] = {}  # by the hash of the messages up to an answer
        # the longest conversations first: whatever can be merged finds its owner
        for nth in sorted(range(len(samples)), key=lambda i: (-len(samples[i].messages), i)):
            sample = samples[nth]
            messages = tuple(self._exact(m) for m in sample.messages)
            answer = self._exact(sample.answer)
            answer_ids = self.chat.answer(answer)
            if not answer_ids:
                self.skipped[f"{part}: the answer has no tokens"] += 1
                continue
            fitting = self._fitting(sample, messages, answer)
            if fitting is None:
                self.skipped[f"{part}: longer than {self.max_length} tokens"] += 1
                continue
            messages, teacher = fitting
            prompt_ids = self.chat.prompt(messages)
            teacher_ids = None
            if teacher is not None:
                teacher_ids = prompt_ids if teacher == messages else self.chat.prompt(teacher)
            ids = prompt_ids + answer_ids
            span = Span(len(prompt_ids), len(ids), sample.weight, teacher_ids)
            keys = _prefix_keys((*messages, answer))
            owner = owners.get(keys[-1]) if merge else None
            if owner is not None and all(
                span.end <= s.start or span.start >= s.end for s in owner.spans
            ):
                if owner.ids[: len(ids)] != ids:
                    raise UserError(
                        f"The chat template of {self.chat.name} breaks the prefix rule: the prompt "
                        f"of turn {sample.turn_id} with its action is no prefix of the next turn's "
                        "prompt. Use a template that only appends."
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

    def _fitting(
        self, sample: Sample, messages: _Messages, answer: Message
    ) -> tuple[_Messages, _Messages | None] | None:
        """The prompt and the teacher's prompt, without their oldest turns if they are too long;
        None if they do not fit."""
        teacher = messages if sample.part == "anchor" else None
        if sample.teacher is not None:
            teacher = messages
            if sample.teacher != sample.messages:
                teacher = tuple(self._exact(m) for m in sample.teacher)
        prompts = [m for m in (messages, teacher) if m is not None]
        if all(self._length(m, answer) <= self.max_length for m in prompts):
            return messages, teacher
        if self.shortener is None:
            return None
        short = self.shortener.shortened(messages, answer)
        short_teacher = short
        if teacher != messages:
            short_teacher = teacher and self.shortener.shortened(teacher, answer)
        if short is None or (short_teacher is None and teacher is not None):
            return None
        note = f"{sample.part}: without the oldest turns, to fit {self.max_length} tokens"
        self.skipped[note] += 1
        return short, short_teacher

    def _length(self, messages: Sequence[Message], answer: Message) -> int:
        return len(self.chat.prompt(messages)) + len(self.chat.answer(answer))

    def _exact(self, message: Message) -> Message:
        """The message with its sampled ids if they are this tokenizer's and spell the text; else
        without ids."""
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
    """One hash for each assistant message: of all messages up to it, sampled ids included."""
    out: list[int] = []
    running = 0
    for message in messages:
        running = hash((running, message.role, message.content, message.tokens))
        if message.role == "assistant":
            out.append(running)
    return out
