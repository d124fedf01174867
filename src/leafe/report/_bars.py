"""Horizontal bars as inline SVG: one bar a row, of one or several segments.

Segments differ by colour, order and by what is written in them. Every drawing stands beside a table
with the same figures, so for screen readers its title is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _LINE, _BAR = 860.0, 27.0, 17.0
_LETTER = 7.1  # width of a character of 12.5 px


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: its name, its value from 0, its colour, and that of its name."""

    name: str
    value: float
    colour: str
    ink: str = "#fff"


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: its name at the left, its segments, and a figure at the right."""

    name: str
    segments: Sequence[Segment]
    figure: str


def bar_chart(bars: Sequence[Bar], *, title: str, shares: bool = False) -> Markup:
    """Draw the bars on one scale from 0.

    Args:
        bars: The rows; those without a value above 0 are left out.
        title: For screen readers.
        shares: Make all bars equally long: segments are shares of their bar.

    Returns:
        An svg element; an empty Markup without rows.
    """
    shown = [bar for bar in bars if any(s.value > 0 for s in bar.segments)]
    if not shown:
        return Markup("")
    left = min(270.0, max(len(bar.name) for bar in shown) * _LETTER + 12)
    right = max(len(bar.figure) for bar in shown) * _LETTER + 10
    room = _WIDTH - left - right
    longest = max(sum(s.value for s in bar.segments) for bar in shown)
    head = Markup(
        '<svg class="chart" role="img" viewBox="0 0 {:.0f} {:.0f}" aria-label="{}">'
        "<title>{}</title>"
    )
    label = Markup(
        '<text class="tick" x="{:.0f}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>'
    )
    figure = Markup('<text class="tick" x="{:.1f}" y="{:.1f}">{}</text>')
    parts = [head.format(_WIDTH, len(shown) * _LINE + 4, title, title)]
    for nth, bar in enumerate(shown):
        x, y, total = left, 2 + nth * _LINE, sum(s.value for s in bar.segments)
        fits = len(bar.name) * _LETTER < left
        name = bar.name if fits else bar.name[: int(left / _LETTER) - 1] + "…"
        parts.append(label.format(left - 8, y + 13, name, bar.name))
        for segment in bar.segments:
            width = room * segment.value / (total if shares else longest)
            if width > 0:
                parts.append(_segment(segment, x, y, width, total))
            x += width
        parts.append(figure.format(x + 8, y + 13, bar.figure))
    return Markup("").join([*parts, Markup("</svg>")])


def _segment(segment: Segment, x: float, y: float, width: float, total: float) -> Markup:
    box = Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.0f}" fill="{}" '
        'stroke="#fff" stroke-width="1"><title>{}: {:.1f} %</title></rect>'
    )
    out = box.format(x, y, width, _BAR, segment.colour, segment.name, 100 * segment.value / total)
    if segment.name and len(segment.name) * _LETTER + 8 < width:
        out += Markup('<text class="inside" x="{:.1f}" y="{:.1f}" fill="{}">{}</text>').format(
            x + 5, y + 13, segment.ink, segment.name
        )
    return out
