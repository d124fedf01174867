"""A flat JSON object as a template: its fixed text is given, only the values are sampled.

The text is `{"step": `, a slot, `, "experience": "`, a slot, `"}`. In a slot only tokens that keep
the value valid may be drawn, or the first token of the fixed text that follows; the rest of the
fixed text is appended as it is, in one forward pass. So the answer parses whatever the model is
worth.

Supported are objects whose properties are all integers (without sign, at most four digits; obeys
`maximum`) or strings (without quotes, backslashes and control characters; obeys `maxLength`). Any
other schema is left to the caller's parser. Axis: V vocabulary.
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
_LARGEST = 10**_DIGITS - 1
_SUPPORTED = {
    "integer": {"type", "title", "description", "minimum", "maximum"},
    "string": {"type", "title", "description", "minLength", "maxLength"},
}


@dataclass(frozen=True, slots=True)
class TemplateSlot:
    """One value to sample."""

    kind: Literal["integer", "string"]
    max_chars: int
    maximum: int = _LARGEST
    """Of an integer."""


@dataclass(frozen=True, slots=True)
class TemplateState:
    """How far a template is filled in: the current slot, and what it holds."""

    slot: int = 0
    tokens: int = 0
    characters: int = 0
    value: int = 0
    """Of the integer so far."""


class Vocabulary:
    """The text of each token, and which tokens may stand in a slot (masks of shape (V,))."""

    def __init__(self, chat: ChatTokens, size: int, device: torch.device) -> None:
        self.chat = chat
        self.size = size
        self.device = device

    @cached_property
    def texts(self) -> list[str]:
        """Of each token; empty for special tokens."""
        tokenizer = self.chat.tokenizer
        known = len(tokenizer)
        special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
        read = tokenizer.batch_decode([[i] for i in range(min(known, self.size))])
        texts = ["" if i in special else t for i, t in enumerate(read)]
        return texts + [""] * max(0, self.size - known)

    def mask(self, allowed: list[bool]) -> torch.Tensor:
        return torch.tensor(allowed, device=self.device)

    @cached_property
    def digits(self) -> torch.Tensor:
        return self.mask([t.isascii() and t.isdigit() and len(t) <= _DIGITS for t in self.texts])

    def next_digits(self, begun: bool, value: int, maximum: int) -> torch.Tensor:
        """Tokens that may follow the digits of `value`, or start a number: no leading zero, and no
        more than `maximum` in all."""
        out = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        if begun and value == 0:
            return out
        for token, text in self._numbers:
            longer = value * 10 ** len(text) + int(text)
            if (begun or text == "0" or text[0] != "0") and longer <= maximum:
                out[token] = True
        return out

    @cached_property
    def _numbers(self) -> list[tuple[int, str]]:
        return [(token, self.texts[token]) for token in self.digits.nonzero().flatten().tolist()]

    @cached_property
    def strings(self) -> torch.Tensor:
        """Tokens that may stand within a JSON string as they are."""
        unsafe = {'"', "\\", "\ufffd"}
        return self.mask([bool(t) and t.isprintable() and not unsafe & set(t) for t in self.texts])

    @cached_property
    def string_starts(self) -> torch.Tensor:
        """Of these, those that are not blank."""
        return self.strings & self.mask([bool(t.strip()) for t in self.texts])

    @cached_property
    def lengths(self) -> torch.Tensor:
        return torch.tensor([len(t) for t in self.texts], device=self.device)


class JsonTemplate:
    """One schema for one tokenizer. `frames[i]` are the token ids before slot i; the last frame
    ends the answer, end-of-turn token included."""

    def __init__(
        self, vocabulary: Vocabulary, slots: list[TemplateSlot], frames: list[tuple[int, ...]]
    ) -> None:
        self.vocabulary = vocabulary
        self.slots = slots
        self.frames = frames
        self.min_tokens = sum(map(len, frames)) + len(slots)
        """Tokens of the shortest answer."""

    def _remaining(self, slot: int) -> int:
        """Tokens that the answer needs at least after this slot."""
        return sum(map(len, self.frames[slot + 1 :])) + len(self.slots) - slot - 1

    def allowed(self, state: TemplateState, room: int) -> torch.Tensor:
        """Which tokens may come next, (V,), where the answer has room for this many more."""
        v, slot = self.vocabulary, self.slots[state.slot]
        closing = torch.zeros(v.size, dtype=torch.bool, device=v.device)
        if state.tokens:
            closing[self.frames[state.slot + 1][0]] = True
        full = state.characters >= slot.max_chars
        if full or (state.tokens and room - 1 < self._remaining(state.slot)):
            return closing
        if slot.kind == "integer":
            return closing | v.next_digits(state.tokens > 0, state.value, slot.maximum)
        text = v.strings if state.tokens else v.string_starts
        return closing | (text & (v.lengths <= slot.max_chars - state.characters))

    def advance(
        self, state: TemplateState, token: int
    ) -> tuple[TemplateState | None, tuple[int, ...]]:
        """The state after an allowed token, and the fixed tokens that follow it. None: the answer
        is complete."""
        frame = self.frames[state.slot + 1]
        if state.tokens and token == frame[0]:
            following = state.slot + 1
            return (TemplateState(following) if following < len(self.slots) else None), frame[1:]
        text = self.vocabulary.texts[token]
        is_integer = self.slots[state.slot].kind == "integer"
        value = state.value * 10 ** len(text) + int(text) if is_integer else 0
        return (
            TemplateState(state.slot, state.tokens + 1, state.characters + len(text), value),
            (),
        )


def compiled(schema: Mapping[str, Any], vocabulary: Vocabulary) -> JsonTemplate | None:
    """The template of a schema; None where the schema is not supported, or the tokenizer cannot
    write JSON (a vocabulary of words, say)."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        return None
    slots = [_slot(facts) for facts in properties.values()]
    known = [slot for slot in slots if slot is not None]
    if len(known) < len(slots):
        return None
    texts = [""]
    for name, slot in zip(properties, known, strict=True):
        quote = '"' if slot.kind == "string" else ""
        texts[-1] += ("{" if len(texts) == 1 else ", ") + json.dumps(str(name)) + ": " + quote
        texts.append(quote)
    texts[-1] += "}"
    chat = vocabulary.chat
    frames = [tuple(chat.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    digits = vocabulary.next_digits(False, 0, 9).nonzero().flatten().tolist()
    words = (vocabulary.string_starts & (vocabulary.lengths > 1)).nonzero().flatten().tolist()
    if not digits or not words or not all(frames):
        return None
    trial = list(frames[0])
    for slot, after in zip(known, frames[1:], strict=True):
        trial += [digits[0] if slot.kind == "integer" else words[0], *after]
        inside = vocabulary.strings if slot.kind == "string" else vocabulary.digits
        if inside[after[0]]:  # the slot's end could not be told from its value
            return None
    try:
        if list(json.loads(chat.decode(trial))) != [str(name) for name in properties]:
            return None
    except json.JSONDecodeError:
        return None
    frames[-1] = (*frames[-1], chat.end_of_turn)
    return JsonTemplate(vocabulary, known, frames)


def _slot(facts: Any) -> TemplateSlot | None:
    kind = facts.get("type") if isinstance(facts, Mapping) else None
    if (
        kind not in _SUPPORTED
        or set(facts) - _SUPPORTED[kind]
        or facts.get("minimum", 0) > 0
        or facts.get("minLength", 0) > 1
    ):
        return None
    if kind == "integer":
        return TemplateSlot(kind, _DIGITS, min(int(facts.get("maximum", _LARGEST)), _LARGEST))
    return TemplateSlot(kind, int(facts.get("maxLength", 10**9)))
