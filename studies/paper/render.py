"""Render a document for the terminal, as Markdown, as CSV and as LaTeX, with every text escaped."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from leafe.core import JournalError, UserError
from leafe.runs import atomic_write
from studies.paper.document import RECORD, Block, Cell, Document


def show(document: Document, console: Console) -> None:
    """Print the document; tables that are too wide are printed in pieces."""
    console.print(f"[bold]{escape(document.title)}[/]", highlight=False)
    for whole in document.blocks:
        for block in _pieces(whole, console.width):
            table = Table(
                title=Text(block.title),
                title_justify="left",
                title_style="bold",
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
            )
            for nth, name in enumerate(block.head):
                table.add_column(
                    Text(name),
                    justify="left" if nth < block.text_columns else "right",
                    no_wrap=nth >= block.text_columns,
                )
            for row in block.rows:
                table.add_row(
                    *(
                        Text.assemble(
                            (c.text, "bold" if c.best else ""),
                            *([("\n" + c.more, "dim")] if c.more else []),
                        )
                        for c in row
                    )
                )
            console.print()
            console.print(table)
    console.print()
    for note in document.notes:
        console.print(Text(f"* {note}"), soft_wrap=True)


_WORDS = 24
"""The fewest characters of a column of words, which may wrap."""


def _pieces(block: Block, width: int) -> list[Block]:
    """The block, or several with the same first columns where one row does not fit."""
    widths = [
        max([len(name), *(max(len(row[nth].text), len(row[nth].more)) for row in block.rows)]) + 3
        for nth, name in enumerate(block.head)
    ]
    room = width - sum(min(w, _WORDS) for w in widths[: block.text_columns])
    cuts: list[list[int]] = [[]]
    for nth in range(block.text_columns, len(block.head)):
        if cuts[-1] and sum(widths[i] for i in cuts[-1]) + widths[nth] > room:
            cuts.append([])
        cuts[-1].append(nth)
    first = list(range(block.text_columns))
    picked = [[*first, *cut] for cut in cuts]
    return [
        replace(
            block,
            head=tuple(block.head[i] for i in p),
            rows=tuple(tuple(row[i] for i in p) for row in block.rows),
        )
        for p in picked
    ]


def markdown(document: Document) -> str:
    """The document as Markdown tables, one a block."""
    lines = [f"## {_md(document.title)}", ""]
    for block in document.blocks:
        lines += [f"**{_md(block.title)}**", "", _md_row([_md(name) for name in block.head])]
        lines.append(
            _md_row(
                ["---" if nth < block.text_columns else "---:" for nth in range(len(block.head))]
            )
        )
        lines += [_md_row([_md_cell(c) for c in row]) for row in block.rows]
        lines.append("")
    lines += [f"- {_md_note(note)}" for note in document.notes]
    return "\n".join(lines) + "\n"


def _md_note(text: str) -> str:
    """Escape a note, but not the commands in backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _md(text)
    # split at the spaces around a command, which escaping would swallow
    return "".join(
        f"`{part}`" if nth % 2 else re.sub(r"\S+", lambda found: _md(found[0]), part)
        for nth, part in enumerate(parts)
    )


def _md_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _md_cell(cell: Cell) -> str:
    return " ".join(
        filter(
            None,
            [
                f"**{_md(cell.text)}**" if cell.best and cell.text else _md(cell.text),
                _md(cell.more),
            ],
        )
    )


def _md(text: str) -> str:
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def latex(document: Document) -> str:
    """The document as LaTeX, one `table` a block; needs `\\usepackage{booktabs}`."""
    out = [r"% needs \usepackage{booktabs}"]
    for nth, block in enumerate(document.blocks):
        figures = len(block.head) - block.text_columns
        out += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(f'{document.title}. {block.title}')}}}",
            rf"\label{{tab:{document.name}-{nth + 1}}}",
        ]
        out += [
            rf"\begin{{tabular}}{{{'l' * block.text_columns}{'r' * figures}}}",
            r"\toprule",
        ]
        out += [_tex_row([_tex(name) for name in block.head]), r"\midrule"]
        out += [_tex_row([_tex_cell(c) for c in row]) for row in block.rows]
        out += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    if document.notes:
        out += [
            r"\begin{itemize}",
            *(rf"\item {_tex(note)}" for note in document.notes),
            r"\end{itemize}",
        ]
    return "\n".join(out) + "\n"


def _tex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.best and cell.text else _tex(cell.text)
    # braces, since a row that begins with a bracket would be read as an option of the line break
    # before it
    return text + (rf" {{\small {_tex(cell.more)}}}" if cell.more else "")


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "†": r"\dag{}",
    "[": "{[}",
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def csv_text(document: Document) -> str:
    """The records as CSV: floats with six digits, None as an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(RECORD)
    for r in document.records:
        writer.writerow([_csv(r[name]) for name in RECORD])
    return out.getvalue()


def _csv(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def write(
    document: Document,
    to_markdown: Path | None = None,
    to_csv: Path | None = None,
    to_latex: Path | None = None,
) -> list[Path]:
    """Write the document to the files that are given.

    Returns:
        The files that were written.

    Raises:
        UserError: a file cannot be written.
    """
    written = []
    for path, text in ((to_markdown, markdown), (to_csv, csv_text), (to_latex, latex)):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, text(document))
            except (OSError, JournalError) as error:
                raise UserError(
                    f"{path} cannot be written ({error}): choose another place."
                ) from error
            written.append(path)
    return written
