"""Figures as text, the same on the terminal and on the page. None (no such figure) is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"
MINUS = "−"


def percent(value: float | None) -> str:
    """A rate as per cent with one decimal."""
    return NONE if value is None else f"{100 * value:.1f}"


def difference(value: float | None) -> str:
    """A difference of rates in points, with its sign."""
    return NONE if value is None else _signed(100 * value)


def interval(ends: Sequence[float] | None, signed: bool = False) -> str:
    """[low, high] in per cent or points."""
    if ends is None:
        return NONE
    low, high = ends
    return (
        f"[{_signed(100 * low)}, {_signed(100 * high)}]"
        if signed
        else f"[{100 * low:.1f}, {100 * high:.1f}]"
    )


def span(ends: Sequence[float] | None) -> str:
    """low–high in per cent: an interval where room is scarce."""
    return NONE if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A plain figure with thousands marked."""
    return NONE if value is None else f"{value:,.{digits}f}"


def count(value: float | None) -> str:
    """A count with thousands marked."""
    return NONE if value is None else f"{value:,.0f}"


def excludes_zero(row: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of a difference excludes 0."""
    return row["ci95"] is not None and (row["ci95"][0] > 0 or row["ci95"][1] < 0)


def _signed(value: float) -> str:
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else ("+" if value > 0 else MINUS) + text


def duration(seconds: float | None) -> str:
    """41 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if whole >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clip(text: str, limit: int = 1500) -> str:
    """At most `limit` characters, and where there were more a note that says how many."""
    return (
        text
        if len(text) <= limit
        else f"{text[:limit]} … [{len(text) - limit:,} more characters left out]"
    )
