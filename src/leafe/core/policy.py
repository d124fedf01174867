"""The contract of a policy: messages in, completions with counts out.

A policy acts and reflects: it is one model. It knows nothing of environments or trees. `count` on a
completion is how many of the n
samples came out so: an engine that samples exactly but together (counted sampling) returns each
distinct text once with its
count; any other returns n completions of count 1. Either way the counts sum to n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from leafe.core.text import LONGEST, clean_text
from leafe.core.types import Finish, Usage

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. An assistant message may carry the token ids that were sampled (end-of-turn
    token included)."""

    role: Role
    content: str
    tokens: tuple[int, ...] | None = None
    cut: bool = False
    """Of an answer to learn: it was cut at its limit of tokens, so that no end-of-turn token
    belongs to it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call: n samples of the assistant's next message."""

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    """A JSON schema for the answer, honoured where the engine can; the caller parses with bounds
    checks all the same."""
    seed: int | None = None
    cache_key: str = ""
    """Requests that share a prefix share this key (the task's id): for routing and for KV reuse."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one request, once for each distinct answer."""

    text: str
    """Cleaned and bounded here (`clean_text`), whatever engine wrote it; one that is cut counts as
    `length`."""
    count: int = 1
    tokens: tuple[int, ...] | None = None
    """Sampled ids, the end-of-turn token included where the model wrote it."""
    logprob: float | None = None
    """Sum over `tokens`, at the sampling temperature."""
    finish: Finish = "stop"
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            object.__setattr__(self, "finish", "length")
        object.__setattr__(self, "text", clean_text(self.text))


@runtime_checkable
class Policy(Protocol):
    """Raises `ContextFull` where prompt + max_tokens do not fit, `PolicyError` after the bounded
    retries, nothing else."""

    name: str
    """Which weights: stands in every turn. A path, a model's name or a preset."""

    async def complete(self, request: Request) -> list[Completion]: ...

    async def close(self) -> None: ...


@runtime_checkable
class SupportsCheck(Protocol):
    """A policy that tests its engine before the first request."""

    async def check(self) -> None:
        """Raise UserError where the engine cannot serve this policy."""


@runtime_checkable
class SupportsStats(Protocol):
    """A policy that counts its failures."""

    stats: Mapping[str, int]
    """Number of events by kind since the policy was made."""


@runtime_checkable
class SupportsReport(Protocol):
    """A policy that describes its servers."""

    def report(self) -> list[dict[str, Any]]:
        """One plain JSON object for each server."""


@runtime_checkable
class SupportsScore(Protocol):
    """A policy that can compute the log-probability of given answers."""

    async def score(self, asked: Sequence[tuple[Sequence[Message], Message]]) -> list[float | None]:
        """Sum of log-probabilities of each answer after its prompt; None where it does not fit."""
