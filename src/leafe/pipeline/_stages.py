"""Run one stage to its end in this process.

A stage reads the folders of the stages it needs, writes its own, and returns its result. It may be
killed at any time: the next start goes on from what it journalled.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leafe.baselines.ace import AceConfig
from leafe.core import Policy
from leafe.distill import DistillConfig, build, export_trl, train
from leafe.evaluate import EvaluateProgress, evaluate, probe
from leafe.explore import EnvPool, Progress, explore
from leafe.pipeline import _baselines
from leafe.pipeline._acting import (
    Acting,
    Emit,
    act,
    explore_config,
    make_pool,
    make_prompts,
    resolve_model,
    sampling_of,
)
from leafe.pipeline._choose import choose, last_round
from leafe.pipeline._plan import HELD_OUT, Stage, stage_name
from leafe.pipeline._progress import evaluating, exploring
from leafe.pipeline._ray import run_on_ray
from leafe.pipeline._result import StageResult, result_of
from leafe.pipeline._weights import checkpoint_of, nothing_to_do
from leafe.policies.server import stop_all
from leafe.recipes import EarlyRecipe, GrpoRecipe, Recipe
from leafe.runs import RunFolder, StoredTrees, load_trees

SPREAD = ("explore", "validate", "evaluate")
"""Kinds of stages whose tasks a cluster can share."""


def run_stage(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """Run the stage in the run folder `folder`; `emit` is told of its progress."""
    began = time.monotonic()
    result = _skipped(recipe, folder, stage)
    if result is None:
        run = _runner(stage)
        if recipe.engine == "ray" and stage.kind in SPREAD:
            run = run_on_ray
        result = run(recipe, folder, stage, _throttled(emit))
    # samples that were copied took no time
    return StageResult.parse({"seconds": round(time.monotonic() - began, 2)} | result.marker)


def _runner(stage: Stage) -> Callable[[Recipe, Path, Stage, Emit], StageResult]:
    match stage.kind:
        case "explore":
            return _explore
        case "validate" | "evaluate":
            return _evaluate
        case "choose":
            return _choose
        case "tries":
            return _baselines.test_time_attempts
    assert stage.attempt is not None
    match stage.attempt.config:
        case DistillConfig():
            return _distill
        case GrpoRecipe():
            return _baselines.grpo
        case EarlyRecipe() if stage.kind == "collect":
            return _baselines.collect_alternatives
        case EarlyRecipe():
            return _baselines.train_early_experience
        case AceConfig():
            return _baselines.build_playbook


def _skipped(recipe: Recipe, folder: Path, stage: Stage) -> StageResult | None:
    """The result of a stage for which nothing is to be computed; None where something is."""
    run = RunFolder.read(folder)
    nothing = nothing_to_do(run, stage)
    if nothing is not None:
        return nothing
    if stage.kind == "explore" and stage.round[0] > 1:
        last = last_round(run, recipe, stage)
        return None if last is None else StageResult.stopped(f"{stage.row}: {last}")
    own_row = stage.kind == "evaluate" and stage.policy.kind == "arm"
    arm = stage.policy.name
    if own_row and stage.what == arm and recipe.rounds_of(arm).number > 1:
        # the chosen round was sampled on the same tasks with the same seed: these are its samples
        choice = result_of(run, stage_name("choose", stage.variant, arm))
        assert choice is not None
        assert choice.chosen is not None
        source = stage_name("evaluate", stage.variant, choice.chosen)
        for file in sorted((folder / source).glob("*.jsonl")):
            shutil.copyfile(file, folder / stage.name / file.name)
        sampled = (run.done(source) or {}) | {"chosen": str(choice.chosen), "seconds": 0.0}
        return StageResult.parse(sampled)
    return None


def _throttled(emit: Emit) -> Emit:
    """Passes on two events a second: progress is for people."""
    last = 0.0

    def passed(event: dict[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.5:
            last = now
            emit(event)

    return passed


def _explore(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    config = explore_config(recipe, stage)

    async def work(at: Acting) -> dict[str, Any]:
        last: Progress | None = None

        def on_progress(p: Progress) -> None:
            nonlocal last
            last = p
            emit(exploring(p, config.limits, config.run_limits, failures=at.failures))

        found = await explore(
            at.policy,
            at.pool,
            at.tasks,
            make_prompts(recipe, at.pool),
            config,
            journal=at.journal,
            known=load_trees(folder / stage.name),
            on_progress=on_progress,
            keep=False,
        )
        counted = {}
        if last is not None:
            counted = {"tasks": last.tasks, "solved": last.solved}
            counted["rescued"] = last.solved_by_rollback
        return counted | {
            "stops": dict(found.stops),
            "unusable_reflections": found.unusable_reflections,
            "cut_short": found.cut_short,
            "given_up": found.given_up,
            "given_up_because": list(found.given_up_because),
            "spent": found.spent.to_json(),
            "waits": found.waits.to_json(),
        }

    return act(recipe, folder, stage, config.concurrency, work)


def _distill(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    stop_all()  # a server holds the accelerator's memory
    attempt = stage.attempt
    assert attempt is not None
    assert isinstance(attempt.config, DistillConfig)
    config = attempt.config.model_copy(update={"seed": stage.variant.seed})
    run = RunFolder.read(folder)
    results = {name: result_of(run, name) for name in attempt.explored}
    # read one at a time; of several rounds a task may have a tree each
    trees = [
        StoredTrees(folder / name)
        for name, result in results.items()
        if result is None or result.has_row
    ]
    pool = make_pool(recipe, stage.variant, 1)
    prompts = make_prompts(recipe, pool)
    pool.close()
    dataset = build(trees, prompts, config, stage.variant.seed)
    if not dataset.part("rehearsal") and not dataset.part("counterfactual"):
        # no reason to stop the other arms
        arm = recipe.arms[attempt.arm]
        why = (
            f"the trees of {arm.explored} hold nothing that {arm.preset} learns from: it has no row"
        )
        return StageResult.empty(why, attempt.start, counts=dataset.counts)
    learn, valid = dataset, None
    if config.eval_steps is not None:
        learn, valid = dataset.split(config.valid_fraction, stage.variant.seed)
    out = folder / stage.name
    out.mkdir(parents=True, exist_ok=True)
    if (out / "dataset").exists():
        shutil.rmtree(out / "dataset")  # of an earlier start: the same trees give the same samples
    validated = ""

    def on_progress(p: Mapping[str, Any]) -> None:
        nonlocal validated
        if "valid_loss" in p:
            validated = f", validation {p['valid_loss']:.3f}"
        words = (f"loss {p['loss']:.3f}" if "loss" in p else "start") + validated
        emit({"done": p.get("step", 0), "of": p.get("steps"), "words": words})

    start = checkpoint_of(run, stage.variant, attempt.start) or resolve_model(recipe.policy.model)
    launch = recipe.train.launch
    result = train(start, out / "checkpoint", learn, valid, config, on_progress, launch)
    # after the training, whose errors say more where there is nothing to learn from
    export_trl(learn, out / "dataset", valid)
    return StageResult.completed(
        counts=dataset.counts, train=result.to_json(), config=config.model_dump(mode="json")
    )


def _choose(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    return choose(RunFolder.read(folder), recipe, stage)


def _evaluate(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
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
        counted = {"tasks": last.tasks, "solved": last.solved, "rescued": 0} if last else {}
        probed = await _probe(recipe, folder, stage, at.policy, at.pool)
        return {"temperature": how.temperature, "samples": how.samples, **counted, **probed}

    return act(recipe, folder, stage, settings.concurrency, work, name=stage.what)


async def _probe(
    recipe: Recipe, folder: Path, stage: Stage, policy: Policy, pool: EnvPool
) -> dict[str, Any]:
    """Whether the row still learns from experience, for the marker; empty where it is not asked."""
    held_out = stage_name("explore", stage.variant, HELD_OUT)
    if held_out not in stage.needs:
        return {}
    found = await probe(
        policy,
        load_trees(folder / held_out).values(),
        make_prompts(recipe, pool, folder, stage),
        seed=stage.variant.seed,
    )
    return {"probe": found.to_json()}
