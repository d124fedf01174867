"""Line charts as inline SVG: series go in, one self-contained drawing comes out.

Series differ by colour (the Okabe-Ito palette, which colour-blind readers can tell apart), by dash
and by marker, so a print without colour can be read as well. `Markup.format` escapes all texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B2A86")
GREY = "#666666"
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "3 5")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring", "box", "plus")


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, dash (as SVG writes it) and marker of a series."""

    colour: str
    dash: str
    marker: str


def look(index: int, reference: bool = False) -> Look:
    """The look of series number `index`; a reference (a ceiling) is grey."""
    n, again = index % len(PALETTE), index // len(PALETTE)
    # the ninth has the first one's colour with another dash and marker: 64 looks in all
    dash, mark = _DASHES[(n + 3 * again) % len(_DASHES)], _MARKERS[(n + 5 * again) % len(_MARKERS)]
    return Look(GREY if reference else PALETTE[n], "4 4" if reference else dash, mark)


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line.

    Attributes:
        name: At the end of the line.
        x: Places, ascending.
        y: Rates, as fractions of 1.
        look: How the line is drawn.
        low, high: Bounds of the band around it; empty: no band.
        steps: A step function: it holds its value up to the next x and has no markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    steps: bool = False


WIDTH, HEIGHT = 860, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 190, 14, 50


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, log2: bool = False
) -> Markup:
    """Draw the series, with their names at the ends of their lines.

    Args:
        series: The lines; those without points are left out.
        title: For screen readers.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis, which is in per cent.
        log2: Whether the horizontal axis is logarithmic.

    Returns:
        An svg element; an empty Markup without series.
    """
    shown = [s for s in series if len(s.x)]
    if not shown:
        return Markup("")
    scale = _Scale(shown, log2)
    head = Markup(
        '<svg class="chart lines" role="img" viewBox="0 0 {} {}" aria-label="{}"><title>{}</title>'
    )
    return Markup("").join(
        [
            head.format(WIDTH, HEIGHT, title, title),
            _axes(scale, x_label, y_label),
            *(_band(s, scale) for s in shown if s.low),
            *(_line(s, scale) for s in shown),
            _end_labels(shown, scale),
            Markup("</svg>"),
        ]
    )


class _Scale:
    """From values to places in the drawing."""

    def __init__(self, shown: Sequence[Series], log2: bool) -> None:
        self.log2 = log2
        self.low = self._forward(min(min(s.x) for s in shown))
        high = self._forward(max(max(s.x) for s in shown))
        self.high = high if high > self.low else self.low + 1
        most = max(max([*s.y, *s.high]) for s in shown)
        tops = (0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.8)
        self.top = next((t for t in tops if most <= t), 1.0)

    def _forward(self, v: float) -> float:
        return math.log2(v) if self.log2 else v

    def x(self, v: float) -> float:
        share = (self._forward(v) - self.low) / (self.high - self.low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, v: float) -> float:
        return HEIGHT - _BOTTOM - v / self.top * (HEIGHT - _TOP - _BOTTOM)

    def points(self, s: Series, values: Sequence[float]) -> list[tuple[float, float]]:
        """The corners of the line through these values of a series."""
        points = [(self.x(x), self.y(y)) for x, y in zip(s.x, values, strict=True)]
        if not s.steps:
            return points
        stepped = points[:1]
        for x, y in points[1:]:
            stepped += [(x, stepped[-1][1]), (x, y)]
        return stepped

    def x_ticks(self) -> list[float]:
        if self.log2:
            return [2.0**i for i in range(math.ceil(self.low), math.floor(self.high) + 1)]
        raw = (self.high - self.low) / 6
        size = 10 ** math.floor(math.log10(raw))
        step = max(1.0, next(m * size for m in (1, 2, 5, 10) if m * size >= raw))
        return [
            step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        ]


