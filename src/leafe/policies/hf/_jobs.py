"""Requests on their way through the engine, and the sequences that compute their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leafe.core import ChatTokens, Completion, Request, Usage
from leafe.policies.hf._json_template import JsonTemplate, TemplateState
from leafe.policies.hf._sequence_table import HeldPrefix

_SHORT = 16  # tokens of an answer whose text is cached
_TEXTS = 20_000


@dataclass(eq=False, slots=True)
class Job:
    """One request. The engine passes finished jobs to its `deliver`, several at once."""

    request: Request
    prompt: tuple[int, ...]
    seed: int
    receiver: Any
    """Who gets the answer; opaque to the engine."""
    abandoned: Callable[[], bool]
    sequences: int = 1
    """How many sequences still compute samples of it."""
    cached: int = 0
    """Prompt tokens found in the cache."""
    template: JsonTemplate | None = None
    finished: list[tuple[int, Completion]] = field(default_factory=list)
    """(first sample, completion) of the sequences that ended."""
    error: BaseException | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """All samples of a request that have drawn the same tokens so far."""

    job: Job
    tokens: NDArray[np.int32]
    """Prompt and drawn tokens while it waits; an active sequence's are in the table."""
    samples: NDArray[np.int64]
    logprobs: list[float]
    generated: int = 0
    """Drawn tokens that no other sequence of the request counts."""
    entry: int = -1
    """In the sequence table; -1 while it waits."""
    length: int = 0
    """Prompt and drawn tokens."""
    held: HeldPrefix | None = None
    """Of a sequence that was split off and waits; None: a new request, or an active one."""
    state: TemplateState | None = None
    """How far the request's template is filled in."""


class Draw(NamedTuple):
    """The samples of a sequence that drew the same token."""

    token: int
    logprob: float
    samples: NDArray[np.int64]


class StopMatch(NamedTuple):
    """An answer that a stop string ended; `tokens` is None where the text ends within a token."""

    text: str
    tokens: tuple[int, ...] | None


class Decoder:
    """Token ids to text. Short answers are cached: small environments repeat their actions."""

    def __init__(self, chat: ChatTokens) -> None:
        self._decode = chat.decode
        self._cached = lru_cache(_TEXTS)(chat.decode)

    def text(self, ids: tuple[int, ...]) -> str:
        return self._cached(ids) if len(ids) <= _SHORT else self._decode(ids)

    def stop_match(self, stops: tuple[str, ...], ids: tuple[int, ...]) -> StopMatch | None:
        """What comes before the first stop string, and the ids of exactly that text, if any."""
        if not stops:
            return None
        text = self.text(ids)
        at = min((i for i in (text.find(s) for s in stops if s) if i >= 0), default=None)
        if at is None:
            return None
        for k in range(len(ids) - 1, -1, -1):
            shorter = self.text(ids[:k])
            if shorter == text[:at]:
                return StopMatch(text[:at], ids[:k])
            if len(shorter) < at:
                break
        return StopMatch(text[:at], None)


def completions(job: Job) -> list[Completion]:
    """The distinct completions of a finished job with their counts, in the order of their first
    samples. The first carries the prompt's usage."""
    merged: dict[tuple[str, tuple[int, ...] | None], Completion] = {}
    for _, new in sorted(job.finished, key=lambda f: f[0]):
        key = (new.text, new.tokens)
        old = merged.get(key)
        merged[key] = (
            new
            if old is None
            else replace(old, count=old.count + new.count, usage=old.usage + new.usage)
        )
    out = list(merged.values())
    out[0] = replace(out[0], usage=out[0].usage + Usage(prompt=len(job.prompt), cached=job.cached))
    return out
