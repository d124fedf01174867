"""GRPO (docs/method.md, baselines): TRL's trainer on rollouts of leafe's scheduler.

    config = GrpoConfig(limits={"policy_calls": 4800}, learning_rate=5e-4)
    result = train(model_path, out, lambda: make_env("gates", setting="easy"), tasks, prompts,
    config)

A batch is `tasks_per_batch` tasks, each rolled out `num_generations` times by `leafe.explore`
(independent episodes) with the weights of that moment. An episode is one sequence: action,
observation, action, ...; the sampled ids are spliced in as they are, and observations carry no
loss. The advantage of every action is (reward - mean of the group) / standard deviation of the
group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leafe.baselines.grpo._config import COUNTED, GrpoConfig, GrpoResult, Progress, Validate
from leafe.baselines.grpo._sequences import RolloutSequence, rollout_sequence
from leafe.core import Environment, Task, UserError
from leafe.prompts import Prompts

MIN_TRL = "1.6"
"""The first version that leaves a rollout without a reward out of its group's mean and gives it no
advantage (its pull request 5902)."""

__all__ = [
    "COUNTED",
    "GrpoConfig",
    "GrpoResult",
    "Progress",
    "RolloutSequence",
    "Validate",
    "rollout_sequence",
    "train",
]


def train(
    model_path: str | Path,
    out: str | Path,
    make: Callable[[], Environment],
    tasks: Sequence[Task],
    prompts: Prompts,
    config: GrpoConfig,
    *,
    validate: Validate | None = None,
    workers: int = 8,
    timeout: float = 120.0,
    max_observation: int | None = None,
    progress: Progress | None = None,
) -> GrpoResult:
    """Train a checkpoint with GRPO.

    Called again after a kill it continues from the newest checkpoint with what had been spent by
    then; called again when finished it returns the result at once. Blocks; not for code that runs
    in an event loop.

    Args:
        model_path: The checkpoint to start from.
        out: The folder for the result: weights (safetensors) and tokenizer in the standard form,
            `metrics.jsonl`, `train.json`, as `leafe.distill.train` writes them.
        make: Makes one environment.
        tasks: The training tasks.
        prompts: The wording; its history has to be `full`.
        config: All options.
        validate: Gives the success rate of the policy. Called before the first step, after every
            `eval_steps`-th and after the last; the weights with the highest rate are written. All
            calls run on one event loop.
        workers: As `leafe.explore.EnvPool.fitting`, like `timeout` and `max_observation`.
        timeout: Seconds for one call into an environment.
        max_observation: Most characters of an observation.
        progress: Called with each line of `metrics.jsonl`.

    Returns:
        Where the weights are and how the training went.

    Raises:
        UserError: No tasks, prompts whose history is not append-only, a model that cannot be run or
            trained, a folder of another training, a training that diverged, or a missing or older
            TRL (which counts lost rollouts as rewards of 0).
        ForeignFailure: The environments fail again and again.
    """
    try:
        import trl
        from packaging.version import Version

        from leafe.baselines.grpo._train import run
    except ModuleNotFoundError as error:
        raise UserError(
            f"GRPO needs the package {error.name}, which is not installed: pip install 'leafe[hf]'."
        ) from error
    if Version(trl.__version__) < Version(MIN_TRL):
        raise UserError(
            f"GRPO needs trl {MIN_TRL} or newer. {trl.__version__} is installed, which takes a "
            "lost rollout (a failed request, a dead environment) for one of reward 0: "
            "pip install -U trl."
        )
    return run(
        model_path,
        Path(out),
        make,
        tasks,
        prompts,
        config,
        validate,
        workers,
        timeout,
        max_observation,
        progress,
    )
