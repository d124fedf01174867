"""The stages of the baselines: each calls its method in `leafe.baselines`.

A baseline has the budget of one exploration. One that samples by itself is journalled like an
exploration: a killed stage goes on, its cost stands in the marker, and its turns can be inspected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leafe.baselines import grpo as rl
from leafe.baselines.ace import AceConfig, ace
from leafe.baselines.attempts import Attempts, attempt_tasks, sample_attempts
from leafe.baselines.early_experience import by_task, collect, early_data, train_early
from leafe.core import Policy, Tree
from leafe.distill import export_trl
from leafe.evaluate import counts, evaluate, pass_estimate
from leafe.explore import ExploreConfig, Progress
from leafe.pipeline._acting import (
    Acting,
    Emit,
    act,
    check_versions,
    env_factory,
    make_pool,
    make_prompts,
    resolve_model,
    stage_tasks,
)
from leafe.pipeline._plan import Stage, stage_name
from leafe.pipeline._progress import exploring
from leafe.pipeline._result import StageResult
from leafe.pipeline._weights import checkpoint_of
from leafe.policies.server import stop_all
from leafe.recipes import EarlyRecipe, GrpoRecipe, Recipe
from leafe.runs import RunFolder, load_trees, read_journal


def _progress(
    emit: Emit, at: Acting, limits: Mapping[str, float] | None = None
) -> Callable[[Progress], None]:
    """Emits the progress; `limits`: of each task, where its budget is bounded."""
    return lambda p: emit(exploring(p, limits, failures=at.failures))


def _settings(recipe: Recipe, stage: Stage, strategy: str) -> ExploreConfig:
    return recipe.explore.model_copy(update={"strategy": strategy, "seed": stage.variant.seed})


def build_playbook(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """ACE: build a playbook over the training tasks, in `playbook.json`. Lessons and deltas are
    charged to each task's budget."""
    assert stage.attempt is not None
    assert isinstance(stage.attempt.config, AceConfig)
    own, out = stage.attempt.config, folder / stage.name
    config = _settings(recipe, stage, "independent")

    async def work(at: Acting) -> dict[str, Any]:
        known = load_trees(out)
        built = await ace(
            at.policy,
            at.pool,
            at.tasks,
            make_prompts(recipe, at.pool),
            config,
            own,
            journal=at.journal,
            known=known,
            on_progress=_progress(emit, at, config.limits),
        )
        built.playbook.save(out / "playbook.json")
        return {
            "before": str(stage.policy),
            "place": own.place,
            "items": len(built.playbook.items),
            "merges": dict(built.merges),
            "unusable": dict(built.unusable),
            "passes": built.passes,
            "given_up": built.given_up,
            "cut_short": built.cut_short,
            "solved": sum(tree.solved for tree in built.trees.values()),
            "spent": built.spent.to_json(),
        }

    return act(recipe, folder, stage, own.batch, work)


