"""From evidence to a table: Pass@k or coverage of every row in every column, what it cost, what its
claims come to, what is missing and the command for it.

Nothing is made up: a cell is a figure, or says why there is none.
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
from studies.paper.results import SHARES, STEPS, Cost, RowKind, RowResult, RunKey, StoredStage
from studies.paper.verdicts import CLAIM_NOTES, claim_blocks, claim_records

MISSING = "not run"


def build(evidence: Evidence, number: int) -> Document:
    """The table `number` of what the folders hold. UserError where they hold nothing of it."""
    table = TABLES[number]
    columns = columns_of(evidence, table)
    if not columns:
        raise UserError(_no_rows(evidence, table))
    kind: RowKind = "explore" if table.kind == "explore" else "evaluate"
    notes: list[str] = []
    main, records = (
        _explore_block(table, columns, notes)
        if kind == "explore"
        else _evaluate_block(table, columns, notes)
    )
    budget, spent_records = _budget_block(table, columns, kind)
    results_of_claims = judge(_claim_columns(columns, table), number, kind)
    tried, tried_records = attempts_block(columns) if number == 1 else (None, [])
    blocks = [main, budget, *([tried] if tried else []), *claim_blocks(results_of_claims)]
    note_missing(table, columns, kind, notes)
    warn_over_budget(table, columns, kind, notes)
    note_methods(columns, kind, notes)
    _note_training_columns(evidence, columns, table, notes)
    notes += evidence.notes
    records += spent_records + tried_records + claim_records(results_of_claims)
    return Document(
        f"table{number}",
        f"Table {number}: {table.title}",
        tuple(blocks),
        tuple(dict.fromkeys(notes)),
        tuple(records),
    )


def all_claims(paths: Sequence[Path] | Mapping[int, Sequence[Path]]) -> Document:
    """Every claim of every table, of what these folders hold, or of the folders of each table by
    its number: the verdicts that the tables themselves print.

    A table of which they hold nothing leaves its claims open.
    """
    cache: dict[Path, RowResult] = {}
    evidences: dict[tuple[bool, tuple[Path, ...]], Evidence] = {}
    results_of_claims = []
    for table in TABLES.values():
        key = (
            table.by_base,
            tuple(paths.get(table.number, ()) if isinstance(paths, Mapping) else paths),
        )
        if key not in evidences:
            evidences[key] = gather(key[1], by_base=table.by_base, cache=cache)
        kind: RowKind = "explore" if table.kind == "explore" else "evaluate"
        results_of_claims += judge(
            _claim_columns(columns_of(evidences[key], table), table), table.number, kind
        )
    blocks = claim_blocks(results_of_claims)
    notes = dict.fromkeys(
        [*CLAIM_NOTES, *(note for evidence in evidences.values() for note in evidence.notes)]
    )
    return Document(
        "claims",
        "What the six tables say, claim by claim",
        tuple(blocks),
        tuple(notes),
        tuple(claim_records(results_of_claims)),
    )


def columns_of(evidence: Evidence, table: Table) -> list[Column]:
    """A transfer table shows policies where they were trained, then where they were not; the others
    leave out what is there for the transfer table."""
    kind: RowKind = "explore" if table.kind == "explore" else "evaluate"
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
    """Those that the table's claims are about: of a transfer table, where policies were not
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
    if not evidence.runs:
        return (
            f"No run folder was given for table {table.number}: name some, or make them with "
            f"`leafe table {table.number}`."
        )
    run_key = ", ".join(str(run.path) for run in evidence.runs)
    if table.kind == "transfer":
        return (
            f"No folder of {run_key} tests a policy in an environment that it was not "
            "trained in: make such runs with `leafe table 5 --on gates`, or by hand with "
            "`leafe run RECIPE policy.model=RUN/distill/ARM/checkpoint --name ...`."
        )
    return (
        f"{run_key} holds no row of table {table.number} "
        f"({', '.join(row.key for row in table.rows)}) that was begun: go on with "
        f"`{resume(evidence.runs[0])}`."
    )


