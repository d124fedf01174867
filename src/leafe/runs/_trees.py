"""The trees of a stage, read from the journal one at a time, when they are asked for.

One pass over the journal notes where each task's lines stand; a tree is then those lines and
nothing else. So whoever goes through the trees in turn
holds one of them, not all: a million turns take 1.5 GB as objects.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

from leafe.core import Episode, JournalError, Tree
from leafe.runs._journal import TASKS, check_header, damaged, read_tasks, shards

_KEPT = 8
"""Trees that stay in memory after they were asked for: those asked for last."""


class StoredTrees(Mapping[str, Tree]):
    """What `load_trees` gives, tree by tree: by task id, in the order of the tasks. What the
    journal holds when this is made is what it shows.

    JournalError, with file and line, for damage: some of it when this is made, some when the tree
    is asked for. UserError as in `load_trees`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._tasks = {task.id: task for task in read_tasks(self.folder)}
        self._shards = shards(self.folder)
        self._lines = {task: array("q") for task in self._tasks}
        """By task: shard, number, offset and length of each line that holds episodes of it."""
        self._kept: OrderedDict[str, Tree] = OrderedDict()
        for nth, path in enumerate(self._shards):
            for number, offset, line in _lines(path):
                try:
                    tasks = dict.fromkeys(e["task_id"] for e in json.loads(line)["episodes"])
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise damaged(path, number, error) from error
                for task in tasks:
                    if task not in self._tasks:
                        raise JournalError(
                            f"The journal in {self.folder} holds an episode of the task "
                            f"{task!r}, which is not in {TASKS}."
                        )
                    self._lines[task].extend((nth, number, offset, len(line)))

    def __getitem__(self, task_id: str) -> Tree:
        tree = self._kept.pop(task_id, None)
        if tree is None:
            tree = self._read(task_id)
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
        tree = Tree(self._tasks[task_id])
        places = self._lines[task_id]
        for at in range(0, len(places), 4):
            shard, number, offset, length = places[at : at + 4]
            path = self._shards[shard]
            with path.open("rb") as file:
                file.seek(offset)
                line = file.read(length)
            try:
                episodes = [
                    Episode.from_json(e)
                    for e in json.loads(line)["episodes"]
                    if e["task_id"] == task_id
                ]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise damaged(path, number, error) from error
            try:
                for episode in episodes:
                    tree.add(episode)
            except ValueError as error:
                raise JournalError(
                    f"The journal in {self.folder} is not a tree: {error}."
                ) from error
        return tree


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, line) of every whole line after the header."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            if number == 1:
                check_header(line, path)
            else:
                yield number, offset, line
            offset += len(line)
