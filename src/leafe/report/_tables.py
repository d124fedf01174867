"""The summary as tables for a terminal: one for each stage. Rates are shown in per cent, intervals
in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leafe.report._alarms import alarms
from leafe.report._format import MINUS, NONE, count, difference, interval, number, percent, span

TableKind = Literal["explore", "evaluate", "rounds", "differences"]


def print_tables(
    summary: Mapping[str, Any],
    console: Console | None = None,
    kinds: Sequence[TableKind] = ("explore", "evaluate", "rounds", "differences"),
) -> None:
    """Print the tables that have rows, the alarms after the evaluation. `summary` is what
    `Summary.to_json` gives or `summary.json` holds."""
    console = console or Console()
    make = {
        "explore": explore_table,
        "evaluate": evaluate_table,
        "rounds": rounds_table,
        "differences": differences_table,
    }
    for kind in kinds:
        if summary["details"].get("rounds") if kind == "rounds" else summary.get(kind):
            console.print(make[kind](summary))
            for line in alarms(summary) if kind == "evaluate" else ():
                console.print(Text(f"! {line}"))
            console.print()


def explore_table(summary: Mapping[str, Any]) -> Table:
    """Stage 1: what each strategy solved, and for what."""
    table = plain_table(
        "Stage 1: exploration, tasks solved at least once (95 % interval below)", "strategy"
    )
    for name in ("solved", "coverage %", "policy calls", "env steps", "replayed", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["explore"]:
        table.add_row(
            Text(row["strategy"]),
            f"{row['solved']}/{row['tasks']}",
            cell(percent(row["coverage"]), span(row["ci95"])),
            count(row["policy_calls"]),
            count(row["env_steps"]),
            count(row["replayed_steps"]),
            number(row["seconds"], 1),
        )
    return table


def evaluate_table(summary: Mapping[str, Any]) -> Table:
    """Pass@k of every arm, and beside it how its samples spread and, where policies were probed,
    whether they still learn from experience."""
    rows = summary["evaluate"]
    ks = list(rows[0]["pass_at"])
    probed = any(row["following"] is not None or reflects(row) is not None for row in rows)
    table = plain_table(
        f"Evaluation: {rows[0]['samples']} samples a task; Pass@k in %, 95 % interval below", "arm"
    )
    for name in (
        *(f"Pass@{k}" for k in ks),
        *(["follow\nreflect"] if probed else []),
        "entropy\ndistinct",
        "turns\ntokens",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row, more in zip(rows, summary["details"]["evaluate"], strict=True):
        lost = (
            f"\n{count(more['lost'])} lost, {count(row['short'])} tasks short"
            if more["lost"]
            else ""
        )
        table.add_row(
            cell(row["arm"], f"T={row['temperature']:g}{lost}"),
            *(
                cell(percent(row["pass_at"][k]["value"]), span(row["pass_at"][k]["ci95"]))
                for k in ks
            ),
            *([cell(percent(row["following"]), percent(reflects(row)))] if probed else []),
            cell(number(row["entropy"], 3), percent(row["distinct"])),
            cell(number(more["turns"], 1), number(more["tokens"], 1)),
        )
    return table


def reflects(row: Mapping[str, Any]) -> float | None:
    """The share of reflections that blame the step whose revision had helped or, where no trees
    tell, of those that can be used at all."""
    found: float | None = row["reflection"] if row["same_step"] is None else row["same_step"]
    return found


def rounds_table(summary: Mapping[str, Any]) -> Table:
    """One line a round: what its explorer solved, what was trained on it, and what that came to."""
    rows = summary["details"]["rounds"]
    test, valid = (
        list(rows[0]["test"]),
        next((list(row["valid"]) for row in rows if row["valid"]), []),
    )
    table = plain_table("Rounds: solved and trained in each; Pass@k in %", "round")
    for name in (
        "solved\n%",
        "samples",
        *(f"valid\n@{k}" for k in valid),
        *(f"test\n@{k}" for k in test),
        "follow\nreflect",
        "entropy\ndistinct",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        words = (
            f"chosen {row['chosen']}/{row['runs']}"
            if row["chosen"]
            else "stopped"
            if row["stopped"]
            else ""
        )
        table.add_row(
            cell(f"{row['arm']} {row['round']}", words),
            cell(f"{row['solved']}/{row['tasks']}", percent(row["coverage"])),
            count(row["samples"]),
            *(percent(row["valid"].get(k)) for k in valid),
            *(percent(row["test"].get(k)) for k in test),
            cell(percent(row["following"]), percent(reflects(row))),
            cell(number(row["entropy"], 3), percent(row["distinct"])),
        )
    return table


def tries_table(summary: Mapping[str, Any]) -> Table:
    """Several attempts at a test task: the rate after so many, and their price."""
    table = plain_table(
        "Several attempts at a test task, feedback carried on: solved in %, means of a sample",
        "row",
    )
    for name in ("attempts", "solved %", "calls", "env steps", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["details"]["tries"]:
        costs = (row.get(name) for name in ("policy_calls", "env_steps", "generated_tokens"))
        lost = f", {count(row['lost'])} lost" if row.get("lost") else ""
        table.add_row(
            cell(row["row"], row["method"] + lost),
            str(row["attempts"]),
            percent(row["pass_1"]),
            *(number(cost, 1) for cost in costs),
        )
    return table


def differences_table(summary: Mapping[str, Any]) -> Table:
    """Paired differences; a star marks an interval without 0."""
    rows = summary["differences"]
    ks = sorted({row["k"] for row in rows})
    found = {(row["a"], row["b"], row["k"]): row for row in rows}
    pairs = list(dict.fromkeys((row["a"], row["b"]) for row in rows))
    table = plain_table(
        "Differences on the same tasks, in points (*: the 95 % interval excludes 0)", f"a {MINUS} b"
    )
    for k in ks:
        table.add_column(f"Pass@{k}", justify="right", no_wrap=True)
    for a, b in pairs:
        table.add_row(
            Text(f"{a} {MINUS} {b}"), *(_difference_cell(found.get((a, b, k))) for k in ks)
        )
    return table


def plain_table(title: str, first: str) -> Table:
    """Fits 80 columns: rules only under the head, one space between columns."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first)
    return table


def _difference_cell(row: Mapping[str, Any] | None) -> Text:
    if row is None or row["value"] is None:
        return Text(NONE)
    star = "*" if row["ci95"][0] > 0 or row["ci95"][1] < 0 else " "
    return cell(difference(row["value"]) + star, interval(row["ci95"], signed=True))


def cell(value: str, below: str) -> Text:
    return Text.assemble(value, "\n", (below, "dim"))
