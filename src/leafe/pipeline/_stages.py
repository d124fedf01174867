"""One stage, run to its end in this process: the recipe's names become objects here, and only here.

A stage reads the folders of those it needs, writes its own, and returns what the report wants to
know. It may be killed at any time: what it
journalled is gone on with.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leafe.baselines.ace import AceConfig, Place, Playbook, with_playbook
from leafe.core import Environment, Policy, Task, UserError, derive_seed, find_named
from leafe.core.answers import versions_of
from leafe.distill import DistillConfig, build, export_trl, train
from leafe.envs import load_tasks, make_env
from leafe.evaluate import EvaluateProgress, evaluate, probe
from leafe.explore import EnvPool, ExploreConfig, Progress, explore
from leafe.pipeline._choose import choose, last_round
from leafe.pipeline._plan import HELD_OUT, Stage, Variant, env_options, stage_name, task_count
from leafe.pipeline._progress import evaluating, exploring
from leafe.pipeline._served import served_policy
from leafe.pipeline._shards import shard_of
from leafe.pipeline._weights import checkpoint_of, nothing_to_do, playbook_of
from leafe.policies import make_policy
from leafe.policies.server import deaths, stop_all
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import EarlyRecipe, GrpoRecipe, Recipe
from leafe.runs import Journal, RunFolder, StoredTrees, atomic_write, load_trees, write_tasks

Emit = Callable[[dict[str, Any]], None]
"""Takes plain values on how far the stage is: `done` of `of`, and words."""


def run_stage(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    """Run the stage in the run folder `folder`; returns plain values for its marker."""
    began = time.monotonic()
    info = _skipped(recipe, folder, stage)
    if info is None:
        run = _runner(stage)
        if recipe.engine == "ray" and stage.kind in SPREAD:
            from leafe.pipeline._ray import spread

            run = spread
        info = run(recipe, folder, stage, _Throttled(emit))
    return {"seconds": round(time.monotonic() - began, 2)} | info


def _runner(stage: Stage) -> Callable[[Recipe, Path, Stage, Emit], dict[str, Any]]:
    """What does the work of a stage of this kind; trainings by method."""
    from leafe.pipeline import _baselines

    if stage.kind in ("explore", "validate", "choose", "evaluate"):
        return {
            "explore": _explore,
            "validate": _evaluate,
            "choose": _choose,
            "evaluate": _evaluate,
        }[stage.kind]
    if stage.kind == "tries":
        return _baselines.test_time_attempts
    assert stage.attempt is not None
    match stage.attempt.config:
        case DistillConfig():
            return _distill
        case GrpoRecipe():
            return _baselines.grpo
        case EarlyRecipe():
            return (
                _baselines.collect_alternatives
                if stage.kind == "collect"
                else _baselines.train_early_experience
            )
        case AceConfig():
            return _baselines.build_playbook


SPREAD = ("explore", "validate", "evaluate")
"""Kinds of stages whose tasks a cluster can share."""


def _skipped(recipe: Recipe, folder: Path, stage: Stage) -> dict[str, Any] | None:
    """The marker of a stage for which nothing is to be computed: it has nothing to do, or what it
    would find is there already."""
    run = RunFolder.read(folder)
    nothing = nothing_to_do(run, stage)
    if nothing is not None:
        return nothing
    if stage.kind == "explore" and stage.round[0] > 1:
        last = last_round(run, recipe, stage)
        return None if last is None else {"stopped": f"{stage.row}: {last}"}
    if (
        stage.kind == "evaluate"
        and stage.policy in recipe.arms
        and stage.what == stage.policy
        and recipe.rounds_of(stage.policy).number > 1
    ):
        # the chosen round was sampled on the same tasks with the same seed: these are its samples
        chosen = (run.done(stage_name("choose", stage.variant, stage.policy)) or {})["chosen"]
        source = stage_name("evaluate", stage.variant, chosen)
        for file in sorted((folder / source).glob("*.jsonl")):
            shutil.copyfile(file, folder / stage.name / file.name)
        return (run.done(source) or {}) | {"chosen": chosen, "seconds": 0.0}
    return None


class _Throttled:
    """Passes on two words a second: progress is for people."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.last = emit, 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last > 0.5:
            self.last = now
            self.emit(event)


def resolve_model(name: str) -> str:
    """`embedded`, `smollm2`, a folder or a hub id -> what transformers can load."""
    if name == "embedded":
        from leafe.embedded import base_path

        return str(base_path())
    if name == "smollm2":
        from leafe.policies import smollm2

        return str(smollm2.path())
    return name


