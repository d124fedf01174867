"""Imported episodes as trees, each episode a root of its own, and as a stage of a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from leafe.core import Episode, Task, Tree
from leafe.data.importing._records import InvalidRecord, LoggedEpisode
from leafe.runs import Journal, write_tasks

BATCH = 64
"""Episodes per line of the journal; an interrupted import starts again from the log."""


@dataclass(slots=True)
class Imported:
    """The result of an import.

    Attributes:
        trees: Trees by task id.
        stops: Episodes by how they ended.
        verified: Every episode was replayed in its environment.
        calls: The most turns in one task's tree, which count against `limits.policy_calls`.
    """

    trees: dict[str, Tree] = field(default_factory=dict)
    stops: Counter[str] = field(default_factory=Counter)
    verified: bool = False
    calls: int = 0

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


class Duplicates:
    """Finds episodes that were read before: the same task, texts and end, whichever model acted."""

    def __init__(self) -> None:
        self._where: dict[tuple[object, ...], str] = {}

    def check(self, record: LoggedEpisode) -> None:
        """InvalidRecord if the same episode was checked before."""
        key = (
            record.task,
            record.system,
            record.first,
            record.first_observation,
            record.turns,
            record.reward,
            record.success,
        )
        if key in self._where:
            raise InvalidRecord("the same again", f"it is the same episode as {self._where[key]}")
        self._where[key] = record.where


def write_trees(folder: Path, found: Imported, tasks: Iterable[Task] | None = None) -> None:
    """Write imported trees as a stage: tasks.jsonl and the journal.

    Args:
        folder: The stage's folder.
        found: The import.
        tasks: All tasks of the stage, in order; None: those that were imported.
    """
    write_tasks(folder, [tree.task for tree in found.trees.values()] if tasks is None else tasks)
    episodes = [episode for tree in found.trees.values() for episode in tree.episodes]
    with Journal(folder) as journal:
        for at in range(0, len(episodes), BATCH):
            journal.append(episodes[at : at + BATCH])
