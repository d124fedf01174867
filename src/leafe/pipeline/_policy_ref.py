"""Which policy a stage uses, as a value; recipes and markers name it by a text, parsed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """The base policy, an arm, one attempt at an arm, or an imported class.

    The text is `base`, `ARM`, `ARM.round2` or `ARM.try3`, or `package.module:Class`. Names of arms
    hold no dot.
    """

    kind: Literal["base", "arm", "attempt", "imported"]
    name: str
    """The arm's name; the class's path where it is imported."""
    attempt: str = ""
    """`round2` or `try3`."""

    @classmethod
    def parse(cls, text: str) -> PolicyRef:
        """The policy that a recipe or a marker names."""
        if ":" in text:
            return cls("imported", text)
        if text == "base":
            return BASE
        arm, dot, attempt = text.rpartition(".")
        return cls("attempt", arm, attempt) if dot else cls("arm", text)

    def __str__(self) -> str:
        return f"{self.name}.{self.attempt}" if self.attempt else self.name


BASE = PolicyRef("base", "base")
