"""A column of a table: one environment in one setting, with what each row came to in each run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafe.recipes import Recipe
from leafe.runs import RunFolder
from studies.paper.definitions import trains_for_transfer, why_control
from studies.paper.results import RowKind, RowResult, RunKey, StoredStage, read_result


@dataclass(slots=True)
class Column:
    """One environment in one setting."""

    env: str
    options: dict[str, Any]
    split: str
    transfer: bool = False
    """Policies that were trained elsewhere are tested in it."""
    base: str = ""
    """The base policy, where each has a column of its own."""
    title: str = ""
    stored: dict[tuple[RowKind, str], dict[RunKey, StoredStage]] = field(default_factory=dict)
    """By kind and row, the stage of each run."""
    absent: dict[tuple[str, RunKey], str] = field(default_factory=dict)
    """Why a row that was run has no figure."""
    roles: dict[str, str] = field(default_factory=dict)
    recipes: dict[Path, Recipe] = field(default_factory=dict)
    cache: dict[Path, RowResult] = field(default_factory=dict)
    """Results by the stage's folder, read once; columns share it."""

    @property
    def why_control(self) -> str:
        """What makes it a control, of which no claim speaks; empty for other columns."""
        return why_control(self.env, self.options, self.transfer)

    @property
    def for_transfer(self) -> bool:
        """Whether it is there for the transfer table alone."""
        return trains_for_transfer(self.env, self.options)

    @property
    def origins(self) -> list[tuple[str, dict[str, Any]]]:
        """Of a transfer column: the environments in which its policies were trained."""
        return [s.origin.env for s in self.every_stage() if s.origin is not None]

    def every_stage(self) -> Iterator[StoredStage]:
        """Every stage of every row and run."""
        for stored in self.stored.values():
            yield from stored.values()

    def rows(self, kind: RowKind = "evaluate") -> list[str]:
        """The rows that any run has."""
        return [row for k, row in self.stored if k == kind]

    def runs(self, kind: RowKind = "evaluate") -> list[RunKey]:
        """The runs that any row has."""
        return sorted(
            {key for (k, _), stored in self.stored.items() if k == kind for key in stored}
        )

    def reasons(self, row: str) -> list[str]:
        """Why the row has no figure, run by run."""
        return [why for (absent, _), why in self.absent.items() if absent == row]

    def results(self, row: str, kind: RowKind = "evaluate") -> dict[RunKey, RowResult]:
        """The row's results by run, without runs that have not finished a single task. Reads the
        journals at the first call."""
        out = {}
        for key, stage in sorted(self.stored.get((kind, row), {}).items(), key=lambda i: i[0]):
            if stage.folder not in self.cache:
                self.cache[stage.folder] = read_result(stage)
            if self.cache[stage.folder].counts.tasks:
                out[key] = self.cache[stage.folder]
        return out


@dataclass(slots=True)
class Evidence:
    """What run folders hold for the tables."""

    columns: list[Column]
    notes: list[str]
    runs: list[RunFolder]
