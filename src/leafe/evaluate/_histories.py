"""Histories with counts while they are sampled, and the episodes that they are written as.

A node is a history and how many samples share it. When all samples have ended, the nodes are a tree
whose leaves are the distinct paths. Depth first, the most frequent first, each leaf becomes an
episode that holds the turns no earlier one has written: ids and order depend on what was sampled,
not on when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from leafe.core import Completion, Episode, Stop, Turn, turn_id
from leafe.prompts import History


@dataclass(slots=True)
class HistoryNode:
    """A history, and the samples that share it."""

    history: History
    """The parent's history; once the environment has answered, with this node's turn at its end."""
    count: int
    seed: int
    """The seed of the request at this history; the children's derive from it."""
    answer: Completion | None = None
    """What the policy answered to get here, for all samples together; None at a root."""
    policy_seconds: float = 0.0
    """Duration of that request."""
    turn: Turn | None = None
    """The answer and the environment's, without an id; None at a root, and where the environment
    failed on it: then it is not part of the tree."""
    invalid: int = 0
    """Invalid actions in a row up to here."""
    replayed: int = 0
    """Environment steps spent on returning to the parent's history."""
    children: list[HistoryNode] = field(default_factory=list)
    stop: Stop | None = None
    """Why the samples ended here; None while they go on."""
    error: str = ""
    seconds: float = 0.0
    """From the task's start to the end of these samples."""
    resampled: int = 0
    """How often these samples were sampled again from here."""
    index: int = 0
    """Of a root: which of the samples it is, for the seed of its environment."""
    after: str | None = None
    """Of a root that continues a recorded history: the last turn of that."""
    again: int | None = None
    """Of such a root: the episode that was lost there."""

    def count_replay(self) -> None:
        """One step was replayed on the way to the parent's history."""
        self.replayed += 1


def leaves(roots: Sequence[HistoryNode]) -> list[HistoryNode]:
    """Where samples ended, depth first."""
    out, waiting = [], list(reversed(roots))
    while waiting:
        node = waiting.pop()
        waiting += reversed(node.children)
        if not node.children:
            out.append(node)
    return out


def to_episodes(task_id: str, roots: Sequence[HistoryNode], first: int = 0) -> list[Episode]:
    """One episode for each leaf, numbered from `first` on; the counts sum to those of the roots."""
    episodes: list[Episode] = []
    # node; last turn above it; turns above it that no episode holds yet, and the turn before these;
    # replays charged with them; the lost episode that is made up for
    waiting: list[tuple[HistoryNode, str | None, list[Turn], str | None, int, int | None]]
    waiting = [(root, root.after, [], root.after, 0, root.again) for root in reversed(roots)]
    while waiting:
        node, parent, fresh, start, replayed, again = waiting.pop()
        here, replayed = parent, replayed + node.replayed
        if node.turn is not None:
            here = turn_id(task_id, first + len(episodes), node.turn.step)
            fresh = [*fresh, replace(node.turn, id=here, parent=parent)]
        if node.children:
            waiting += [(child, here, [], here, 0, again) for child in reversed(node.children[1:])]
            waiting.append((node.children[0], here, fresh, start, replayed, again))
            continue
        assert node.stop is not None
        episodes.append(
            Episode(
                task_id=task_id,
                index=first + len(episodes),
                stop=node.stop,
                turns=tuple(fresh),
                first_observation=node.history.first_observation,
                start=start,
                count=node.count,
                replayed=replayed,
                seconds=node.seconds,
                error=node.error,
                again=again,
            )
        )
    return episodes
