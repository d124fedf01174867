"""Figures as text, the same on the terminal and on the page. None (nothing allows the figure) is a dash."""

from __future__ import annotations

from collections.abc import Sequence

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
    return f"[{_signed(100 * low)}, {_signed(100 * high)}]" if signed else f"[{100 * low:.1f}, {100 * high:.1f}]"


def span(ends: Sequence[float] | None) -> str:
    """low–high in per cent: an interval where room is scarce."""
    return NONE if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A plain figure with thousands marked."""
    return NONE if value is None else f"{value:,.{digits}f}"


def count(value: float | None) -> str:
    """A count with thousands marked."""
    return NONE if value is None else f"{value:,.0f}"


def _signed(value: float) -> str:
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else ("+" if value > 0 else MINUS) + text
