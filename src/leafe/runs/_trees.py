"""The trees of a stage, read from the journal one at a time, on demand.

One pass over the journal notes the place of each task's lines; a tree is then read from those lines
alone. So going through all trees holds one of them in memory at a time: a million turns take 1.5 GB
as objects.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

from leafe.core import Tree
from leafe.runs._journal import (
    DAMAGE,
    damaged,
    grow,
    lines,
    parsed,
    read_tasks,
    shards,
    unknown_task,
)

_KEPT = 8
"""How many trees stay in memory: those asked for last."""


class StoredTrees(Mapping[str, Tree]):
    """The trees that `load_trees` returns, read when they are asked for: by task id, in the order
    of the tasks. They show what the journal held when this object was made.

    Args:
        folder: The stage's folder.

    Raises:
        JournalError: Something is damaged; raised here, or when the tree is asked for.
        UserError: As by `load_trees`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._tasks = {task.id: task for task in read_tasks(self.folder)}
        self._shards = shards(self.folder)
        self._places = {task: array("q") for task in self._tasks}
        """By task: shard, number, offset and length of each line that holds episodes of it."""
        self._kept: OrderedDict[str, Tree] = OrderedDict()
        for nth, path in enumerate(self._shards):
            for number, offset, line in lines(path):
                try:
                    tasks = dict.fromkeys(e["task_id"] for e in json.loads(line)["episodes"])
                except DAMAGE as error:
                    raise damaged(path, number, error) from error
                for task in tasks:
                    if task not in self._tasks:
                        raise unknown_task(self.folder, task)
                    self._places[task].extend((nth, number, offset, len(line)))

    def __getitem__(self, task_id: str) -> Tree:
        tree = self._kept.pop(task_id, None) or self._read(task_id)
        self._kept[task_id] = tree
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return tree

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def _read(self, task_id: str) -> Tree:
        tree, places = Tree(self._tasks[task_id]), self._places[task_id]
        for at in range(0, len(places), 4):
            shard, number, offset, length = places[at : at + 4]
            path = self._shards[shard]
            with path.open("rb") as file:
                file.seek(offset)
                line = file.read(length)
            grow(tree, parsed(line, path, number, task_id), self.folder)
        return tree
