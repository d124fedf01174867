"""The verdict on each claim of a table: holds, does not hold, or not decided, with the differences
behind it.

A claim is a set of paired comparisons. A comparison is open until its p value passes Holm's
correction over all comparisons of the table's claims in all columns, so that with 95 % no verdict
is wrong. p values and intervals are those of `leafe.evaluate.contrasts`, which hold for few runs
and few tasks too. `above` is tested against no difference; `same` and `not below` against the
margin of two points, inside or outside of which the data must put the difference. An open
comparison whose interval holds 0 is called a tie.
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
        """How many tasks or runs would decide it."""
        return required_size(self.runs)

    @property
    def tie(self) -> bool:
        """The interval holds 0 and nothing was decided."""
        found = self.found
        return found is not None and self.outcome == "open" and found.low <= 0 <= found.high


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim, its verdict and what it rests on."""

    claim: Claim
    verdict: Verdict
    tested: tuple[ComparisonResult, ...]


def top_k(column: Column) -> int:
    """128, or the largest power of two that the samples of all rows allow."""
    asked = [
        stage.samples
        for (kind, _), stored in column.stored.items()
        if kind == "evaluate"
        for stage in stored.values()
    ]
    return 1 << (min([CAPACITY, *asked]).bit_length() - 1)


def judge(columns: Sequence[Column], table: int, kind: RowKind = "evaluate") -> list[ClaimResult]:
    """Judge the claims of one table, in order. Columns that are controls have no part in them."""
    claims = [c for c in CLAIMS if c.table == table]
    columns = [c for c in columns if not c.why_control]
    tested = [
        [[_compare(column, c, kind) for c in claim.comparisons] for column in columns]
        for claim in claims
    ]
    flat = [t for groups in tested for group in groups for t in group]
    certain = {id(flat[nth]) for nth in holm([t.p for t in flat])}
    out = []
    for claim, groups in zip(claims, tested, strict=True):
        groups = [[_decided(t) if id(t) in certain else t for t in group] for group in groups]
        every = tuple(t for group in groups for t in group)
        out.append(ClaimResult(claim, _verdict(claim, groups), every))
    return out


def _verdict(claim: Claim, groups: Sequence[Sequence[ComparisonResult]]) -> Verdict:
    """Of a claim on every column, or on some column; a column says yes where all comparisons do,
    and no where one does."""
    outcomes = []
    for group in groups:
        found = {t.outcome for t in group}
        outcomes.append("no" if "no" in found else "yes" if found == {"yes"} else "open")
    holds, fails = (any, all) if claim.columns == "some" else (all, any)
    if outcomes and holds(o == "yes" for o in outcomes):
        return "holds"
    if outcomes and fails(o == "no" for o in outcomes):
        return "does not hold"
    return "not decided"


def pairs_of(
    column: Column, a: str, b: str, k: int, kind: RowKind = "evaluate"
) -> tuple[list[Mapping[str, float]], str]:
    """(a - b by task, for every run that both have finished; why there is none)."""
    rows = {row: column.results(row, kind) for row in (a, b)}
    for row, results in rows.items():
        if not results:
            reasons = column.reasons(row)
            why = f": {reasons[0]}" if reasons else " has not been run"
            return [], f"{title_of(row)}{why}"
    shared = [key for key in rows[a] if key in rows[b]]
    pairs = [(rows[a][key], rows[b][key]) for key in shared]
    finished = [(one, other) for one, other in pairs if one.finished and other.finished]
    if not finished:
        return [], "unfinished" if shared else "no run has both"
    runs = [paired_by_task(one.counts, other.counts, k, a, b) for one, other in finished]
    return [run for run in runs if run], f"fewer than {k} samples a task"


def _compare(column: Column, c: Comparison, kind: RowKind) -> ComparisonResult:
    k = 1 if kind == "explore" else top_k(column) if c.k == "top" else c.k
    runs, why = pairs_of(column, c.a, c.b, k, kind)
    if not runs:
        return ComparisonResult(c, column.title, k, "missing", why)
    found = contrast(c.a, k, runs)
    p = _p(c, runs, found)
    return ComparisonResult(c, column.title, k, "open", found=found, p=p, runs=tuple(runs))


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
    yes = {"above": value > 0, "same": abs(value) < MARGIN, "not below": value > -MARGIN}
    return replace(t, outcome="yes" if yes[t.comparison.relation] else "no")


def finished_counts(results: Mapping[RunKey, RowResult]) -> dict[str, Counts]:
    """Finished runs by name, for `contrasts`."""
    return {f"{key.base}, {key.seed}": r.counts for key, r in results.items() if r.finished}
