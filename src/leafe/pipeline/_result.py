"""What a stage came to. Markers (`done.json`) are plain JSON, read into a type here alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from leafe.pipeline._policy_ref import PolicyRef
from leafe.runs import RunFolder


class Outcome(StrEnum):
    """How a finished stage ended."""

    completed = "completed"  # it did its work
    empty = "empty"  # there was nothing to learn from: its arm has no row
    stopped = "stopped"  # validation stopped the rounds before this one


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage: its marker, and what other stages decide by.

    Build one with `completed`, `empty` or `stopped`, or from a marker with `parse`.
    """

    marker: dict[str, Any]
    """The content of `done.json`."""
    outcome: Outcome = Outcome.completed
    reason: str = ""
    """One clause on why it is empty or stopped."""
    stays: PolicyRef | None = None
    """empty: the policy whose weights the stage's policy keeps."""
    chosen: PolicyRef | None = None
    """Of the kind `choose`: the attempt that is the arm."""
    before: PolicyRef | None = None
    """Of a stage that builds a playbook: the policy that acts with it."""

    @classmethod
    def parse(cls, marker: Mapping[str, Any]) -> StageResult:
        """The result that a marker records; any version's."""
        outcome = next((o for o in (Outcome.empty, Outcome.stopped) if o in marker), None)
        stays, chosen, before = (
            PolicyRef.parse(str(marker[key])) if key in marker else None
            for key in ("stays", "chosen", "before")
        )
        return cls(
            dict(marker),
            outcome or Outcome.completed,
            str(marker[outcome]) if outcome else "",
            stays,
            chosen,
            before,
        )

    @classmethod
    def completed(cls, **info: Any) -> StageResult:
        """The stage did its work; `info` is what the report reads."""
        return cls.parse(info)

    @classmethod
    def empty(cls, reason: str, stays: PolicyRef | None = None, **info: Any) -> StageResult:
        """Nothing was learned, so that the policy stays what it was."""
        kept = {} if stays is None else {"stays": str(stays)}
        return cls.parse({**info, "empty": reason, **kept})

    @classmethod
    def stopped(cls, reason: str) -> StageResult:
        """Validation had stopped the rounds before this one."""
        return cls.parse({"stopped": reason})

    @property
    def has_row(self) -> bool:
        """Whether there are figures to report."""
        return self.outcome is Outcome.completed


def result_of(run: RunFolder, stage_name: str) -> StageResult | None:
    """The result of a stage by its folder's name; None while it is not finished."""
    marker = run.done(stage_name)
    return None if marker is None else StageResult.parse(marker)
