"""What of a run is exported: the samples that an arm is trained on, built again from the trees, or
those that a preset makes of an exploration.

The same trees, settings and seed give the same samples, so that an export is what the arm's own
training saw, whether or not that has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leafe.core import Tree, UserError
from leafe.distill import Dataset, DistillConfig, build, preset
from leafe.envs import make_env
from leafe.exports._pairs import first_differences
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
"""What is made of an exploration where nothing else is asked for."""
UNKNOWN_ENV = "imported"
"""The environment's name in a run of imported episodes that no environment was given for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, or the trees of one stage, and where they come from."""

    about: Mapping[str, Any]
    """Plain values for the card: run, question, environment, options, model, prompts, seed,
    explored, selection, tasks, versions."""
    data: Dataset = field(default_factory=lambda: Dataset(()))
    valid: Dataset | None = None
    """Held out from the training by task, where the arm holds some out."""
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
    """The samples of an arm, or those that the preset `name` (default `leafe+`) makes of an
    exploration's trees. `pairs`: DPO's pairs of the same trees.

    `stage`: a stage's folder, such as `distill/seed1.leafe+`, `distill/leafe+.round2` or
    `explore/tree`; an arm of several attempts is the chosen one.
    UserError for what is not there, or is not explored yet.
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
            f"{found.name} learns from explorations that found nothing "
            f"({', '.join(explored)}): there is nothing to export."
        )
    prompts = _prompts(run, recipe, found.variant, recipe.history)
    data = build(trees, prompts, config, config.seed)
    if pairs and not any(s.rejected for s in data.samples):
        parts = [first_differences(forest, prompts) for forest in trees]
        data = Dataset(
            tuple(s for part in parts for s in part.samples),
            _added([p.duplicates for p in parts]),
            _added([p.skipped for p in parts]),
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
    """The whole episodes of an exploration (default: the run's first)."""
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
    """The stage that is meant. UserError where that is none, or not clear."""
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
            f"{run.path} trains {arm!r} for several seeds: say which with --stage, for "
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
            f"Which attempt is the arm {arm!r} is not chosen yet: run on, or say which "
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
    if recipe.env.name == UNKNOWN_ENV:
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


def _added(counts: list[Mapping[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for each in counts:
        for key, number in each.items():
            out[key] = out.get(key, 0) + number
    return out


def _names(names: Any) -> str:
    found = list(names)
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "none"
