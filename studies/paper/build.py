"""From evidence to a table: Pass@k or coverage of every row in every column, what each row cost,
what the claims come to, what is missing and the command for it.

Nothing is filled in: a cell is a figure, or says why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.evaluate import Estimate, contrasts, pass_estimate, wilson
from studies.paper.attempts import attempts_block
from studies.paper.claims import finished_counts, judge, top_k
from studies.paper.columns import Column, Evidence
from studies.paper.commands import resume
from studies.paper.definitions import TABLES, Table, TableRow, title_of
from studies.paper.document import Block, Cell, Document, cells, record
from studies.paper.evidence import gather
from studies.paper.missing import UNFINISHED, note_methods, note_missing, warn_over_budget
from studies.paper.results import SHARES, STEPS, Cost, RowKind, RowResult, RunKey
from studies.paper.verdicts import CLAIM_NOTES, claim_blocks, claim_records

MISSING = "not run"
Results = Mapping[RunKey, RowResult]
"""What a row came to, run by run."""


def build(evidence: Evidence, number: int) -> Document:
    """Build one table.

    Args:
        evidence: what `gather` read.
        number: 1 to 6.

    Raises:
        UserError: the folders hold nothing of the table.
    """
    table = TABLES[number]
    columns = columns_of(evidence, table)
    if not columns:
        raise UserError(_no_rows(evidence, table))
    kind = _kind(table)
    notes: list[str] = []
    block = _coverage_block if kind == "explore" else _pass_block
    main, records = block(table, columns, notes)
    budget, budget_records = _budget_block(table, columns, kind)
    claims = judge(_claim_columns(columns, table), number, kind)
    attempts, attempts_records = attempts_block(columns) if number == 1 else (None, [])
    blocks = [main, budget, *([attempts] if attempts else []), *claim_blocks(claims)]
    note_missing(table, columns, kind, notes)
    warn_over_budget(table, columns, kind, notes)
    note_methods(columns, kind, notes)
    _note_training_columns(evidence, columns, table, notes)
    return Document(
        f"table{number}",
        f"Table {number}: {table.title}",
        tuple(blocks),
        tuple(dict.fromkeys([*notes, *evidence.notes])),
        (*records, *budget_records, *attempts_records, *claim_records(claims)),
    )


def all_claims(paths: Sequence[Path] | Mapping[int, Sequence[Path]]) -> Document:
    """Judge every claim of every table, as the tables do.

    Args:
        paths: the run folders of all tables, or of each table by its number. A table of which they
            hold nothing leaves its claims open.
    """
    cache: dict[Path, RowResult] = {}
    evidences: dict[tuple[bool, tuple[Path, ...]], Evidence] = {}
    claims = []
    for table in TABLES.values():
        folders = tuple(paths.get(table.number, ()) if isinstance(paths, Mapping) else paths)
        key = (table.by_base, folders)
        if key not in evidences:
            evidences[key] = gather(folders, by_base=table.by_base, cache=cache)
        columns = _claim_columns(columns_of(evidences[key], table), table)
        claims += judge(columns, table.number, _kind(table))
    notes = [*CLAIM_NOTES, *(note for evidence in evidences.values() for note in evidence.notes)]
    return Document(
        "claims",
        "What the six tables say, claim by claim",
        tuple(claim_blocks(claims)),
        tuple(dict.fromkeys(notes)),
        tuple(claim_records(claims)),
    )


def _kind(table: Table) -> RowKind:
    return "explore" if table.kind == "explore" else "evaluate"


def columns_of(evidence: Evidence, table: Table) -> list[Column]:
    """The table's columns. A transfer table shows policies where they were trained, then where they
    were not; the others leave out what is there for the transfer table."""
    kind = _kind(table)
    rows = {row.key for row in table.rows}
    plain, tested = (
        [c for c in evidence.columns if c.transfer == transfer and rows & set(c.rows(kind))]
        for transfer in (False, True)
    )
    if table.kind == "transfer":
        origins = [env for c in tested for env in c.origins]
        return [*(c for c in plain if (c.env, c.options) in origins), *tested]
    return [c for c in plain if not c.for_transfer] or plain


def _claim_columns(columns: Sequence[Column], table: Table) -> list[Column]:
    """The columns of which the table's claims speak: of a transfer table, where policies were not
    trained."""
    return [c for c in columns if c.transfer == (table.kind == "transfer")]


def _note_training_columns(
    evidence: Evidence, columns: Sequence[Column], table: Table, notes: list[str]
) -> None:
    for column in evidence.columns if table.kind != "transfer" else ():
        if column.for_transfer and not column.transfer and column not in columns:
            notes.append(
                f"{column.title} is left out: it is where the policies of table 5 are "
                "trained, and stands there."
            )


def _no_rows(evidence: Evidence, table: Table) -> str:
    command = "python -m studies.paper table"
    if not evidence.runs:
        return (
            f"No run folder was given for table {table.number}: name some, or make them with "
            f"`{command} {table.number}`."
        )
    where = ", ".join(str(run.path) for run in evidence.runs)
    if table.kind == "transfer":
        return (
            f"No folder of {where} tests a policy in an environment that it was not "
            f"trained in: make such runs with `{command} 5 --on gates`, or by hand with "
            "`leafe run RECIPE policy.model=RUN/distill/ARM/checkpoint --name ...`."
        )
    return (
        f"{where} holds no row of table {table.number} "
        f"({', '.join(row.key for row in table.rows)}) that was begun: go on with "
        f"`{resume(evidence.runs[0])}`."
    )


def _pass_block(
    table: Table, columns: Sequence[Column], notes: list[str]
) -> tuple[Block, list[dict[str, Any]]]:
    """Pass@k of every row in every column."""
    head, rows, records = ["method"], [], []
    leaders: dict[tuple[str, int], set[str]] = {}
    for column in columns:
        for k in _ks(column):
            head.append(f"{column.title} Pass@{k}")
            leaders[column.title, k] = _leaders(column, [r.key for r in table.rows], k)
    for row, role in _rows(table, columns):
        line = [Cell(row.title, _temperature(columns, row.key))]
        for column in columns:
            results = column.results(row.key)
            if results:
                _note_lost_samples(column, row, results, notes)
            for k in _ks(column):
                if not results:
                    line.append(Cell(_why_missing(column, row.key, role)))
                    continue
                found = estimate(results, k)
                best = leaders[column.title, k]
                line.append(_pass_cell(column, results, found, row.key in best, len(best) > 1))
                measure = f"Pass@{k}"
                records.append(
                    _cell_record(table, column, row.key, measure, k, results, found, role)
                )
        rows.append(tuple(line))
    if any(len(best) > 1 for best in leaders.values()):
        notes.append(
            "= ties: rows in bold that are marked = cannot be told from the highest of "
            "their column (paired, Holm over the column)."
        )
    return Block("Pass@k in % [95 % interval] (tasks, runs)", tuple(head), tuple(rows)), records


def _note_lost_samples(column: Column, row: TableRow, results: Results, notes: list[str]) -> None:
    """Samples that were lost and could not be sampled again."""
    short = [r.counts.short for r in results.values() if r.finished]
    tasks, lost = sum(int((s > 0).sum()) for s in short), sum(int(s.sum()) for s in short)
    if lost:
        notes.append(
            f"{row.title} in {column.title}: {lost} samples of {tasks} tasks were lost for "
            "good; these tasks are "
            "missing where k is more than they have (the number of tasks stands in brackets)."
        )


def _ks(column: Column) -> list[int]:
    return sorted({1, top_k(column)})


def _rows(table: Table, columns: Sequence[Column]) -> Iterator[tuple[TableRow, str]]:
    """The table's rows with their roles, then the controls that any column has."""
    for row in table.rows:
        yield row, "arm"
    controls: dict[str, str] = {}
    for column in columns:
        for key in column.rows():
            if column.roles.get(key) in ("control", "ceiling"):
                controls.setdefault(key, column.roles[key])
    for key, role in controls.items():
        yield TableRow(key, f"({role}) {key}"), role


