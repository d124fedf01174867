"""Rates and remaining times of stages, from their events, for the live view, the log and `--json`.

A stage that goes on from an earlier start counts from its first event of this start: rates are
today's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from leafe.core import visible
from leafe.pipeline import Stage


@dataclass(slots=True)
class StageProgress:
    """The progress of one running stage."""

    stage: Stage
    began: float
    clock: Callable[[], float] = time.monotonic
    first: Mapping[str, Any] | None = None
    first_at: float = 0.0
    last: Mapping[str, Any] = field(default_factory=dict)
    last_at: float = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take the stage's newest event (`leafe.pipeline._progress`)."""
        self.last, self.last_at = event, self.clock()
        if self.first is None:
            self.first, self.first_at = event, self.last_at

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    def rate(self, name: str) -> float | None:
        """Growth per second of a count; None where there are no two events to tell it from."""
        if (
            self.first is None
            or name not in self.last
            or name not in self.first
            or self.last_at - self.first_at < 0.5
        ):
            return None
        return float((self.last[name] - self.first[name]) / (self.last_at - self.first_at))

    @property
    def eta(self) -> float | None:
        """Seconds left, by the share of tasks or of budget that is done, whichever is more; None
        while that is a guess."""
        before, now = share_of(self.first or {}) or 0.0, share_of(self.last)
        if now is None or now - before < 0.01 or self.last_at - self.first_at < 2:
            return None
        return max(
            0.0,
            (1 - now) * (self.last_at - self.first_at) / (now - before)
            - (self.clock() - self.last_at),
        )

    def to_json(self) -> dict[str, Any]:
        """The last event with rates and the remaining time, for programs."""
        rates = {
            f"{name}_per_s": rate
            for name in ("turns", "tokens")
            if (rate := self.rate(name)) is not None
        }
        rest = {} if (eta := self.eta) is None else {"eta_s": round(eta, 1)}
        return (
            dict(self.last)
            | {"seconds": round(self.seconds, 1)}
            | {name: round(rate, 2) for name, rate in rates.items()}
            | rest
        )

    def words(self) -> list[str]:
        """The last event as texts, the most important first."""
        event, out = self.last, []
        of = event.get("of")
        if "solved" in event and of:
            by = f", {event['by_rollback']:,} by rollback" if event.get("by_rollback") else ""
            out.append(f"{event['solved']:,} solved ({100 * event['solved'] / of:.1f} %{by})")
        if event.get("samples"):
            out.append(f"mean success {100 * event.get('successes', 0) / event['samples']:.1f} %")
        if event.get("words"):
            out.append(str(event["words"]))
        out += [
            f"{number:,} {name}" for name, number in (event.get("errors") or {}).items() if number
        ]
        budget = event.get("budget")
        if budget and budget.get("limit"):
            share = 100 * budget["spent"] / budget["limit"]
            out.append(
                f"budget {share:.0f} % of {budget['limit']:,.0f} "
                f"{str(budget['of']).replace('_', ' ')}"
            )
        for name, unit in (("turns", "turns/s"), ("tokens", "tokens/s")):
            rate = self.rate(name)
            if rate is not None:
                out.append(f"{short(rate)} {unit}")
        if event.get("prompt_tokens"):
            out.append(
                f"cache {100 * event.get('cached_tokens', 0) / event['prompt_tokens']:.0f} %"
            )
        return [" ".join(visible(word).split()) for word in out]


def share_of(event: Mapping[str, Any]) -> float | None:
    """How much of the stage is done, from 0 to 1; None where it does not say."""
    of, budget = event.get("of"), event.get("budget") or {}
    shares = [event.get("done", 0) / of] if of else []
    shares += [budget["spent"] / budget["limit"]] if budget.get("limit") else []
    return min(1.0, max(shares)) if shares else None


def short(value: float) -> str:
    """Three figures: 0.12, 3.4, 127, 1.2k."""
    return (
        f"{value / 1000:.1f}k"
        if value >= 1000
        else f"{value:.0f}"
        if value >= 10
        else f"{value:.2g}"
    )


def clock_time(seconds: float) -> str:
    """1:05 or 2:01:05."""
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )
