"""Stage 2, experience distillation: trees to samples, samples to tokens and masks, tokens to
weights.

    data = build(trees, prompts, preset("leafe+", max_steps=60), seed=0)
    train_data, valid_data = data.split(0.1, seed=0)
    result = train(model_path, out, train_data, valid_data, config)

It knows trees, prompts and tokenizers (`core`, `prompts`), but no environment and no engine.
Selecting and encoding need no torch; `train` and the exports import it when they are called.
"""

from __future__ import annotations

from pathlib import Path

from leafe.distill._config import PARTS, PRESETS, DistillConfig, Lora, OutcomeWeights, Part, preset
from leafe.distill._dataset import Dataset, Sample
from leafe.distill._local import needs_extra, train_here
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
    """Train a checkpoint on the samples (docs/method.md, Stage 2).

    Writes the weights (safetensors), the tokenizer, `metrics.jsonl` and, last, `train.json`. Called
    again after a kill it resumes from the newest checkpoint and ends with the weights of an
    unbroken training; called again when finished it returns the stored result.

    Args:
        model_path: The checkpoint to start from: a folder or a hub name.
        out: The folder for the trained checkpoint.
        data: The training samples.
        valid: Held-out samples; used if `config.eval_steps` is set.
        config: The options.
        progress: Called after every step with its metrics.
        launch: A command that starts the training's processes, such as `accelerate launch
            --config_file fsdp.yaml`; None: this process trains.

    Returns:
        Where the weights are and how the training went.

    Raises:
        UserError: Nothing to train on, a model that cannot be loaded or has no usable chat
            template, a folder of another training, too little memory, or a loss that is not finite.
        ForeignFailure: The processes of `launch` failed for a reason outside leafe.
    """
    if launch is not None:
        from leafe.distill._job import train_with

        return train_with(launch, model_path, Path(out), data, valid, config, progress)
    return train_here(model_path, Path(out), data, valid, config, progress)


def export_trl(dataset: Dataset, out: str | Path, valid: Dataset | None = None) -> dict[Part, Path]:
    """Write samples as parquet files with TRL's prompt and completion columns.

    Each folder loads with `datasets.load_dataset(folder)` and fits TRL's SFTTrainer as it is. Pairs
    (method = "dpo") are written to `out`/preference too, as by `export_dpo`.

    Args:
        dataset: The training samples, written to `out`/PART/train.parquet.
        out: The parent folder.
        valid: Held-out samples, written to `out`/PART/validation.parquet.

    Returns:
        The folders by part.

    Raises:
        UserError: There is nothing to export, or a package is missing.
    """
    from leafe.distill._export import export_pairs, export_samples

    with needs_extra():
        written = export_samples(dataset, Path(out), valid)
        if any(s.rejected for s in dataset.samples):
            export_pairs(dataset, Path(out), valid)
        return written


def export_dpo(dataset: Dataset, out: str | Path, valid: Dataset | None = None) -> Path:
    """Write pairs as parquet files with TRL's prompt, chosen and rejected columns.

    The folder loads with `datasets.load_dataset(folder)` and fits TRL's DPOTrainer as it is.

    Args:
        dataset: Samples that `build` selected with method = "dpo"; written to
            `out`/preference/train.parquet.
        out: The parent folder.
        valid: Held-out samples, written to `out`/preference/validation.parquet.

    Returns:
        The folder `out`/preference.

    Raises:
        UserError: There are no pairs, or a package is missing.
    """
    from leafe.distill._export import export_pairs

    with needs_extra():
        return export_pairs(dataset, Path(out), valid)
