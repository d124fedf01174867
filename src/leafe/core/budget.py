"""One counter of everything that costs, charged by every strategy and stage alike.

`take` reserves before the call: it charges and returns True, or charges nothing and returns False.
So limits on counts (calls, steps, episodes) are met exactly. Tokens and seconds are known only
afterwards, so a limit on them can be exceeded by the turn in flight and by no more. A task's budget
charges its parent, the run's, as well.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace


@dataclass(slots=True)
class Spent:
    """What was spent.

    Attributes:
        episodes: Rollouts.
        env_steps: Environment steps.
        replayed_steps: Steps repeated only to return to an earlier state; not part of `env_steps`.
        policy_calls: Completions asked for, reflections included: a request with n = 4 counts 4.
        prompt_tokens: Tokens of prompts.
        cached_tokens: How many of them the engine took from its cache.
        generated_tokens: Tokens of answers.
        seconds: Wall time.
    """

    episodes: int = 0
    env_steps: int = 0
    replayed_steps: int = 0
    policy_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """A JSON object with every field."""
        return asdict(self)


LIMITS = tuple(f.name for f in fields(Spent))
"""The names a limit can have."""


class Budget:
    """A `Spent` with limits. Charges go to the parent too, and a parent's limit binds the child.

    Args:
        limits: The most of each amount, by the names in `LIMITS`; default: no limit.
        parent: The budget that this one is a part of.

    Raises:
        ValueError: A limit has an unknown name.
    """

    def __init__(
        self, limits: Mapping[str, float] | None = None, parent: Budget | None = None
    ) -> None:
        self.limits = dict(limits or {})
        if unknown := self.limits.keys() - set(LIMITS):
            raise ValueError(
                f"no such limit: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}"
            )
        self.parent = parent
        self.spent = Spent()
        self._since = time.monotonic()
        self._seconds_before = 0.0

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._since

    def reached(self) -> str | None:
        """The name of a limit that is used up, here or in a parent; None where one more of
        everything fits."""
        for name, limit in self.limits.items():
            value = self._seconds() if name == "seconds" else getattr(self.spent, name)
            if value >= limit:
                return name
        return self.parent.reached() if self.parent else None

    def admits(self, **amounts: float) -> bool:
        """Whether these amounts can be charged without exceeding a limit."""
        for name, limit in self.limits.items():
            if name == "seconds":
                full = self._seconds() >= limit
            elif name in amounts:
                full = getattr(self.spent, name) + amounts[name] > limit
            else:
                full = name.endswith("_tokens") and getattr(self.spent, name) >= limit
            if full:
                return False
        return self.parent is None or self.parent.admits(**amounts)

    def take(self, **amounts: float) -> bool:
        """Charge the amounts if every limit admits them; else charge nothing and return False."""
        if not self.admits(**amounts):
            return False
        self.charge(**amounts)
        return True

    def charge(self, **amounts: float) -> None:
        """Charge the amounts, limits or not: tokens, replays, and what a journal says was spent in
        an earlier start."""
        for name, amount in amounts.items():
            if name == "seconds":
                self._seconds_before += amount
            setattr(self.spent, name, getattr(self.spent, name) + amount)
        if self.parent:
            self.parent.charge(**amounts)

    def snapshot(self) -> Spent:
        """A copy of what was spent, with the seconds up to now."""
        return replace(self.spent, seconds=self._seconds())
