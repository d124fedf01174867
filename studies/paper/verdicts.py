"""Verdicts as blocks of a document: what each claim comes to and why, the differences behind it,
and what other numbers of tasks would show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from studies.paper.claims import ClaimResult, ComparisonResult
from studies.paper.definitions import MARGIN, title_of
from studies.paper.document import Block, Cell, cells, record
from studies.paper.power import EFFECT

MINUS = "−"
CLAIM_NOTES = (
    "Claims of one table are Holm-corrected together; a verdict is wrong with 5 % at most for each "
    "table. Controls have no part in them.",
    f"A difference below {100 * MARGIN:.0f} points counts as none where a claim says `as it is` or "
    "`loses no`; a tie is a difference whose interval holds 0.",
)


def claim_blocks(claims: Sequence[ClaimResult]) -> list[Block]:
    """The verdicts, the differences behind them, and the sizes that would decide."""
    if not claims:
        return []
    verdicts = tuple(
        (
            Cell(c.claim.name),
            Cell(c.claim.text),
            Cell(c.verdict, best=c.verdict != "not decided"),
            Cell(_because(c)),
        )
        for c in claims
    )
    head: tuple[str, ...] = ("claim", "says", "verdict", "because")
    out = [Block("Claims", head, verdicts, text_columns=4)]
    differences = tuple(_difference(c, t) for c in claims for t in c.tested)
    if differences:
        head = (
            "claim",
            "column",
            f"a {MINUS} b",
            "Pass@k",
            "points [95 % interval]",
            "p",
            "tasks, runs",
            "outcome",
        )
        title = "The differences behind them, paired by task"
        out.append(Block(title, head, differences, text_columns=3))
    needs = tuple(dict.fromkeys(_needs(t) for c in claims for t in c.tested if t.runs))
    if needs:
        head = (
            "column",
            f"a {MINUS} b",
            "Pass@k",
            "tasks seen",
            "spread of tasks",
            "tasks needed",
            "spread of runs",
            "runs needed",
        )
        title = (
            f"Power: what a difference of {100 * EFFECT:.0f} points needs at 80 %, two-sided "
            "at 5 %, before Holm; spreads as seen, in points"
        )
        out.append(Block(title, head, needs, text_columns=2))
    return out


def _because(c: ClaimResult) -> str:
    """What decides it, or keeps it open: refuting comparisons, ties, what is missing."""
    parts = []
    no = [t for t in c.tested if t.outcome == "no"]
    if no and c.verdict != "holds":
        parts.append("against it: " + ", ".join(map(_shown, no)))
    ties = [t for t in c.tested if t.tie and t.comparison.relation == "above"]
    if ties and c.verdict != "holds":
        parts.append(
            "ties: "
            + ", ".join(
                f"{title_of(t.comparison.a)} and {title_of(t.comparison.b)} ({_points(t)}) "
                f"in {t.column}"
                for t in ties
            )
        )
    undecided = [t for t in c.tested if t.outcome == "open" and t not in ties]
    if undecided and c.verdict == "not decided":
        parts.append("open: " + ", ".join(map(_shown, undecided)))
    missing: dict[str, dict[str, None]] = {}
    for t in c.tested:
        if t.outcome == "missing":
            missing.setdefault(t.why, {})[t.column] = None
    if missing:
        columns = [f"{why} in {' and '.join(titles)}" for why, titles in missing.items()]
        parts.append("missing: " + ", ".join(columns))
    yes = [t for t in c.tested if t.outcome == "yes"]
    if yes and (not parts or c.verdict == "holds"):
        smallest = min(yes, key=lambda t: t.found.value if t.found else math.nan)
        parts.insert(0, f"{len(yes)} of {len(c.tested)} comparisons, smallest {_points(smallest)}")
    return "; ".join(parts) or "no column speaks of it"


def _shown(t: ComparisonResult) -> str:
    return f"{_pair(t)} {_points(t)} in {t.column}"


def _pair(t: ComparisonResult) -> str:
    return f"{title_of(t.comparison.a)} {MINUS} {title_of(t.comparison.b)}"


def _points(t: ComparisonResult) -> str:
    if t.found is None or math.isnan(t.found.value):
        return "–"
    return f"{_signed(t.found.value)} [{_signed(t.found.low)}, {_signed(t.found.high)}]"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _difference(c: ClaimResult, t: ComparisonResult) -> tuple[Cell, ...]:
    margin = f"{100 * MARGIN:.0f}"
    relation = {
        "above": "",
        "same": f" (same within {margin})",
        "not below": f" (not below by {margin})",
    }[t.comparison.relation]
    first = (c.claim.name, t.column, _pair(t) + relation, str(t.k))
    if t.found is None:
        return cells(*first, "–", "–", "–", f"missing: {t.why}")
    outcome = "tie" if t.tie and t.comparison.relation == "above" else t.outcome
    p = "too few tasks" if math.isnan(t.p) else "<0.0001" if t.p < 1e-4 else f"{t.p:.4f}"
    return cells(*first, _points(t), p, f"{t.found.tasks}, {t.found.runs}", outcome)


def _needs(t: ComparisonResult) -> tuple[Cell, ...]:
    assert t.found is not None
    n = t.needs
    spread, between = (("–" if s is None else f"{100 * s:.1f}") for s in (n.spread, n.run_spread))
    tasks, runs = (("–" if x is None else f"{x:,}") for x in (n.tasks, n.runs))
    return cells(t.column, _pair(t), str(t.k), f"{t.found.tasks:,}", spread, tasks, between, runs)


def claim_records(claims: Sequence[ClaimResult]) -> list[dict[str, Any]]:
    """One record a verdict, a comparison and a required size."""
    out = []
    for c in claims:
        note = f"{c.claim.text}: {_because(c)}"
        table, name = c.claim.table, c.claim.name
        out.append(record(kind="claim", table=table, row=name, verdict=c.verdict, note=note))
        for t in c.tested:
            common = {
                "table": table,
                "column": t.column,
                "row": t.comparison.a,
                "against": t.comparison.b,
                "k": t.k,
            }
            found = {
                field: getattr(t.found, field)
                for field in ("value", "low", "high", "tasks", "runs")
                if t.found is not None
            }
            out.append(
                record(
                    kind="comparison",
                    measure=f"claim {name}, {t.comparison.relation}",
                    p=t.p,
                    verdict=t.outcome,
                    note=t.why if t.found is None else "",
                    **common,
                    **found,
                )
            )
            needs = t.needs
            for field in ("spread", "tasks", "run_spread", "runs") if t.runs else ():
                value, measure = getattr(needs, field), f"claim {name}, {field}"
                out.append(record(kind="power", measure=measure, value=value, **common))
    return out
