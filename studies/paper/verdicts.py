"""Verdicts as blocks of a document: what each claim comes to and why, the differences behind it,
and what other numbers of tasks would tell."""

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
    (
        "Claims of one table are Holm-corrected together; a verdict is wrong with 5 % at most "
        "for each table. Controls have no part in them."
    ),
    (
        f"A difference below {100 * MARGIN:.0f} points counts as none where a claim says `as "
        "it is` or `loses no`; a tie is a difference whose interval holds 0."
    ),
)


def claim_blocks(results_of_claims: Sequence[ClaimResult]) -> list[Block]:
    """The verdicts, the differences behind them, and what other numbers of tasks would tell."""
    if not results_of_claims:
        return []
    verdicts = tuple(
        (
            Cell(j.claim.name),
            Cell(j.claim.text),
            Cell(j.verdict, best=j.verdict != "not decided"),
            Cell(_because(j)),
        )
        for j in results_of_claims
    )
    differences = tuple(_difference(j, t) for j in results_of_claims for t in j.tested)
    needs = tuple(dict.fromkeys(_needs(t) for j in results_of_claims for t in j.tested if t.runs))
    out = [Block("Claims", ("claim", "says", "verdict", "because"), verdicts, text_columns=4)]
    if differences:
        over = (
            "claim",
            "column",
            f"a {MINUS} b",
            "Pass@k",
            "points [95 % interval]",
            "p",
            "tasks, runs",
            "outcome",
        )
        out.append(
            Block("The differences behind them, paired by task", over, differences, text_columns=3)
        )
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


def _because(j: ClaimResult) -> str:
    """What decides it, or keeps it open: refuting comparisons, ties, what is missing."""
    said = []
    no = [t for t in j.tested if t.outcome == "no"]
    if no and j.verdict != "holds":
        said.append(
            "against it: " + ", ".join(f"{_pair(t)} {_points(t)} in {t.column}" for t in no)
        )
    ties = [t for t in j.tested if t.tie and t.comparison.relation == "above"]
    if ties and j.verdict != "holds":
        said.append(
            "ties: "
            + ", ".join(
                (
                    f"{title_of(t.comparison.a)} and {title_of(t.comparison.b)} ({_points(t)}) "
                    f"in {t.column}"
                )
                for t in ties
            )
        )
    open_ = [t for t in j.tested if t.outcome == "open" and t not in ties]
    if open_ and j.verdict == "not decided":
        said.append("open: " + ", ".join(f"{_pair(t)} {_points(t)} in {t.column}" for t in open_))
    missing: dict[str, dict[str, None]] = {}
    for t in j.tested:
        if t.outcome == "missing":
            missing.setdefault(t.why, {})[t.column] = None
    if missing:
        said.append(
            "missing: "
            + ", ".join(f"{why} in {' and '.join(columns)}" for why, columns in missing.items())
        )
    yes = [t for t in j.tested if t.outcome == "yes"]
    if yes and (not said or j.verdict == "holds"):
        said.insert(
            0,
            f"{len(yes)} of {len(j.tested)} comparisons, smallest {_points(min(yes, key=_value))}",
        )
    return "; ".join(said) or "no column speaks of it"


def _value(t: ComparisonResult) -> float:
    return t.found.value if t.found else math.nan


def _pair(t: ComparisonResult) -> str:
    return f"{title_of(t.comparison.a)} {MINUS} {title_of(t.comparison.b)}"


def _points(t: ComparisonResult) -> str:
    return (
        "–"
        if t.found is None or math.isnan(t.found.value)
        else f"{_signed(t.found.value)} [{_signed(t.found.low)}, {_signed(t.found.high)}]"
    )


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return (
        "–"
        if math.isnan(value)
        else "0.0"
        if text in ("+0.0", "-0.0")
        else text.replace("-", MINUS)
    )


def _difference(j: ClaimResult, t: ComparisonResult) -> tuple[Cell, ...]:
    relation = {
        "above": "",
        "same": f" (same within {100 * MARGIN:.0f})",
        "not below": f" (not below by {100 * MARGIN:.0f})",
    }[t.comparison.relation]
    if t.found is None:
        return cells(
            j.claim.name,
            t.column,
            _pair(t) + relation,
            str(t.k),
            "–",
            "–",
            "–",
            f"missing: {t.why}",
        )
    outcome = "tie" if t.tie and t.comparison.relation == "above" else t.outcome
    p = "too few tasks" if math.isnan(t.p) else "<0.0001" if t.p < 1e-4 else f"{t.p:.4f}"
    return cells(
        j.claim.name,
        t.column,
        _pair(t) + relation,
        str(t.k),
        _points(t),
        p,
        f"{t.found.tasks}, {t.found.runs}",
        outcome,
    )


def _needs(t: ComparisonResult) -> tuple[Cell, ...]:
    assert t.found is not None
    n = t.needs
    spread, between = (("–" if s is None else f"{100 * s:.1f}") for s in (n.spread, n.run_spread))
    tasks, runs = (("–" if x is None else f"{x:,}") for x in (n.tasks, n.runs))
    return cells(t.column, _pair(t), str(t.k), f"{t.found.tasks:,}", spread, tasks, between, runs)


def claim_records(results_of_claims: Sequence[ClaimResult]) -> list[dict[str, Any]]:
    out = []
    for j in results_of_claims:
        out.append(
            record(
                kind="claim",
                table=j.claim.table,
                row=j.claim.name,
                verdict=j.verdict,
                note=f"{j.claim.text}: {_because(j)}",
            )
        )
        for t in j.tested:
            common = {
                "table": j.claim.table,
                "column": t.column,
                "row": t.comparison.a,
                "against": t.comparison.b,
                "k": t.k,
            }
            found = (
                {}
                if t.found is None
                else {
                    "value": t.found.value,
                    "low": t.found.low,
                    "high": t.found.high,
                    "tasks": t.found.tasks,
                    "runs": t.found.runs,
                }
            )
            measure = f"claim {j.claim.name}, {t.comparison.relation}"
            out.append(
                record(
                    kind="comparison",
                    measure=measure,
                    p=t.p,
                    verdict=t.outcome,
                    note=t.why if t.found is None else "",
                    **common,
                    **found,
                )
            )
            if t.runs:
                needs = t.needs
                for name in ("spread", "tasks", "run_spread", "runs"):
                    out.append(
                        record(
                            kind="power",
                            measure=f"claim {j.claim.name}, {name}",
                            value=getattr(needs, name),
                            **common,
                        )
                    )
    return out
