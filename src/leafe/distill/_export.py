"""The samples for other trainers: parquet files in TRL's conversational prompt/completion form.

TRL's SFTTrainer puts the loss on the completion alone for this form, which is what our own trainer does. Anchors are left out: their
loss is no cross-entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.distill._config import PARTS, Part
from leafe.distill._dataset import Dataset, Sample


def rows(samples: tuple[Sample, ...]) -> list[dict[str, Any]]:
    """One row a sample: `prompt` and `completion` as lists of role and content, and where the sample comes from."""
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in s.messages],
            "completion": [{"role": "assistant", "content": s.answer.content}],
            "part": s.part,
            "task_id": s.task_id,
            "turn_id": s.turn_id,
            "weight": s.weight,
            "note": s.note,
        }
        for s in samples
    ]


def run(dataset: Dataset, out: Path, valid: Dataset | None) -> dict[Part, Path]:
    """See `leafe.distill.export_trl`."""
    import datasets

    written: dict[Part, Path] = {}
    for part in PARTS:
        if part == "anchor" or not dataset.part(part):
            continue
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (("train", dataset), ("validation", valid)):
            if data is not None and data.part(part):
                datasets.Dataset.from_list(rows(data.part(part))).to_parquet(folder / f"{name}.parquet")
        written[part] = folder
    if not written:
        raise UserError("There is nothing to export: the dataset holds no rehearsal, counterfactual or reflection samples.")
    return written
