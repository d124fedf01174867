"""What stands under a table: rows, runs and seeds that it lacks, each with the command for it, and
what a reader must know of the figures that are there."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.pipeline import checkpoint_of, stage_name, task_count
from studies.paper.claims import top_k
from studies.paper.commands import add_row, another_seed, resume, seed_folder, try_elsewhere
from studies.paper.define import Row, Table
from studies.paper.evidence import Column
from studies.paper.judged import HOW_CLAIMS
from studies.paper.results import Kind, Place, Result, Where

UNFINISHED = "†"


class Notes:
    """What stands under a table, each sentence once."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)


def say_missing(table: Table, columns: Sequence[Column], kind: Kind, notes: Notes) -> None:
    """Arms that were not run, stages that are not finished, runs that a row lacks: each with the
    command."""
    for column in columns:
        every = column.runs(kind)
        for row in table.rows:
            places = column.places.get((kind, row.key), {})
            results = column.results(row.key, kind)
            for where, place in places.items():
                if place.done is None or where not in results or not results[where].finished:
                    _say_unfinished(column, row, where, place, results.get(where), notes)
            lacking = [
                where
                for where in every
                if where not in places and (row.key, where) not in column.absent
            ]
            for (absent, where), why in column.absent.items():
                if absent == row.key:
                    notes.say(
                        f"{row.title} has no figure in {column.title} ({where.words}): {why}."
                    )
            if lacking and not places:
                notes.say(
                    f"{row.title} has not been run in {column.title}: "
                    f"{_offer(column, row.key, kind, lacking)}"
                )
            elif lacking:
                missing = ", ".join(where.words for where in lacking)
                notes.say(
                    f"{row.title} lacks {len(lacking)} of {len(every)} runs in "
                    f"{column.title} ({missing}): {_offer(column, row.key, kind, lacking)}"
                )
        seeds = {where.seed for where in every}
        if column.transfer:
            _say_seeds_elsewhere(column, every, kind, notes)
            continue
        if len(every) == 1 and not column.why_control:
            run = _folder_of(column, every[0], kind)
            notes.say(
                f"{column.title} has one run ({every[0].words}): its intervals cover other "
                "tasks and no other seeds. One seed more: "
                f"`{another_seed(run.run)}`, then both folders in one table."
            )
        for base in sorted({where.base for where in every}):
            gone = sorted(seeds - {where.seed for where in every if where.base == base})
            if gone:
                place = next(
                    _folder_of(column, where, kind) for where in every if where.base == base
                )
                command = resume(
                    place.run,
                    f"seeds={gone}",
                    name=f"{place.run.path.name}-seeds-{'-'.join(map(str, gone))}",
                )
                notes.say(
                    f"{column.title} lacks seeds {', '.join(map(str, gone))} of the base "
                    f"policy {base}: `{command}`"
                )


def warn_over_budget(table: Table, columns: Sequence[Column], kind: Kind, notes: Notes) -> None:
    """Rows that were made with more calls than one exploration is allowed: no comparison at equal
    budget."""
    for column in columns:
        for row in table.rows:
            places = column.places.get((kind, row.key), {})
            for where, result in column.results(row.key, kind).items():
                place = places[where]
                recipe, stage = (
                    (place.recipe, place.stage) if place.origin is None else place.origin[1:]
                )
                calls, tasks = (
                    recipe.explore.limits.get("policy_calls"),
                    task_count(recipe, stage.variant, "train"),
                )
                spent = result.cost.spent.policy_calls
                if calls and tasks and spent > calls * tasks:
                    notes.say(
                        f"{row.title} in {column.title} was made with {spent:,} policy "
                        f"calls in {result.cost.phases} phases, where one exploration is "
                        "allowed "
                        f"{calls * tasks:,.0f}: what it gains on rows of one phase is not "
                        "gained at equal budget."
                    )
                    break


def _say_unfinished(
    column: Column, row: Row, where: Where, place: Place, result: Result | None, notes: Notes
) -> None:
    there = f"{len(result.counts.tasks)} of {result.of}" if result else "none"
    command = f"`{resume(place.run)}`"
    if place.done is not None and place.done.get("given_up"):
        command = (
            f"{place.done['given_up']} of them were given up, since they failed again and "
            "again where others did not."
        )
    elif place.done is not None:
        command = (
            f"It is marked as finished all the same: restore the journal in {place.folder}, or "
            f"delete that folder, then {command}"
        )
    notes.say(
        f"{UNFINISHED} {row.title} is unfinished in {column.title} ({where.words}): "
        f"{there} of its tasks are there, and no claim uses it. {command}"
    )


