"""Run folders as the columns of a table.

A *run* of a row is one seed of one base policy (`RunKey`). Many folders may hold runs of one
column, and one folder those of several (its controls are columns of their own). A folder whose base
policy is a checkpoint that another folder trained tests that arm in another environment. What
cannot be compared raises here, before a figure is made of it (`validate`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.explore import STRATEGIES
from leafe.pipeline import StageResult, env_options, plan, recipe_of
from leafe.recipes import Recipe
from leafe.runs import RunFolder
from studies.paper.columns import Column, Evidence
from studies.paper.commands import resume
from studies.paper.results import Origin, RowKind, RowResult, RunKey, StoredStage, base_name
from studies.paper.validate import (
    validate_arm,
    validate_budget,
    validate_tasks,
    validate_versions,
)


def gather(
    paths: Sequence[Path], *, by_base: bool = False, cache: dict[Path, RowResult] | None = None
) -> Evidence:
    """Read run folders as columns of a table.

    Args:
        paths: the run folders.
        by_base: give each base policy columns of its own; else base policies are runs of one
            column, as seeds are.
        cache: results that an earlier call has read, by stage folder.

    Raises:
        UserError: what they hold cannot stand in one table, or a folder is no whole run.
    """
    found: dict[str, Column] = {}
    notes: list[str] = []
    runs = [RunFolder.read(path) for path in dict.fromkeys(paths)]
    for run in runs:
        if "shard" in run.config:
            raise UserError(
                f"{run.path} is a shard of a run: put the shards together with `leafe merge` first."
            )
        for stage in _stored_stages(run, recipe_of(run)):
            _add_stage(stage, found, notes, by_base)
    columns = list(found.values())
    _share_base(columns)
    _share_reasons(columns)
    columns = [c for c in columns if c.stored or c.absent]
    cache = {} if cache is None else cache
    for column in columns:
        column.cache = cache
        validate_budget(column)
        validate_tasks(column)
    validate_versions(columns)
    _set_titles(columns)
    return Evidence(columns, notes, runs)


def _stored_stages(run: RunFolder, recipe: Recipe) -> Iterator[StoredStage]:
    """The stages of a run that are rows of tables."""
    origin = _origin(run, recipe)
    base = (origin.recipe if origin else recipe).policy.model
    attempt = origin.stage.attempt if origin else None
    for stage in plan(recipe):
        explored = (
            stage.kind == "explore" and stage.what in STRATEGIES and str(stage.policy) == "base"
        )
        if explored or stage.kind == "evaluate":
            row = attempt.arm if attempt and stage.role == "base" else stage.what
            seed = (origin.stage if origin else stage).variant.seed
            yield StoredStage(run, recipe, stage, row, RunKey(base, seed), origin)


def _origin(run: RunFolder, recipe: Recipe) -> Origin | None:
    """The training of the policy that this run calls its base; None where no run folder has it."""
    model = Path(recipe.policy.model)
    if model.name != "checkpoint" or model.parent.parent.name != "distill":
        return None
    for path in (model.parents[2], run.path.parent / model.parents[2].name):
        if (path / "manifest.json").is_file() and path.resolve() != run.path.resolve():
            trained = RunFolder.read(path)
            trained_recipe = recipe_of(trained)
            for stage in plan(trained_recipe):
                if stage.kind == "distill" and Path(stage.name).name == model.parent.name:
                    return Origin(trained, trained_recipe, stage)
    return None


def _add_stage(
    stored: StoredStage, found: dict[str, Column], notes: list[str], by_base: bool
) -> None:
    """Put the stage into its column, which is made where it is missing."""
    stage, recipe = stored.stage, stored.recipe
    options = env_options(recipe, stage.variant)
    transfer = stored.origin is not None and stored.origin.env != stored.env
    base = stored.run_key.base if by_base else ""
    identity = [recipe.env.name, options, recipe.tasks.test_split, base, transfer]
    column = found.setdefault(
        json.dumps(identity, sort_keys=True),
        Column(recipe.env.name, options, recipe.tasks.test_split, transfer, base),
    )
    column.recipes.setdefault(stored.run.path, recipe)
    column.roles.setdefault(stored.row, stage.role if stored.origin is None else "arm")
    done = stored.done
    why = StageResult.parse(done).reason
    if why:
        column.absent[stored.row, stored.run_key] = why
        return
    if not (stored.folder / "tasks.jsonl").is_file():
        if done:
            raise UserError(
                f"{stored.folder} is marked as finished and has no tasks.jsonl: restore it, "
                f"or delete the folder and go on with `{resume(stored.run)}`."
            )
        return
    kind: RowKind = "explore" if stage.kind == "explore" else "evaluate"
    rows = column.stored.setdefault((kind, stored.row), {})
    before = rows.setdefault(stored.run_key, stored)
    if before is stored:
        return
    validate_arm(before, stored)
    if done and not before.done:
        before, rows[stored.run_key] = stored, stored
    notes.append(
        f"{stored.row} ({stored.run_key.label}) is in {before.run.path} and in another folder "
        "too; the table takes one of them."
    )


def _share_base(columns: list[Column]) -> None:
    """The base policy of a transfer column is sampled in a run of its own, or in any other run of
    that environment."""

    def env(c: Column) -> list[Any]:
        return [c.env, c.options, c.split, c.base]

    for column in [c for c in columns if c.transfer]:
        for other in [c for c in columns if not c.transfer and env(c) == env(column)]:
            own, others = (c.stored.get(("evaluate", "base"), {}) for c in (column, other))
            column.stored["evaluate", "base"] = {**others, **own}
            column.roles["base"] = "base"
            if set(other.stored) <= {("evaluate", "base")} and not other.absent:
                columns.remove(other)


def _share_reasons(columns: Sequence[Column]) -> None:
    """Why an arm has no weights where it was trained is why it has no figure where it was to be
    tested."""
    for column in [c for c in columns if c.transfer]:
        trained = [c for c in columns if not c.transfer and (c.env, c.options) in column.origins]
        for (row, key), why in [item for c in trained for item in c.absent.items()]:
            if key in column.runs() and key not in column.stored.get(("evaluate", row), {}):
                column.absent[row, key] = why


_PLAIN = ("setting", "rules", "words")
"""Options that name a column by their value alone."""


def _set_titles(columns: Sequence[Column]) -> None:
    """Title a column by its environment and those options in which columns differ."""
    for column in columns:
        alike = [c for c in columns if c.env == column.env]
        words = [
            str(value) if name in _PLAIN else f"{name} {value}"
            for name, value in column.options.items()
            if name in _PLAIN or any(c.options.get(name) != value for c in alike)
        ]
        words += [column.split] if column.split != "test" else []
        words += [base_name(column.base)] if column.base else []
        words += ["(transfer)"] if column.transfer else []
        column.title = " ".join([column.env, *words])
    for nth, column in enumerate(columns):
        if any(c.title == column.title for c in columns[:nth]):
            column.title += f" ({nth + 1})"
