"""The contract of a policy: messages in, completions with counts out.

A policy acts and reflects: it is one model. It knows nothing of environments or trees.
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
    """One chat message.

    Attributes:
        role: Who wrote it.
        content: The text.
        tokens: For an assistant message: the sampled ids, end-of-turn token included, where they
            are known.
        cut: For an answer that is trained on: it was cut at its token limit, so no end-of-turn
            token belongs to it.
    """

    role: Role
    content: str
    tokens: tuple[int, ...] | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One call: n samples of the assistant's next message.

    Attributes:
        messages: The chat; the last message is the user's.
        n: How many samples.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus sampling.
        max_tokens: The most tokens of an answer.
        stop: Texts that end an answer.
        schema: A JSON schema for the answer. Engines honour it where they can; the caller
            validates the answer in any case.
        seed: Of the samples; None: any.
        cache_key: Requests that share a prefix share this key (the task's id), for routing and for
            reuse of keys and values.
    """

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    seed: int | None = None
    cache_key: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """One distinct answer to a request.

    Attributes:
        text: The answer, cleaned and bounded here (`clean_text`) whatever engine wrote it; a text
            that is cut by the bound has `finish="length"`.
        count: How many of the n samples are this answer.
        tokens: The sampled ids, end-of-turn token included where the model wrote one; None where
            the engine returns none.
        logprob: Sum over `tokens` at the sampling temperature, in nats.
        finish: How the answer ended.
        usage: Tokens of the call.
    """

    text: str
    count: int = 1
    tokens: tuple[int, ...] | None = None
    logprob: float | None = None
    finish: Finish = "stop"
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            object.__setattr__(self, "finish", "length")
        object.__setattr__(self, "text", clean_text(self.text))


@runtime_checkable
class Policy(Protocol):
    """What answers requests: a model in this process, a server, or a script.

    Calls come from one event loop, many at a time. An implementation retries within bounds what the
    outside fails at, and raises nothing but `ContextFull` and `PolicyError`.
    """

    name: str
    """The weights: a path, a model's name or a preset. It is recorded in every turn."""

    async def complete(self, request: Request) -> list[Completion]:
        """Sample answers to a request.

        Args:
            request: The chat and the sampling options.

        Returns:
            Completions whose counts sum to `request.n`: n of count 1, or fewer with counts where
            the engine samples equal answers together (counted sampling).

        Raises:
            ContextFull: Prompt and `max_tokens` do not fit the context.
            PolicyError: No answer after the bounded retries.
        """
        ...

    async def close(self) -> None:
        """Free what the policy holds. May be called twice."""
        ...


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
