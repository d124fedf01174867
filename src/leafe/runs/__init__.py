"""The run folder: the settings of a run, what it did, and how it continues after being killed.

It holds the folder (`RunFolder`), the journal and the trees read from it. It may import `core`
alone: it knows no recipe and no stage.
"""

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