def _leaders(column: Column, rows: Sequence[str], k: int) -> set[str]:
    """The highest row and those that cannot be told from it; unfinished ones are not ranked."""
    finished = {row: counts for row in rows if (counts := finished_counts(column.results(row)))}
    values = {row: estimate(column.results(row), k).value for row in finished}
    values = {row: value for row, value in values.items() if not math.isnan(value)}
    if not values:
        return set()
    best = max(values, key=lambda row: values[row])
    against = contrasts({row: finished[row] for row in values}, best, [k])
    below = {c.row for c in against if c.claim == "below"}
    apart = {row for row in values if row != best and not any(c.row == row for c in against)}
    return set(values) - below - apart


def estimate(results: Results, k: int) -> Estimate:
    """Pass@k over all runs."""
    return pass_estimate([r.counts for r in results.values()], k)


def _pass_cell(column: Column, results: Results, found: Estimate, best: bool, tied: bool) -> Cell:
    if math.isnan(found.value):
        return Cell("too few samples")
    mark = ("=" if best and tied else "") + _mark(results)
    runs, every = len(results), len(column.runs("evaluate"))
    return _estimate_cell(found, mark, f"{runs} of {every}" if runs < every else str(runs), best)


def _estimate_cell(found: Estimate, mark: str, runs: str, best: bool) -> Cell:
    more = f"[{100 * found.low:.1f}, {100 * found.high:.1f}] ({found.tasks}, {runs})"
    return Cell(f"{100 * found.value:.1f}{mark}", more, best)


