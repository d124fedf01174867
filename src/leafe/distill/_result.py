"""What a training leaves behind, as plain values (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[Mapping[str, Any]], None]
"""Called after every step with `step`, `steps`, `loss`, `loss/PART` of the parts that its batch
held, `lr`, `grad_norm`, `tokens`, `seconds`, and where it was
validated `valid_loss`, `valid_loss/PART`; before the first step with the validation of the start
weights alone."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where the weights are and how the training went. Losses are the objective's; by part, the
    part's own mean without its weight."""

    path: Path
    """The folder with the checkpoint, or with the adapter where it was not merged."""
    steps: int
    """Steps taken."""
    kept_step: int
    """The step whose weights were written: that of the lowest validation loss, or the last."""
    stopped_early: bool
    loss: float
    """Of the last step's batch."""
    valid_loss: float | None
    """Of the weights that were kept."""
    valid_parts: Mapping[str, float]
    counts: Mapping[str, Any]
    """By part: sequences, spans, tokens, target tokens; what was skipped. Under `epochs`: passes
    over each part."""
    notes: tuple[str, ...]
    """Sentences that the user should see: a wanted part that was empty, say."""
    seconds: float
    """Of the process that finished."""
    tokens: int
    """Tokens that the trained policy computed in training, padding included."""
    given: int = 0
    """Tokens of the same samples one by one."""
    peak_bytes: int = 0
    """Most memory that the main process held: the GPU's, or without one all of its own."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrainResult:
        return TrainResult(
            **(dict(data) | {"path": Path(data["path"]), "notes": tuple(data["notes"])})
        )
