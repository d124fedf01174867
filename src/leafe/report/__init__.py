"""The run for people: tables on the terminal, one self-contained HTML page. Draws what the summary holds and computes no figure of its own."""

from leafe.report._html import findings, write_report
from leafe.report._tables import TableKind, differences_table, evaluate_table, explore_table, print_tables
from leafe.report._tree import draw_tree, pick_tree

__all__ = ["TableKind", "differences_table", "draw_tree", "evaluate_table", "explore_table", "findings", "pick_tree", "print_tables", "write_report"]
