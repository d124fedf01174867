"""The result of a training as plain values (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[Mapping[str, Any]], None]
"""Called after every step with `step`, `steps`, `loss`, `loss/PART` for the parts in its batch,
`lr`, `grad_norm`, `tokens` and `seconds`; after a validation also `valid_loss` and
`valid_loss/PART`. Before the first step it gets the validation of the start weights alone."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where the weights are and how the training went. Losses are the objective's; by part, the
    part's own mean without its weight."""

    path: Path
    """The folder with the checkpoint, or with the adapter if it was not merged."""
    steps: int
    """Steps taken."""
    kept_step: int
    """The step whose weights were written: of the lowest validation loss, or the last."""
    stopped_early: bool
    loss: float
    """Of the last step's batch."""
    valid_loss: float | None
    """Of the weights that were kept."""
    valid_parts: Mapping[str, float]
    """`valid_loss` by part."""
    counts: Mapping[str, Any]
    """By part `sequences`, `spans`, `tokens`, `target_tokens`; then `skipped`, and `epochs`: passes
    over each part."""
    notes: tuple[str, ...]
    """Sentences for the user, such as a wanted part that was empty."""
    seconds: float
    """Of the process that finished."""
    tokens: int
    """Tokens that the trained policy computed, padding included."""
    given: int = 0
    """Tokens of the same samples without sharing."""
    peak_bytes: int = 0
    """Peak memory of the main process: on the GPU, or without one all of it."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrainResult:
        """What `to_json` gave."""
        plain = {"path": Path(data["path"]), "notes": tuple(data["notes"])}
        return TrainResult(**(dict(data) | plain))
