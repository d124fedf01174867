"""The recipes that a table runs, cut down to what it needs: its own arms, those that they build on,
and what an earlier table left in the same folder.

All tables of one recipe share a run folder, so that a later table skips what an earlier one has
finished. The transfer table trains in one recipe and tests each of its policies in others, a folder
a policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.pipeline import StageKind, Variant, checkpoint_of, recipe_of, variants
from leafe.recipes import Recipe, load_recipe, parse_recipe
from leafe.runs import RunFolder
from studies import recipe_path
from studies.paper.commands import with_arms
from studies.paper.definitions import ARMS, STRATEGIES, RecipeSet, Table
from studies.paper.results import chosen_temperature


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe to run, or to go on with, in a run folder."""

    recipe: Recipe
    folder: Path
    only: StageKind | None = None


def jobs_of(
    table: Table, recipes: RecipeSet, overrides: Sequence[str], runs: Path
) -> tuple[list[Job], list[str]]:
    """What to run for a table.

    Args:
        table: the table.
        recipes: the recipes of its columns.
        overrides: changes to every recipe, `key=value`.
        runs: the folder of the run folders.

    Returns:
        The jobs, and notes on arms that cannot be made.

    Raises:
        UserError: recipe and overrides do not fit, or the set has no transfer test.
    """
    if table.kind == "transfer" and not recipes.tested:
        raise UserError(
            "Table 5 tests policies in an environment that they were not trained in, and "
            "no such environment is set for this recipe set: try gates or code."
        )
    jobs: list[Job] = []
    notes = []
    for name in recipes.of(table):
        job, missing = _job(table, name, overrides, runs)
        if any(job.folder == other.folder for other in jobs):
            several = ", ".join(recipes.of(table))
            raise UserError(
                f"{job.folder} would hold the runs of {several}, which need a folder each: "
                "take name=... out and give --runs DIR."
            )
        jobs.append(job)
        notes += missing
    return jobs, list(dict.fromkeys(notes))


def folders_of(table: Table, recipes: RecipeSet, runs: Path) -> list[Path]:
    """The existing run folders of those that the table makes, with the tests of a transfer
    table."""
    found = [runs / name for name in recipes.of(table) if (runs / name / "manifest.json").is_file()]
    if table.kind == "transfer":
        found += [
            path.parent
            for name in recipes.tested
            for path in sorted(runs.glob(f"{name}.*/manifest.json"))
        ]
    return found


def _job(table: Table, name: str, overrides: Sequence[str], runs: Path) -> tuple[Job, list[str]]:
    """(the recipe cut down to what the table and an earlier run need, notes)."""
    recipe = load_recipe(recipe_path(name), overrides)
    folder = runs / recipe.name
    earlier = recipe_of(RunFolder.read(folder)) if (folder / "manifest.json").is_file() else None
    explores = table.kind == "explore"
    arms: dict[str, Any] = {}
    strategies: list[str] = [row.key for row in STRATEGIES] if explores else []
    if earlier is not None:
        arms = {
            name: arm.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            for name, arm in earlier.arms.items()
        }
    notes = []
    for row in [] if explores else [row.key for row in table.rows if row.key in ARMS]:
        try:
            own, _ = with_arms(recipe, [row])
        except UserError as error:
            notes.append(f"{row} cannot be run: {error}")
            continue
        arms |= _closure(row, own)
    before = () if earlier is None else earlier.strategies
    explored = {
        arm.get("explored", "tree")
        for arm in arms.values()
        if arm.get("explorer", "base") == "base"
    }
    needed = {*strategies, *before, *explored}
    order = dict.fromkeys([*before, *recipe.strategies, *strategies, *sorted(needed)])
    cut = _with(recipe, arms, [strategy for strategy in order if strategy in needed])
    return Job(cut, folder, "explore" if explores else None), notes


def _closure(row: str, arms: dict[str, Any]) -> dict[str, Any]:
    """The arm after all that it builds on."""
    out: dict[str, Any] = {}
    for role in ("start", "explorer"):
        other = arms[row].get(role, "base")
        if other != "base":
            out |= _closure(other, arms)
    return out | {row: arms[row]}


def _with(recipe: Recipe, arms: dict[str, Any], strategies: Sequence[str]) -> Recipe:
    """The recipe with these arms and strategies alone, without what names others."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    rows = {"base", *arms}
    evaluate = data["evaluate"]
    evaluate["extras"] = {
        name: extra
        for name, extra in evaluate["extras"].items()
        if extra["policy"] in rows or ":" in extra["policy"]
    }
    named = rows | set(evaluate["extras"])
    evaluate["compare"] = [pair for pair in evaluate["compare"] if set(pair) <= named]
    evaluate["tries"] = {n: row for n, row in evaluate["tries"].items() if row["policy"] in rows}
    for control in data["controls"].values():
        control["arms"] = [arm for arm in control["arms"] if arm in arms]
        control["strategies"] = [s for s in control["strategies"] if s in strategies]
    data |= {"arms": arms, "strategies": list(strategies)}
    return parse_recipe(data, f"The recipe {recipe.name}")


_TESTED = (
    "tasks.test",
    "evaluate.samples",
    "evaluate.k",
    "evaluate.temperature",
    "evaluate.top_p",
    "evaluate.concurrency",
    "env.workers",
    "env.timeout",
    "history",
    "jobs",
    "engine",
    "ray",
)
"""Overrides that also reach the recipes of other environments: how much is sampled and how, and on
what machine."""


def transfer_jobs(
    table: Table, recipes: RecipeSet, overrides: Sequence[str], trained: Job
) -> list[Job]:
    """The tests of a transfer table: a run folder for each policy that `trained` holds and each
    other environment."""
    run = RunFolder.read(trained.folder)
    kept = [o for o in overrides if o.partition("=")[0].strip().startswith(_TESTED)]
    out = []
    for variant in [v for v in variants(recipe_of(run)) if not v.control]:
        for row in table.rows:
            weights = None if row.key == "base" else checkpoint_of(run, variant, row.key)
            for name in recipes.tested if row.key == "base" or weights is not None else ():
                own = f"{name}.{variant.prefix}{row.key}".replace(" ", "-")
                changes = [*kept, f"seeds=[{variant.seed}]", f"name={own}"]
                other = load_recipe(recipe_path(name), changes)
                recipe = _tested(other, trained.recipe, run, variant, row.key, weights)
                out.append(Job(recipe, trained.folder.parent / other.name))
    return sorted(out, key=lambda job: recipes.tested.index(job.recipe.name.partition(".")[0]))


def _tested(
    other: Recipe, asked: Recipe, run: RunFolder, variant: Variant, row: str, weights: Path | None
) -> Recipe:
    """The other environment's recipe for one policy: served as where it was trained, at the
    temperature that was chosen there."""
    policy = asked.policy.model_dump(mode="json", exclude_none=True)
    evaluate = other.evaluate.model_dump(mode="json", exclude_none=True)
    if weights is not None:
        policy["model"] = str(weights)
        # a server that leafe did not start does not hold these weights
        if asked.policy.kind != "hf" and asked.policy.launch is None:
            policy |= {"kind": "hf", "options": {}}
        evaluate["temperature"] = chosen_temperature(run, variant, row) or evaluate["temperature"]
    return parse_recipe(
        other.model_dump(mode="json", exclude_none=True) | {"policy": policy, "evaluate": evaluate},
        f"The recipe {other.name}",
    )
