"""Which recipes a table runs, cut down to what it needs: its own arms, those that they build on, and what an earlier table left in the same folder.

All tables of one recipe share a run folder, so that the second finds done what the first has done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.pipeline import StageKind, checkpoint_of, legs, recipe_of
from leafe.recipes import Recipe, load_recipe, parse_recipe
from leafe.runs import RunFolder
from leafe.tables._commands import with_arms
from leafe.tables._define import ARMS, STRATEGIES, RecipeSet, Table


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe to run, or to go on with."""

    recipe: Recipe
    folder: Path
    only: StageKind | None = None


def jobs_of(table: Table, recipes: RecipeSet, overrides: Sequence[str], runs: Path) -> tuple[list[Job], list[str]]:
    """(what to run for a table, sentences on arms that cannot be made); UserError where recipe and overrides do not fit."""
    if table.kind == "transfer" and recipes.transfer is None:
        raise UserError("Table 5 tests policies in a world that they were not trained in, and no such world is set for this recipe set: try gates or code.")
    jobs, said = [], []
    for name in recipes.recipes[:1] if table.main or table.kind == "transfer" else recipes.recipes:
        job, lacking = _job(table, name, overrides, runs)
        jobs.append(job)
        said += lacking
    return jobs, list(dict.fromkeys(said))


def _job(table: Table, name: str, overrides: Sequence[str], runs: Path) -> tuple[Job, list[str]]:
    recipe = load_recipe(name, overrides)
    folder = runs / recipe.name
    before = recipe_of(RunFolder.read(folder)) if (folder / "manifest.json").is_file() else None
    wanted = [] if table.kind == "explore" else [row.key for row in table.rows if row.key in ARMS]
    strategies = [row.key for row in STRATEGIES] if table.kind == "explore" else []
    arms: dict[str, Any] = {}
    said = []
    for row in wanted:
        try:
            own, _ = with_arms(recipe, [row])
        except UserError as error:
            said.append(f"{row} cannot be run: {error}")
            continue
        arms |= _closure(row, own)
    old = {} if before is None else {n: a.model_dump(mode="json", exclude_none=True, exclude_defaults=True) for n, a in before.arms.items()}
    arms = old | arms
    needed = {arm.get("explored", "tree") for arm in arms.values() if arm.get("explorer", "base") == "base"}
    needed |= {*strategies, *(() if before is None else before.strategies)}
    kept = [s for s in dict.fromkeys([*(() if before is None else before.strategies), *recipe.strategies, *strategies, *sorted(needed)]) if s in needed]
    return Job(_with(recipe, arms, kept), folder, "explore" if table.kind == "explore" else None), said


def _closure(row: str, arms: dict[str, Any]) -> dict[str, Any]:
    """The arm after all that it builds on."""
    out: dict[str, Any] = {}
    for role in ("start", "explorer"):
        other = arms[row].get(role, "base")
        if other != "base":
            out |= _closure(other, arms)
    return out | {row: arms[row]}


def _with(recipe: Recipe, arms: dict[str, Any], strategies: Sequence[str]) -> Recipe:
    """The recipe with these arms and strategies alone; what speaks of others goes."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    rows = {"base", *arms}
    extras = {name: extra for name, extra in data["evaluate"]["extras"].items() if extra["policy"] in rows or ":" in extra["policy"]}
    compare = [pair for pair in data["evaluate"]["compare"] if set(pair) <= rows | set(extras)]
    controls = {
        name: leg | {"arms": [a for a in leg["arms"] if a in arms], "strategies": [s for s in leg["strategies"] if s in strategies]}
        for name, leg in data["controls"].items()
    }
    tries = {name: row for name, row in data["evaluate"]["tries"].items() if row["policy"] in rows}
    evaluate = data["evaluate"] | {"extras": extras, "compare": compare, "tries": tries}
    data |= {"arms": arms, "strategies": list(strategies), "controls": controls, "evaluate": evaluate}
    return parse_recipe(data, f"The recipe {recipe.name}")


_TESTED = ("tasks.test", "evaluate.", "policy.", "jobs", "engine", "ray.")
"""Overrides that also reach the recipe of the other world."""


def transfer_jobs(table: Table, recipes: RecipeSet, overrides: Sequence[str], trained: Job) -> list[Job]:
    """For every policy of the table that `trained` holds, a run that tests it in the other world; a folder each."""
    assert recipes.transfer is not None
    run = RunFolder.read(trained.folder)
    recipe = recipe_of(run)
    out = []
    kept = [o for o in overrides if o.startswith(_TESTED) and not o.startswith("policy.model")]
    for leg in legs(recipe):
        for row in () if leg.control else table.rows:
            if row.key == "base":
                model = recipe.policy.model
            elif row.key in recipe.arms and (found := checkpoint_of(run, leg, row.key)) is not None:
                model = str(found)
            else:
                continue
            name = f"{recipes.transfer}.{leg.prefix}{row.key}".replace(" ", "-")
            other = load_recipe(recipes.transfer, [*kept, f"policy.model={model}", f"seeds=[{leg.seed}]", f"name={name}"])
            out.append(Job(other, trained.folder.parent / name))
    return out
