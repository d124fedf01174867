"""The run for people: tables on the terminal, one self-contained HTML page. Draws what the summary holds and computes no figure of its own."""

from leafe.report._against import against_csv, against_markdown, against_table
from leafe.report._alarms import alarms
from leafe.report._html import findings, write_report
from leafe.report._tables import TableKind, differences_table, evaluate_table, explore_table, print_tables, rounds_table
from leafe.report._tree import draw_tree, pick_tree

__all__ = [
    "TableKind", "against_csv", "against_markdown", "against_table", "alarms", "differences_table", "draw_tree", "evaluate_table", "explore_table", "findings",
    "pick_tree", "print_tables", "rounds_table", "write_report",
]  # fmt: skip
