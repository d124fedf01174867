"""What stages act with: the recipe's names become policies, pools and prompts here alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leafe.baselines.ace import Place, Playbook, with_playbook
from leafe.core import (
    Environment,
    Policy,
    SupportsCheck,
    SupportsReport,
    SupportsStats,
    Task,
    UserError,
    derive_seed,
    find_named,
)
from leafe.core.answers import versions_of
from leafe.envs import load_tasks, make_env
from leafe.explore import EnvPool, ExploreConfig
from leafe.pipeline._plan import HELD_OUT, Stage, Variant, env_options, stage_name, task_count
from leafe.pipeline._policy_ref import PolicyRef
from leafe.pipeline._result import StageResult, result_of
from leafe.pipeline._served import served_policy
from leafe.pipeline._shards import shard_of
from leafe.pipeline._weights import checkpoint_of, playbook_of
from leafe.policies import make_policy
from leafe.policies.server import deaths
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import Recipe
from leafe.runs import Journal, RunFolder, atomic_write, write_tasks

Emit = Callable[[dict[str, Any]], None]
"""Takes an event of progress as plain values (`leafe.pipeline._progress`)."""


def resolve_model(name: str) -> str:
    """`embedded`, `smollm2`, a folder or a hub id -> what transformers can load."""
    if name == "embedded":
        from leafe.embedded import base_path

        return str(base_path())
    if name == "smollm2":
        from leafe.policies import smollm2

        return str(smollm2.path())
    return name


# environments and tasks


def env_factory(recipe: Recipe, variant: Variant) -> Callable[[], Environment]:
    """Makes the variant's environments."""
    return partial(make_env, recipe.env.name, **env_options(recipe, variant))


def make_pool(recipe: Recipe, variant: Variant, concurrency: int) -> EnvPool:
    """The variant's environments for `concurrency` tasks in flight."""
    return EnvPool.fitting(
        env_factory(recipe, variant),
        concurrency,
        recipe.env.workers,
        recipe.env.timeout,
        recipe.env.max_observation,
    )


