"""The notes under a table: rows, runs and seeds that it lacks, each with the command for it, and
what a reader must know of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.pipeline import checkpoint_of, stage_name
from studies.paper.claims import CAPACITY, top_k
from studies.paper.columns import Column
from studies.paper.commands import add_row, another_seed, resume, seed_folder, test_weights
from studies.paper.definitions import Table, TableRow
from studies.paper.results import RowKind, RowResult, RunKey, StoredStage
from studies.paper.verdicts import CLAIM_NOTES

UNFINISHED = "†"


def note_missing(table: Table, columns: Sequence[Column], kind: RowKind, notes: list[str]) -> None:
    """Arms that were not run, stages that are not finished, runs that a row lacks: each with the
    command."""
    for column in columns:
        every = column.runs(kind)
        for row in table.rows:
            _note_row(column, row, kind, every, notes)
        if column.transfer:
            _note_transfer_seeds(column, every, kind, notes)
            continue
        if len(every) == 1 and not column.why_control:
            run = _stage_of(column, every[0], kind).run
            notes.append(
                f"{column.title} has one run ({every[0].label}): its intervals cover other "
                "tasks and no other seeds. One seed more: "
                f"`{another_seed(run)}`, then both folders in one table."
            )
        seeds = {key.seed for key in every}
        for base in sorted({key.base for key in every}):
            own = [key for key in every if key.base == base]
            missing = sorted(seeds - {key.seed for key in own})
            if missing:
                run = _stage_of(column, own[0], kind).run
                name = f"{run.path.name}-seeds-{'-'.join(map(str, missing))}"
                notes.append(
                    f"{column.title} lacks seeds {', '.join(map(str, missing))} of the base "
                    f"policy {base}: `{resume(run, f'seeds={missing}', name=name)}`"
                )


def _note_row(
    column: Column, row: TableRow, kind: RowKind, every: Sequence[RunKey], notes: list[str]
) -> None:
    stored = column.stored.get((kind, row.key), {})
    results = column.results(row.key, kind)
    for key, stage in stored.items():
        if not stage.done or key not in results or not results[key].finished:
            notes.append(_unfinished(column, row, stage, results.get(key)))
    for (absent, key), why in column.absent.items():
        if absent == row.key:
            notes.append(f"{row.title} has no figure in {column.title} ({key.label}): {why}.")
    missing = [k for k in every if k not in stored and (row.key, k) not in column.absent]
    if not missing:
        return
    command = _row_command(column, row.key, kind, missing)
    if not stored:
        notes.append(f"{row.title} has not been run in {column.title}: {command}")
    else:
        runs = ", ".join(key.label for key in missing)
        notes.append(
            f"{row.title} lacks {len(missing)} of {len(every)} runs in "
            f"{column.title} ({runs}): {command}"
        )


def _unfinished(column: Column, row: TableRow, stage: StoredStage, result: RowResult | None) -> str:
    there = f"{len(result.counts.tasks)} of {result.total}" if result else "none"
    command = f"`{resume(stage.run)}`"
    if stage.done.get("given_up"):
        command = (
            f"{stage.done['given_up']} of them were given up, since they failed again and "
            "again where others did not."
        )
    elif stage.done:
        command = (
            f"It is marked as finished all the same: restore the journal in {stage.folder}, or "
            f"delete that folder, then {command}"
        )
    return (
        f"{UNFINISHED} {row.title} is unfinished in {column.title} ({stage.run_key.label}): "
        f"{there} of its tasks are there, and no claim uses it. {command}"
    )


def warn_over_budget(
    table: Table, columns: Sequence[Column], kind: RowKind, notes: list[str]
) -> None:
    """Note the rows that were made with more calls than one exploration is allowed: they are no
    comparison at equal budget."""
    for column in columns:
        for row in table.rows:
            stored = column.stored.get((kind, row.key), {})
            for key, result in column.results(row.key, kind).items():
                made = stored[key].made
                calls, tasks = made.recipe.explore.limits.get("policy_calls"), made.tasks("train")
                spent = result.cost.spent.policy_calls
                if calls and tasks and spent > calls * tasks:
                    notes.append(
                        f"{row.title} in {column.title} was made with {spent:,} policy "
                        f"calls in {result.cost.phases} phases, where one exploration is "
                        f"allowed {calls * tasks:,.0f}: what it gains on rows of one phase is "
                        "not gained at equal budget."
                    )
                    break


def _stage_of(column: Column, key: RunKey, kind: RowKind) -> StoredStage:
    """Any stage of this run."""
    rows = (stored for (k, _), stored in column.stored.items() if k == kind)
    return next(stored[key] for stored in rows if key in stored)


def _row_command(column: Column, row: str, kind: RowKind, missing: Sequence[RunKey]) -> str:
    """The command for the first folder that lacks the row, and the other folders."""
    if column.transfer:
        return _transfer_command(column, row, kind, missing[0])
    stages = [_stage_of(column, key, kind) for key in missing]
    folders = list(dict.fromkeys(str(stage.run.path) for stage in stages))
    command = add_row(stages[0].run, row, stages[0].stage.variant.control)
    rest = f"; and likewise in {', '.join(folders[1:])}" if len(folders) > 1 else ""
    return _quoted(command) + rest


def _quoted(command: str) -> str:
    return command if command.startswith("no command") else f"`{command}`"


def _transfer_command(column: Column, row: str, kind: RowKind, key: RunKey) -> str:
    """In an environment where policies are only tested: the command for the training, where there
    is none yet, and the one for the test."""
    tested = _transfer_test(column, kind, key)
    if tested is None or tested.origin is None:
        return "`python -m studies.paper table 5` makes the run, once the arm has been trained."
    run, recipe, stage = tested.origin.run, tested.origin.recipe, tested.origin.stage
    if row == "base":
        return f"`{test_weights(tested.run, recipe.policy.model, row, key.seed)}`"
    weights = checkpoint_of(run, stage.variant, row)
    path = weights or run.path / stage_name("distill", stage.variant, row) / "checkpoint"
    command = f"`{test_weights(tested.run, str(path), row, key.seed)}`"
    if weights is not None:
        return command
    training = add_row(run, row)
    return _quoted(training) + ("" if training.startswith("no command") else f", then {command}")


def _note_transfer_seeds(
    column: Column, every: Sequence[RunKey], kind: RowKind, notes: list[str]
) -> None:
    tested = _transfer_test(column, kind, every[0])
    if len(every) > 1 or tested is None or tested.origin is None:
        return
    path, seed = seed_folder(tested.origin.run)
    weights = path / "distill" / tested.row.replace(" ", "-") / "checkpoint"
    notes.append(
        f"{column.title} has one run ({every[0].label}): its intervals cover other tasks "
        "and no other seeds. One seed more: "
        f"`{another_seed(tested.origin.run)}`, then each of its policies in a folder of its own, "
        f"as `{test_weights(tested.run, str(weights), tested.row, seed)}`."
    )


def _transfer_test(column: Column, kind: RowKind, key: RunKey) -> StoredStage | None:
    """A test of a policy that another folder trained in this run."""
    rows = (stored for (k, _), stored in column.stored.items() if k == kind)
    found = (stored[key] for stored in rows if key in stored)
    return next((stage for stage in found if stage.origin is not None), None)


def note_methods(columns: Sequence[Column], kind: RowKind, notes: list[str]) -> None:
    """Note how figures, costs and intervals were made, and in which environment versions."""
    for column in columns:
        k = top_k(column) if kind == "evaluate" else CAPACITY
        if k < CAPACITY:
            notes.append(
                f"{column.title} has too few samples a task for Pass@128 and shows "
                f"Pass@{k}: evaluate.samples=128."
            )
        if column.why_control:
            notes.append(
                f"{column.title} is a control: {column.why_control}; no claim speaks of it."
            )
    if kind == "evaluate":
        notes += [
            "Intervals are the widest of three: over runs (a seed of a base policy), over tasks, "
            "and with one more task that says the contrary; differences are paired by task.",
            "What an arm cost holds all explorations and trainings that it builds on; rows that "
            "learn from one exploration are each charged for it.",
        ]
    notes += CLAIM_NOTES
    versions = {
        f"{column.env} {name} {version}"
        for column in columns
        for stage in column.every_stage()
        for name, version in (stage.done.get("env") or {}).items()
    }
    if versions:
        notes.append("Environment versions: " + ", ".join(sorted(versions)) + ".")
