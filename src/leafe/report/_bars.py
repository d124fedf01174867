"""Horizontal bars as inline SVG: one bar a row, of one or several segments, told apart by colour,
by order and by what is written in them.

Every drawing stands beside a table with the same figures, so it is named and left at that: nothing
in it is said nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _LINE, _BAR = 860.0, 27.0, 17.0
_LETTER = 7.1  # width of a character of 12.5 px


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar."""

    name: str
    value: float
    colour: str
    ink: str = "#fff"
    """Of what is written on it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: its name at the left, its segments, and a figure at the right."""

    name: str
    segments: Sequence[Segment]
    figure: str


def bar_chart(bars: Sequence[Bar], *, title: str, shares: bool = False) -> Markup:
    """The bars on one scale from 0, or with `shares` each as long as the others. An empty Markup
    without anything to show."""
    shown = [bar for bar in bars if any(s.value > 0 for s in bar.segments)]
    if not shown:
        return Markup("")
    left = min(270.0, max(len(bar.name) for bar in shown) * _LETTER + 12)
    right = max(len(bar.figure) for bar in shown) * _LETTER + 10
    room = _WIDTH - left - right
    longest = max(sum(s.value for s in bar.segments) for bar in shown)
    height = len(shown) * _LINE + 4
    parts = [
        Markup(
            '<svg class="chart" role="img" viewBox="0 0 {:.0f} {:.0f}" '
            'aria-label="{}"><title>{}</title>'
        ).format(_WIDTH, height, title, title)
    ]
    for nth, bar in enumerate(shown):
        y, total = 2 + nth * _LINE, sum(s.value for s in bar.segments)
        name = (
            bar.name
            if len(bar.name) * _LETTER < left
            else bar.name[: int(left / _LETTER) - 1] + "…"
        )
        label = Markup(
            '<text class="tick" x="{:.0f}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>'
        )
        parts.append(label.format(left - 8, y + 13, name, bar.name))
        x = left
        for segment in bar.segments:
            width = room * segment.value / (total if shares else longest)
            if width > 0:
                parts.append(_segment(segment, x, y, width, total))
            x += width
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{:.1f}">{}</text>').format(
                x + 8, y + 13, bar.figure
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


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
