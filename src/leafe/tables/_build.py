"""From evidence to a table: Pass@k or coverage of every row in every column, what it cost, what its claims come to, what is missing and the command for it.

Nothing is made up: a cell is a figure, or says why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.evaluate import Estimate, contrasts, hierarchical_bootstrap, pass_estimate, wilson
from leafe.pipeline import task_count
from leafe.tables._claims import Judged, Tested, counts_of, judge, top_k
from leafe.tables._commands import add_row, another_seed, resume
from leafe.tables._define import MARGIN, TABLES, Row, Table, title_of
from leafe.tables._document import Block, Cell, Document, cells, record
from leafe.tables._evidence import SHARES, STEPS, Cost, Evidence, Kind, Place, Result, Where, gather
from leafe.tables._evidence import Column as World
from leafe.tables._power import EFFECT

MISSING, UNFINISHED, MINUS = "not run", "†", "−"


def build(evidence: Evidence, number: int) -> Document:
    """The table `number` of what the folders hold. UserError where they hold nothing of it."""
    table = TABLES[number]
    columns = columns_of(evidence, table)
    if not columns:
        raise UserError(_nothing(evidence, table))
    kind: Kind = "explore" if table.kind == "explore" else "evaluate"
    notes = _Notes()
    main, records = _explore_block(table, columns, notes) if kind == "explore" else _evaluate_block(table, columns, notes)
    budget, spent_records = _budget_block(table, columns, kind)
    judged = judge(columns, number, kind)
    blocks = [main, budget, *claim_blocks(judged)]
    _say_missing(table, columns, kind, notes)
    _say_dearer(table, columns, kind, notes)
    _say_how(columns, kind, notes)
    notes.said += evidence.notes
    records += spent_records + claim_records(judged)
    return Document(f"table{number}", f"Table {number}: {table.title}", tuple(blocks), tuple(dict.fromkeys(notes.said)), tuple(records))


def all_claims(paths: Sequence[Path]) -> Document:
    """Every claim of every table, of what these folders hold; a table of which they hold nothing leaves its claims open."""
    known: dict[Path, Result] = {}
    evidences = {apart: gather(paths, apart=apart, known=known) for apart in (False, True)}
    judged = []
    for table in TABLES.values():
        evidence = evidences[table.apart]
        kind: Kind = "explore" if table.kind == "explore" else "evaluate"
        judged += judge(columns_of(evidence, table), table.number, kind)
    blocks = claim_blocks(judged)
    notes = (*_HOW_CLAIMS, *evidences[False].notes)
    return Document("claims", "What the six tables say, claim by claim", tuple(blocks), notes, tuple(claim_records(judged)))


_HOW_CLAIMS = (
    "Claims of one table are Holm-corrected together; a verdict is wrong with 5 % at most for each table. Controls have no part in them.",
    f"A difference below {100 * MARGIN:.0f} points counts as none where a claim says `as it is` or `loses no`; a tie is a difference whose interval holds 0.",
)


def columns_of(evidence: Evidence, table: Table) -> list[World]:
    kind: Kind = "explore" if table.kind == "explore" else "evaluate"
    rows = {row.key for row in table.rows}
    return [c for c in evidence.columns if c.transfer == (table.kind == "transfer") and rows & set(c.rows(kind))]


def _nothing(evidence: Evidence, table: Table) -> str:
    where = ", ".join(str(run.path) for run in evidence.runs)
    if table.kind == "transfer":
        return (
            f"No folder of {where} tests a policy in a world that it was not trained in: make such runs with `leafe table 5 --on gates`, or by hand with "
            "`leafe run RECIPE policy.model=RUN/distill/ARM/checkpoint --name ...`."
        )
    return f"{where} holds no row of table {table.number} ({', '.join(row.key for row in table.rows)}) that was begun: go on with `{resume(evidence.runs[0])}`."


class _Notes:
    """What stands under a table, each sentence once."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)


