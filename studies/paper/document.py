"""A finished table as plain values: blocks of cells for readers, one flat record a figure for
programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

RECORD = (
    "kind",
    "table",
    "column",
    "row",
    "against",
    "measure",
    "k",
    "value",
    "low",
    "high",
    "p",
    "tasks",
    "runs",
    "samples",
    "temperature",
    "verdict",
    "note",
)
"""The columns of the CSV file. kind: cell, budget, tries, comparison, claim or power; rates and
differences are fractions of 1, costs means of the runs."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, its details, and whether it leads its column."""

    text: str
    more: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One rectangle of cells. The first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    text_columns: int = 1
    """How many of the first columns hold words and not figures."""


@dataclass(frozen=True, slots=True)
class Document:
    """A table, the claims or a figure, ready to be rendered."""

    name: str
    """`table1`, `claims`: a label for other programs."""
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    records: tuple[Mapping[str, Any], ...] = field(default=())

    def with_notes(self, notes: Sequence[str]) -> Document:
        """The same document with these notes before its own."""
        return replace(self, notes=tuple(dict.fromkeys([*notes, *self.notes])))


def cells(*texts: str | Cell) -> tuple[Cell, ...]:
    """A row of cells."""
    return tuple(t if isinstance(t, Cell) else Cell(t) for t in texts)


def record(**values: Any) -> dict[str, Any]:
    """One line of the CSV file; a column that is not given is empty."""
    unknown = set(values) - set(RECORD)
    if unknown:
        raise ValueError(f"no such column: {unknown}")
    return {name: values.get(name) for name in RECORD}