def env_factory(recipe: Recipe, variant: Variant) -> Callable[[], Environment]:
    """What makes the leg's environments."""
    return partial(make_env, recipe.env.name, **env_options(recipe, variant))


def make_pool(recipe: Recipe, variant: Variant, concurrency: int) -> EnvPool:
    return EnvPool.fitting(
        env_factory(recipe, variant),
        concurrency,
        recipe.env.workers,
        recipe.env.timeout,
        recipe.env.max_observation,
    )


def same_env(folder: Path, stage: Stage, pool: EnvPool) -> dict[str, str]:
    """What the environment's words hang on, for the marker; UserError where this run began with
    another environment of that name."""
    versions = versions_of(pool.facts)
    note = folder / stage.name / "env.json"
    known = [RunFolder.read(folder).manifest.get("envs", {}).get(stage.variant.control or "env")]
    known += [json.loads(note.read_text(encoding="utf-8"))] if note.is_file() else []
    for before in filter(None, known):
        changed = next(
            (key for key in {**before, **versions} if before.get(key) != versions.get(key)), None
        )
        if changed is not None:
            raise UserError(
                f"The environment {pool.facts.name!r} is not the one that {folder} began "
                f"with: its {changed} was {before.get(changed)!r} and is "
                f"{versions.get(changed)!r}; bring that back, or start another run."
            )
    if versions:
        atomic_write(note, json.dumps(versions, indent=1) + "\n")
    return versions


def stage_tasks(recipe: Recipe, folder: Path, stage: Stage, pool: EnvPool) -> list[Task]:
    """The tasks that the stage explores or evaluates; of a shard its own."""
    variant = stage.variant
    if stage.kind in ("evaluate", "tries"):
        return load_tasks(
            pool.facts, recipe.tasks.test_split, task_count(recipe, variant, "test"), variant.seed
        )
    if stage.kind == "validate":
        return load_tasks(
            pool.facts, recipe.validation.split, recipe.validation.tasks, variant.seed
        )
    if stage.what == HELD_OUT:
        tasks = load_tasks(pool.facts, recipe.validation.split, recipe.evaluate.probe, variant.seed)
    else:
        tasks = load_tasks(
            pool.facts, recipe.tasks.train_split, task_count(recipe, variant, "train"), variant.seed
        )
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


def make_prompts(
    recipe: Recipe, pool: EnvPool, folder: Path | None = None, stage: Stage | None = None
) -> Prompts:
    """The prompts of the recipe; of a stage in which an ACE arm acts with its playbook."""
    prompts = Prompts(load_prompt_set(recipe.prompts), pool.facts.actions_help, recipe.history)
    if folder is None or stage is None:
        return prompts
    found = read_playbook(folder, stage)
    return prompts if found is None else with_playbook(prompts, *found)


def read_playbook(folder: Path, stage: Stage) -> tuple[Playbook, Place] | None:
    """The playbook that its policy acts with, and where it is read."""
    found = playbook_of(RunFolder.read(folder), stage.variant, stage.policy)
    return (
        None
        if found is None
        else (Playbook.load(found[0]), "step" if found[1] == "step" else "first")
    )


async def _base_policy(recipe: Recipe, folder: Path) -> Policy:
    if recipe.policy.launch is not None:
        return await served_policy(recipe, folder, resolve_model(recipe.policy.model), "base")
    if recipe.policy.kind == "hf":
        return make_policy(
            "hf", model=resolve_model(recipe.policy.model), name="base", **recipe.policy.options
        )
    named = {"model": recipe.policy.model} if recipe.policy.kind == "http" else {}
    return make_policy(recipe.policy.kind, **(named | recipe.policy.options))


async def _trained_policy(recipe: Recipe, folder: Path, checkpoint: Path, name: str) -> Policy:
    """Served by the launch command where there is one; else answered for in-process: a server that
    was started by hand does not know these weights."""
    if recipe.policy.launch is not None:
        return await served_policy(recipe, folder, str(checkpoint.absolute()), name)
    options = recipe.policy.options if recipe.policy.kind == "hf" else {}
    return make_policy("hf", model=str(checkpoint), name=name, **options)


def source_of(folder: Path, stage: Stage) -> str:
    """Who acts in the stage, once all that it needs is there: `base`, the folder of trained
    weights, or `package.module:Class`."""
    if ":" in stage.policy:
        return stage.policy
    found = checkpoint_of(RunFolder.read(folder), stage.variant, stage.policy)
    return "base" if found is None else str(found)


async def make_source(recipe: Recipe, folder: Path, source: str, name: str) -> Policy:
    """The policy that `source_of` names; `name` stands on its turns."""
    if source == "base":
        return await _base_policy(recipe, folder)
    if ":" not in source or Path(source).is_dir():
        return await _trained_policy(recipe, folder, Path(source), name)
    try:
        found: Policy = find_named(source)()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"evaluate.extras: the policy {source!r} cannot be imported: {error}."
        ) from error
    return found