def _axes(scale: _Scale, x_label: str, y_label: str) -> Markup:
    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    steps = 5 if scale.top in (0.05, 0.1, 0.25, 0.5, 1.0) else 4
    row = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:.3g}</text>'
    )
    column = Markup(
        '<line class="tickmark" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>'
        '<text class="tick" x="{x:.1f}" y="{}" text-anchor="middle">{:,.0f}</text>'
    )
    labels = Markup(
        '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="label" x="14" y="{y}" text-anchor="middle" transform="rotate(-90 14 {y})">'
        "{}</text>"
    )
    rates = [scale.top * i / steps for i in range(steps + 1)]
    return Markup("").join(
        [
            *(
                row.format(_LEFT, right, _LEFT - 8, scale.y(v) + 4, 100 * v, y=scale.y(v))
                for v in rates
            ),
            *(
                column.format(floor, floor + 5, floor + 19, v, x=scale.x(v))
                for v in scale.x_ticks()
            ),
            labels.format(
                *(_LEFT, right, floor, floor),
                *((_LEFT + right) / 2, HEIGHT - 8, x_label, y_label),
                y=(floor + _TOP) / 2,
            ),
        ]
    )


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _band(s: Series, scale: _Scale) -> Markup:
    outline = scale.points(s, s.low) + scale.points(s, s.high)[::-1]
    return Markup('<polygon points="{}" fill="{}" fill-opacity="0.13"/>').format(
        _join(outline), s.look.colour
    )


def _line(s: Series, scale: _Scale) -> Markup:
    line = Markup(
        '<polyline points="{}" fill="none" stroke="{}" stroke-width="2.2" '
        'stroke-linejoin="round" stroke-dasharray="{}"/>'
    ).format(_join(scale.points(s, s.y)), s.look.colour, s.look.dash or "none")
    if s.steps:
        return line
    return Markup("").join(
        [
            line,
            *(
                marker(s.look, scale.x(x), scale.y(y), f"{s.name}: {100 * y:.1f} %")
                for x, y in zip(s.x, s.y, strict=True)
            ),
        ]
    )


def marker(style: Look, x: float, y: float, tip: str = "", r: float = 4.0) -> Markup:
    """The marker of a look around (x, y), with a tip for the pointer."""
    fill = "white" if style.marker in ("ring", "box") else style.colour
    title = Markup("<title>{}</title>").format(tip) if tip else Markup("")
    tail = Markup('fill="{}" stroke="{}" stroke-width="1.8">{}').format(fill, style.colour, title)
    if style.marker in ("circle", "ring"):
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" {}</circle>').format(x, y, r, tail)
    square = f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"
    paths = {
        "square": square,
        "box": square,
        "triangle": f"M{x:.1f},{y - r * 1.2:.1f}l{r * 1.15},{r * 2.1}h{-r * 2.3}z",
        "diamond": f"M{x:.1f},{y - r * 1.3:.1f}"
        f"l{r * 1.2},{r * 1.3}l{-r * 1.2},{r * 1.3}l{-r * 1.2},{-r * 1.3}z",
        "cross": f"M{x - r:.1f},{y - r:.1f}l{2 * r},{2 * r}m0,{-2 * r}l{-2 * r},{2 * r}",
        "plus": f"M{x - r * 1.2:.1f},{y:.1f}h{r * 2.4}m{-r * 1.2},{-r * 1.2}v{r * 2.4}",
    }
    return Markup('<path d="{}" {}</path>').format(paths[style.marker], tail)


def _end_labels(shown: Sequence[Series], scale: _Scale) -> Markup:
    """Names at the right, next to the lines' ends, moved apart where they would overlap."""
    gap, right = 17.0, WIDTH - _RIGHT
    ends = sorted(((scale.y(s.y[-1]), s) for s in shown), key=lambda pair: pair[0])
    places = [y for y, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places[-1] = min(places[-1], HEIGHT - _BOTTOM)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - gap)
    lead = Markup(
        '<path d="M{:.1f},{:.1f}L{},{:.1f}" stroke="{}" stroke-width="1" fill="none" '
        'stroke-opacity="0.55"/>{}'
        '<text class="series" x="{}" y="{:.1f}">{} <tspan class="value">{:.1f}</tspan>'
        "<title>{}</title></text>"
    )
    return Markup("").join(
        lead.format(
            *(scale.x(s.x[-1]) + 6, y, right + 16, place, s.look.colour),
            marker(s.look, right + 24, place, r=3.6),
            *(right + 34, place + 4),
            s.name if len(s.name) <= 17 else s.name[:16] + "…",
            *(100 * s.y[-1], s.name),
        )
        for place, (y, s) in zip(places, ends, strict=True)
    )
