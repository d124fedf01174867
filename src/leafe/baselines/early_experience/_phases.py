"""The trainings of Early Experience: Stage 2's trainer, once or twice.

Implicit environment modelling: first the next observations, then, from those weights, the expert's
actions. Self-reflection: reasoned and expert samples in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from leafe.baselines.early_experience._samples import EarlyData
from leafe.core import UserError
from leafe.distill import Dataset, DistillConfig, Progress, TrainResult, train

Variant = Literal["world_model", "reflection"]


def train_early(
    model_path: str | Path,
    out: str | Path,
    data: EarlyData,
    variant: Variant,
    config: DistillConfig,
    world_model_config: DistillConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, TrainResult]:
    """The results by phase: `world_model` (that variant; weights in `out`/world_model) and `expert`
    (weights in `out`/checkpoint: the trained policy).

    `world_model_config`: of the first phase; None: `config` without early stopping, for one epoch.
    Either phase is gone on with after a kill, and a finished one is
    not trained again. UserError as `train`, and where nothing was explained for the variant
    `reflection`.
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
            "Nothing was explained that could be trained on: collect with explanations "
            "above 0, or use the variant environment."
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
