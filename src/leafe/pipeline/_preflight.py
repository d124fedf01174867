"""Check what a run needs before its first stage.

Environments, their tasks and splits, prompts, packages, checkpoints and programs are checked, and
all that is missing is reported at once. Tasks that train, tasks by which settings, rounds and steps
are chosen, and tasks that test must be disjoint by id.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from leafe.core import UserError, find_named
from leafe.distill import DistillConfig
from leafe.envs import load_tasks
from leafe.explore import EnvPool
from leafe.pipeline._acting import make_pool
from leafe.pipeline._plan import HELD_OUT, Stage, Variant, env_options, plan, task_count
from leafe.pipeline._policy_ref import BASE
from leafe.policies import policy_factory
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import EarlyRecipe, GrpoRecipe, Recipe
from leafe.runs import RunFolder

ACTS = ("torch", "transformers", "tokenizers", "safetensors")
"""Packages of a policy that answers in-process."""
TRAINS = (*ACTS, "accelerate")


def check_ready(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> None:
    """UserError with all that the unfinished stages lack, and with sets of tasks that overlap."""
    due = [stage for stage in stages if folder.done(stage.name) is None]
    if not due:
        return
    found = list(
        dict.fromkeys(
            [
                *_prompts(recipe),
                *_envs(recipe, due),
                *_packages(recipe, due),
                *_policies(recipe, due),
            ]
        )
    )
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError(
            f"{folder.path} cannot be begun, for {len(found)} reasons:\n"
            + "\n".join(f"- {why}" for why in found)
        )


def _prompts(recipe: Recipe) -> Iterator[str]:
    try:
        Prompts(load_prompt_set(recipe.prompts), "", recipe.history)
    except UserError as error:
        yield str(error)


# environments and tasks


def _envs(recipe: Recipe, due: Sequence[Stage]) -> Iterator[str]:
    """What the environments of all variants with unfinished stages lack."""
    pools: dict[str, EnvPool | None] = {}
    try:
        for variant in dict.fromkeys(stage.variant for stage in due):
            key = json.dumps(env_options(recipe, variant), sort_keys=True, default=str)
            if key not in pools:
                pools[key] = None
                try:
                    pools[key] = make_pool(recipe, variant, 1)
                except UserError as error:
                    yield str(error)
            pool = pools[key]
            if pool is not None:
                yield from _tasks(recipe, variant, pool, [s for s in due if s.variant == variant])
    finally:
        for pool in pools.values():
            if pool is not None:
                pool.close()


def _tasks(recipe: Recipe, variant: Variant, pool: EnvPool, due: Sequence[Stage]) -> Iterator[str]:
    """Splits that the environment does not have or cannot read, and tasks in two splits that must
    be disjoint, whichever stage of the recipe uses them."""
    sets: dict[str, tuple[str, list[str]]] = {}
    needed = _task_sets(recipe, variant, due)
    used = _task_sets(
        recipe, variant, [stage for stage in plan(recipe) if stage.variant == variant]
    )
    for key, (setting, split, count) in (used | needed).items():
        there = pool.facts.splits
        if there and split not in there:
            if key in needed:
                yield (
                    f"{setting} = {split!r}: the environment {pool.facts.name!r} has no "
                    "such split; "
                    f"its splits are {', '.join(there)}."
                )
            continue
        try:
            sets[key] = (
                f"{setting} = {split!r}",
                [task.id for task in load_tasks(pool.facts, split, count, variant.seed)],
            )
        except UserError as error:
            if key in needed:
                yield str(error)
    for (key, (setting, ids)), (other, (its_setting, its_ids)) in itertools.combinations(
        sets.items(), 2
    ):
        both = set(its_ids)
        shared = [task for task in ids if task in both]
        if shared and ("train" in (key, other) or {key, other} == {"valid", "test"}):
            shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
            splits = pool.facts.splits
            yield (
                f"{setting} and {its_setting} of the environment {pool.facts.name!r} have "
                f"{len(shared)} "
                f"tasks in common ({shown}), and what trains, what chooses and what tests "
                "must be apart: set one of them to another split"
                + (f" ({', '.join(splits)})." if splits else ".")
            )


def _task_sets(
    recipe: Recipe, variant: Variant, stages: Sequence[Stage]
) -> dict[str, tuple[str, str, int | None]]:
    """(setting, split, count) of each set of tasks that these stages of the variant use.

    Rows are probed on tasks that choose nothing: these may be test tasks, but no training tasks.
    """
    asked: dict[str, tuple[str, str, int | None]] = {}
    if any(_trains(stage) for stage in stages):
        asked["train"] = (
            "tasks.train_split",
            recipe.tasks.train_split,
            task_count(recipe, variant, "train"),
        )
    if any(_chooses(stage) for stage in stages):
        asked["valid"] = "validation.split", recipe.validation.split, recipe.validation.tasks
    if any(stage.what == HELD_OUT for stage in stages):
        asked["probe"] = "validation.split", recipe.validation.split, recipe.evaluate.probe
    if any(stage.kind in ("evaluate", "tries") for stage in stages):
        asked["test"] = (
            "tasks.test_split",
            recipe.tasks.test_split,
            task_count(recipe, variant, "test"),
        )
    return asked


def _trains(stage: Stage) -> bool:
    return stage.kind in ("collect", "distill") or (
        stage.kind == "explore" and stage.what != HELD_OUT
    )


def _chooses(stage: Stage) -> bool:
    if stage.kind == "validate":
        return True
    config = stage.attempt.config if stage.kind == "distill" and stage.attempt else None
    return isinstance(config, GrpoRecipe) and config.validates


# packages, checkpoints, programs


def _packages(recipe: Recipe, due: Sequence[Stage]) -> Iterator[str]:
    needed: dict[str, None] = {}
    for stage in due:
        needed |= dict.fromkeys(_needs(recipe, stage))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extra = (
            "hf,ray"
            if "ray" in missing and len(missing) > 1
            else "ray"
            if missing == ["ray"]
            else "hf"
        )
        many = len(missing) > 1
        yield (
            f"The package{'s' if many else ''} {', '.join(missing)} {'are' if many else 'is'} not "
            f"installed: pip install 'leafe[{extra}]'."
        )


def _needs(recipe: Recipe, stage: Stage) -> Iterable[str]:
    """Packages."""
    if stage.kind == "choose":
        return ()
    if stage.kind != "distill":
        ray = (
            ("ray",)
            if recipe.engine == "ray" and stage.kind in ("explore", "validate", "evaluate")
            else ()
        )
        in_process = (
            not ray
            and recipe.policy.launch is None
            and stage.policy.kind != "imported"
            and (recipe.policy.kind == "hf" or stage.policy != BASE)
        )
        return (*ray, *(ACTS if in_process else ()))
    config = stage.attempt.config if stage.attempt else None
    lora, trl = False, isinstance(config, GrpoRecipe)
    if isinstance(config, GrpoRecipe):
        lora = config.options.get("lora") is not None
    elif isinstance(config, EarlyRecipe):
        lora = config.expert.lora is not None or config.world_model.lora is not None
    elif isinstance(config, DistillConfig):
        lora, trl = config.lora is not None, config.method == "dpo"
    return (*TRAINS, *(("peft",) if lora else ()), *(("trl", "datasets") if trl else ()))


def _policies(recipe: Recipe, due: Sequence[Stage]) -> Iterator[str]:
    policy = recipe.policy
    started = [("policy.launch", policy.launch)] if policy.launch is not None else []
    started += (
        [("train.launch", recipe.train.launch)]
        if recipe.train.launch is not None and any(s.kind == "distill" for s in due)
        else []
    )
    for key, command in started:
        words = shlex.split(command)
        if not words or shutil.which(words[0]) is None:
            yield (
                f"{key}: the program {words[0] if words else ''!r} is not found: install it, "
                "or write its whole path."
            )
    trains = any(stage.kind == "distill" for stage in due)
    acts = any(stage.policy == BASE and stage.kind not in ("distill", "choose") for stage in due)
    one_file = policy.launch is not None and Path(policy.model).expanduser().is_file()  # GGUF
    if trains or (acts and not one_file and (policy.kind == "hf" or policy.launch is not None)):
        yield from _weights(policy.model)
    if acts and policy.kind not in ("hf", "http"):
        try:
            policy_factory(policy.kind, policy.options)
        except UserError as error:
            yield str(error)
    for policy_ref in dict.fromkeys(s.policy for s in due if s.policy.kind == "imported"):
        try:
            find_named(policy_ref.name)
        except (ImportError, AttributeError) as error:
            yield f"evaluate.extras: the policy {policy_ref.name!r} cannot be imported: {error}."


def _weights(model: str) -> Iterator[str]:
    """Why this model cannot be loaded, as far as can be seen without loading it."""
    if model == "embedded":
        return
    if model == "smollm2":
        from leafe.policies import smollm2

        try:
            smollm2.installed()
        except UserError as error:
            yield str(error)
        return
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            yield f"policy.model = {model!r} has no config.json: give a checkpoint's own folder."
        elif not any(folder.glob("*.safetensors")):
            yield (
                f"policy.model = {model!r} holds no weights (*.safetensors): give a "
                "checkpoint's own "
                "folder."
            )
    elif folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        yield (
            f"There is no model folder {model}: give policy.model a folder with config.json and "
            "model.safetensors, or the id of a model on a hub."
        )
    elif _offline(model):
        yield (
            f"policy.model = {model!r} is no folder here, is in no cache, and "
            "HF_HUB_OFFLINE forbids "
            "to fetch it: give a checkpoint folder, or fetch it first."
        )


def _offline(model: str) -> bool:
    if (
        os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE")
        or find_spec("huggingface_hub") is None
    ):
        return False
    from huggingface_hub import try_to_load_from_cache

    return not isinstance(try_to_load_from_cache(model, "config.json"), str)