def _evaluate_block(
    table: Table, columns: Sequence[Column], notes: list[str]
) -> tuple[Block, list[dict[str, Any]]]:
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
            for k in _ks(column):
                if not results:
                    line.append(Cell(_why_missing(column, row.key, role)))
                    continue
                found = estimate(results, k)
                _note_lost_samples(column, row, results, notes)
                best = row.key in leaders[column.title, k]
                line.append(_cell(column, results, found, best, len(leaders[column.title, k]) > 1))
                records.append(
                    _cell_record(table, column, row.key, f"Pass@{k}", k, results, found, role)
                )
        rows.append(tuple(line))
    if len(columns) and any(len(best) > 1 for best in leaders.values()):
        notes.append(
            "= ties: rows in bold that are marked = cannot be told from the highest of "
            "their column (paired, Holm over the column)."
        )
    return Block("Pass@k in % [95 % interval] (tasks, runs)", tuple(head), tuple(rows)), records


def _note_lost_samples(
    column: Column, row: TableRow, results: Mapping[RunKey, RowResult], notes: list[str]
) -> None:
    """What was lost and could not be sampled again, and what it leaves out."""
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
    """The table's rows, then the controls that any column has."""
    for row in table.rows:
        yield row, "arm"
    for column in columns:
        for key in column.rows():
            if column.roles.get(key) in ("control", "ceiling") and not any(
                key in c.rows() for c in columns[: columns.index(column)]
            ):
                yield TableRow(key, f"({column.roles[key]}) {key}"), column.roles[key]


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
    by_base = {row for row in values if row != best and not any(c.row == row for c in against)}
    return set(values) - below - by_base


def estimate(results: Mapping[RunKey, RowResult], k: int) -> Estimate:
    """Pass@k over all runs."""
    return pass_estimate([r.counts for r in results.values()], k)


def _cell(
    column: Column,
    results: Mapping[RunKey, RowResult],
    found: Estimate,
    best: bool = False,
    tied: bool = False,
) -> Cell:
    if math.isnan(found.value):
        return Cell("too few samples")
    mark = ("=" if best and tied else "") + (
        "" if all(r.finished for r in results.values()) else UNFINISHED
    )
    runs = len(results)
    every = len(column.runs("evaluate"))
    of = f"{runs} of {every}" if runs < every else str(runs)
    return Cell(
        f"{100 * found.value:.1f}{mark}",
        f"[{100 * found.low:.1f}, {100 * found.high:.1f}] ({found.tasks}, {of})",
        best,
    )


def _why_missing(column: Column, row: str, role: str) -> str:
    """Controls may be left out; an arm is not."""
    reasons = [why for (r, _), why in column.absent.items() if r == row]
    begun = row in column.rows()
    return (
        "nothing to learn"
        if reasons
        else f"begun{UNFINISHED}"
        if begun
        else MISSING
        if role == "arm"
        else "–"
    )


def _temperature(columns: Sequence[Column], row: str) -> str:
    used = sorted(
        {
            r.temperature
            for c in columns
            for r in c.results(row).values()
            if r.temperature is not None
        }
    )
    return "" if not used else "T=" + "/".join(f"{t:g}" for t in used)


def _cell_record(
    table: Table,
    column: Column,
    row: str,
    measure: str,
    k: int,
    results: Mapping[RunKey, RowResult],
    found: Estimate,
    role: str = "arm",
) -> dict[str, Any]:
    first = next(iter(results.values()))
    note = "; ".join(
        filter(
            None,
            [
                role if role != "arm" else "",
                "" if all(r.finished for r in results.values()) else "unfinished",
            ],
        )
    )
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
        note=note,
    )


def _explore_block(
    table: Table, columns: Sequence[Column], notes: list[str]
) -> tuple[Block, list[dict[str, Any]]]:
    head, rows, records = ["strategy"], [], []
    budgets = [*SHARES, STEPS]
    for column in columns:
        head += [f"{column.title} {label}" for label in _budget_words(column)]
    for row in table.rows:
        line = [Cell(row.title, row.about)]
        for column in columns:
            results = column.results(row.key, "explore")
            for budget in budgets:
                if not any(budget in r.within for r in results.values()):
                    line.append(
                        Cell(_why_missing_exploration(column, row.key) if not results else "–")
                    )
                    continue
                found = _coverage(results, budget)
                partial = "" if all(r.finished for r in results.values()) else UNFINISHED
                best = budget == "all" and found.value == max(
                    _coverage(r, budget).value
                    for other in table.rows
                    if (r := column.results(other.key, "explore"))
                    and all(x.within for x in r.values())
                )
                more = (
                    f"[{100 * found.low:.1f}, {100 * found.high:.1f}] ({found.tasks}, "
                    f"{len(results)})"
                )
                line.append(Cell(f"{100 * found.value:.1f}{partial}", more, best))
                records.append(
                    _cell_record(table, column, row.key, f"coverage, {budget}", 1, results, found)
                )
        rows.append(tuple(line))
    notes.append(
        "The columns with a share of the calls, or with environment steps for a bound, are "
        "read off the same trees: what came first would have come first."
    )
    return Block(
        "Training tasks solved at least once, in % [95 % interval] (tasks, runs)",
        tuple(head),
        tuple(rows),
    ), records


