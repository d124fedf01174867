"""The run folder: what a run was asked for, what it did, and how it goes on after being cut off
anywhere."""

from leafe.runs._files import atomic_write
from leafe.runs._folder import RunFolder
from leafe.runs._journal import (
    Journal,
    check_header,
    load_trees,
    read_journal,
    read_tasks,
    shards,
    write_tasks,
)
from leafe.runs._toml import to_toml
from leafe.runs._trees import StoredTrees

__all__ = [
    "Journal",
    "RunFolder",
    "StoredTrees",
    "atomic_write",
    "check_header",
    "load_trees",
    "read_journal",
    "read_tasks",
    "shards",
    "to_toml",
    "write_tasks",
]
