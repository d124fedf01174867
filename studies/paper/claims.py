"""Each claim of a table, by name: holds, does not hold, or not decided, with the differences behind
it.

A claim is a set of paired comparisons, one of which is open until its p value passes Holm's
correction over all comparisons of the table's claims in all
columns. So with 95 % nothing that is said to hold or not to hold is false. p values and intervals
are those of `leafe.evaluate.contrasts`, which stay right
with few runs and few tasks. `above` is tested against no difference; `same` and `not below` against
the margin
of two points, which the data must place the difference inside, or outside, of. What is open is a
tie where the interval holds 0, and is named as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leafe.evaluate import Contrast, Counts, contrast, holm, paired_by_task
from studies.paper.columns import Column
from studies.paper.definitions import CLAIMS, MARGIN, Claim, Comparison, title_of
from studies.paper.power import RequiredSize, required_size
from studies.paper.results import RowKind, RowResult, RunKey

FEWEST = 10
"""Pairs of a run and a task below which nothing is decided: a test on a handful of tasks rests on
its assumptions alone."""
CAPACITY = 128
"""The k of the paper's Pass@128."""
Verdict = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """One comparison in one column."""

    comparison: Comparison
    column: str
    k: int
    outcome: Literal["yes", "no", "open", "missing"]
    why: str = ""
    """Why it is missing."""
    found: Contrast | None = None
    p: float = math.nan
    """Two-sided, of the hypothesis that is tested, before Holm's correction."""
    runs: tuple[Mapping[str, float], ...] = ()
    """The differences, run by run, by task."""

    @property
    def needs(self) -> RequiredSize:
        return required_size(self.runs)

    @property
    def tie(self) -> bool:
        """The interval holds 0 and nothing was decided."""
        return (
            self.found is not None
            and self.outcome == "open"
            and self.found.low <= 0 <= self.found.high
        )


@dataclass(frozen=True, slots=True)
class ClaimResult:
    claim: Claim
    verdict: Verdict
    tested: tuple[ComparisonResult, ...]


def top_k(column: Column) -> int:
    """128, or the largest power of two that the samples of all rows allow."""
    asked = [
        entry.samples
        for (kind, _), stored in column.stored.items()
        if kind == "evaluate"
        for entry in stored.values()
    ]
    return 1 << (min([CAPACITY, *asked]).bit_length() - 1)


def judge(columns: Sequence[Column], table: int, kind: RowKind = "evaluate") -> list[ClaimResult]:
    """The claims of one table, in order. Columns that are controls have no part in them."""
    claims = [c for c in CLAIMS if c.table == table]
    columns = [c for c in columns if not c.why_control]
    return _decide(
        claims,
        [
            [_compare(column, c, kind) for c in claim.comparisons]
            for claim in claims
            for column in columns
        ],
        len(columns),
    )


def _decide(
    claims: Sequence[Claim], tested: list[list[ComparisonResult]], columns: int
) -> list[ClaimResult]:
    flat = [t for group in tested for t in group]
    certain = {id(flat[nth]) for nth in holm([t.p for t in flat])}
    out = []
    for nth, claim in enumerate(claims):
        groups = [
            [_decided(t) if id(t) in certain else t for t in group]
            for group in tested[nth * columns : (nth + 1) * columns]
        ]
        out.append(
            ClaimResult(claim, _verdict(claim, groups), tuple(t for group in groups for t in group))
        )
    return out


def _verdict(claim: Claim, groups: Sequence[Sequence[ComparisonResult]]) -> Verdict:
    """Of a claim on every column, or on some column; a column says yes where all comparisons do,
    and no where one does."""
    said = [
        "no"
        if any(t.outcome == "no" for t in g)
        else "yes"
        if g and all(t.outcome == "yes" for t in g)
        else "open"
        for g in groups
    ]
    if not said:
        return "not decided"
    enough, spoils = ("yes", "no") if claim.columns == "some" else ("no", "yes")
    if enough in said:
        return "holds" if enough == "yes" else "does not hold"
    if all(s == spoils for s in said):
        return "does not hold" if spoils == "no" else "holds"
    return "not decided"


def pairs_of(
    column: Column, a: str, b: str, k: int, kind: RowKind = "evaluate"
) -> tuple[list[Mapping[str, float]], str]:
    """(a - b by task, for every run that both have finished; why there is none)."""
    rows = {row: column.results(row, kind) for row in (a, b)}
    for row, results in rows.items():
        if not results:
            return [], f"{title_of(row)} has not been run" if not _reasons(
                column, row
            ) else f"{title_of(row)}: {_reasons(column, row)[0]}"
    shared = [run_key for run_key in rows[a] if run_key in rows[b]]
    finished = [
        run_key for run_key in shared if rows[a][run_key].finished and rows[b][run_key].finished
    ]
    if not finished:
        return [], "no run has both" if not shared else "unfinished"
    runs = [
        paired_by_task(rows[a][run_key].counts, rows[b][run_key].counts, k, a, b)
        for run_key in finished
    ]
    return [run for run in runs if run], f"fewer than {k} samples a task"


def _reasons(column: Column, row: str) -> list[str]:
    return [why for (r, _), why in column.absent.items() if r == row]


def _compare(column: Column, c: Comparison, kind: RowKind) -> ComparisonResult:
    k = 1 if kind == "explore" else top_k(column) if c.k == "top" else c.k
    runs, why = pairs_of(column, c.a, c.b, k, kind)
    if not runs:
        return ComparisonResult(c, column.title, k, "missing", why)
    found = contrast(c.a, k, runs)
    return ComparisonResult(
        c, column.title, k, "open", found=found, p=_p(c, runs, found), runs=tuple(runs)
    )


def _p(c: Comparison, runs: Sequence[Mapping[str, float]], found: Contrast) -> float:
    """Of the one hypothesis that the data speak against: that there is no difference, or that it
    lies on the other side of the nearest margin."""
    if found.tasks < FEWEST:
        return math.nan
    if c.relation == "above":
        return found.p
    margins = (-MARGIN,) if c.relation == "not below" else (-MARGIN, MARGIN)
    at = {
        m: contrast(c.a, found.k, [{task: v - m for task, v in run.items()} for run in runs])
        for m in margins
    }
    if c.relation == "same" and abs(found.value) > MARGIN:
        return at[math.copysign(MARGIN, found.value)].p
    return max(shifted.p for shifted in at.values())


def _decided(t: ComparisonResult) -> ComparisonResult:
    assert t.found is not None
    value = t.found.value
    yes = {"above": value > 0, "same": abs(value) < MARGIN, "not below": value > -MARGIN}[
        t.comparison.relation
    ]
    return replace(t, outcome="yes" if yes else "no")


def finished_counts(results: Mapping[RunKey, RowResult]) -> dict[str, Counts]:
    """For `contrasts`: finished runs by name."""
    return {
        f"{run_key.base}, {run_key.seed}": r.counts for run_key, r in results.items() if r.finished
    }
