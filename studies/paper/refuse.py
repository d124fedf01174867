"""What cannot stand in one table, refused with a sentence that names both folders: other budgets or
ways of testing, other tasks, other environment versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leafe.core import UserError
from leafe.pipeline import Stage, task_count
from leafe.recipes import Recipe
from studies.paper.results import Kind, Place, Where, chosen_temperature

if TYPE_CHECKING:
    from studies.paper.evidence import Column


def same_arm(a: Place, b: Place) -> None:
    one, other = (p.recipe.arms.get(p.row) for p in (a, b))
    if one != other:
        raise UserError(
            f"{a.row} was trained by other settings in {a.run.path} than in {b.run.path}: "
            "rename one of the two arms, or leave one folder out."
        )


def settings(place: Place) -> dict[str, Any]:
    """How policies are tested. Not the number of samples, which Pass@k allows for, and not a
    temperature that was chosen for an arm where it was trained."""
    recipe, stage = place.recipe, place.stage
    temperature = recipe.evaluate.temperature
    if (
        place.origin is not None
        and chosen_temperature(place.origin[0], place.origin[2].variant, place.row) == temperature
    ):
        temperature = place.origin[1].evaluate.temperature
    return {
        "prompts": recipe.prompts,
        "history": recipe.history,
        "explore.horizon": recipe.explore.horizon,
        "explore.max_invalid_actions": recipe.explore.max_invalid_actions,
        "evaluate.temperature": temperature,
        "evaluate.top_p": recipe.evaluate.top_p,
        "tasks.test": task_count(recipe, stage.variant, "test"),
    }


def budget_of(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The budget that every exploration has."""
    limits: dict[str, Any] = {
        f"explore.limits.{name}": value for name, value in recipe.explore.limits.items()
    }
    limits |= {
        f"explore.run_limits.{name}": value for name, value in recipe.explore.run_limits.items()
    }
    return limits | {
        "tasks.train": task_count(recipe, stage.variant, "train"),
        "tasks.train_split": recipe.tasks.train_split,
    }


def same_budget(column: Column) -> None:
    first: dict[str, tuple[Place, dict[str, Any]]] = {}
    for place in _every(column):
        here = (
            budget_of(place.recipe, place.stage)
            if place.recipe.strategies or place.recipe.arms
            else {}
        )
        there = budget_of(place.origin[1], place.origin[2]) if place.origin else {}
        for what, mine in (
            ("here", here if not column.transfer else {}),
            ("there", there),
            ("tested", settings(place)),
        ):
            if not mine:
                continue
            other, before = first.setdefault(what, (place, mine))
            different = [name for name in {**before, **mine} if before.get(name) != mine.get(name)]
            if different:
                a, b = (
                    p.origin[0].path if what == "there" and p.origin else p.run.path
                    for p in (other, place)
                )
                said = "; ".join(
                    (
                        f"{name} is {_said(before.get(name))} in the one and "
                        f"{_said(mine.get(name))} in the other"
                    )
                    for name in different[:4]
                )
                raise UserError(
                    f"{a} and {b} cannot stand in one table: {said}. Give folders of one "
                    "budget and one way of testing."
                )


def _said(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def same_tasks(column: Column) -> None:
    first: dict[tuple[Kind, Where], tuple[Place, str]] = {}
    for (kind, _), places in column.places.items():
        for where, place in places.items():
            tasks = place.tasks
            other, before = first.setdefault((kind, where), (place, tasks))
            if tasks != before:
                what = "training" if kind == "explore" else "test"
                raise UserError(
                    f"{other.folder} and {place.folder} hold other {what} tasks, though "
                    f"both are {where.words}: rows of one table are compared task by task; "
                    "leave one of the two folders out."
                )


def same_envs(columns: Sequence[Column]) -> None:
    """One version of every environment throughout a table."""
    first: dict[str, tuple[Place, dict[str, Any]]] = {}
    for column in columns:
        for place in _every(column):
            versions = (place.done or {}).get("env") or {}
            if not versions:
                continue
            other, before = first.setdefault(column.env, (place, versions))
            different = next(
                (name for name in {**before, **versions} if before.get(name) != versions.get(name)),
                None,
            )
            if different is not None:
                raise UserError(
                    f"{other.run.path} and {place.run.path} were made in other versions of "
                    f"the environment {column.env!r} ({different} "
                    f"{before.get(different)!r} "
                    f"and {versions.get(different)!r}): figures of the two cannot be "
                    "compared; run one of them anew."
                )


def _every(column: Column) -> list[Place]:
    return [place for places in column.places.values() for place in places.values()]
