"""The result of an export: its files, and what they do not hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leafe.data.exporting._lengths import Lengths, warning

Target = Literal["trl", "sharegpt", "axolotl", "verl", "dpo", "chat"]
TARGETS: tuple[Target, ...] = ("trl", "sharegpt", "axolotl", "verl", "dpo", "chat")


@dataclass(slots=True)
class Exported:
    """The result of an export."""

    folder: Path
    target: Target
    files: dict[str, int] = field(default_factory=dict)
    """Rows by file; names are relative to the folder."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples that are in no file, counted by reason."""
    changed: dict[str, int] = field(default_factory=dict)
    """Samples counted by what the format cannot express about them."""
    lengths: Lengths | None = None
    """Tokens of the rows; None without a tokenizer, and for whole episodes."""

    @property
    def warning(self) -> str:
        """One sentence if the trainer's default would cut rows; else empty."""
        return warning(self.lengths, self.target)