def _evaluate_block(table: Table, columns: Sequence[World], notes: _Notes) -> tuple[Block, list[dict[str, Any]]]:
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
                best = row.key in leaders[column.title, k]
                line.append(_cell(column, results, found, best, len(leaders[column.title, k]) > 1))
                records.append(_cell_record(table, column, row.key, f"Pass@{k}", k, results, found, role))
        rows.append(tuple(line))
    if len(columns) and any(len(best) > 1 for best in leaders.values()):
        notes.say("= ties: rows in bold that are marked = cannot be told from the highest of their column (paired, Holm over the column).")
    return Block("Pass@k in % [95 % interval] (tasks, runs)", tuple(head), tuple(rows)), records


def _ks(column: World) -> list[int]:
    return sorted({1, top_k(column)})


def _rows(table: Table, columns: Sequence[World]) -> Iterator[tuple[Row, str]]:
    """The table's rows, then the controls that any column has."""
    for row in table.rows:
        yield row, "arm"
    for column in columns:
        for key in column.rows():
            if column.roles.get(key) in ("control", "ceiling") and not any(key in c.rows() for c in columns[: columns.index(column)]):
                yield Row(key, f"({column.roles[key]}) {key}"), column.roles[key]


def _leaders(column: World, rows: Sequence[str], k: int) -> set[str]:
    """The highest row and those that cannot be told from it; unfinished ones are not ranked."""
    finished = {row: counts for row in rows if (counts := counts_of(column.results(row)))}
    values = {row: estimate(column.results(row), k).value for row in finished}
    values = {row: value for row, value in values.items() if not math.isnan(value)}
    if not values:
        return set()
    best = max(values, key=lambda row: values[row])
    against = contrasts({row: finished[row] for row in values}, best, [k])
    below = {c.row for c in against if c.claim == "below"}
    apart = {row for row in values if row != best and not any(c.row == row for c in against)}
    return set(values) - below - apart


def estimate(results: Mapping[Where, Result], k: int) -> Estimate:
    """Pass@k over all runs. Where every task came out alike a bootstrap has no width: then Wilson's interval for tasks."""
    found = pass_estimate([r.counts for r in results.values()], k)
    if found.tasks and found.high - found.low < 1e-9 and min(found.value, 1 - found.value) < 1e-9:
        return wilson(round(found.value * found.tasks), found.tasks)
    return found


def _cell(column: World, results: Mapping[Where, Result], found: Estimate, best: bool = False, tied: bool = False) -> Cell:
    if math.isnan(found.value):
        return Cell("too few samples")
    mark = ("=" if best and tied else "") + ("" if all(r.finished for r in results.values()) else UNFINISHED)
    runs = len(results)
    every = len(column.runs("evaluate"))
    of = f"{runs} of {every}" if runs < every else str(runs)
    return Cell(f"{100 * found.value:.1f}{mark}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}] ({found.tasks}, {of})", best)


def _why_missing(column: World, row: str, role: str) -> str:
    """Controls may be left out; an arm is not."""
    reasons = [why for (r, _), why in column.absent.items() if r == row]
    begun = row in column.rows()
    return "nothing to learn" if reasons else f"begun{UNFINISHED}" if begun else MISSING if role == "arm" else "–"


def _temperature(columns: Sequence[World], row: str) -> str:
    used = sorted({r.temperature for c in columns for r in c.results(row).values() if r.temperature is not None})
    return "" if not used else "T=" + "/".join(f"{t:g}" for t in used)


def _cell_record(
    table: Table, column: World, row: str, measure: str, k: int, results: Mapping[Where, Result], found: Estimate, role: str = "arm"
) -> dict[str, Any]:
    first = next(iter(results.values()))
    note = "; ".join(filter(None, [role if role != "arm" else "", "" if all(r.finished for r in results.values()) else "unfinished"]))
    return record(
        kind="cell", table=table.number, column=column.title, row=row, measure=measure, k=k, value=found.value, low=found.low, high=found.high,
        tasks=found.tasks, runs=len(results), samples=first.samples, temperature=first.temperature, note=note,
    )  # fmt: skip


