"""The summary as tables for the terminal, one for each stage. Rates are in per cent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from leafe.report._alarms import alarms
from leafe.report._format import (
    MINUS,
    NONE,
    count,
    difference,
    excludes_zero,
    interval,
    number,
    percent,
    span,
)
from leafe.report._table import Table

TableKind = Literal["explore", "evaluate", "rounds", "differences"]


def print_tables(
    summary: Mapping[str, Any],
    console: Console | None = None,
    kinds: Sequence[TableKind] = ("explore", "evaluate", "rounds", "differences"),
) -> None:
    """Print the tables that have rows, and the alarms after the evaluation.

    Args:
        summary: What `Summary.to_json` returns or `summary.json` holds.
        console: Where to print; default: standard output.
        kinds: Which tables, in this order.
    """
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
    """Stage 1: how many tasks each strategy solved, and at what cost."""
    return Table(
        "Stage 1: exploration, tasks solved at least once (95 % interval below)",
        ("strategy", "solved", "coverage %", "policy calls", "env steps", "replayed", "seconds"),
        [
            (
                row["strategy"],
                f"{row['solved']}/{row['tasks']}",
                (percent(row["coverage"]), span(row["ci95"])),
                count(row["policy_calls"]),
                count(row["env_steps"]),
                count(row["replayed_steps"]),
                number(row["seconds"], 1),
            )
            for row in summary["explore"]
        ],
    )


def evaluate_table(summary: Mapping[str, Any]) -> Table:
    """Pass@k of every arm, the diversity of its samples and, where policies were probed, whether
    they still learn from experience."""
    rows = summary["evaluate"]
    ks = list(rows[0]["pass_at"])
    probed = any(row["following"] is not None or reflects(row) is not None for row in rows)
    return Table(
        f"Evaluation: {rows[0]['samples']} samples a task; Pass@k in %, 95 % interval below",
        (
            "arm",
            *(f"Pass@{k}" for k in ks),
            *(["follow\nreflect"] if probed else []),
            "entropy\ndistinct",
            "turns\ntokens",
        ),
        [
            (
                (row["arm"], f"T={row['temperature']:g}{_lost(row, more['lost'])}"),
                *(
                    (percent(row["pass_at"][k]["value"]), span(row["pass_at"][k]["ci95"]))
                    for k in ks
                ),
                *([(percent(row["following"]), percent(reflects(row)))] if probed else []),
                (number(row["entropy"], 3), percent(row["distinct"])),
                (number(more["turns"], 1), number(more["tokens"], 1)),
            )
            for row, more in zip(rows, summary["details"]["evaluate"], strict=True)
        ],
    )


def _lost(row: Mapping[str, Any], lost: int) -> str:
    return f"\n{count(lost)} lost, {count(row['short'])} tasks short" if lost else ""


def reflects(row: Mapping[str, Any]) -> float | None:
    """The share of reflections that blame the step whose revision had helped or, where no trees
    tell, the share of reflections that can be used at all."""
    found: float | None = row["reflection"] if row["same_step"] is None else row["same_step"]
    return found


def rounds_table(summary: Mapping[str, Any]) -> Table:
    """One line a round: what its explorer solved, how many samples it trained on, its Pass@k."""
    rows = summary["details"]["rounds"]
    test = list(rows[0]["test"])
    valid = next((list(row["valid"]) for row in rows if row["valid"]), [])
    return Table(
        "Rounds: solved and trained in each; Pass@k in %",
        (
            "round",
            "solved\n%",
            "samples",
            *(f"valid\n@{k}" for k in valid),
            *(f"test\n@{k}" for k in test),
            "follow\nreflect",
            "entropy\ndistinct",
        ),
        [
            (
                (
                    f"{row['arm']} {row['round']}",
                    f"chosen {row['chosen']}/{row['runs']}"
                    if row["chosen"]
                    else "stopped" * bool(row["stopped"]),
                ),
                (f"{row['solved']}/{row['tasks']}", percent(row["coverage"])),
                count(row["samples"]),
                *(percent(row["valid"].get(k)) for k in valid),
                *(percent(row["test"].get(k)) for k in test),
                (percent(row["following"]), percent(reflects(row))),
                (number(row["entropy"], 3), percent(row["distinct"])),
            )
            for row in rows
        ],
    )


def tries_table(summary: Mapping[str, Any]) -> Table:
    """Several attempts at a test task: the rate after so many, and their cost."""
    return Table(
        "Several attempts at a test task, feedback carried on: solved in %, means of a sample",
        ("row", "attempts", "solved %", "calls", "env steps", "tokens"),
        [
            (
                (
                    row["row"],
                    row["method"] + (f", {count(row['lost'])} lost" if row.get("lost") else ""),
                ),
                row["attempts"],
                percent(row["pass_1"]),
                *(
                    number(row.get(name), 1)
                    for name in ("policy_calls", "env_steps", "generated_tokens")
                ),
            )
            for row in summary["details"]["tries"]
        ],
    )


def differences_table(summary: Mapping[str, Any]) -> Table:
    """Paired differences; a star marks an interval without 0."""
    rows = summary["differences"]
    ks = sorted({row["k"] for row in rows})
    found = {(row["a"], row["b"], row["k"]): row for row in rows}
    return Table(
        "Differences on the same tasks, in points (*: the 95 % interval excludes 0)",
        (f"a {MINUS} b", *(f"Pass@{k}" for k in ks)),
        [
            (f"{a} {MINUS} {b}", *(_difference_cell(found.get((a, b, k))) for k in ks))
            for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows)
        ],
    )


def _difference_cell(row: Mapping[str, Any] | None) -> str | tuple[str, str]:
    if row is None or row["value"] is None:
        return NONE
    star = "*" if excludes_zero(row) else " "
    return difference(row["value"]) + star, interval(row["ci95"], signed=True)
