"""The paper's six tables, its Pass@k figure and its claims, from run folders: figures, costs,
statistics, and what is missing with the command for it."""

from studies.paper.build import all_claims, build
from studies.paper.columns import Evidence
from studies.paper.definitions import SETS, TABLES, recipe_set
from studies.paper.document import Block, Cell, Document
from studies.paper.evidence import gather
from studies.paper.figure import passk_figure
from studies.paper.jobs import Job, folders_of, jobs_of, transfer_jobs
from studies.paper.render import csv_text, latex, markdown, show, write

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