def _budget_words(column: Column) -> list[str]:
    calls = next(iter(column.recipes.values())).explore.limits.get("policy_calls")
    if not calls:
        return [*SHARES, STEPS]
    return [f"{int(calls * share)} calls" for share in SHARES.values()] + [f"{int(calls)} steps"]


def _why_missing_exploration(column: Column, row: str) -> str:
    return f"begun{UNFINISHED}" if row in column.rows("explore") else MISSING


def _coverage(results: Mapping[RunKey, RowResult], budget: str) -> Estimate:
    solved = [r.within[budget] for r in results.values() if budget in r.within]
    if len(solved) == 1:
        return wilson(int(solved[0].c.sum()), len(solved[0].tasks))
    return pass_estimate(solved, 1)


def _budget_block(
    table: Table, columns: Sequence[Column], kind: RowKind
) -> tuple[Block, list[dict[str, Any]]]:
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
    rows, records = [], []
    for column in columns:
        shown = (
            [row.key for row in table.rows]
            if kind == "explore"
            else [row.key for row, _ in _rows(table, columns)]
        )
        for row in shown:
            results = column.results(row, kind)
            if not results:
                continue
            mean = _mean_cost([r.cost for r in results.values()])
            minutes = [
                mean.pop("seconds") / 60,
                sum(r.seconds for r in results.values()) / len(results) / 60,
            ]
            figures = [
                f"{mean[n]:,.0f}"
                for n in (
                    "policy_calls",
                    "env_steps",
                    "replayed_steps",
                    "generated_tokens",
                    "prompt_tokens",
                    "trained_tokens",
                )
            ]
            phases = f"{mean['phases']:g}"
            sampled = sum(r.tokens for r in results.values()) / len(results)
            tested = (f"{minutes[1]:.1f}", f"{sampled:,.1f}") if kind == "evaluate" else ("–", "–")
            rows.append(
                cells(
                    column.title,
                    title_of(row),
                    _allowed(column, row, kind),
                    phases,
                    *figures,
                    f"{minutes[0]:.1f}",
                    *tested,
                )
            )
            values = {
                **mean,
                "minutes_to_make": minutes[0],
                "minutes_to_test": minutes[1],
                "test_tokens_a_sample": sampled,
            }
            for measure, value in values.items():
                records.append(
                    record(
                        kind="budget",
                        table=table.number,
                        column=column.title,
                        row=row,
                        measure=measure,
                        value=float(value),
                        runs=len(results),
                    )
                )
    return Block(
        "What each row cost to make, mean of its runs", head, tuple(rows), text_columns=3
    ), records


def _mean_cost(costs: Sequence[Cost]) -> dict[str, float]:
    names = (
        "policy_calls",
        "env_steps",
        "replayed_steps",
        "generated_tokens",
        "prompt_tokens",
        "cached_tokens",
    )
    out = {name: sum(getattr(c.spent, name) for c in costs) / len(costs) for name in names}
    return out | {
        name: sum(getattr(c, name) for c in costs) / len(costs)
        for name in ("phases", "trained_tokens", "seconds")
    }


def _allowed(column: Column, row: str, kind: RowKind) -> str:
    """The limit of an exploration and the tasks that have it."""
    entry = _first_place(column, row, kind)
    recipe = entry.made.recipe
    if entry.stage.role in ("control", "ceiling") or (row == "base" and kind == "evaluate"):
        return "–"
    limits = (
        ", ".join(
            f"{value:g} {name.replace('_', ' ')}" for name, value in recipe.explore.limits.items()
        )
        or "no limit"
    )
    tasks = entry.made.tasks("train")
    return f"{limits} × {tasks or 'all'} tasks"


def _first_place(column: Column, row: str, kind: RowKind) -> StoredStage:
    return next(iter(column.stored[kind, row].values()))