def _explore_block(table: Table, columns: Sequence[World], notes: _Notes) -> tuple[Block, list[dict[str, Any]]]:
    head, rows, records = ["strategy"], [], []
    budgets = [*SHARES, STEPS]
    for column in columns:
        head += [f"{column.title} {words}" for words in _budget_words(column)]
    for row in table.rows:
        line = [Cell(row.title, row.about)]
        for column in columns:
            results = column.results(row.key, "explore")
            for budget in budgets:
                if not any(budget in r.within for r in results.values()):
                    line.append(Cell(_why_missing_exploration(column, row.key) if not results else "–"))
                    continue
                found = _coverage(results, budget)
                partial = "" if all(r.finished for r in results.values()) else UNFINISHED
                best = budget == "all" and found.value == max(
                    _coverage(r, budget).value for other in table.rows if (r := column.results(other.key, "explore")) and all(x.within for x in r.values())
                )
                more = f"[{100 * found.low:.1f}, {100 * found.high:.1f}] ({found.tasks}, {len(results)})"
                line.append(Cell(f"{100 * found.value:.1f}{partial}", more, best))
                records.append(_cell_record(table, column, row.key, f"coverage, {budget}", 1, results, found))
        rows.append(tuple(line))
    notes.say("The columns with a share of the calls, or with world steps for a bound, are read off the same trees: what came first would have come first.")
    return Block("Training tasks solved at least once, in % [95 % interval] (tasks, runs)", tuple(head), tuple(rows)), records


def _budget_words(column: World) -> list[str]:
    calls = next(iter(column.recipes.values())).explore.limits.get("policy_calls")
    if not calls:
        return [*SHARES, STEPS]
    return [f"{int(calls * share)} calls" for share in SHARES.values()] + [f"{int(calls)} steps"]


def _why_missing_exploration(column: World, row: str) -> str:
    return f"begun{UNFINISHED}" if row in column.rows("explore") else MISSING


def _coverage(results: Mapping[Where, Result], budget: str) -> Estimate:
    solved = [r.within[budget].c for r in results.values() if budget in r.within]
    if len(solved) == 1:
        return wilson(int(solved[0].sum()), len(solved[0]))
    return hierarchical_bootstrap([c.astype(float) for c in solved])


def _budget_block(table: Table, columns: Sequence[World], kind: Kind) -> tuple[Block, list[dict[str, Any]]]:
    head = ("world", "row", "allowed", "phases", "calls", "world steps", "replayed", "tokens out", "tokens in", "trained on", "min. to make", "min. to test", "tokens a test sample")
    rows, records = [], []
    for column in columns:
        shown = [row.key for row in table.rows] if kind == "explore" else [row.key for row, _ in _rows(table, columns)]
        for row in shown:
            results = column.results(row, kind)
            if not results:
                continue
            mean = _mean_cost([r.cost for r in results.values()])
            minutes = [mean.pop("seconds") / 60, sum(r.seconds for r in results.values()) / len(results) / 60]
            figures = [f"{mean[n]:,.0f}" for n in ("policy_calls", "env_steps", "replayed_steps", "generated_tokens", "prompt_tokens", "trained_tokens")]
            phases = f"{mean['phases']:g}"
            sampled = sum(r.tokens for r in results.values()) / len(results)
            tested = (f"{minutes[1]:.1f}", f"{sampled:,.1f}") if kind == "evaluate" else ("–", "–")
            rows.append(cells(column.title, title_of(row), _allowed(column, row, kind), phases, *figures, f"{minutes[0]:.1f}", *tested))
            values = {**mean, "minutes_to_make": minutes[0], "minutes_to_test": minutes[1], "test_tokens_a_sample": sampled}
            for measure, value in values.items():
                records.append(
                    record(kind="budget", table=table.number, column=column.title, row=row, measure=measure, value=float(value), runs=len(results))
                )
    return Block("What each row cost to make, mean of its runs", head, tuple(rows), words=3), records


