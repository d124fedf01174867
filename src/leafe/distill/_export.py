"""Samples for other trainers: parquet files in TRL's conversational formats (prompt/completion and
prompt/chosen/rejected).

TRL's SFTTrainer puts the loss on the completion alone, as our own trainer does. Anchors are left
out: their loss is no cross-entropy. Soft targets are exported as the actions that were taken. Cut
answers are left out: a chat template would end them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafe.core import Message, UserError
from leafe.distill._config import PARTS, Part
from leafe.distill._dataset import Dataset, Sample


def export_samples(dataset: Dataset, out: Path, valid: Dataset | None) -> dict[Part, Path]:
    """See `leafe.distill.export_trl`."""
    written: dict[Part, Path] = {}
    for part in PARTS:
        rows = [] if part == "anchor" else _sample_rows(dataset.part(part))
        if rows:
            written[part] = _write(
                out / part, rows, _sample_rows(valid.part(part) if valid else ())
            )
    if not written:
        raise UserError(
            "There is nothing to export: the dataset holds no rehearsal, counterfactual or "
            "reflection samples."
        )
    return written


def export_pairs(dataset: Dataset, out: Path, valid: Dataset | None) -> Path:
    """See `leafe.distill.export_dpo`."""
    rows = _pair_rows(dataset.samples)
    if not rows:
        raise UserError(
            'There is nothing to export: the dataset holds no pairs; build it with method = "dpo" '
            "from trees that have branches."
        )
    return _write(out / "preference", rows, _pair_rows(valid.samples if valid else ()))


def _sample_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """`prompt` and `completion` as lists of role and content, and where each sample comes from."""
    source = ("part", "task_id", "turn_id", "weight", "note")
    return [
        {"prompt": _as_dicts(*s.messages), "completion": _as_dicts(s.answer)}
        | {name: getattr(s, name) for name in source}
        for s in samples
        if not s.cut
    ]


def _pair_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """`prompt`, `chosen` and `rejected` as lists of role and content, and where each pair comes
    from."""
    return [
        {
            "prompt": _as_dicts(*s.messages),
            "chosen": _as_dicts(s.answer),
            "rejected": _as_dicts(s.rejected),
            "task_id": s.task_id,
            "turn_id": s.turn_id,
            "note": s.note,
        }
        for s in samples
        if s.rejected is not None and not s.cut
    ]


def _as_dicts(*messages: Message) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _write(folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> Path:
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # they would interrupt the stage's own output
    try:
        for name, rows in (("train", train), ("validation", validation)):
            if rows:
                datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    finally:
        if shown:
            datasets.enable_progress_bars()
    return folder