def _mark(results: Results) -> str:
    return "" if _finished(results) else UNFINISHED


def _finished(results: Results) -> bool:
    return all(r.finished for r in results.values())


def _why_missing(column: Column, row: str, role: str, kind: RowKind = "evaluate") -> str:
    """Controls may be left out; an arm is not."""
    if kind == "evaluate" and column.reasons(row):
        return "nothing to learn"
    if row in column.rows(kind):
        return f"begun{UNFINISHED}"
    return MISSING if role == "arm" else "–"


def _temperature(columns: Sequence[Column], row: str) -> str:
    found = {r.temperature for c in columns for r in c.results(row).values()}
    used = sorted(t for t in found if t is not None)
    return "" if not used else "T=" + "/".join(f"{t:g}" for t in used)


def _cell_record(
    table: Table,
    column: Column,
    row: str,
    measure: str,
    k: int,
    results: Results,
    found: Estimate,
    role: str = "arm",
) -> dict[str, Any]:
    first = next(iter(results.values()))
    note = [*([role] if role != "arm" else []), *([] if _finished(results) else ["unfinished"])]
    return record(
        kind="cell",
        table=table.number,
        column=column.title,
        row=row,
        measure=measure,
        k=k,
        value=found.value,
        low=found.low,
        high=found.high,
        tasks=found.tasks,
        runs=len(results),
        samples=first.samples,
        temperature=first.temperature,
        note="; ".join(note),
    )


def _coverage_block(
    table: Table, columns: Sequence[Column], notes: list[str]
) -> tuple[Block, list[dict[str, Any]]]:
    """Tasks that each strategy solved at least once, within shares of the budget."""
    head, rows, records = ["strategy"], [], []
    for column in columns:
        head += [f"{column.title} {name}" for name in _budget_names(column)]
    for row in table.rows:
        line = [Cell(row.title, row.about)]
        for column in columns:
            results = column.results(row.key, "explore")
            for budget in (*SHARES, STEPS):
                if not any(budget in r.within for r in results.values()):
                    why = "–" if results else _why_missing(column, row.key, "arm", "explore")
                    line.append(Cell(why))
                    continue
                found = _coverage(results, budget)
                best = budget == "all" and found.value == max(
                    _coverage(other, budget).value
                    for strategy in table.rows
                    if (other := column.results(strategy.key, "explore"))
                    and all(r.within for r in other.values())
                )
                line.append(_estimate_cell(found, _mark(results), str(len(results)), best))
                measure = f"coverage, {budget}"
                records.append(_cell_record(table, column, row.key, measure, 1, results, found))
        rows.append(tuple(line))
    notes.append(
        "The columns with a share of the calls, or with environment steps for a bound, are "
        "read off the same trees: what came first would have come first."
    )
    title = "Training tasks solved at least once, in % [95 % interval] (tasks, runs)"
    return Block(title, tuple(head), tuple(rows)), records


