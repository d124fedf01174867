"""One counter of everything that costs, charged by every strategy and stage alike.

A budget asks before the deed: `take` charges and says True, or charges nothing and says False, so
that a limit on
counted things (calls, steps, episodes) is met exactly. Tokens and seconds are known only
afterwards, so that those limits can be
passed by the turn in flight and by no more. A task's budget charges the run's as well: its parent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace


@dataclass(slots=True)
class Spent:
    """What was spent. Steps are environment steps, tokens are the policy's, seconds are wall
    time."""

    episodes: int = 0
    env_steps: int = 0
    replayed_steps: int = 0
    """Steps repeated only to return to an earlier state; not part of `env_steps`."""
    policy_calls: int = 0
    """Completions asked for, reflections included: a request with n = 4 counts 4."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


LIMITS = tuple(f.name for f in fields(Spent))
"""The names a limit can have."""


class Budget:
    """A `Spent` with limits; charges go to the parent too, and a parent's limit binds the child."""

    def __init__(
        self, limits: Mapping[str, float] | None = None, parent: Budget | None = None
    ) -> None:
        unknown = set(limits or {}) - set(LIMITS)
        if unknown:
            raise ValueError(
                f"no such limit: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}"
            )
        self.limits = dict(limits or {})
        self.parent = parent
        self.spent = Spent()
        self._since = time.monotonic()
        self._seconds_before = 0.0

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._since

    def reached(self) -> str | None:
        """The name of a limit that is used up, here or in a parent; None while there is room for
        one more of everything."""
        for name, limit in self.limits.items():
            value = self._seconds() if name == "seconds" else getattr(self.spent, name)
            if value >= limit:
                return name
        return self.parent.reached() if self.parent else None

    def admits(self, **amounts: float) -> bool:
        """Whether these amounts can be charged without passing a limit."""
        for name, limit in self.limits.items():
            if name == "seconds":
                if self._seconds() >= limit:
                    return False
            elif name in amounts:
                if getattr(self.spent, name) + amounts[name] > limit:
                    return False
            elif name.endswith("_tokens") and getattr(self.spent, name) >= limit:
                return False
        return self.parent is None or self.parent.admits(**amounts)

    def take(self, **amounts: float) -> bool:
        """Charge the amounts if every limit admits them; else charge nothing and return False."""
        if not self.admits(**amounts):
            return False
        self.charge(**amounts)
        return True

    def charge(self, **amounts: float) -> None:
        """Charge what was spent, limits or not: for tokens, replays, and what a journal says was
        spent before."""
        for name, amount in amounts.items():
            if name == "seconds":
                self._seconds_before += amount
            setattr(self.spent, name, getattr(self.spent, name) + amount)
        if self.parent:
            self.parent.charge(**amounts)

    def snapshot(self) -> Spent:
        """A copy of what was spent, with the seconds up to now."""
        return replace(self.spent, seconds=self._seconds())