async def start_policy(policy: Policy) -> None:
    check = getattr(policy, "check", None)
    if check is not None:
        await check()


def explore_config(recipe: Recipe, stage: Stage) -> ExploreConfig:
    """Later rounds draw anew; who explores first or elsewhere does not change the draws."""
    seed = (
        stage.variant.seed
        if stage.round[0] == 1
        else derive_seed(stage.variant.seed, "round", stage.round[0])
    )
    return recipe.explore.model_copy(
        update={"strategy": stage.what.rpartition(".")[2], "seed": seed}
    )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a stage samples its tasks."""

    samples: int
    temperature: float


def sampling_of(recipe: Recipe, folder: Path, stage: Stage) -> Sampling:
    """A validation's or an evaluation's; the temperature of an arm with a sweep is the chosen
    one."""
    samples = recipe.validation.samples if stage.kind == "validate" else recipe.evaluate.samples
    temperature = stage.temperature
    if temperature is None:
        chosen = (
            RunFolder.read(folder).done(stage_name("choose", stage.variant, stage.what))
            if stage.kind == "evaluate"
            else None
        )
        temperature = (chosen or {}).get("temperature")
    return Sampling(samples, recipe.evaluate.temperature if temperature is None else temperature)


def policy_stats(policy: Policy, died: int) -> dict[str, Any]:
    """How the policy fared, for the marker: its failures, and what its servers understand and how
    often one that leafe started has died."""
    out: dict[str, Any] = {"policy_failures": dict(getattr(policy, "stats", {}))}
    report = getattr(policy, "report", None)
    return out | (
        {"servers": report(), "server_restarts": max(0, deaths() - died)}
        if report is not None
        else {}
    )


@dataclass(frozen=True, slots=True)
class Acting:
    """What a stage that plays has at hand."""

    policy: Policy
    pool: EnvPool
    tasks: list[Task]
    journal: Journal

    @property
    def failures(self) -> dict[str, int]:
        """What has failed up to now, for the display."""
        return dict(getattr(self.policy, "stats", {})) | {
            "environments that failed": self.pool.broken
        }


Work = Callable[[Acting], Awaitable[dict[str, Any]]]


def act(
    recipe: Recipe,
    folder: Path,
    stage: Stage,
    concurrency: int,
    work: Work,
    *,
    name: str = "",
    journalled: Callable[[list[Task]], list[Task]] = list,
) -> dict[str, Any]:
    """Run `work` with the stage's policy and environments; what it returns with how both fared, for
    the marker. `name`: on the policy's turns, where it is not the
    acting policy's; `journalled`: the tasks that the journal speaks of, where they are not those
    that are played."""

    async def main() -> dict[str, Any]:
        pool = make_pool(recipe, stage.variant, concurrency)
        policy: Policy | None = None
        died = deaths()
        try:
            tasks = stage_tasks(
                recipe, folder, stage, pool
            )  # before a model is fetched: what an environment lacks is said at once
            env = same_env(folder, stage, pool)
            policy = await make_source(
                recipe, folder, source_of(folder, stage), name or stage.policy
            )
            await start_policy(policy)
            write_tasks(folder / stage.name, journalled(tasks))
            with Journal(folder / stage.name) as journal:
                done = await work(Acting(policy, pool, tasks, journal))
        finally:
            if policy is not None:
                await policy.close()
            pool.close()
        return (
            done
            | policy_stats(policy, died)
            | {"env_failures": pool.broken, "observations_cut": pool.cut, "env": env}
        )

    return asyncio.run(main())


def _explore(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    config = explore_config(recipe, stage)

    async def work(at: Acting) -> dict[str, Any]:
        last: Progress | None = None

        def on_progress(p: Progress) -> None:
            nonlocal last
            last = p
            emit(exploring(p, config.limits, config.run_limits, failures=at.failures))

        prompts, known = make_prompts(recipe, at.pool), load_trees(folder / stage.name)
        found = await explore(
            at.policy,
            at.pool,
            at.tasks,
            prompts,
            config,
            journal=at.journal,
            known=known,
            on_progress=on_progress,
            keep=False,
        )
        return {
            **(
                {"tasks": last.tasks, "solved": last.solved, "rescued": last.solved_by_rollback}
                if last is not None
                else {}
            ),
            "stops": dict(found.stops),
            "unusable_reflections": found.unusable_reflections,
            "cut_short": found.cut_short,
            "given_up": found.given_up,
            "given_up_because": list(found.given_up_because),
            "spent": found.spent.to_json(),
            "waits": found.waits.to_json(),
        }

    return act(recipe, folder, stage, config.concurrency, work)


_NOTHING = {"empty", "stopped"}
"""In the marker of a stage that did nothing, and left no journal."""


def _distill(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    stop_all()  # a server holds the accelerator's memory
    attempt = stage.attempt
    assert attempt is not None
    assert isinstance(attempt.config, DistillConfig)
    config = attempt.config.model_copy(update={"seed": stage.variant.seed})
    run = RunFolder.read(folder)
    there = [name for name in attempt.explored if not _NOTHING & (run.done(name) or {}).keys()]
    trees = [
        StoredTrees(folder / name) for name in there
    ]  # read one at a time; of several rounds a task may have a tree each
    pool = make_pool(recipe, stage.variant, 1)
    prompts = make_prompts(recipe, pool)
    pool.close()
    dataset = build(trees, prompts, config, stage.variant.seed)
    if not dataset.part("rehearsal") and not dataset.part("counterfactual"):
        # no reason to stop the other arms: where nothing succeeded and nothing improved, this one
        # stays the policy it was and has no row of its own
        arm = recipe.arms[attempt.arm]
        why = (
            f"the trees of {arm.explored} hold nothing that {arm.preset} learns from: it has no row"
        )
        return {"counts": dataset.counts, "empty": why, "stays": attempt.start}
    learn, valid = (
        dataset.split(config.valid_fraction, stage.variant.seed)
        if config.eval_steps is not None
        else (dataset, None)
    )
    out = folder / stage.name
    out.mkdir(parents=True, exist_ok=True)
    if (out / "dataset").exists():
        shutil.rmtree(
            out / "dataset"
        )  # made anew from the journal: the same trees give the same samples
    validated = ""

    def on_progress(p: Mapping[str, Any]) -> None:
        nonlocal validated
        if "valid_loss" in p:
            validated = f", validation {p['valid_loss']:.3f}"
        emit(
            {
                "done": p.get("step", 0),
                "of": p.get("steps"),
                "words": (f"loss {p['loss']:.3f}" if "loss" in p else "start") + validated,
            }
        )

    start = checkpoint_of(run, stage.variant, attempt.start) or resolve_model(recipe.policy.model)
    result = train(
        start, out / "checkpoint", learn, valid, config, on_progress, recipe.train.launch
    )
    export_trl(
        learn, out / "dataset", valid
    )  # after the training, which says it better where there is nothing to learn from
    return {
        "counts": dataset.counts,
        "train": result.to_json(),
        "config": config.model_dump(mode="json"),
    }


def _choose(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    return choose(RunFolder.read(folder), recipe, stage)


def _evaluate(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    """On the test tasks or, as a stage of the kind `validate`, on the validation tasks."""
    settings = recipe.evaluate
    how = sampling_of(recipe, folder, stage)

    async def work(at: Acting) -> dict[str, Any]:
        last: EvaluateProgress | None = None

        def on_progress(p: EvaluateProgress) -> None:
            nonlocal last
            last = p
            emit(evaluating(p, failures=at.failures))

        await evaluate(
            at.policy,
            at.pool,
            at.tasks,
            make_prompts(recipe, at.pool, folder, stage),
            samples=how.samples,
            temperature=how.temperature,
            top_p=settings.top_p,
            seed=stage.variant.seed,
            journal=at.journal,
            known=load_trees(folder / stage.name),
            horizon=recipe.explore.horizon,
            max_invalid_actions=recipe.explore.max_invalid_actions,
            concurrency=settings.concurrency,
            on_progress=on_progress,
        )
        probed = (
            await _probed(recipe, folder, stage, at.policy, at.pool)
            if stage.kind == "evaluate"
            else {}
        )
        counted = (
            {"tasks": last.tasks, "solved": last.solved, "rescued": 0} if last is not None else {}
        )
        return {"temperature": how.temperature, "samples": how.samples, **counted, **probed}

    return act(recipe, folder, stage, settings.concurrency, work, name=stage.what)


async def _probed(
    recipe: Recipe, folder: Path, stage: Stage, policy: Policy, pool: EnvPool
) -> dict[str, Any]:
    """Whether the row still learns from experience, for the marker; nothing where nobody asks."""
    held_out = stage_name("explore", stage.variant, HELD_OUT)
    if held_out not in stage.needs:
        return {}
    trees = load_trees(folder / held_out).values()
    found = await probe(
        policy,
        trees,
        make_prompts(recipe, pool, folder, stage),
        seed=stage.variant.seed,
    )
    return {"probe": found.to_json()}
