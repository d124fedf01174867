"""The one table of leafe's terminal output and documents: rows go in, a rendering comes out.

A cell is a value, or a pair of texts of which the second is printed below the first. The terminal
uses `rich` (a `Table` is printed by `console.print`); Markdown and CSV are text. The HTML page has
its own macro in `templates/report.html.j2`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.table
    import rich.text


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of figures under a title.

    Attributes:
        title: The table's title; the terminal alone prints it.
        columns: The heads of the columns.
        rows: One sequence of cells a row, as long as `columns`. A cell is anything that `str`
            writes, None for an empty cell, or a pair (text, text below it).
        words: How many of the first columns hold words: those are aligned left and may wrap, the
            others are figures, aligned right.
        wrap: Whether figures may wrap too.
        head: Whether the terminal prints the heads.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: int = 1
    wrap: bool = False
    head: bool = True

    def __rich__(self) -> rich.table.Table:
        """For the terminal: rules under the head alone, one space between columns, so that eight
        columns fit 80 characters."""
        from rich import box
        from rich.table import Table as Rich
        from rich.text import Text

        out = Rich(
            title=Text(self.title, "bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            show_header=self.head,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for nth, name in enumerate(self.columns):
            if nth < self.words:
                out.add_column(Text(name), overflow="fold")
            else:
                out.add_column(Text(name), justify="right", no_wrap=not self.wrap)
        for row in self.rows:
            out.add_row(*map(_terminal, row))
        return out

    def markdown(self) -> str:
        """The rows as a Markdown table, without the title."""
        lines = [map(_markdown, self.columns), ["---"] * len(self.columns)]
        lines += [map(_markdown, row) for row in self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        """The rows as CSV with a line of heads; None is an empty field."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def _terminal(cell: Any) -> rich.text.Text:
    from rich.text import Text

    if isinstance(cell, tuple):
        return Text.assemble(cell[0], "\n", (cell[1], "dim"))
    return Text("" if cell is None else str(cell))


def _markdown(cell: Any) -> str:
    text = " ".join(cell) if isinstance(cell, tuple) else "" if cell is None else str(cell)
    return text.replace("|", "\\|").replace("\n", " ")
