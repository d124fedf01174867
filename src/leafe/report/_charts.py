"""Line charts as inline SVG: what series there are goes in, one self-contained drawing comes out.

Series differ by colour (the Okabe-Ito palette, which colour-blind readers can tell apart), by dash
and by marker, so that a print
without colour can be read as well. All texts are escaped by `Markup.format`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B2A86")
GREY = "#666666"
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 3", "3 5")
_MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring", "box", "plus")


@dataclass(frozen=True, slots=True)
class Look:
    """How a series is drawn."""

    colour: str
    dash: str
    marker: str


def look(index: int, reference: bool = False) -> Look:
    """The look of series number `index`; references (a ceiling) are grey."""
    n, again = index % len(PALETTE), index // len(PALETTE)
    # the ninth has the first one's colour, with the dash and the marker of others: 64 looks before
    # one comes back
    dash, mark = _DASHES[(n + 3 * again) % len(_DASHES)], _MARKERS[(n + 5 * again) % len(_MARKERS)]
    return Look(GREY if reference else PALETTE[n], "4 4" if reference else dash, mark)


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one line. `low` and `high` bound its band; empty: no band. y is a rate, a fraction
    of 1."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    steps: bool = False
    """A step function: holds its value up to the next x, and has no markers."""


WIDTH, HEIGHT = 860, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 190, 14, 50


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, log2: bool = False
) -> Markup:
    """The chart; series names stand at the ends of their lines. An empty Markup without series."""
    shown = [s for s in series if len(s.x)]
    if not shown:
        return Markup("")
    forward = (lambda v: math.log2(v)) if log2 else (lambda v: v)
    x_low = min(forward(min(s.x)) for s in shown)
    x_high = max(forward(max(s.x)) for s in shown)
    x_high = x_high if x_high > x_low else x_low + 1
    top = max(max([*s.y, *s.high]) for s in shown)
    y_high = min(1.0, _nice_top(top))

    def px(v: float) -> float:
        return _LEFT + (forward(v) - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def py(v: float) -> float:
        return HEIGHT - _BOTTOM - v / y_high * (HEIGHT - _TOP - _BOTTOM)

    out = [
        Markup(
            '<svg class="chart lines" role="img" viewBox="0 0 {} {}" '
            'aria-label="{}"><title>{}</title>'
        ).format(WIDTH, HEIGHT, title, title),
        _axes(px, py, shown, x_low, x_high, y_high, x_label, y_label, log2),
    ]
    out += [_band(s, px, py) for s in shown if s.low]
    out += [_line(s, px, py) for s in shown]
    out.append(_end_labels(shown, px, py))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _nice_top(value: float) -> float:
    return next(
        t for t in (0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.8, 1.0) if value <= t or t == 1.0
    )


def _axes(
    px: Callable[[float], float],
    py: Callable[[float], float],
    shown: Sequence[Series],
    x_low: float,
    x_high: float,
    y_high: float,
    x_label: str,
    y_label: str,
    log2: bool,
) -> Markup:
    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    steps = 5 if y_high in (0.05, 0.1, 0.25, 0.5, 1.0) else 4
    for i in range(steps + 1):
        v = y_high * i / steps
        text = f"{100 * v:.3g}"
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _LEFT, right, *(f"{py(v):.1f}",) * 2
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _LEFT - 8, f"{py(v) + 4:.1f}", text
            )
        )
    ticks = (
        [2.0**i for i in range(math.ceil(x_low), math.floor(x_high) + 1)]
        if log2
        else _ticks(x_low, x_high)
    )
    for v in ticks:
        parts.append(
            Markup('<line class="tickmark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                f"{px(v):.1f}", floor, floor + 5
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                f"{px(v):.1f}", floor + 19, f"{v:,.0f}"
            )
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            _LEFT, right, floor, floor
        )
    )
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (_LEFT + right) / 2, HEIGHT - 8, x_label
        )
    )
    middle = (floor + _TOP) / 2
    turn = Markup(
        '<text class="label" x="14" y="{0}" text-anchor="middle" transform="rotate(-90 14 '
        '{0})">{1}</text>'
    )
    parts.append(turn.format(middle, y_label))
    return Markup("").join(parts)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw))
    step = max(1.0, next(m * size for m in (1, 2, 5, 10) if m * size >= raw))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _points(
    s: Series, values: Sequence[float], px: Callable[[float], float], py: Callable[[float], float]
) -> list[tuple[float, float]]:
    points = [(px(x), py(y)) for x, y in zip(s.x, values, strict=True)]
    if not s.steps:
        return points
    stepped = points[:1]
    for x, y in points[1:]:
        stepped += [(x, stepped[-1][1]), (x, y)]
    return stepped


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _band(s: Series, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    outline = _points(s, s.low, px, py) + _points(s, s.high, px, py)[::-1]
    return Markup('<polygon points="{}" fill="{}" fill-opacity="0.13"/>').format(
        _join(outline), s.look.colour
    )


def _line(s: Series, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    line = Markup(
        '<polyline points="{}" fill="none" stroke="{}" stroke-width="2.2" '
        'stroke-linejoin="round" stroke-dasharray="{}"/>'
    )
    parts = [line.format(_join(_points(s, s.y, px, py)), s.look.colour, s.look.dash or "none")]
    if not s.steps:
        parts += [
            marker(s.look, px(x), py(y), f"{s.name}: {100 * y:.1f} %")
            for x, y in zip(s.x, s.y, strict=True)
        ]
    return Markup("").join(parts)


def marker(style: Look, x: float, y: float, tip: str = "", r: float = 4.0) -> Markup:
    """One marker, with a tip for the pointer."""
    colour = style.colour
    fill, stroke = ("white", colour) if style.marker in ("ring", "box") else (colour, colour)
    title = Markup("<title>{}</title>").format(tip) if tip else Markup("")
    paths = {
        "square": f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "box": f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "triangle": f"M{x:.1f},{y - r * 1.2:.1f}l{r * 1.15},{r * 2.1}h{-r * 2.3}z",
        "diamond": f"M{x:.1f},{y - r * 1.3:.1f}l{r * 1.2},{r * 1.3}l{-r * 1.2},{r * 1.3}l{-r * 1.2},{-r * 1.3}z",
        "cross": f"M{x - r:.1f},{y - r:.1f}l{2 * r},{2 * r}m0,{-2 * r}l{-2 * r},{2 * r}",
        "plus": f"M{x - r * 1.2:.1f},{y:.1f}h{r * 2.4}m{-r * 1.2},{-r * 1.2}v{r * 2.4}",
    }
    if style.marker in ("circle", "ring"):
        shape = Markup(
            '<circle cx="{}" cy="{}" r="{}" fill="{}" stroke="{}" stroke-width="1.8">{}</circle>'
        )
        return shape.format(f"{x:.1f}", f"{y:.1f}", r, fill, stroke, title)
    shape = Markup('<path d="{}" fill="{}" stroke="{}" stroke-width="1.8">{}</path>')
    return shape.format(paths[style.marker], fill, stroke, title)


def _end_labels(
    shown: Sequence[Series], px: Callable[[float], float], py: Callable[[float], float]
) -> Markup:
    """Names at the right, next to the lines' ends, moved apart where they would overlap."""
    gap, right = 17.0, WIDTH - _RIGHT
    ends = sorted(((py(s.y[-1]), s) for s in shown), key=lambda pair: pair[0])
    places = [y for y, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    over = places[-1] - (HEIGHT - _BOTTOM)
    if over > 0:
        places[-1] -= over
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    parts = []
    for place, (y, s) in zip(places, ends, strict=True):
        x_end = px(s.x[-1])
        lead = Markup(
            '<path d="M{},{}L{},{}" stroke="{}" stroke-width="1" fill="none" '
            'stroke-opacity="0.55"/>'
        )
        parts.append(
            lead.format(f"{x_end + 6:.1f}", f"{y:.1f}", right + 16, f"{place:.1f}", s.look.colour)
        )
        parts.append(marker(s.look, right + 24, place, r=3.6))
        name = s.name if len(s.name) <= 17 else s.name[:16] + "…"
        text = Markup(
            '<text class="series" x="{}" y="{}">{} <tspan '
            'class="value">{}</tspan><title>{}</title></text>'
        )
        parts.append(
            text.format(right + 34, f"{place + 4:.1f}", name, f"{100 * s.y[-1]:.1f}", s.name)
        )
    return Markup("").join(parts)