def _mean_cost(costs: Sequence[Cost]) -> dict[str, float]:
    names = ("policy_calls", "env_steps", "replayed_steps", "generated_tokens", "prompt_tokens", "cached_tokens")
    out = {name: sum(getattr(c.spent, name) for c in costs) / len(costs) for name in names}
    return out | {name: sum(getattr(c, name) for c in costs) / len(costs) for name in ("phases", "trained_tokens", "seconds")}


def _allowed(column: World, row: str, kind: Kind) -> str:
    """The limit of an exploration and the tasks that have it."""
    place = _first_place(column, row, kind)
    recipe = place.recipe if place.origin is None else place.origin[1]
    if place.stage.role in ("control", "ceiling") or (row == "base" and kind == "evaluate"):
        return "–"
    limits = ", ".join(f"{value:g} {name.replace('_', ' ')}" for name, value in recipe.explore.limits.items()) or "no limit"
    tasks = task_count(recipe, place.stage.leg if place.origin is None else place.origin[2].leg, "train")
    return f"{limits} × {tasks or 'all'} tasks"


def _first_place(column: World, row: str, kind: Kind) -> Place:
    return next(iter(column.places[kind, row].values()))


def claim_blocks(judged: Sequence[Judged]) -> list[Block]:
    """The verdicts, the differences behind them, and what other numbers of tasks would tell."""
    if not judged:
        return []
    verdicts = tuple((Cell(j.claim.name), Cell(j.claim.text), Cell(j.verdict, best=j.verdict != "not decided"), Cell(_because(j))) for j in judged)
    differences = tuple(_difference(j, t) for j in judged for t in j.tested)
    needs = tuple(dict.fromkeys(_needs(t) for j in judged for t in j.tested if t.runs))
    out = [Block("Claims", ("claim", "says", "verdict", "because"), verdicts, words=4)]
    if differences:
        over = ("claim", "column", f"a {MINUS} b", "Pass@k", "points [95 % interval]", "bootstrap", "p", "tasks, runs", "outcome")
        out.append(Block("The differences behind them, paired by task", over, differences, words=3))
    if needs:
        head = ("column", f"a {MINUS} b", "Pass@k", "tasks seen", "spread of tasks", "tasks needed", "spread of runs", "runs needed")
        out.append(Block(f"Power: what a difference of {100 * EFFECT:.0f} points needs at 80 %, two-sided at 5 %, before Holm; spreads as seen, in points", head, needs, words=2))
    return out


def _because(j: Judged) -> str:
    """What decides it, or keeps it open: refuting comparisons, ties, what is missing."""
    said = []
    no = [t for t in j.tested if t.outcome == "no"]
    if no and j.verdict != "holds":
        said.append("against it: " + ", ".join(f"{_pair(t)} {_points(t)} in {t.column}" for t in no))
    ties = [t for t in j.tested if t.tie and t.comparison.relation == "above"]
    if ties and j.verdict != "holds":
        said.append("ties: " + ", ".join(f"{title_of(t.comparison.a)} and {title_of(t.comparison.b)} ({_points(t)}) in {t.column}" for t in ties))
    open_ = [t for t in j.tested if t.outcome == "open" and t not in ties]
    if open_ and j.verdict == "not decided":
        said.append("open: " + ", ".join(f"{_pair(t)} {_points(t)} in {t.column}" for t in open_))
    missing: dict[str, dict[str, None]] = {}
    for t in j.tested:
        if t.outcome == "missing":
            missing.setdefault(t.why, {})[t.column] = None
    if missing:
        said.append("missing: " + ", ".join(f"{why} in {' and '.join(columns)}" for why, columns in missing.items()))
    yes = [t for t in j.tested if t.outcome == "yes"]
    if yes and (not said or j.verdict == "holds"):
        said.insert(0, f"{len(yes)} of {len(j.tested)} comparisons, smallest {_points(min(yes, key=_value))}")
    return "; ".join(said) or "no column speaks of it"


def _value(t: Tested) -> float:
    return t.found.value if t.found else math.nan


def _pair(t: Tested) -> str:
    return f"{title_of(t.comparison.a)} {MINUS} {title_of(t.comparison.b)}"


