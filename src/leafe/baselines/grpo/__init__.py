"""GRPO: the policy gradient of docs/method.md, Baselines, by TRL's trainer on rollouts of our own
scheduler.

    config = GrpoConfig(limits={"policy_calls": 4800}, learning_rate=5e-4)
    result = train(model_path, out, lambda: make_env("gates", setting="easy"), tasks, prompts,
    config)

A batch is `tasks_per_batch` tasks, each rolled out `group` times by `leafe.explore` (independent
episodes) with the weights of that moment. An episode is one
sequence: action, observation, action, ...; the sampled ids are spliced in as they are, and the
observations carry no loss. The advantage of
every action is (reward - mean of the group) / standard deviation of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leafe.baselines.grpo._config import COUNTED, GrpoConfig, GrpoResult, Progress, Validate
from leafe.baselines.grpo._rows import Row, row_of
from leafe.core import Environment, Task, UserError
from leafe.prompts import Prompts

TRL = "1.6"
"""The first version that leaves a rollout without a reward out of its group's mean and gives it no
advantage (its pull request 5902)."""

__all__ = ["COUNTED", "GrpoConfig", "GrpoResult", "Progress", "Row", "Validate", "row_of", "train"]


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
    """Train the checkpoint at `model_path` in the environments that `make` makes, and write the
    trained one to the folder `out`.

    `out` gets what `leafe.distill.train` writes: weights (safetensors) and tokenizer in the
    standard form, `metrics.jsonl`, `train.json`. Called again after a
    kill it goes on from the newest checkpoint with what had been spent by then; called again when
    finished it returns the result at once.
    `validate(policy)` is asked for a success rate before the first and after every `eval_steps`-th
    and the last step, and the weights with the highest are
    written; all calls run on one event loop.
    `workers`, `timeout`, `max_observation`: as `leafe.explore.EnvPool.fitting` has them. Blocks,
    and may not be called where an event loop runs.

    UserError: no tasks, prompts whose history is not append-only, a model that cannot be run or
    trained, a folder of another training, a training that
    diverged. ForeignFailure: the environments fail again and again.
    An older TRL is refused: it counts rollouts that were lost as rewards of 0.
    """
    try:
        import trl
        from packaging.version import Version

        from leafe.baselines.grpo._train import run
    except ModuleNotFoundError as error:
        raise UserError(
            f"GRPO needs the package {error.name}, which is not installed: pip install 'leafe[hf]'."
        ) from error
    if Version(trl.__version__) < Version(TRL):
        raise UserError(
            f"GRPO needs trl {TRL} or newer, and {trl.__version__} is installed, which "
            "takes a rollout that was lost (a failed request, "
            "an environment that died) for one of reward 0: pip install -U trl."
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