def _budget_names(column: Column) -> list[str]:
    calls = next(iter(column.recipes.values())).explore.limits.get("policy_calls")
    if not calls:
        return [*SHARES, STEPS]
    return [f"{int(calls * share)} calls" for share in SHARES.values()] + [f"{int(calls)} steps"]


def _coverage(results: Results, budget: str) -> Estimate:
    solved = [r.within[budget] for r in results.values() if budget in r.within]
    if len(solved) == 1:
        return wilson(int(solved[0].c.sum()), len(solved[0].tasks))
    return pass_estimate(solved, 1)


def _budget_block(
    table: Table, columns: Sequence[Column], kind: RowKind
) -> tuple[Block, list[dict[str, Any]]]:
    """What each row cost to make and to test."""
    head = (
        "environment",
        "row",
        "allowed",
        "phases",
        "calls",
        "environment steps",
        "replayed",
        "tokens out",
        "tokens in",
        "trained on",
        "min. to make",
        "min. to test",
        "tokens a test sample",
    )
    shown = table.rows if kind == "explore" else [row for row, _ in _rows(table, columns)]
    rows, records = [], []
    for column in columns:
        for row in (r.key for r in shown):
            results = column.results(row, kind)
            if not results:
                continue
            n = len(results)
            mean = _mean_cost([r.cost for r in results.values()])
            make = mean.pop("seconds") / 60
            test = sum(r.seconds for r in results.values()) / n / 60
            tokens = sum(r.tokens for r in results.values()) / n
            figures = [f"{mean[name]:,.0f}" for name in (*_SPENT[:5], "trained_tokens")]
            tested = (f"{test:.1f}", f"{tokens:,.1f}") if kind == "evaluate" else ("–", "–")
            rows.append(
                cells(
                    column.title,
                    title_of(row),
                    _allowed(column, row, kind),
                    f"{mean['phases']:g}",
                    *figures,
                    f"{make:.1f}",
                    *tested,
                )
            )
            times = {"minutes_to_make": make, "minutes_to_test": test}
            for measure, value in {**mean, **times, "test_tokens_a_sample": tokens}.items():
                records.append(
                    record(
                        kind="budget",
                        table=table.number,
                        column=column.title,
                        row=row,
                        measure=measure,
                        value=float(value),
                        runs=n,
                    )
                )
    title = "What each row cost to make, mean of its runs"
    return Block(title, head, tuple(rows), text_columns=3), records


_SPENT = (
    "policy_calls",
    "env_steps",
    "replayed_steps",
    "generated_tokens",
    "prompt_tokens",
    "cached_tokens",
)


def _mean_cost(costs: Sequence[Cost]) -> dict[str, float]:
    sums = {name: sum(getattr(c.spent, name) for c in costs) for name in _SPENT}
    for name in ("phases", "trained_tokens", "seconds"):
        sums[name] = sum(getattr(c, name) for c in costs)
    return {name: value / len(costs) for name, value in sums.items()}


def _allowed(column: Column, row: str, kind: RowKind) -> str:
    """The limit of an exploration and the tasks that have it."""
    stored = next(iter(column.stored[kind, row].values()))
    if stored.stage.role in ("control", "ceiling") or (row == "base" and kind == "evaluate"):
        return "–"
    limits = [
        f"{value:g} {name.replace('_', ' ')}"
        for name, value in stored.made.recipe.explore.limits.items()
    ]
    tasks = stored.made.tasks("train") or "all"
    return f"{', '.join(limits) or 'no limit'} × {tasks} tasks"