def _points(t: Tested) -> str:
    return "–" if t.found is None or math.isnan(t.found.value) else f"{_signed(t.found.value)} [{_signed(t.found.low)}, {_signed(t.found.high)}]"


def _drawn(t: Tested) -> str:
    drawn = t.drawn
    return f"[{_signed(drawn.low)}, {_signed(drawn.high)}]"


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "–" if math.isnan(value) else "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _difference(j: Judged, t: Tested) -> tuple[Cell, ...]:
    relation = {"above": "", "same": f" (same within {100 * MARGIN:.0f})", "not below": f" (not below by {100 * MARGIN:.0f})"}[t.comparison.relation]
    if t.found is None:
        return cells(j.claim.name, t.column, _pair(t) + relation, str(t.k), "–", "–", "–", "–", f"missing: {t.why}")
    outcome = "tie" if t.tie and t.comparison.relation == "above" else t.outcome
    p = "too few tasks" if math.isnan(t.p) else "<0.0001" if t.p < 1e-4 else f"{t.p:.4f}"
    return cells(j.claim.name, t.column, _pair(t) + relation, str(t.k), _points(t), _drawn(t), p, f"{t.found.tasks}, {t.found.runs}", outcome)


def _needs(t: Tested) -> tuple[Cell, ...]:
    assert t.found is not None
    n = t.needs
    spread, between = (("–" if s is None else f"{100 * s:.1f}") for s in (n.spread, n.run_spread))
    tasks, runs = (("–" if x is None else f"{x:,}") for x in (n.tasks, n.runs))
    return cells(t.column, _pair(t), str(t.k), f"{t.found.tasks:,}", spread, tasks, between, runs)


