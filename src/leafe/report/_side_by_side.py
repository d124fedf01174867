"""Several runs side by side: one line a row, one column a run, for the page and for the terminal.

Drawn from `details.compare`, which says which row of the summary belongs to which run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafe.report._format import NONE, difference, excludes_zero, interval, percent, span
from leafe.report._table import Table


def side_by_side(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of a comparison, row by row.

    Args:
        summary: What `compare_runs` made.

    Returns:
        `runs`, `settings` (those in which the runs differ), `other_tasks`, and two matrices with
        one cell a run, None where the run has no such row. `explore`: (row, [the summary's row]);
        `evaluate`: (row, k, [(Pass@k point, difference to the first run or None)]). Empty where
        the summary is of one experiment.
    """
    compare = (summary.get("details") or {}).get("compare")
    if compare is None:
        return {}
    names = [run["name"] for run in compare["runs"]]

    def place(name: str) -> tuple[str, str]:
        return compare["rows"][name]["run"], compare["rows"][name]["row"]

    explored = {place(row["strategy"]): row for row in summary["explore"]}
    evaluated = {place(row["arm"]): row for row in summary["evaluate"]}
    minus = {(*place(d["a"]), str(d["k"])): d for d in summary["differences"]}
    ks = list(summary["evaluate"][0]["pass_at"]) if summary["evaluate"] else []
    return {
        "runs": compare["runs"],
        "settings": compare["settings"],
        "other_tasks": compare["other_tasks"],
        "explore": [
            (row, [explored.get((run, row)) for run in names])
            for row in dict.fromkeys(row for _, row in explored)
        ],
        "evaluate": [
            (
                row,
                k,
                [
                    (evaluated[run, row]["pass_at"][k], minus.get((run, row, k)))
                    if (run, row) in evaluated
                    else None
                    for run in names
                ],
            )
            for row in dict.fromkeys(row for _, row in evaluated)
            for k in ks
        ],
    }


def side_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The comparison for the terminal: settings that differ, coverage, and Pass@k with the
    difference to the first run below it. Tables without rows are left out."""
    side = side_by_side(summary)
    names = [run["name"] for run in side["runs"]]
    rates, last = [], ""
    for row, k, cells in side["evaluate"]:
        rates.append((f"{' ' * len(row) if row == last else row} @{k}", *map(_rate, cells)))
        last = row
    tables = [
        Table(
            "Settings in which the runs differ",
            ("setting", *names),
            [
                (row["key"], *(NONE if value is None else value for value in row["values"]))
                for row in side["settings"]
            ],
            wrap=True,
        ),
        Table(
            "Stage 1: tasks solved at least once, % (95 % interval below)",
            ("strategy", *names),
            [
                (
                    row,
                    *(
                        NONE if c is None else (percent(c["coverage"]), span(c["ci95"]))
                        for c in cells
                    ),
                )
                for row, cells in side["explore"]
            ],
            wrap=True,
        ),
        Table(
            f"Pass@k in %, below it the difference to {names[0]} on the same tasks (*: its 95 % "
            "interval excludes 0)",
            ("row", *names),
            rates,
            wrap=True,
        ),
    ]
    return [table for table in tables if table.rows]


def _rate(
    found: tuple[Mapping[str, Any], Mapping[str, Any] | None] | None,
) -> str | tuple[str, str]:
    if found is None:
        return NONE
    point, minus = found
    if minus is None or minus["ci95"] is None:
        return percent(point["value"]), span(point["ci95"])
    star = "*" if excludes_zero(minus) else " "
    return (
        percent(point["value"]),
        f"{difference(minus['value'])}{star} {interval(minus['ci95'], signed=True)}",
    )
