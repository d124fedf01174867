"""Pass@k against k with 95 % bands: one panel a column, one line a row, by matplotlib without a
display.

Series differ by colour (Okabe-Ito, safe for colour-blind readers), dash and marker; the ceiling is
grey. k runs to 1024 where there are so many samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from studies.paper.build import estimate
from studies.paper.columns import Column, Evidence
from studies.paper.definitions import TABLES, title_of
from studies.paper.document import Document, record
from studies.paper.evidence import gather
from studies.paper.render import write

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B2A86")
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FURTHEST = 1024
SUFFIXES = (".png", ".svg", ".pdf")


def passk_figure(
    paths: Sequence[Path], out: Path, rows: Sequence[str] = (), csv: Path | None = None
) -> list[Path]:
    """Draw the Pass@k curves of run folders.

    Args:
        paths: the run folders.
        out: the figure: .png, .svg or .pdf.
        rows: the rows to draw; empty: those of table 1 and the controls.
        csv: a file for the same points as text.

    Returns:
        The files that were written.

    Raises:
        UserError: a row is unknown, there is nothing to draw, or a file cannot be written.
    """
    evidence = gather(paths)
    known = list(dict.fromkeys(row for column in evidence.columns for row in column.rows()))
    for row in rows:
        if row not in known:
            raise UserError(
                f"No folder has a row {row!r}: there are {', '.join(known) or 'none yet'}."
            )
    points = curves(evidence, rows)
    roles = [item for column in evidence.columns for item in column.roles.items()]
    draw(points, out, [row for row, role in roles if role == "ceiling"])
    return [out, *write(Document("passk", "Pass@k", (), (), tuple(points)), to_csv=csv)]


def curves(evidence: Evidence, rows: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The points of the figure, as records: k a power of two, as far as the samples go. `rows`:
    only these; empty: the rows of table 1 and the controls."""
    out = []
    for column in evidence.columns:
        for row in _shown(column, rows):
            results = column.results(row)
            most = min((int(r.counts.n.max()) for r in results.values()), default=0)
            for k in [2**i for i in range(11) if 2**i <= min(most, FURTHEST)]:
                found = estimate(results, k)
                unfinished = "" if all(r.finished for r in results.values()) else "unfinished"
                out.append(
                    record(
                        kind="cell",
                        column=column.title,
                        row=row,
                        measure=f"Pass@{k}",
                        k=k,
                        value=found.value,
                        low=found.low,
                        high=found.high,
                        tasks=found.tasks,
                        runs=len(results),
                        samples=most,
                        note=unfinished,
                    )
                )
    return out


def _shown(column: Column, rows: Sequence[str]) -> list[str]:
    if rows:
        return [row for row in rows if row in column.rows()]
    named = [row.key for row in TABLES[1].rows]
    controls = [row for row in column.rows() if column.roles.get(row) in ("control", "ceiling")]
    return [row for row in dict.fromkeys([*named, *controls]) if row in column.rows()]


def draw(points: Sequence[dict[str, Any]], out: Path, ceilings: Sequence[str] = ()) -> None:
    """Write the figure; the suffix says as what. `ceilings`: rows that are drawn in grey. UserError
    where there is nothing to draw, or no such kind of file."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out} has no kind of figure for a suffix: name it .png, .svg or .pdf.")
    if not points:
        raise UserError("These folders hold no evaluation to draw: go on with the run.")
    import matplotlib

    matplotlib.use("Agg")
    # texts of an SVG stay texts, and the same figure is the same file
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "leafe", "font.size": 10})
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(p["column"] for p in points))
    rows = list(dict.fromkeys(p["row"] for p in points))
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(4.6 * across + 2.0, 3.6 * down + 0.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for nth, axis in enumerate(axes.flat):
        if nth >= len(columns):
            axis.set_visible(False)
            continue
        _panel(
            axis, columns[nth], [p for p in points if p["column"] == columns[nth]], rows, ceilings
        )
        if nth % across == 0:
            axis.set_ylabel("Pass@k in %")
    lines: dict[str, Any] = {}
    for axis in axes.flat:
        for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
            lines.setdefault(name, line)
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=160, metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from error


def _panel(
    axis: Any,
    title: str,
    points: Sequence[dict[str, Any]],
    rows: Sequence[str],
    ceilings: Sequence[str],
) -> None:
    for nth, row in enumerate(rows):
        mine = [p for p in points if p["row"] == row and p["value"] == p["value"]]
        if not mine:
            continue
        look, again = nth % len(PALETTE), nth // len(PALETTE)
        colour = "#666666" if row in ceilings else PALETTE[look]
        shape = (look + 3 * again) % len(
            MARKERS
        )  # where colours begin anew, dashes and markers are others
        x, y, low, high = (
            [scale * p[name] for p in mine]
            for name, scale in (("k", 1), ("value", 100), ("low", 100), ("high", 100))
        )
        name = title_of(row) + (" (unfinished)" if any(p["note"] for p in mine) else "")
        axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axis.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES[shape],
            marker=MARKERS[shape],
            markersize=4,
            linewidth=1.6,
            label=name,
        )
    first = points[0]
    axis.set_title(
        f"{title}: {first['tasks']} tasks, {first['runs']} run{'s' if first['runs'] > 1 else ''}",
        fontsize=10,
    )
    axis.set_xscale("log", base=2)
    most = max(p["k"] for p in points)
    ticks = [2**i for i in range(0, 11, 1 if most <= 128 else 2) if 2**i <= most]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xlabel("k")
    axis.set_ylim(0, 102 if max(p["high"] for p in points) > 0.9 else None)
    axis.grid(True, color="#dddddd", linewidth=0.6)
