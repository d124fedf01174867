"""Stage 2, experience distillation: trees to samples, samples to tokens and masks, tokens to
weights.

    data = build(trees, prompts, preset("leafe+", steps=60), seed=0)
    train_data, valid_data = data.split(0.1, seed=0)
    result = train(model_path, out, train_data, valid_data, config)

Selecting and encoding need no torch; `train` and the exports import what they need when they are
called.
"""

from __future__ import annotations

from pathlib import Path

from leafe.core import UserError
from leafe.distill._config import PARTS, PRESETS, DistillConfig, Lora, OutcomeWeights, Part, preset
from leafe.distill._dataset import Dataset, Sample
from leafe.distill._result import Progress, TrainResult
from leafe.distill._rules import same_action
from leafe.distill._select import build
from leafe.distill._tokens import Encoded, Span, TokenSequence, encode

__all__ = [
    "PARTS",
    "PRESETS",
    "Dataset",
    "DistillConfig",
    "Encoded",
    "Lora",
    "OutcomeWeights",
    "Part",
    "Progress",
    "Sample",
    "Span",
    "TokenSequence",
    "TrainResult",
    "build",
    "encode",
    "export_dpo",
    "export_trl",
    "preset",
    "same_action",
    "train",
]


def train(
    model_path: str | Path,
    out: str | Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None = None,
    launch: str | None = None,
) -> TrainResult:
    """Train the checkpoint at `model_path` on the samples and write the trained one to the folder
    `out` (docs/method.md, Stage 2).

    `out` gets the weights (safetensors) and the tokenizer in the standard form, `metrics.jsonl`,
    and `train.json`, which says that it is finished. Called
    again after a kill it goes on from the newest checkpoint and ends with the weights of an
    unbroken training; called again when finished it returns the
    result at once. UserError: nothing to train on, a model that cannot be loaded or has no usable
    chat template, a folder of another training, a
    loss that is not finite.

    `launch`: a command that starts the training's processes, such as `accelerate launch
    --config_file fsdp.yaml`; None: this process trains. ForeignFailure
    where these processes end without a reason of leafe's.
    """
    if launch is not None:
        from leafe.distill._job import launched

        return launched(launch, model_path, Path(out), data, valid, config, progress)
    try:
        if config.method == "dpo":
            from leafe.distill._dpo import run
        else:
            from leafe.distill._train import run
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return run(model_path, Path(out), data, valid, config, progress)


def export_trl(dataset: Dataset, out: str | Path, valid: Dataset | None = None) -> dict[Part, Path]:
    """Write `out`/PART/train.parquet (and validation.parquet) with TRL's prompt and completion
    columns; the folders by part.

    Each folder loads with `datasets.load_dataset(folder)` and goes to TRL's SFTTrainer as it is.
    Samples that were built as pairs (method = "dpo") are
    written to `out`/preference too, as by `export_dpo`.
    """
    from leafe.distill._export import pairs, run

    try:
        written = run(dataset, Path(out), valid)
        if any(s.rejected for s in dataset.samples):
            pairs(dataset, Path(out), valid)
        return written
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def export_dpo(dataset: Dataset, out: str | Path, valid: Dataset | None = None) -> Path:
    """Write `out`/preference/train.parquet (and validation.parquet) with TRL's prompt, chosen and
    rejected columns; the folder.

    For a dataset that `build` made with method = "dpo". The folder loads with
    `datasets.load_dataset(folder)` and goes to TRL's DPOTrainer as it is.
    """
    from leafe.distill._export import pairs

    try:
        return pairs(dataset, Path(out), valid)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(
        f"Distillation needs the package {error.name}, which is not installed: pip install "
        "'leafe[hf]'."
    )
