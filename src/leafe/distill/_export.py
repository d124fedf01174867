"""The samples for other trainers: parquet files in TRL's conversational forms, prompt/completion
and prompt/chosen/rejected.

TRL's SFTTrainer puts the loss on the completion alone, which is what our own trainer does. Anchors
are left out: their
loss is no cross-entropy. Soft targets are exported as the actions that were taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe.core import Message, UserError
from leafe.distill._config import PARTS, Part
from leafe.distill._dataset import Dataset, Sample


def rows(samples: tuple[Sample, ...]) -> list[dict[str, Any]]:
    """One row a sample: `prompt` and `completion` as lists of role and content, and where the
    sample comes from. None for an answer that was cut: the
    chat template would end it."""
    about = ("part", "task_id", "turn_id", "weight", "note")
    return [
        {"prompt": _said(*s.messages), "completion": _said(s.answer)}
        | {name: getattr(s, name) for name in about}
        for s in samples
        if not s.cut
    ]


def pair_rows(samples: tuple[Sample, ...]) -> list[dict[str, Any]]:
    """One row a pair: `prompt`, `chosen` and `rejected` as lists of role and content, and where the
    pair comes from."""
    return [
        {
            "prompt": _said(*s.messages),
            "chosen": _said(s.answer),
            "rejected": _said(s.rejected),
            "task_id": s.task_id,
            "turn_id": s.turn_id,
            "note": s.note,
        }
        for s in samples
        if s.rejected is not None and not s.cut
    ]


def _said(*messages: Message) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def run(dataset: Dataset, out: Path, valid: Dataset | None) -> dict[Part, Path]:
    """See `leafe.distill.export_trl`."""
    written: dict[Part, Path] = {}
    for part in PARTS:
        found = rows(dataset.part(part)) if part != "anchor" else []
        if found:
            written[part] = _write(out / part, found, rows(valid.part(part)) if valid else [])
    if not written:
        raise UserError(
            "There is nothing to export: the dataset holds no rehearsal, counterfactual or "
            "reflection samples."
        )
    return written


def pairs(dataset: Dataset, out: Path, valid: Dataset | None) -> Path:
    """See `leafe.distill.export_dpo`."""
    found = pair_rows(dataset.samples)
    if not found:
        raise UserError(
            "There is nothing to export: the dataset holds no pairs; build it with method "
            '= "dpo" from trees that have branches.'
        )
    return _write(out / "preference", found, pair_rows(valid.samples) if valid else [])


def _write(folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> Path:
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # they would stand in the middle of a stage's own words
    try:
        for name, found in (("train", train), ("validation", validation)):
            if found:
                datasets.Dataset.from_list(found).to_parquet(folder / f"{name}.parquet")
    finally:
        if shown:
            datasets.enable_progress_bars()
    return folder