def claim_records(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    out = []
    for j in judged:
        out.append(record(kind="claim", table=j.claim.table, row=j.claim.name, verdict=j.verdict, note=f"{j.claim.text}: {_because(j)}"))
        for t in j.tested:
            common = {"table": j.claim.table, "column": t.column, "row": t.comparison.a, "against": t.comparison.b, "k": t.k}
            found = {} if t.found is None else {"value": t.found.value, "low": t.found.low, "high": t.found.high, "tasks": t.found.tasks, "runs": t.found.runs}
            measure = f"claim {j.claim.name}, {t.comparison.relation}"
            out.append(record(kind="comparison", measure=measure, p=t.p, verdict=t.outcome, note=t.why if t.found is None else "", **common, **found))
            if t.runs:
                needs = t.needs
                for name in ("spread", "tasks", "run_spread", "runs"):
                    out.append(record(kind="power", measure=f"claim {j.claim.name}, {name}", value=getattr(needs, name), **common))
    return out


def _say_missing(table: Table, columns: Sequence[World], kind: Kind, notes: _Notes) -> None:
    """Arms that were not run, stages that are not finished, runs that a row lacks: each with the command."""
    for column in columns:
        every = column.runs(kind)
        for row in table.rows:
            places = column.places.get((kind, row.key), {})
            for where, place in places.items():
                if place.done is None:
                    _say_unfinished(column, row, where, place, kind, notes)
            lacking = [where for where in every if where not in places and (row.key, where) not in column.absent]
            for (absent, where), why in column.absent.items():
                if absent == row.key:
                    notes.say(f"{row.title} has no figure in {column.title} ({where.words}): {why}.")
            if lacking and not places:
                notes.say(f"{row.title} has not been run in {column.title}: {_offer(column, row.key, kind, lacking)}")
            elif lacking:
                missing = ", ".join(where.words for where in lacking)
                notes.say(f"{row.title} lacks {len(lacking)} of {len(every)} runs in {column.title} ({missing}): {_offer(column, row.key, kind, lacking)}")
        seeds = {where.seed for where in every}
        if column.transfer:
            if len(every) == 1:
                notes.say(f"{column.title} has one run ({every[0].words}): train with more seeds (`leafe table 5 seeds=[0,1,2]` with its other settings).")
            continue
        if len(every) == 1 and not column.control:
            run = _folder_of(column, every[0], kind)
            notes.say(
                f"{column.title} has one run ({every[0].words}): its intervals cover other tasks and no other seeds. One seed more: "
                f"`{another_seed(run.run)}`, then both folders in one table."
            )
        for base in sorted({where.base for where in every}):
            gone = sorted(seeds - {where.seed for where in every if where.base == base})
            if gone:
                place = next(_folder_of(column, where, kind) for where in every if where.base == base)
                command = resume(place.run, f"seeds={gone}", name=f"{place.run.path.name}-seeds-{'-'.join(map(str, gone))}")
                notes.say(f"{column.title} lacks seeds {', '.join(map(str, gone))} of the base policy {base}: `{command}`")


def _say_dearer(table: Table, columns: Sequence[World], kind: Kind, notes: _Notes) -> None:
    """Rows that were made with more calls than one exploration is allowed: no comparison at equal budget."""
    for column in columns:
        for row in table.rows:
            places = column.places.get((kind, row.key), {})
            for where, result in column.results(row.key, kind).items():
                place = places[where]
                recipe, stage = (place.recipe, place.stage) if place.origin is None else place.origin[1:]
                calls, tasks = recipe.explore.limits.get("policy_calls"), task_count(recipe, stage.leg, "train")
                spent = result.cost.spent.policy_calls
                if calls and tasks and spent > calls * tasks:
                    notes.say(
                        f"{row.title} in {column.title} was made with {spent:,} policy calls in {result.cost.phases} phases, where one exploration is allowed "
                        f"{calls * tasks:,.0f}: what it gains on rows of one phase is not gained at equal budget."
                    )
                    break


def _say_unfinished(column: World, row: Row, where: Where, place: Place, kind: Kind, notes: _Notes) -> None:
    result = column.results(row.key, kind).get(where)
    there = f"{len(result.counts.tasks)} of {result.of}" if result else "none"
    command = resume(place.run)
    notes.say(f"{UNFINISHED} {row.title} is unfinished in {column.title} ({where.words}): {there} of its tasks are there, and no claim uses it. `{command}`")


def _folder_of(column: World, where: Where, kind: Kind) -> Place:
    return next(places[where] for (k, _), places in column.places.items() if k == kind and where in places)


def _offer(column: World, row: str, kind: Kind, lacking: Sequence[Where]) -> str:
    """The command for the first folder that lacks it, and how many more there are."""
    if column.transfer:
        return "`leafe table 5` makes the run, once the arm has been trained."
    folders: dict[str, Place] = {}
    for where in lacking:
        place = _folder_of(column, where, kind)
        folders.setdefault(str(place.run.path), place)
    first = next(iter(folders.values()))
    command = add_row(first.run, row, first.stage.leg.control)
    rest = f"; and likewise in {', '.join(list(folders)[1:])}" if len(folders) > 1 else ""
    return (command if command.startswith("no command") else f"`{command}`") + rest


def _say_how(columns: Sequence[World], kind: Kind, notes: _Notes) -> None:
    for column in columns:
        few = top_k(column) if kind == "evaluate" else 128
        if few < 128:
            notes.say(f"{column.title} has too few samples a task for Pass@128 and shows Pass@{few}: evaluate.samples=128.")
        if column.control:
            notes.say(f"{column.title} is a control: its rules are random in every task, so that there is nothing to internalise; no claim speaks of it.")
    if kind == "evaluate":
        notes.say("Intervals of cells draw runs (a seed of a base policy) first and tasks within them; differences are paired by task.")
        notes.say("What an arm cost holds all explorations and trainings that it builds on; rows that learn from one exploration are each charged for it.")
    for sentence in _HOW_CLAIMS:
        notes.say(sentence)
    versions = {f"{c.world} {n} {v}" for c in columns for p in c.places.values() for x in p.values() for n, v in ((x.done or {}).get("world") or {}).items()}
    if versions:
        notes.say("World versions: " + ", ".join(sorted(versions)) + ".")