def _folder_of(column: Column, where: Where, kind: Kind) -> Place:
    return next(
        places[where] for (k, _), places in column.places.items() if k == kind and where in places
    )


def _offer(column: Column, row: str, kind: Kind, lacking: Sequence[Where]) -> str:
    """The command for the first folder that lacks it, and how many more there are."""
    if column.transfer:
        return _offer_elsewhere(column, row, kind, lacking[0])
    folders: dict[str, Place] = {}
    for where in lacking:
        place = _folder_of(column, where, kind)
        folders.setdefault(str(place.run.path), place)
    first = next(iter(folders.values()))
    command = add_row(first.run, row, first.stage.variant.control)
    rest = f"; and likewise in {', '.join(list(folders)[1:])}" if len(folders) > 1 else ""
    return (command if command.startswith("no command") else f"`{command}`") + rest


def _offer_elsewhere(column: Column, row: str, kind: Kind, where: Where) -> str:
    """In an environment where policies are only tested: the training, where there is none yet, and
    the test."""
    tested = _tested_there(column, kind, where)
    if tested is None or tested.origin is None:
        return "`leafe table 5` makes the run, once the arm has been trained."
    run, recipe, stage = tested.origin
    if row == "base":
        return f"`{try_elsewhere(tested.run, recipe.policy.model, row, where.seed)}`"
    weights = checkpoint_of(run, stage.variant, row)
    command = try_elsewhere(
        tested.run,
        str(weights or run.path / stage_name("distill", stage.variant, row) / "checkpoint"),
        row,
        where.seed,
    )
    if weights is not None:
        return f"`{command}`"
    training = add_row(run, row)
    return training if training.startswith("no command") else f"`{training}`, then `{command}`"


def _say_seeds_elsewhere(column: Column, every: Sequence[Where], kind: Kind, notes: Notes) -> None:
    tested = _tested_there(column, kind, every[0])
    if len(every) > 1 or tested is None or tested.origin is None:
        return
    path, seed = seed_folder(tested.origin[0])
    weights = path / "distill" / tested.row.replace(" ", "-") / "checkpoint"
    notes.say(
        f"{column.title} has one run ({every[0].words}): its intervals cover other tasks "
        "and no other seeds. One seed more: "
        f"`{another_seed(tested.origin[0])}`, then each of its policies in a folder of its own, as "
        f"`{try_elsewhere(tested.run, str(weights), tested.row, seed)}`."
    )


def _tested_there(column: Column, kind: Kind, where: Where) -> Place | None:
    """A test of a policy that another folder trained in this run."""
    found = (
        places[where] for (k, _), places in column.places.items() if k == kind and where in places
    )
    return next((place for place in found if place.origin is not None), None)


def say_how(columns: Sequence[Column], kind: Kind, notes: Notes) -> None:
    for column in columns:
        few = top_k(column) if kind == "evaluate" else 128
        if few < 128:
            notes.say(
                f"{column.title} has too few samples a task for Pass@128 and shows "
                f"Pass@{few}: evaluate.samples=128."
            )
        if column.why_control:
            notes.say(f"{column.title} is a control: {column.why_control}; no claim speaks of it.")
    if kind == "evaluate":
        notes.say(
            "Intervals are the widest of three: over runs (a seed of a base policy), over "
            "tasks, and with one more task that says the contrary; "
            "differences are paired by task."
        )
        notes.say(
            "What an arm cost holds all explorations and trainings that it builds on; rows "
            "that learn from one exploration are each charged for it."
        )
    for sentence in HOW_CLAIMS:
        notes.say(sentence)
    versions = {
        f"{c.env} {n} {v}"
        for c in columns
        for p in c.places.values()
        for x in p.values()
        for n, v in ((x.done or {}).get("env") or {}).items()
    }
    if versions:
        notes.say("Environment versions: " + ", ".join(sorted(versions)) + ".")