def collect_alternatives(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """Early Experience: sample other actions at the states of the exploration's successes. Its cost
    comes on top of the exploration's, and is counted."""
    config, explored = _early(stage)
    trees = load_trees(folder / explored)
    if not any(tree.solved for tree in trees.values()):
        return StageResult.empty(
            f"the trees of {explored.partition('/')[2]} hold no success, and Early "
            "Experience starts from these: it has no row"
        )
    out = folder / stage.name
    heat = {} if config.temperature is None else {"temperature": config.temperature}
    settings = _settings(recipe, stage, "independent").model_copy(
        update={"limits": {}, "run_limits": {}, **heat}
    )

    async def work(at: Acting) -> dict[str, Any]:
        known = by_task(read_journal(out))
        found = await collect(
            at.policy,
            at.pool,
            trees,
            make_prompts(recipe, at.pool),
            settings,
            config.collect,
            journal=at.journal,
            known=known,
            on_progress=_progress(emit, at),
        )
        return {
            "counts": dict(found.counts),
            "cut_short": found.cut_short,
            "spent": found.spent.to_json(),
        }

    return act(recipe, folder, stage, settings.concurrency, work)


def train_early_experience(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """Early Experience: train on the alternatives and on the successes."""
    stop_all()
    config, explored = _early(stage)
    assert stage.attempt is not None
    collected = stage_name("collect", stage.variant, stage.attempt.arm)
    trees = load_trees(folder / explored)
    asked = by_task(read_journal(folder / collected))
    grown = {
        task_id: Tree(tree.task, [*tree.episodes, *asked.get(task_id, ())])
        for task_id, tree in trees.items()
        if tree.solved
    }
    pool = make_pool(recipe, stage.variant, 1)
    prompts = make_prompts(recipe, pool)
    pool.close()
    data = early_data(trees, grown, prompts, config.collect)
    seed = {"seed": stage.variant.seed}
    start = checkpoint_of(
        RunFolder.read(folder), stage.variant, stage.attempt.start
    ) or resolve_model(recipe.policy.model)
    out = folder / stage.name
    out.mkdir(parents=True, exist_ok=True)

    def on_progress(p: Mapping[str, Any]) -> None:
        emit(
            {
                "done": p.get("step", 0),
                "of": p.get("steps"),
                "words": f"{p['phase']}: " + (f"loss {p['loss']:.3f}" if "loss" in p else "start"),
            }
        )

    results = train_early(
        start,
        out,
        data,
        config.variant,
        config.expert.model_copy(update=seed),
        config.world_model.model_copy(update=seed),
        on_progress,
    )
    learnt = data.expert if config.variant == "world_model" else data.mixed
    if not (out / "dataset").exists():
        export_trl(learnt, out / "dataset")
    trained = results["expert"].to_json() | {
        "tokens": sum(result.tokens for result in results.values())
    }
    samples = {
        "world_model": len(data.world_model.samples),
        "expert": len(data.expert.samples),
        "reasoned": len(data.reasoned.samples),
    }
    phases = {name: result.to_json() for name, result in results.items()}
    skipped = (
        {**data.world_model.skipped, **learnt.skipped}
        if config.variant == "world_model"
        else dict(learnt.skipped)
    )
    return StageResult.completed(
        samples=samples,
        skipped=skipped,
        train=trained,
        phases=phases,
        config=config.model_dump(mode="json"),
    )


def _early(stage: Stage) -> tuple[EarlyRecipe, str]:
    assert stage.attempt is not None
    assert isinstance(stage.attempt.config, EarlyRecipe)
    return stage.attempt.config, stage.attempt.explored[0]


def grpo(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """GRPO on the training tasks; with `eval_steps` the weights are those of the best
    validation."""
    stop_all()
    assert stage.attempt is not None
    assert isinstance(stage.attempt.config, GrpoRecipe)
    variant, out = stage.variant, folder / stage.name
    out.mkdir(parents=True, exist_ok=True)
    pool = make_pool(recipe, variant, 1)
    try:
        tasks = stage_tasks(recipe, folder, stage, pool)
        held_out = (
            stage_tasks(recipe, folder, _held_out(stage), pool)
            if stage.attempt.config.validates
            else []
        )
        env, prompts = check_versions(folder, stage, pool), make_prompts(recipe, pool)
    finally:
        pool.close()
    config = stage.attempt.config.config(recipe.explore, len(tasks), variant.seed)
    start = checkpoint_of(RunFolder.read(folder), variant, stage.attempt.start) or resolve_model(
        recipe.policy.model
    )

    async def validate(policy: Policy) -> float:
        many, settings = recipe.validation, recipe.evaluate
        envs = make_pool(recipe, variant, settings.concurrency)
        try:
            trees = await evaluate(
                policy,
                envs,
                held_out,
                prompts,
                samples=many.samples,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=variant.seed,
                horizon=recipe.explore.horizon,
                max_invalid_actions=recipe.explore.max_invalid_actions,
                concurrency=settings.concurrency,
            )
        finally:
            envs.close()
        return pass_estimate([counts(trees)], 1).value

    def on_progress(p: Mapping[str, Any]) -> None:
        words = (
            f"reward {p['reward']:.3f}, {p['policy_calls']} calls"
            if p.get("reward") is not None
            else "start"
        )
        emit(
            {
                "done": p.get("policy_calls", 0),
                "of": config.limits.get("policy_calls"),
                "words": words,
            }
        )

    result = rl.train(
        start,
        out / "checkpoint",
        env_factory(recipe, variant),
        tasks,
        prompts,
        config,
        validate=validate if held_out else None,
        workers=recipe.env.workers,
        timeout=recipe.env.timeout,
        max_observation=recipe.env.max_observation,
        progress=on_progress,
    )
    return StageResult.completed(
        train=result.to_json(), config=config.model_dump(mode="json"), env=env
    )


def _held_out(stage: Stage) -> Stage:
    return Stage("validate", stage.variant, stage.what)


def test_time_attempts(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """Several attempts at every test task, with their price."""
    own = recipe.evaluate.tries[stage.what]
    out = folder / stage.name
    config = _settings(recipe, stage, "independent")

    async def work(at: Acting) -> dict[str, Any]:
        prompts = make_prompts(recipe, at.pool, folder, stage)
        found: Attempts = await sample_attempts(
            at.policy,
            at.pool,
            at.tasks,
            prompts,
            config,
            method=own.method,
            attempts=own.attempts,
            samples=own.samples,
            journal=at.journal,
            known=load_trees(out),
            on_progress=_progress(emit, at),
        )
        return {
            "method": own.method,
            "attempts": own.attempts,
            "samples": own.samples,
            "rows": found.rows(),
        }

    return act(
        recipe,
        folder,
        stage,
        config.concurrency,
        work,
        journalled=lambda tasks: attempt_tasks(tasks, own.samples),
    )
