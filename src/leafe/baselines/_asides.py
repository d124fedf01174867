"""A policy call that is no action: reserved in the budget, seeded by name, and kept as a turn, so
that the journal's sums are the budget's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leafe.core import (
    Budget,
    Completion,
    Kind,
    Message,
    Policy,
    PolicyError,
    Request,
    Turn,
    derive_seed,
)
from leafe.explore import ExploreConfig, charge_tokens, complete_one, unplayed_turn
from leafe.prompts import History

AsideKind = Literal["lesson", "delta", "proposal", "explanation"]
"""What an aside is; its turn's `action`."""


class Unusable(ValueError):
    """The answer does not have the form that was asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class AsideSampler:
    """Asks one policy about the histories of one task."""

    policy: Policy
    config: ExploreConfig
    """Temperatures, top_p, `max_reflection_attempts` and the seed."""
    budget: Budget

    async def sample(
        self,
        kind: AsideKind,
        history: History,
        messages: tuple[Message, ...],
        parse: Callable[[str], str],
        *,
        episode: int,
        first: int,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Turn]:
        """Sample an answer until it can be parsed, `max_reflection_attempts` times at most and
        while the budget admits it. A policy that fails is not asked again.

        Args:
            kind: What is asked for.
            history: What the answer is about; its turns stand after it.
            messages: The prompt.
            parse: Returns the note of an answer, or raises `Unusable`.
            episode: The number of the episode that gets the turns.
            first: How many asides that episode has at this history already.
            max_tokens: Of the answer.
            schema: A JSON schema for the answer.

        Returns:
            A turn for every attempt.
        """
        turns: list[Turn] = []
        temperature = self.config.reflection_temperature
        for nth in range(first, first + self.config.max_reflection_attempts):
            if not self.budget.take(policy_calls=1):
                break
            began = time.monotonic()
            request = Request(
                messages=messages,
                temperature=self.config.temperature if temperature is None else temperature,
                top_p=self.config.top_p,
                max_tokens=max_tokens,
                schema=schema,
                seed=derive_seed(
                    self.config.seed, history.task.id, episode, history.step, kind, nth
                ),
                cache_key=history.task.id,
            )
            answer, note, why, no_answer = Completion(""), "", "", False
            try:
                answer = await complete_one(self.policy, request)
                charge_tokens(self.budget, answer.usage)
                note = parse(answer.text)
            except Unusable as error:
                why = str(error)
            except PolicyError as error:
                why, no_answer = f"no answer: {error}", True
            turns.append(
                aside_turn(
                    kind,
                    history,
                    answer,
                    episode=episode,
                    nth=nth,
                    note=note,
                    why=why,
                    policy=self.policy.name,
                    seconds=time.monotonic() - began,
                )
            )
            if not why or no_answer:
                break
        return turns


def aside_turn(
    kind: AsideKind, history: History, answer: Completion, *, why: str = "", **fields: Any
) -> Turn:
    """The record of an aside. `why`: the reason that it cannot be used, if so; `fields`: as
    `leafe.explore.unplayed_turn`."""
    return unplayed_turn(
        Kind.aside, history, answer, action=kind, observation=why, valid=not why, **fields
    )
