"""The paper's six tables, its Pass@k figure and its claims, from run folders: figures, costs,
statistics, and what is missing with the command for it."""

from leafe.tables._build import all_claims, build
from leafe.tables._define import SETS, TABLES, recipe_set
from leafe.tables._document import Block, Cell, Document
from leafe.tables._evidence import Evidence, gather
from leafe.tables._figure import passk_figure
from leafe.tables._run import Job, folders_of, jobs_of, transfer_jobs
from leafe.tables._write import csv_text, latex, markdown, show, write

__all__ = [
    "SETS",
    "TABLES",
    "Block",
    "Cell",
    "Document",
    "Evidence",
    "Job",
    "all_claims",
    "build",
    "csv_text",
    "folders_of",
    "gather",
    "jobs_of",
    "latex",
    "markdown",
    "passk_figure",
    "recipe_set",
    "show",
    "transfer_jobs",
    "write",
]
