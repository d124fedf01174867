"""Which recipes a table runs, cut down to what it needs: its own arms, those that they build on,
and what an earlier table left in the same folder.

All tables of one recipe share a run folder, so that the second finds done what the first has done.
The transfer table trains in one recipe and tests each of
its policies in others, a folder a policy.
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
    """One recipe to run, or to go on with."""

    recipe: Recipe
    folder: Path
    only: StageKind | None = None


def jobs_of(
    table: Table, recipes: RecipeSet, overrides: Sequence[str], runs: Path
) -> tuple[list[Job], list[str]]:
    """(what to run for a table, sentences on arms that cannot be made); UserError where recipe and
    overrides do not fit."""
    if table.kind == "transfer" and not recipes.tested:
        raise UserError(
            "Table 5 tests policies in an environment that they were not trained in, and "
            "no such environment is set for this recipe set: try gates or code."
        )
    jobs: list[Job] = []
    said = []
    for name in recipes.of(table):
        job, missing = _job(table, name, overrides, runs)
        if any(job.folder == other.folder for other in jobs):
            several = ", ".join(recipes.of(table))
            raise UserError(
                f"{job.folder} would hold the runs of {several}, which need a folder each: "
                "take name=... out and give --runs DIR."
            )
        jobs.append(job)
        said += missing
    return jobs, list(dict.fromkeys(said))


def folders_of(table: Table, recipes: RecipeSet, runs: Path) -> list[Path]:
    """The run folders that are there of those that the table makes, and of a transfer table its
    tests."""
    found = [runs / name for name in recipes.of(table) if (runs / name / "manifest.json").is_file()]
    if table.kind == "transfer":
        found += [
            path.parent
            for name in recipes.tested
            for path in sorted(runs.glob(f"{name}.*/manifest.json"))
        ]
    return found


def _job(table: Table, name: str, overrides: Sequence[str], runs: Path) -> tuple[Job, list[str]]:
    recipe = load_recipe(recipe_path(name), overrides)
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
    old = (
        {}
        if before is None
        else {
            n: a.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            for n, a in before.arms.items()
        }
    )
    arms = old | arms
    needed = {
        arm.get("explored", "tree")
        for arm in arms.values()
        if arm.get("explorer", "base") == "base"
    }
    needed |= {*strategies, *(() if before is None else before.strategies)}
    kept = [
        s
        for s in dict.fromkeys(
            [
                *(() if before is None else before.strategies),
                *recipe.strategies,
                *strategies,
                *sorted(needed),
            ]
        )
        if s in needed
    ]
    return Job(
        _with(recipe, arms, kept), folder, "explore" if table.kind == "explore" else None
    ), said


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
    extras = {
        name: extra
        for name, extra in data["evaluate"]["extras"].items()
        if extra["policy"] in rows or ":" in extra["policy"]
    }
    compare = [pair for pair in data["evaluate"]["compare"] if set(pair) <= rows | set(extras)]
    controls = {
        name: variant
        | {
            "arms": [a for a in variant["arms"] if a in arms],
            "strategies": [s for s in variant["strategies"] if s in strategies],
        }
        for name, variant in data["controls"].items()
    }
    tries = {name: row for name, row in data["evaluate"]["tries"].items() if row["policy"] in rows}
    evaluate = data["evaluate"] | {"extras": extras, "compare": compare, "tries": tries}
    data |= {
        "arms": arms,
        "strategies": list(strategies),
        "controls": controls,
        "evaluate": evaluate,
    }
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
    """For every policy of the table that `trained` holds, a run that tests it in each other
    environment; a folder each."""
    run = RunFolder.read(trained.folder)
    recipe = recipe_of(run)
    kept = [o for o in overrides if o.partition("=")[0].strip().startswith(_TESTED)]
    out = []
    for variant in [variant for variant in variants(recipe) if not variant.control]:
        for row in table.rows:
            found = None if row.key == "base" else checkpoint_of(run, variant, row.key)
            for name in recipes.tested if row.key == "base" or found is not None else ():
                other = load_recipe(
                    recipe_path(name),
                    [
                        *kept,
                        f"seeds=[{variant.seed}]",
                        f"name={f'{name}.{variant.prefix}{row.key}'.replace(' ', '-')}",
                    ],
                )
                out.append(
                    Job(
                        _tested(other, trained.recipe, run, variant, row.key, found),
                        trained.folder.parent / other.name,
                    )
                )
    return sorted(out, key=lambda job: recipes.tested.index(job.recipe.name.partition(".")[0]))


def _tested(
    other: Recipe, asked: Recipe, run: RunFolder, variant: Variant, row: str, weights: Path | None
) -> Recipe:
    """The other environment's recipe for one policy: answered for as where it was trained, at the
    temperature that was chosen there."""
    policy = asked.policy.model_dump(mode="json", exclude_none=True)
    evaluate = other.evaluate.model_dump(mode="json", exclude_none=True)
    if weights is not None:
        policy["model"] = str(weights)
        if (
            asked.policy.kind != "hf" and asked.policy.launch is None
        ):  # who answers for the base does not know these weights
            policy |= {"kind": "hf", "options": {}}
        evaluate["temperature"] = chosen_temperature(run, variant, row) or evaluate["temperature"]
    return parse_recipe(
        other.model_dump(mode="json", exclude_none=True) | {"policy": policy, "evaluate": evaluate},
        f"The recipe {other.name}",
    )
