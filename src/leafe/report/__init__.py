"""A run for people: tables on the terminal, and one self-contained HTML page.

It draws what a summary holds and computes no figure of its own. `Table` is the one renderer of
tables. It may import `evaluate`, `baselines` and what lies below them; it knows no recipe and no
pipeline.
"""

from leafe.report._against import against_csv, against_markdown, against_table
from leafe.report._alarms import alarms
from leafe.report._format import clip, duration
from leafe.report._html import findings, write_report
from leafe.report._rescues import Rescue, pick_rescues, rescue_of
from leafe.report._side_by_side import side_by_side, side_tables
from leafe.report._table import Table
from leafe.report._tables import (
    TableKind,
    differences_table,
    evaluate_table,
    explore_table,
    print_tables,
    rounds_table,
    tries_table,
)
from leafe.report._tree import draw_tree, pick_tree, stop_name

__all__ = [
    "Rescue",
    "Table",
    "TableKind",
    "against_csv",
    "against_markdown",
    "against_table",
    "alarms",
    "clip",
    "differences_table",
    "draw_tree",
    "duration",
    "evaluate_table",
    "explore_table",
    "findings",
    "pick_rescues",
    "pick_tree",
    "print_tables",
    "rescue_of",
    "rounds_table",
    "side_by_side",
    "side_tables",
    "stop_name",
    "tries_table",
    "write_report",
]
