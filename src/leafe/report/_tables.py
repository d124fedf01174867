"""The summary as tables for a terminal: one for each stage. Rates are shown in per cent, intervals in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leafe.report._format import MINUS, NONE, count, difference, interval, number, percent, span

TableKind = Literal["explore", "evaluate", "differences"]


def print_tables(summary: Mapping[str, Any], console: Console | None = None, kinds: Sequence[TableKind] = ("explore", "evaluate", "differences")) -> None:
    """Print the tables that have rows. `summary` is what `Summary.to_json` gives or `summary.json` holds."""
    console = console or Console()
    make = {"explore": explore_table, "evaluate": evaluate_table, "differences": differences_table}
    for kind in kinds:
        if summary.get(kind):
            console.print(make[kind](summary))
            console.print()


def explore_table(summary: Mapping[str, Any]) -> Table:
    """Stage 1: what each strategy solved, and for what."""
    table = _table("Stage 1: exploration, tasks solved at least once (95 % interval below)", "strategy")
    for name in ("solved", "coverage %", "policy calls", "env steps", "replayed", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["explore"]:
        table.add_row(
            Text(row["strategy"]), f"{row['solved']}/{row['tasks']}", _cell(percent(row["coverage"]), span(row["ci95"])), count(row["policy_calls"]),
            count(row["env_steps"]), count(row["replayed_steps"]), number(row["seconds"], 1),
        )  # fmt: skip
    return table


def evaluate_table(summary: Mapping[str, Any]) -> Table:
    """Pass@k of every arm, and what its samples were like."""
    rows = summary["evaluate"]
    ks = list(rows[0]["pass_at"])
    table = _table(f"Evaluation: {rows[0]['samples']} samples a task; Pass@k in %, 95 % interval below", "arm")
    for name in (*(f"Pass@{k}" for k in ks), "turns\ninvalid", "tokens\nseconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, more in zip(rows, summary["details"]["evaluate"], strict=True):
        lost = f", {count(more['lost'])} lost" if more["lost"] else ""
        table.add_row(
            _cell(row["arm"], f"T={row['temperature']:g}{lost}"), *(_cell(percent(row["pass_at"][k]["value"]), span(row["pass_at"][k]["ci95"])) for k in ks),
            _cell(number(more["turns"], 1), number(more["invalid"], 2)), _cell(number(more["tokens"], 1), number(row["seconds"], 1)),
        )  # fmt: skip
    return table


def differences_table(summary: Mapping[str, Any]) -> Table:
    """Paired differences; a star marks an interval without 0."""
    rows = summary["differences"]
    ks = sorted({row["k"] for row in rows})
    found = {(row["a"], row["b"], row["k"]): row for row in rows}
    pairs = list(dict.fromkeys((row["a"], row["b"]) for row in rows))
    table = _table("Differences on the same tasks, in points (*: the 95 % interval excludes 0)", f"a {MINUS} b")
    for k in ks:
        table.add_column(f"Pass@{k}", justify="right", no_wrap=True)
    for a, b in pairs:
        table.add_row(Text(f"{a} {MINUS} {b}"), *(_difference_cell(found.get((a, b, k))) for k in ks))
    return table


def _table(title: str, first: str) -> Table:
    """Fits 80 columns: rules only under the head, one space between columns."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first)
    return table


def _difference_cell(row: Mapping[str, Any] | None) -> Text:
    if row is None or row["value"] is None:
        return Text(NONE)
    star = "*" if row["ci95"][0] > 0 or row["ci95"][1] < 0 else " "
    return _cell(difference(row["value"]) + star, interval(row["ci95"], signed=True))


def _cell(value: str, below: str) -> Text:
    return Text.assemble(value, "\n", (below, "dim"))
