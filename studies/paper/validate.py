"""What cannot stand in one table raises a UserError that names both folders: other budgets or ways
of testing, other tasks, other environment versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leafe.core import UserError
from studies.paper.columns import Column
from studies.paper.results import Origin, RowKind, RunKey, StoredStage, chosen_temperature


def validate_arm(a: StoredStage, b: StoredStage) -> None:
    """The same row of the same run was trained by the same settings."""
    one, other = (s.recipe.arms.get(s.row) for s in (a, b))
    if one != other:
        raise UserError(
            f"{a.row} was trained by other settings in {a.run.path} than in {b.run.path}: "
            "rename one of the two arms, or leave one folder out."
        )


def validate_budget(column: Column) -> None:
    """Every row of a column had the same budget and was tested in the same way."""
    first: dict[str, tuple[Origin, dict[str, Any]]] = {}
    for stored in column.every_stage():
        checks: list[tuple[str, Origin, dict[str, Any]]] = [
            ("tested", stored, _test_settings(stored))
        ]
        if not column.transfer and (stored.recipe.strategies or stored.recipe.arms):
            checks.insert(0, ("here", stored, _budget(stored)))
        if stored.origin is not None:
            checks.insert(-1, ("there", stored.origin, _budget(stored.origin)))
        for what, origin, own in checks:
            other, before = first.setdefault(what, (origin, own))
            different = [name for name in {**before, **own} if before.get(name) != own.get(name)]
            if different:
                differences = "; ".join(
                    f"{name} is {_shown(before.get(name))} in the one and "
                    f"{_shown(own.get(name))} in the other"
                    for name in different[:4]
                )
                raise UserError(
                    f"{other.run.path} and {origin.run.path} cannot stand in one table: "
                    f"{differences}. Give folders of one budget and one way of testing."
                )


def _test_settings(stored: StoredStage) -> dict[str, Any]:
    """How policies are tested. Not the number of samples, which Pass@k allows for, and not a
    temperature that was chosen for an arm where it was trained."""
    recipe, origin = stored.recipe, stored.origin
    temperature = recipe.evaluate.temperature
    if (
        origin is not None
        and chosen_temperature(origin.run, origin.stage.variant, stored.row) == temperature
    ):
        temperature = origin.recipe.evaluate.temperature
    return {
        "prompts": recipe.prompts,
        "history": recipe.history,
        "explore.horizon": recipe.explore.horizon,
        "explore.max_invalid_actions": recipe.explore.max_invalid_actions,
        "evaluate.temperature": temperature,
        "evaluate.top_p": recipe.evaluate.top_p,
        "tasks.test": stored.tasks("test"),
    }


def _budget(origin: Origin) -> dict[str, Any]:
    """The budget that every exploration has."""
    explore = origin.recipe.explore
    return {
        **{f"explore.limits.{name}": value for name, value in explore.limits.items()},
        **{f"explore.run_limits.{name}": value for name, value in explore.run_limits.items()},
        "tasks.train": origin.tasks("train"),
        "tasks.train_split": origin.recipe.tasks.train_split,
    }


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def validate_tasks(column: Column) -> None:
    """All rows of one run played the same tasks."""
    first: dict[tuple[RowKind, RunKey], tuple[StoredStage, str]] = {}
    for (kind, _), rows in column.stored.items():
        for key, stored in rows.items():
            tasks = stored.tasks_hash
            other, before = first.setdefault((kind, key), (stored, tasks))
            if tasks != before:
                what = "training" if kind == "explore" else "test"
                raise UserError(
                    f"{other.folder} and {stored.folder} hold other {what} tasks, though "
                    f"both are {key.label}: rows of one table are compared task by task; "
                    "leave one of the two folders out."
                )


def validate_versions(columns: Sequence[Column]) -> None:
    """Every environment has one version throughout a table."""
    first: dict[str, tuple[StoredStage, dict[str, Any]]] = {}
    for column in columns:
        for stored in column.every_stage():
            versions = stored.done.get("env") or {}
            if not versions:
                continue
            other, before = first.setdefault(column.env, (stored, versions))
            for name in {**before, **versions}:
                if before.get(name) != versions.get(name):
                    raise UserError(
                        f"{other.run.path} and {stored.run.path} were made in other versions of "
                        f"the environment {column.env!r} ({name} {before.get(name)!r} and "
                        f"{versions.get(name)!r}): figures of the two cannot be compared; run "
                        "one of them anew."
                    )