def check_versions(folder: Path, stage: Stage, pool: EnvPool) -> dict[str, str]:
    """The environment's versions, for the marker.

    Raises:
        UserError: This run began with other versions of the environment.
    """
    versions = versions_of(pool.facts)
    note = folder / stage.name / "env.json"
    known = [RunFolder.read(folder).manifest.get("envs", {}).get(stage.variant.control or "env")]
    for file in (note, note.with_name("world.json")):  # as leafe 0.1 called it
        known += [json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
    for before in filter(None, known):
        for key in {**before, **versions}:
            if before.get(key) != versions.get(key):
                raise UserError(
                    f"The environment {pool.facts.name!r} is not the one that {folder} began "
                    f"with: its {key} was {before.get(key)!r} and is {versions.get(key)!r}; "
                    "install the earlier version, or start another run."
                )
    if versions:
        atomic_write(note, json.dumps(versions, indent=1) + "\n")
    return versions


def stage_tasks(recipe: Recipe, folder: Path, stage: Stage, pool: EnvPool) -> list[Task]:
    """The tasks that the stage explores or samples; of a shard its own."""
    variant = stage.variant

    def load(split: str, count: int | None) -> list[Task]:
        return load_tasks(pool.facts, split, count, variant.seed)

    if stage.kind in ("evaluate", "tries"):
        return load(recipe.tasks.test_split, task_count(recipe, variant, "test"))
    if stage.kind == "validate":
        return load(recipe.validation.split, recipe.validation.tasks)
    if stage.what == HELD_OUT:
        tasks = load(recipe.validation.split, recipe.evaluate.probe)
    else:
        tasks = load(recipe.tasks.train_split, task_count(recipe, variant, "train"))
    if stage.parted:
        number, of = stage.round
        if len(tasks) < of:
            raise UserError(
                f"{len(tasks)} training tasks cannot be parted among {of} rounds: ask for "
                "fewer rounds or more tasks."
            )
        tasks = tasks[number - 1 :: of]
    shard = shard_of(RunFolder.read(folder).config)
    if shard is None:
        return tasks
    if len(tasks) < shard.of:
        raise UserError(
            f"{len(tasks)} tasks cannot be split into {shard.of} shards: ask for fewer "
            "shards or more tasks."
        )
    return tasks[shard.index :: shard.of]


# prompts and settings


def make_prompts(
    recipe: Recipe, pool: EnvPool, folder: Path | None = None, stage: Stage | None = None
) -> Prompts:
    """The recipe's prompts; with `folder` and `stage` those of an ACE arm hold its playbook."""
    prompts = Prompts(load_prompt_set(recipe.prompts), pool.facts.actions_help, recipe.history)
    if folder is None or stage is None:
        return prompts
    found = read_playbook(folder, stage)
    return prompts if found is None else with_playbook(prompts, *found)


def read_playbook(folder: Path, stage: Stage) -> tuple[Playbook, Place] | None:
    """The playbook that the stage's policy acts with, and where it is read."""
    found = playbook_of(RunFolder.read(folder), stage.variant, stage.policy)
    if found is None:
        return None
    return Playbook.load(found[0]), "step" if found[1] == "step" else "first"


def explore_config(recipe: Recipe, stage: Stage) -> ExploreConfig:
    """The stage's settings. Later rounds draw anew; who explores does not change the draws."""
    seed, number = stage.variant.seed, stage.round[0]
    if number > 1:
        seed = derive_seed(seed, "round", number)
    return recipe.explore.model_copy(update={"strategy": stage.strategy, "seed": seed})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a stage samples its tasks."""

    samples: int
    temperature: float


def sampling_of(recipe: Recipe, folder: Path, stage: Stage) -> Sampling:
    """The settings of a validation or an evaluation; of an arm with a sweep the chosen ones."""
    samples = recipe.validation.samples if stage.kind == "validate" else recipe.evaluate.samples
    temperature = stage.temperature
    if temperature is None and stage.kind == "evaluate":
        choice = stage_name("choose", stage.variant, stage.what)
        chosen = result_of(RunFolder.read(folder), choice)
        temperature = chosen.marker.get("temperature") if chosen is not None else None
    return Sampling(samples, recipe.evaluate.temperature if temperature is None else temperature)


# policies


@dataclass(frozen=True, slots=True)
class Source:
    """The policy that acts in a stage, once all that the stage needs is there."""

    policy: PolicyRef
    weights: Path | None = None
    """A checkpoint's folder; None: an imported policy, or the base policy's weights."""


def source_of(folder: Path, stage: Stage) -> Source:
    """The policy that acts in the stage."""
    if stage.policy.kind == "imported":
        return Source(stage.policy)
    run = RunFolder.read(folder)
    return Source(stage.policy, checkpoint_of(run, stage.variant, stage.policy))


async def make_source(recipe: Recipe, folder: Path, source: Source, name: str) -> Policy:
    """Make the policy; `name` stands on its turns, unless it is the base or an imported one."""
    policy = recipe.policy
    if source.weights is not None:
        # a server that was started by hand does not know these weights: transformers runs them
        if policy.launch is not None:
            return await served_policy(recipe, folder, str(source.weights.absolute()), name)
        options = policy.options if policy.kind == "hf" else {}
        return make_policy("hf", model=str(source.weights), name=name, **options)
    if source.policy.kind == "imported":
        try:
            found: Policy = find_named(source.policy.name)()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"evaluate.extras: the policy {source.policy.name!r} cannot be imported: {error}."
            ) from error
        return found
    if policy.launch is not None:
        return await served_policy(recipe, folder, resolve_model(policy.model), "base")
    if policy.kind == "hf":
        return make_policy("hf", model=resolve_model(policy.model), name="base", **policy.options)
    named = {"model": policy.model} if policy.kind == "http" else {}
    return make_policy(policy.kind, **(named | policy.options))


async def check_policy(policy: Policy) -> None:
    """Let the policy test its engine, where it can."""
    if isinstance(policy, SupportsCheck):
        await policy.check()


def failures_of(policy: Policy) -> dict[str, int]:
    """What the policy counted, by kind."""
    return dict(policy.stats) if isinstance(policy, SupportsStats) else {}


def policy_stats(policy: Policy, deaths_before: int) -> dict[str, Any]:
    """For the marker: the policy's failures, its servers, and how often one of them died."""
    out: dict[str, Any] = {"policy_failures": failures_of(policy)}
    if isinstance(policy, SupportsReport):
        out["servers"] = policy.report()
        out["server_restarts"] = max(0, deaths() - deaths_before)
    return out


# a stage that plays


@dataclass(frozen=True, slots=True)
class Acting:
    """What a stage that plays has at hand."""

    policy: Policy
    pool: EnvPool
    tasks: list[Task]
    journal: Journal

    @property
    def failures(self) -> dict[str, int]:
        """What has failed so far, for the display."""
        return failures_of(self.policy) | {"environments that failed": self.pool.broken}


def act(
    recipe: Recipe,
    folder: Path,
    stage: Stage,
    concurrency: int,
    work: Callable[[Acting], Awaitable[dict[str, Any]]],
    *,
    name: str = "",
    journalled: Callable[[list[Task]], list[Task]] = list,
) -> StageResult:
    """Run `work` with the stage's policy, environments and journal.

    Args:
        recipe: The experiment.
        folder: The run folder.
        stage: The stage to run.
        concurrency: Tasks in flight.
        work: Does the work; returns what it found, for the marker.
        name: The name on the policy's turns; empty: the acting policy's.
        journalled: The tasks that the journal is about, where they are not those that are played.

    Returns:
        What `work` returned, with the failures of policy and environments.
    """

    async def main() -> StageResult:
        pool = make_pool(recipe, stage.variant, concurrency)
        policy: Policy | None = None
        died = deaths()
        try:
            # before a model is loaded: what an environment lacks is reported at once
            tasks = stage_tasks(recipe, folder, stage, pool)
            env = check_versions(folder, stage, pool)
            source = source_of(folder, stage)
            policy = await make_source(recipe, folder, source, name or str(stage.policy))
            await check_policy(policy)
            write_tasks(folder / stage.name, journalled(tasks))
            with Journal(folder / stage.name) as journal:
                done = await work(Acting(policy, pool, tasks, journal))
        finally:
            if policy is not None:
                await policy.close()
            pool.close()
        failed = {"env_failures": pool.broken, "observations_cut": pool.cut, "env": env}
        return StageResult.completed(**(done | policy_stats(policy, died) | failed))

    return asyncio.run(main())
