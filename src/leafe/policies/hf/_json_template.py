"""A flat JSON object as a form to fill in: the frame is given, only the values are sampled.

The text is `{"step": `, a hole, `, "experience": "`, a hole, `"}`. In a hole only tokens that keep
it valid may be drawn, or the first token of what
follows it; the frame's other tokens are appended as they are, all in the next forward pass. So the
answer parses whatever the model is worth.
Honoured are objects whose properties are all integers (written without sign, at most four digits;
`maximum` holds) or strings (without quotes,
backslashes and control characters; `maxLength` holds); any other schema is left to the caller's
parser. Axis: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from leafe.core import ChatTokens

_DIGITS = 4
_HONOURED = {
    "integer": {"type", "title", "description", "minimum", "maximum"},
    "string": {"type", "title", "description", "minLength", "maxLength"},
}


@dataclass(frozen=True, slots=True)
class TemplateSlot:
    kind: Literal["integer", "string"]
    most: int
    """Characters at most."""
    maximum: int = 10**_DIGITS - 1
    """Of an integer."""


@dataclass(frozen=True, slots=True)
class FilledSlot:
    """How far a form is filled in: which hole, and what stands in it."""

    hole: int = 0
    tokens: int = 0
    characters: int = 0
    value: int = 0
    """Of the integer so far."""


class Vocabulary:
    """What each token reads as, and which tokens may stand in a hole."""

    def __init__(self, chat: ChatTokens, size: int, device: torch.device) -> None:
        self.chat = chat
        self.size = size
        self.device = device

    @cached_property
    def _texts(self) -> list[str]:
        known = len(self.chat.tokenizer)
        special = set(self.chat.tokenizer.all_special_ids) | set(
            getattr(self.chat.tokenizer, "added_tokens_decoder", {})
        )
        read = self.chat.tokenizer.batch_decode([[i] for i in range(min(known, self.size))])
        return ["" if i in special else t for i, t in enumerate(read)] + [""] * max(
            0, self.size - known
        )

    def length(self, token: int) -> int:
        return len(self._texts[token])

    def number(self, token: int) -> int:
        return int(self._texts[token])

    def _mask(self, allowed: list[bool]) -> torch.Tensor:
        return torch.tensor(allowed, device=self.device)

    @cached_property
    def digits(self) -> torch.Tensor:
        return self._mask([t.isascii() and t.isdigit() and len(t) <= _DIGITS for t in self._texts])

    def next_digits(self, begun: bool, value: int, maximum: int) -> torch.Tensor:
        """Tokens that may stand after the digits of `value`, or at the start: without a leading
        zero, and no more than `maximum` in all."""
        if begun and value == 0:
            return torch.zeros(self.size, dtype=torch.bool, device=self.device)
        out = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        for token, text in self._numbers:
            if (begun or text == "0" or text[0] != "0") and value * 10 ** len(text) + int(
                text
            ) <= maximum:
                out[token] = True
        return out

    @cached_property
    def _numbers(self) -> list[tuple[int, str]]:
        return [(token, self._texts[token]) for token in self.digits.nonzero().flatten().tolist()]

    @cached_property
    def words(self) -> torch.Tensor:
        return self._mask(
            [
                bool(t) and t.isprintable() and not {'"', "\\", "\ufffd"} & set(t)
                for t in self._texts
            ]
        )

    @cached_property
    def lengths(self) -> torch.Tensor:
        return torch.tensor([len(t) for t in self._texts], device=self.device)

    @cached_property
    def first_words(self) -> torch.Tensor:
        return self.words & self._mask([bool(t.strip()) for t in self._texts])


class JsonTemplate:
    """One schema for one tokenizer. `frame[i]` are the token ids before hole i; the last frame ends
    the answer, end-of-turn token included."""

    def __init__(
        self, vocabulary: Vocabulary, holes: list[TemplateSlot], frame: list[tuple[int, ...]]
    ) -> None:
        self.vocabulary = vocabulary
        self.holes = holes
        self.frame = frame
        self.longest = max(map(len, frame))
        self.least = sum(map(len, frame)) + len(holes)
        """Tokens of the shortest answer."""

    def _left(self, hole: int) -> int:
        """Tokens needed after the present hole."""
        return sum(map(len, self.frame[hole + 1 :])) + len(self.holes) - hole - 1

    def allowed(self, state: FilledSlot, room: int) -> torch.Tensor:
        """Which tokens may come next, (V,), where there is room for this many more."""
        v, hole = self.vocabulary, self.holes[state.hole]
        closing = torch.zeros(v.size, dtype=torch.bool, device=v.device)
        if state.tokens:
            closing[self.frame[state.hole + 1][0]] = True
        if state.characters >= hole.most or (state.tokens and room - 1 < self._left(state.hole)):
            return closing
        if hole.kind == "integer":
            return closing | v.next_digits(state.tokens > 0, state.value, hole.maximum)
        return closing | (
            (v.words if state.tokens else v.first_words)
            & (v.lengths <= hole.most - state.characters)
        )

    def advance(self, state: FilledSlot, token: int) -> tuple[FilledSlot | None, tuple[int, ...]]:
        """The state after an allowed token, and the frame tokens that follow of themselves. None:
        the answer is complete."""
        if state.tokens and token == self.frame[state.hole + 1][0]:
            rest = self.frame[state.hole + 1][1:]
            return (FilledSlot(state.hole + 1) if state.hole + 1 < len(self.holes) else None), rest
        v, kind = self.vocabulary, self.holes[state.hole].kind
        value = state.value * 10 ** v.length(token) + v.number(token) if kind == "integer" else 0
        return FilledSlot(
            state.hole, state.tokens + 1, state.characters + v.length(token), value
        ), ()


def make_form(schema: Mapping[str, Any], vocabulary: Vocabulary) -> JsonTemplate | None:
    """None where the schema is of another kind, or where the tokenizer cannot write JSON (a
    vocabulary of words, say)."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        return None
    holes = []
    for facts in properties.values():
        kind = facts.get("type") if isinstance(facts, Mapping) else None
        if (
            kind not in _HONOURED
            or set(facts) - _HONOURED[kind]
            or facts.get("minimum", 0) > 0
            or facts.get("minLength", 0) > 1
        ):
            return None
        if kind == "integer":
            holes.append(
                TemplateSlot(
                    kind, _DIGITS, min(int(facts.get("maximum", 10**_DIGITS - 1)), 10**_DIGITS - 1)
                )
            )
        else:
            holes.append(TemplateSlot(kind, int(facts.get("maxLength", 10**9))))
    texts = [""]
    for name, hole in zip(properties, holes, strict=True):
        quote = '"' if hole.kind == "string" else ""
        texts[-1] += ("{" if len(texts) == 1 else ", ") + json.dumps(str(name)) + ": " + quote
        texts.append(quote)
    texts[-1] += "}"
    chat = vocabulary.chat
    frame = [tuple(chat.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    digit = next(iter(vocabulary.next_digits(False, 0, 9).nonzero().flatten().tolist()), None)
    word = next(
        (
            i
            for i in vocabulary.first_words.nonzero().flatten().tolist()
            if vocabulary.length(i) > 1
        ),
        None,
    )
    if digit is None or word is None or not all(frame):
        return None
    trial = list(frame[0])
    for hole, after in zip(holes, frame[1:], strict=True):
        trial += [digit if hole.kind == "integer" else word, *after]
    try:
        ok = list(json.loads(chat.decode(trial))) == [str(name) for name in properties]
    except json.JSONDecodeError:
        return None
    if not ok or any(
        bool(vocabulary.words[f[0]] if h.kind == "string" else vocabulary.digits[f[0]])
        for h, f in zip(holes, frame[1:], strict=True)
    ):
        return None
    frame[-1] = (*frame[-1], chat.end_of_turn)
    return JsonTemplate(vocabulary, holes, frame)
