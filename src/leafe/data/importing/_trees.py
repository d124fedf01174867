"""Imported episodes as trees, each a root of its own, and as the stage of a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from leafe.core import Episode, Task, Tree
from leafe.data.importing._records import Logged
from leafe.runs import Journal, write_tasks

BATCH = 64
"""Episodes in one line of the journal: an import is begun anew where it is cut off."""


@dataclass(slots=True)
class Imported:
    """The trees, and what became of the records."""

    trees: dict[str, Tree] = field(default_factory=dict)
    stops: Counter[str] = field(default_factory=Counter)
    verified: bool = False
    """Every episode was played again in its environment."""
    calls: int = 0
    """The most turns that one task's episodes hold: what they count for against
    `limits.policy_calls`."""

    @property
    def episodes(self) -> int:
        return self.stops.total()

    @property
    def solved(self) -> int:
        return sum(tree.solved for tree in self.trees.values())

    def add(self, task: Task, episode: Episode) -> None:
        tree = self.trees.setdefault(task.id, Tree(task))
        tree.add(episode)
        self.stops[episode.stop.value] += 1
        self.calls = max(self.calls, len(tree))

    def next_index(self, task: Task) -> int:
        tree = self.trees.get(task.id)
        return 0 if tree is None else len(tree.episodes)


class Seen:
    """Which episodes were there already: the same task, word for word the same, and with the same
    end. Who acted does not matter."""

    def __init__(self) -> None:
        self._where: dict[tuple[object, ...], str] = {}

    def before(self, record: Logged) -> str | None:
        """Where the same episode stands; None for a new one."""
        key = (
            record.task,
            record.system,
            record.first,
            record.first_observation,
            record.turns,
            record.reward,
            record.success,
        )
        there = self._where.get(key)
        if there is None:
            self._where[key] = record.where
        return there


def write_trees(folder: Path, found: Imported, tasks: Iterable[Task] | None = None) -> None:
    """The trees as a stage: tasks.jsonl and the journal. `tasks`: all that the stage is to have, in
    order; None: those that were imported."""
    write_tasks(folder, [tree.task for tree in found.trees.values()] if tasks is None else tasks)
    episodes = [episode for tree in found.trees.values() for episode in tree.episodes]
    with Journal(folder) as journal:
        for at in range(0, len(episodes), BATCH):
            journal.append(episodes[at : at + BATCH])
