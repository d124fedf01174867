"""What is exported of a run: the samples that an arm trains on, built again from the trees, or
those that a preset selects from an exploration.

The same trees, settings and seed give the same samples, so an export equals the arm's own training
data, whether or not the arm has been trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from leafe.core import Tree, UserError
from leafe.data.exporting._pairs import first_differences
from leafe.data.importing._logged import IMPORTED_ENV
from leafe.distill import Dataset, DistillConfig, build, preset
from leafe.envs import make_env
from leafe.pipeline import (
    Stage,
    Variant,
    env_options,
    plan,
    recipe_of,
    result_of,
    stage_name,
    variants,
)
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import Recipe
from leafe.runs import RunFolder, StoredTrees

PRESET = "leafe+"
"""The default selection from an exploration."""


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, or the trees of one stage, with their provenance."""

    about: Mapping[str, Any]
    """Plain values for the card: run, question, environment, options, model, prompts, seed,
    explored, selection, tasks, versions."""
    data: Dataset = field(default_factory=lambda: Dataset(()))
    valid: Dataset | None = None
    """Samples of held-out tasks, where the arm holds some out."""
    trees: Mapping[str, Tree] = field(default_factory=dict)
    """For whole episodes (`episodes_of`)."""
    prompts: Prompts | None = None


def samples_of(
    run: RunFolder,
    arm: str | None = None,
    stage: str | None = None,
    name: str | None = None,
    pairs: bool = False,
) -> Source:
    """The training samples of an arm, or those that a preset selects from an exploration's trees.

    Args:
        run: The run.
        arm: An arm of the recipe; of several attempts, the chosen one. Either this or `stage`.
        stage: A stage's folder, such as `distill/seed1.leafe+`, `distill/leafe+.round2` or
            `explore/tree`.
        name: With an exploration: the preset; default `leafe+`.
        pairs: Preference pairs (DPO) from the same trees.

    Raises:
        UserError: The arm or stage does not exist, is ambiguous, or is not explored yet.
    """
    recipe = recipe_of(run)
    found = _find(run, recipe, arm, stage)
    if found.kind == "distill":
        assert found.attempt is not None
        if name is not None:
            raise UserError(
                f"{found.name} is trained by its own settings: --preset goes with --stage "
                "explore/..., so take one of the two out."
            )
        config, explored = _settings(found), found.attempt.explored
        selection = f"the arm {found.attempt.arm}, as it is trained"
    else:
        config, explored = preset(name or PRESET), (found.name,)
        selection = f"the preset {name or PRESET}"
    if pairs and config.method != "dpo":
        improved = config.counterfactuals == "improved"
        config, selection = (
            preset(
                "dpo",
                counterfactuals="improved" if improved else "all",
                improvement=config.improvement,
            ),
            f"pairs of {selection}",
        )
    config = config.model_copy(update={"seed": found.variant.seed})
    trees = [
        _trees(run, each)
        for each in explored
        if (result := result_of(run, each)) is None or result.has_row
    ]
    if not trees:
        raise UserError(
            f"{found.name} trains on explorations that found nothing "
            f"({', '.join(explored)}): there is nothing to export."
        )
    prompts = _prompts(run, recipe, found.variant, recipe.history)
    data = build(trees, prompts, config, config.seed)
    if pairs and not any(s.rejected for s in data.samples):
        parts = [first_differences(forest, prompts) for forest in trees]
        data = Dataset(
            tuple(s for part in parts for s in part.samples),
            _sum(p.duplicates for p in parts),
            _sum(p.skipped for p in parts),
        )
        selection = (
            "success over failure, at the first action in which two episodes of a task differ "
            "(the trees have no branches)"
        )
    learn, valid = (
        data.split(config.valid_fraction, config.seed)
        if config.eval_steps is not None
        else (data, None)
    )
    tasks = len({task for forest in trees for task in forest})
    return Source(_about(run, recipe, found.variant, explored, selection, tasks), learn, valid)


