"""Several runs side by side: one line a row, one column a run, for the page and for the terminal.

Drawn from `details.compare`, which says which row of the summary belongs to which run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from leafe.report._format import NONE, difference, interval, percent, span
from leafe.report._tables import cell, plain_table


def side_by_side(summary: Mapping[str, Any]) -> dict[str, Any]:
    """runs, the settings in which they differ, and the two matrices; empty where the summary is of
    one experiment.

    explore: (row, [the summary's row, or None]) for each name; evaluate: (row, k, [(Pass@k point,
    difference to the first run or None), or None]).
    """
    compare = (summary.get("details") or {}).get("compare")
    if compare is None:
        return {}
    names = [run["name"] for run in compare["runs"]]
    mine = compare["rows"]
    explored = {
        (mine[row["strategy"]]["run"], mine[row["strategy"]]["row"]): row
        for row in summary["explore"]
    }
    evaluated = {
        (mine[row["arm"]]["run"], mine[row["arm"]]["row"]): row for row in summary["evaluate"]
    }
    minus = {
        (mine[d["a"]]["run"], mine[d["a"]]["row"], str(d["k"])): d for d in summary["differences"]
    }
    ks = list(summary["evaluate"][0]["pass_at"]) if summary["evaluate"] else []
    rows = list(dict.fromkeys(row for _, row in evaluated))
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
            for row in rows
            for k in ks
        ],
    }


def side_tables(summary: Mapping[str, Any]) -> list[Table]:
    """For the terminal: what differs, coverage, Pass@k with the difference to the first run
    below."""
    side = side_by_side(summary)
    names = [run["name"] for run in side["runs"]]
    out = []
    if side["settings"]:
        settings = _table("Settings in which the runs differ", "setting", names)
        for row in side["settings"]:
            settings.add_row(
                Text(row["key"]),
                *(Text(NONE if value is None else value) for value in row["values"]),
            )
        out.append(settings)
    if side["explore"]:
        coverage = _table(
            "Stage 1: tasks solved at least once, % (95 % interval below)", "strategy", names
        )
        for row, cells in side["explore"]:
            coverage.add_row(
                Text(row),
                *(
                    Text(NONE) if c is None else cell(percent(c["coverage"]), span(c["ci95"]))
                    for c in cells
                ),
            )
        out.append(coverage)
    if side["evaluate"]:
        rates = _table(
            (
                f"Pass@k in %, below it the difference to {names[0]} on the same tasks (*: its "
                "95 % interval excludes 0)"
            ),
            "row",
            names,
        )
        before = ""
        for row, k, cells in side["evaluate"]:
            rates.add_row(
                Text(f"{row} @{k}" if row != before else f"{' ' * len(row)} @{k}"),
                *(_rate(c) for c in cells),
            )
            before = row
        out.append(rates)
    return out


def _rate(found: tuple[Mapping[str, Any], Mapping[str, Any] | None] | None) -> Text:
    if found is None:
        return Text(NONE)
    point, minus = found
    if minus is None or minus["ci95"] is None:
        return cell(percent(point["value"]), span(point["ci95"]))
    star = "*" if minus["ci95"][0] > 0 or minus["ci95"][1] < 0 else " "
    return cell(
        percent(point["value"]),
        f"{difference(minus['value'])}{star} {interval(minus['ci95'], signed=True)}",
    )


def _table(title: str, first: str, names: Sequence[str]) -> Table:
    table = plain_table(title, first)
    for name in names:
        table.add_column(Text(name), justify="right")
    return table
