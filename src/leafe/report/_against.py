"""Every row against one reference: a table for the terminal, for documents (Markdown) and for
programs (CSV).

The rows are in the order of the evaluation. A claim stands beside its figure: above, below, or
nothing where it is not decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leafe.report._format import MINUS, NONE, difference, interval, percent
from leafe.report._table import Table
from leafe.report._tables import reflects

_CAPTION = (
    "Pass@k in per cent, and the difference to {reference} on the same tasks in points, with its "
    "95 % interval over {over}. above, below: decided by Holm's correction over the whole table, "
    "so that all claims are right together with 95 %; without a word it is not decided. n: runs "
    "in common, in brackets the fewest at any k whose own difference has the sign of the mean."
)
_OVER = {
    "runs": "runs (seeds, base policies) and tasks",
    "tasks": "tasks, for these very trainings: nothing is said of other seeds or base policies",
}
_CONTRAST = ("value", "low", "high", "p", "claim", "runs", "agree", "tasks")
_FIGURES = ("entropy", "distinct", "following", "reflection", "same_step")
_COLUMNS = (
    *("row", "k", "pass_at", "low", "high", "difference", "difference_low", "difference_high"),
    *("p", "claim", "runs", "agree", "tasks", *_FIGURES),
)
"""Of the CSV."""


class _Compared(NamedTuple):
    """A row of the evaluation with its contrasts to the reference, by k."""

    name: str
    row: Mapping[str, Any]
    contrasts: Mapping[str, Mapping[str, Any]]

    def figures(self, k: str) -> tuple[str, str]:
        """(Pass@k, the difference with its interval and claim)."""
        value, c = percent(self.row["pass_at"][k]["value"]), self.contrasts.get(k)
        if c is None:
            return value, ""
        if c["value"] is None:
            return value, NONE
        ends: Sequence[float] | None = None if c["low"] is None else (c["low"], c["high"])
        claim = "" if c["claim"] == "not decided" else f" {c['claim']}"
        return value, f"{difference(c['value'])} {interval(ends, signed=True)}{claim}"

    @property
    def learning(self) -> tuple[str, str]:
        """(following, reflection): whether the policy still learns from experience."""
        return percent(self.row["following"]), percent(reflects(self.row))

    @property
    def runs(self) -> str:
        """Runs in common and, in brackets, the fewest that agree in sign at any k."""
        agree = [c["agree"] for c in self.contrasts.values()]
        return next((f"{c['runs']} ({min(agree)})" for c in self.contrasts.values()), "")


def against_table(summary: Mapping[str, Any]) -> Table:
    """For the terminal; `summary.details.against` must be there."""
    reference, ks, rows = _rows(summary)
    over = {"runs": "runs and tasks", "tasks": "tasks of these runs"}
    return Table(
        f"Against {reference}: Pass@k in %, difference in points, 95 % interval over "
        f"{over[summary['details']['against']['over']]}; claims by Holm",
        ("row", *(f"Pass@{k}" for k in ks), "follow\nreflect", "n"),
        [(r.name, *map(r.figures, ks), r.learning, r.runs.partition(" ")[0]) for r in rows],
    )


def against_markdown(summary: Mapping[str, Any]) -> str:
    """A Markdown table for a document, with its caption."""
    reference, ks, rows = _rows(summary)
    table = Table(
        "",
        (
            "row",
            *(name for k in ks for name in (f"Pass@{k}", f"{MINUS} {reference} @{k}")),
            "following",
            "reflection",
            "n",
        ),
        [
            (
                r.name,
                *(text for k in ks for text in r.figures(k)),
                *r.learning,
                r.runs,
            )
            for r in rows
        ],
    )
    return f"{table.markdown()}\n{_caption(summary)}\n"


def against_csv(summary: Mapping[str, Any]) -> str:
    """One line for each row and k; rates are fractions of 1, what there is not is empty."""
    _, ks, rows = _rows(summary)
    lines = []
    for r in rows:
        for k in ks:
            point, contrast = r.row["pass_at"][k], r.contrasts.get(k, {})
            lines.append(
                (
                    r.name,
                    k,
                    point["value"],
                    *(point["ci95"] or (None, None)),
                    *(contrast.get(name) for name in _CONTRAST),
                    *(r.row[name] for name in _FIGURES),
                )
            )
    return Table("", _COLUMNS, lines).csv()


def against_rows(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the HTML page.

    Returns:
        `reference`, `ks`, `caption`, and `rows` of (name, [(value, difference, claim)],
        following, reflection, n); empty without a reference.
    """
    if "against" not in (summary.get("details") or {}):
        return {}
    reference, ks, rows = _rows(summary)
    return {
        "reference": reference,
        "ks": ks,
        "caption": _caption(summary),
        "rows": [
            (
                r.name,
                [(*r.figures(k), r.contrasts.get(k, {}).get("claim")) for k in ks],
                *r.learning,
                r.runs,
            )
            for r in rows
        ],
    }


def _caption(summary: Mapping[str, Any]) -> str:
    against = summary["details"]["against"]
    return _CAPTION.format(reference=against["reference"], over=_OVER[against["over"]])


def _rows(summary: Mapping[str, Any]) -> tuple[str, list[str], list[_Compared]]:
    """(reference, ks, rows): the reference and every row that has runs in common with it."""
    against = summary["details"]["against"]
    contrasts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for c in against["rows"]:
        contrasts.setdefault(c["row"], {})[str(c["k"])] = c
    rows = [
        _Compared(row["arm"], row, contrasts.get(row["arm"], {}))
        for row in summary["evaluate"]
        if row["arm"] == against["reference"] or row["arm"] in contrasts
    ]
    return against["reference"], [str(k) for k in against["ks"]], rows