def episodes_of(run: RunFolder, stage: str | None = None) -> Source:
    """The whole episodes of an exploration.

    Args:
        run: The run.
        stage: The exploration's folder; default: the run's first.

    Raises:
        UserError: The stage does not exist, is no exploration, or is not explored yet.
    """
    recipe = recipe_of(run)
    stages = [s for s in plan(recipe) if s.kind == "explore"]
    found = _find(run, recipe, None, stage or next((s.name for s in stages), None))
    if found.kind != "explore":
        raise UserError(
            f"{found.name} has samples and no episodes: whole episodes are written of an "
            f"exploration, such as --stage {stages[0].name}."
        )
    trees = _trees(run, found.name)
    about = _about(run, recipe, found.variant, (found.name,), "every episode", len(trees))
    return Source(about, trees=trees, prompts=_prompts(run, recipe, found.variant, "full"))


def _find(run: RunFolder, recipe: Recipe, arm: str | None, stage: str | None) -> Stage:
    """The stage to export; UserError where there is none, or several."""
    if (arm is None) == (stage is None):
        raise UserError(
            f"Say what of {run.path} to export: an arm ({_names(recipe.arms)}), or --stage "
            "with the folder of a stage, such as explore/tree."
        )
    stages = {s.name: s for s in plan(recipe) if s.kind in ("explore", "distill")}
    if stage is not None:
        if stage.strip("/") not in stages:
            raise UserError(
                f"{run.path} has no stage {stage!r} of samples or trees: it has {_names(stages)}."
            )
        return stages[stage.strip("/")]
    if arm not in recipe.arms:
        raise UserError(
            f"{run.path} has no arm {arm!r}: its arms are {_names(recipe.arms)}; or give --stage."
        )
    mine = [
        variant
        for variant in variants(recipe)
        if any(s.variant == variant and s.attempt and s.attempt.arm == arm for s in stages.values())
    ]
    if len({variant.seed for variant in mine}) > 1:
        each = [stage_name("distill", variant, arm) for variant in mine]
        raise UserError(
            f"{run.path} trains {arm!r} for several seeds: choose one with --stage, for "
            f"example --stage {each[0]}."
        )
    if not mine:
        raise UserError(
            f"The arm {arm!r} of {run.path} is not trained on samples of trees: there is "
            "nothing of it to export."
        )
    chosen = (run.done(stage_name("choose", mine[0], arm)) or {}).get("chosen", arm)
    name = stage_name("distill", mine[0], str(chosen))
    if name not in stages:
        attempts = [s.name for s in stages.values() if s.attempt and s.attempt.arm == arm]
        raise UserError(
            f"The attempt for the arm {arm!r} is not chosen yet: continue the run, or choose one "
            f"with --stage ({_names(attempts)})."
        )
    return stages[name]


def _settings(stage: Stage) -> DistillConfig:
    assert stage.attempt is not None
    config: object = stage.attempt.config
    if not isinstance(config, DistillConfig):
        raise UserError(
            f"{stage.name} is not trained on samples of trees: there is nothing of it to export."
        )
    return config


def _trees(run: RunFolder, stage: str) -> StoredTrees:
    if not (run.path / stage / "tasks.jsonl").is_file():
        raise UserError(
            f"{stage} has not been explored in {run.path}: run `leafe explore` with its "
            "recipe first."
        )
    return StoredTrees(run.path / stage)


def _prompts(run: RunFolder, recipe: Recipe, variant: Variant, history: str) -> Prompts:
    if recipe.env.name == IMPORTED_ENV:
        return Prompts(load_prompt_set(recipe.prompts), "", history)
    with make_env(recipe.env.name, **env_options(recipe, variant)) as env:
        return Prompts(load_prompt_set(recipe.prompts), env.actions_help, history)


def _about(
    run: RunFolder,
    recipe: Recipe,
    variant: Variant,
    explored: tuple[str, ...],
    selection: str,
    tasks: int,
) -> dict[str, Any]:
    imported = [
        done["imported"]
        for each in explored
        if (done := run.done(each)) is not None and "imported" in done
    ]
    return {
        "run": run.path.name,
        "recipe": recipe.name,
        "question": recipe.about,
        "env": recipe.env.name,
        "options": env_options(recipe, variant),
        "model": recipe.policy.model,
        "prompts": recipe.prompts,
        "seed": variant.seed,
        "explored": list(explored),
        "selection": selection,
        "tasks": tasks,
        "versions": run.versions,
        "imported": imported,
    }


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _names(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "none"
