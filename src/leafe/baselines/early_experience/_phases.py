"""The trainings of Early Experience: Stage 2's trainer, once or twice.

Implicit world modelling: first the next observations, then, from those weights, the expert's
actions. Self-reflection: explained and expert samples in one training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from leafe.baselines.early_experience._samples import EarlyData
from leafe.core import UserError
from leafe.distill import Dataset, DistillConfig, Progress, TrainResult, train

Variant = Literal["world_model", "reflection"]
"""world_model: implicit world modelling. reflection: self-reflection."""


def train_early(
    model_path: str | Path,
    out: str | Path,
    data: EarlyData,
    variant: Variant,
    config: DistillConfig,
    world_model_config: DistillConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, TrainResult]:
    """Train a variant of Early Experience.

    A killed phase is continued by the next call, and a finished one is not trained again.

    Args:
        model_path: The checkpoint to start from.
        out: The folder for the results: the trained policy in `checkpoint`, and of the variant
            `world_model` the weights of its first phase in `world_model`.
        data: The samples.
        variant: Which of the two.
        config: The training on the expert's actions.
        world_model_config: The first phase; None: `config` without early stopping, for one epoch.
        progress: Called with each line of metrics, which has the `phase`.

    Returns:
        The results by phase: `world_model` (that variant only) and `expert`.

    Raises:
        UserError: As `leafe.distill.train`, or the variant `reflection` without explanations.
    """
    out = Path(out)
    results: dict[str, TrainResult] = {}
    source = model_path
    if variant == "world_model":
        first = world_model_config or config.model_copy(
            update={
                "max_steps": None,
                "num_train_epochs": 1.0,
                "eval_steps": None,
                "early_stopping_patience": None,
            }
        )
        results["world_model"] = _phase(
            source, out / "world_model", data.world_model, first, progress, "world_model"
        )
        source = out / "world_model"
    elif not data.reasoned.samples:
        raise UserError(
            "There are no explanations to train on: collect with explanations above 0, or use the "
            "variant world_model."
        )
    results["expert"] = _phase(
        source,
        out / "checkpoint",
        data.expert if variant == "world_model" else data.mixed,
        config,
        progress,
        "expert",
    )
    return results


def _phase(
    source: str | Path,
    out: Path,
    data: Dataset,
    config: DistillConfig,
    progress: Progress | None,
    name: str,
) -> TrainResult:
    learn, valid = (
        data.split(config.valid_fraction, config.seed)
        if config.eval_steps is not None
        else (data, None)
    )

    def named(values: Mapping[str, Any]) -> None:
        if progress is not None:
            progress({**values, "phase": name})

    return train(source, out, learn, valid, config, named)
