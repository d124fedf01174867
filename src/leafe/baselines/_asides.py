"""A policy call that is no action: asked for within the budget, seeded by name, and kept as a turn,
so that the journal's sums are the budget's."""

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
    Usage,
    derive_seed,
    turn_id,
)
from leafe.explore import ExploreConfig
from leafe.prompts import History

What = Literal["lesson", "delta", "proposal", "explanation"]


class Unusable(ValueError):
    """The answer does not say what was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks one policy about the histories of one task."""

    policy: Policy
    config: ExploreConfig
    """Temperatures, top_p, `max_reflection_attempts` and the seed."""
    budget: Budget

    async def ask(
        self,
        what: What,
        history: History,
        messages: tuple[Message, ...],
        read: Callable[[str], str],
        *,
        episode: int,
        first: int,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Turn]:
        """Ask until an answer can be read, `max_reflection_attempts` times at most and while the
        budget admits it; every try is a turn. `read` returns the note or
        raises `Unusable`. `first`: the number of the episode's first aside at this history. A
        policy that fails is not asked again."""
        turns: list[Turn] = []
        cooler = self.config.reflection_temperature
        for nth in range(first, first + self.config.max_reflection_attempts):
            if not self.budget.take(policy_calls=1):
                break
            began = time.monotonic()
            request = Request(
                messages=messages,
                temperature=self.config.temperature if cooler is None else cooler,
                top_p=self.config.top_p,
                max_tokens=max_tokens,
                schema=schema,
                seed=derive_seed(
                    self.config.seed, history.task.id, episode, history.step, what, nth
                ),
                cache_key=history.task.id,
            )
            answer, note, why, hopeless = Completion(""), "", "", False
            try:
                answers = await self.policy.complete(request)
                if not answers:
                    raise PolicyError(f"The policy {self.policy.name} returned no completion.")
                answer = answers[0]
                self.charge(answer.usage)
                note = read(answer.text)
            except Unusable as error:
                why = str(error)
            except PolicyError as error:
                why, hopeless = f"no answer: {error}", True
            turns.append(
                aside(
                    what,
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
            if not why or hopeless:
                break
        return turns

    def charge(self, usage: Usage) -> None:
        """The tokens of a call."""
        self.budget.charge(
            prompt_tokens=usage.prompt, cached_tokens=usage.cached, generated_tokens=usage.generated
        )


def aside(
    what: What,
    history: History,
    answer: Completion,
    *,
    episode: int,
    nth: int,
    note: str = "",
    why: str = "",
    policy: str = "",
    seconds: float = 0.0,
) -> Turn:
    """The record of a call that no environment hears of; `why` it could not be used, if so."""
    return Turn(
        id=turn_id(history.task.id, episode, history.step, Kind.aside, nth),
        parent=history.turns[-1].id if history.turns else None,
        task_id=history.task.id,
        step=history.step,
        kind=Kind.aside,
        action_text=answer.text,
        action=what,
        observation=why,
        valid=not why,
        note=note,
        policy=policy,
        usage=answer.usage,
        tokens=answer.tokens,
        logprob=answer.logprob,
        seconds=round(seconds, 4),
        finish=answer.finish,
    )
