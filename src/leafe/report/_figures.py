"""The page's drawings, from the summary: coverage against budget, Pass@k with its bands, intervals
of differences, ends of episodes, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from leafe.core import Stop
from leafe.report._bars import Bar, Segment, bar_chart
from leafe.report._charts import Series, line_chart, look, marker
from leafe.report._format import duration
from leafe.report._tree import OUTCOMES, outcome_mark, stop_name

Rows = Sequence[Mapping[str, Any]]


def coverage_charts(explored: Rows) -> list[tuple[str, Markup]]:
    """(title, drawing) of coverage: the strategies against policy calls and against environment
    steps, and the controls, where there are any, against policy calls."""
    mine = [(i, row) for i, row in enumerate(explored) if row.get("role") != "control"]
    controls = [(i, row) for i, row in enumerate(explored) if row.get("role") == "control"]
    calls = "policy calls spent on each task (reflections included)"
    steps = "environment steps spent on each task (replays included)"
    charts = [
        ("Coverage against policy calls", mine, "policy_calls", calls),
        ("Coverage against environment steps", mine, "env_steps", steps),
        ("Coverage of the controls against policy calls", controls, "policy_calls", calls),
    ]
    drawn = [
        (title, _budget_chart(title, rows, cost, label)) for title, rows, cost, label in charts
    ]
    return [(title, chart) for title, chart in drawn if chart]


def _budget_chart(
    title: str, rows: Sequence[tuple[int, Mapping[str, Any]]], cost: str, label: str
) -> Markup:
    end = max((row["curves"][cost]["end"] for _, row in rows), default=0)
    # the last value is held to the end of the axis: a task that was given up early would have
    # found nothing more for free
    series = [
        Series(
            row["strategy"],
            [*curve["budget"], end],
            [solved / curve["tasks"] for solved in (*curve["solved"], curve["solved"][-1])],
            look(i),
            steps=True,
        )
        for i, row in rows
        if (curve := row["curves"][cost])["tasks"]
    ]
    return line_chart(series, title=title, x_label=label, y_label="tasks solved at least once, %")


def pass_charts(evaluated: Rows) -> list[tuple[str, Markup]]:
    """(title, drawing) of Pass@k: the base, the arms and what bounds them; then the controls where
    there are any."""
    drawn = [
        (
            title,
            line_chart(
                [
                    _curve(row, i)
                    for i, row in enumerate(evaluated)
                    if (row["role"] == "control") == control
                ],
                title=title,
                x_label="k, samples (log scale)",
                y_label="Pass@k, %",
                log2=True,
            ),
        )
        for control, title in ((False, "Pass@k"), (True, "Pass@k of the controls"))
    ]
    return [(title, chart) for title, chart in drawn if chart]


def _curve(row: Mapping[str, Any], index: int) -> Series:
    points = [p for p in row["curve"] if p["value"] is not None]
    low, high = [p["ci95"][0] for p in points], [p["ci95"][1] for p in points]
    return Series(
        row["arm"],
        [p["k"] for p in points],
        [p["value"] for p in points],
        look(index, row["role"] == "ceiling"),
        low,
        high,
    )


def swatch(row: Mapping[str, Any], index: int) -> Markup:
    """The marker of a row of the evaluation, as on its line."""
    svg = Markup('<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{}</svg>')
    return svg.format(marker(look(index, row["role"] == "ceiling"), 7, 7))


def whisker(row: Mapping[str, Any], reach: float, sure: bool) -> Markup:
    """The interval of a difference on a scale from -`reach` to `reach`; a filled dot where it is
    `sure`. An empty Markup without an interval."""
    if row["ci95"] is None:
        return Markup("")
    width, height = 220, 18

    def px(v: float) -> str:
        return f"{width / 2 + v / reach * (width / 2 - 8):.1f}"

    return Markup(
        '<svg class="whisker" viewBox="0 0 {w} {h}" aria-hidden="true">'
        '<line x1="{zero}" x2="{zero}" y1="0" y2="{h}" stroke="#999"/>'
        '<line x1="{low}" x2="{high}" y1="9" y2="9" stroke="{colour}" stroke-width="2.4"/>'
        '<circle cx="{at}" cy="9" r="4.2" fill="{fill}" stroke="{colour}" stroke-width="2"/></svg>'
    ).format(
        w=width,
        h=height,
        zero=px(0),
        low=px(row["ci95"][0]),
        high=px(row["ci95"][1]),
        at=px(row["value"]),
        colour="#0072B2" if sure else "#666666",
        fill="#0072B2" if sure else "white",
    )


_DARK = {"#666666", "#8A3A76", "#0072B2"}
"""Colours on which white text is legible."""
_STAGE_COLOURS = {
    "explore": "#0072B2",
    "collect": "#0072B2",
    "distill": "#D55E00",
    "evaluate": "#009E73",
    "tries": "#009E73",
}


def stops_chart(rows: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """How the episodes of every row ended, in shares."""
    bars = [
        Bar(
            name,
            [
                Segment(stop_name(stop), n, colour, "#fff" if colour in _DARK else "#111")
                for stop in Stop
                for colour in OUTCOMES[stop][:1]
                if (n := stops.get(stop.value, 0))
            ],
            f"{sum(stops.values()):,}",
        )
        for name, stops in rows
    ]
    return bar_chart(bars, title="How episodes ended, in shares", shares=True)


def time_chart(stages: Rows) -> Markup:
    """Wall time of every row of stages."""
    bars = [
        Bar(
            f"{row['kind']}: {row['row']}",
            [Segment("", row["seconds"], _STAGE_COLOURS.get(row["kind"], "#666666"))],
            duration(row["seconds"]),
        )
        for row in stages
    ]
    return bar_chart(bars, title="Wall time of the stages")


def outcome_legend(stops: set[Stop]) -> list[tuple[Markup, str]]:
    """The marks of these stops, in a fixed order."""
    svg = Markup('<svg class="swatch" viewBox="0 0 18 18" aria-hidden="true">{}</svg>')
    return [
        (svg.format(outcome_mark(stop, 9, 9)), stop_name(stop))
        for stop in OUTCOMES
        if stop in stops
    ]
