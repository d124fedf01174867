"""Every row against one: the ablation as a table for the terminal, as Markdown for documents, and
as CSV for programs.

The order is that of the evaluation. A claim is written with the figure it belongs to: above, below,
or nothing where it is not decided.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from leafe.report._format import NONE, difference, interval, percent
from leafe.report._tables import cell, plain_table, reflects

CAPTION = (
    "Pass@k in per cent, and the difference to {reference} on the same tasks in points, "
    "with its 95 % interval over {over}. "
    "above, below: decided by Holm's correction over the whole table, so that all claims "
    "are right together with 95 %; without a word it is not decided. "
    "n: runs in common, in brackets the fewest at any k whose own difference has the sign "
    "of the mean."
)


def against_table(summary: Mapping[str, Any]) -> Table:
    """For the terminal; `summary.details.against` has to be there."""
    reference, ks, rows = _rows(summary)
    over = (
        "runs and tasks"
        if summary["details"]["against"]["over"] == "runs"
        else "tasks of these runs"
    )
    table = plain_table(
        (
            f"Against {reference}: Pass@k in %, difference in points, 95 % interval over "
            f"{over}; claims by Holm"
        ),
        "row",
    )
    for name in (*(f"Pass@{k}" for k in ks), "follow\nreflect", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, found in rows:
        cells = [_figures(row, found.get(k), k) for k in ks]
        n = next((f"{c['runs']}" for c in found.values()), "")
        table.add_row(
            Text(row["arm"]),
            *(cell(value, below) for value, below in cells),
            cell(percent(row["following"]), percent(reflects(row))),
            n,
        )
    return table


def against_markdown(summary: Mapping[str, Any]) -> str:
    """A table for a document, with its caption."""
    reference, ks, rows = _rows(summary)
    passes = [name for k in ks for name in (f"Pass@{k}", f"{_minus(reference)} @{k}")]
    head = [
        "row",
        *passes,
        "following",
        "reflection",
        "n",
    ]
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row, found in rows:
        line = [row["arm"].replace("|", "\\|")]
        for k in ks:
            value, below = _figures(row, found.get(k), k)
            line += [value, below]
        n = next(
            (f"{c['runs']} ({min(c['agree'] for c in found.values())})" for c in found.values()), ""
        )
        line += [
            percent(row["following"]),
            percent(reflects(row)),
            n,
        ]
        out.append("| " + " | ".join(line) + " |")
    return "\n".join(out) + "\n\n" + _caption(summary) + "\n"


_OVER = {
    "runs": "runs (seeds, base policies) and tasks",
    "tasks": "tasks, for these very trainings: nothing is said of other seeds or base policies",
}


def _caption(summary: Mapping[str, Any]) -> str:
    against = summary["details"]["against"]
    return CAPTION.format(reference=against["reference"], over=_OVER[against["over"]])


COLUMNS = (
    "row",
    "k",
    "pass_at",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "claim",
    "runs",
    "agree",
    "tasks",
    "entropy",
    "distinct",
    "following",
    "reflection",
    "same_step",
)
"""Of the CSV."""


def against_csv(summary: Mapping[str, Any]) -> str:
    """One line for each row and k; rates are fractions of 1, what there is not is empty."""
    _, ks, rows = _rows(summary)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(COLUMNS)
    for row, found in rows:
        for k in ks:
            point, c = row["pass_at"][k], found.get(k, {})
            low, high = point["ci95"] or (None, None)
            told = [
                c.get(name)
                for name in ("value", "low", "high", "p", "claim", "runs", "agree", "tasks")
            ]
            line = [
                row["arm"],
                k,
                point["value"],
                low,
                high,
                *told,
                *(row[name] for name in COLUMNS[-5:]),
            ]
            out.writerow(["" if v is None else v for v in line])
    return text.getvalue()


def against_rows(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the page: reference, ks, caption and rows of (name, [(value, difference,
    claim)], following, reflection, n); empty without a reference."""
    if "against" not in (summary.get("details") or {}):
        return {}
    reference, ks, rows = _rows(summary)
    return {
        "reference": reference,
        "ks": ks,
        "caption": _caption(summary),
        "rows": [
            (
                row["arm"],
                [(*_figures(row, found.get(k), k), found.get(k, {}).get("claim")) for k in ks],
                percent(row["following"]),
                percent(reflects(row)),
                next(
                    (
                        f"{c['runs']} ({min(c['agree'] for c in found.values())})"
                        for c in found.values()
                    ),
                    "",
                ),
            )
            for row, found in rows
        ],
    }


def _rows(
    summary: Mapping[str, Any],
) -> tuple[str, list[str], list[tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]]]:
    """(reference, ks, rows of the evaluation with their contrasts by k): the reference and whatever
    has runs in common with it."""
    against = summary["details"]["against"]
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for c in against["rows"]:
        found.setdefault(c["row"], {})[str(c["k"])] = c
    rows = [
        (row, found.get(row["arm"], {}))
        for row in summary["evaluate"]
        if row["arm"] == against["reference"] or row["arm"] in found
    ]
    return against["reference"], [str(k) for k in against["ks"]], rows


def _figures(row: Mapping[str, Any], c: Mapping[str, Any] | None, k: str) -> tuple[str, str]:
    """(Pass@k, the difference with its interval and claim)."""
    value = percent(row["pass_at"][k]["value"])
    if c is None:
        return value, ""
    if c["value"] is None:
        return value, NONE
    ends: Sequence[float] | None = None if c["low"] is None else (c["low"], c["high"])
    claim = "" if c["claim"] == "not decided" else f" {c['claim']}"
    return value, f"{difference(c['value'])} {interval(ends, signed=True)}{claim}"


def _minus(reference: str) -> str:
    return f"− {reference}".replace("|", "\\|")
