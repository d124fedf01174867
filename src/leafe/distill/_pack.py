"""Packs sequences into rows in which tokens that samples share stand, and are computed, once.

The inputs of a batch are sorted lexicographically, which is the depth-first order of their trie: a
sequence adds to the row what it does not share with the one before it. A token's position is its
depth, and it attends to its ancestors alone, so that its computation is that of its own sequence
alone. Every target keeps its part and weight: sharing changes compute, never the objective.

Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from leafe.distill._config import Part
from leafe.distill._tokens import TokenSequence

_T = TypeVar("_T")


class Target(NamedTuple):
    """One token to learn, at one node of a row."""

    at: int
    """The node whose logits predict it."""
    token: int
    part: Part
    weight: float
    teacher: tuple[int, int] | None
    """(row of `Row.teachers`, node) whose logits under the start policy are the target; None:
    cross-entropy on `token`."""


@dataclass(slots=True)
class Row:
    """Several samples in one sequence: nodes in depth-first order."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    """The position of each node in its own sequence, from 0."""
    ends: list[int] = field(default_factory=list)
    """One past each node's last descendant: node i attends to node j if j <= i < ends[j]."""
    targets: list[Target] = field(default_factory=list)
    teachers: list[Row] = field(default_factory=list)
    """What the start policy reads; without targets of their own."""
    given: int = 0
    """Tokens of its samples without sharing."""

    @property
    def tokens(self) -> int:
        """Tokens that the trained policy computes."""
        return len(self.ids)

    @property
    def teacher_tokens(self) -> int:
        return sum(len(t.ids) for t in self.teachers)

    @property
    def branches(self) -> bool:
        """Whether some node has two children; if not, causal attention is enough."""
        return any(end != len(self.ids) for end in self.ends)


class RowLimits(NamedTuple):
    """How far rows may grow."""

    tokens: float = math.inf
    """Most tokens in a row; a longer sequence has a row of its own."""
    width: float = math.inf
    """Length of a row at which attention over all of it costs as much as the rest of the model;
    infinite if attention skips what is masked. A sequence joins a row if that costs less than a row
    of its own."""
    branching: bool = True
    """False: a row is one path, for models with causal attention alone."""


def pack(batch: Sequence[TokenSequence], limits: RowLimits) -> list[Row]:
    """The batch as rows; they depend on the batch's sequences, not on their order."""
    rows = []
    inputs = [(s.ids[: max(span.end for span in s.spans) - 1], s) for s in batch if s.spans]
    for trie, members in _tries(inputs, limits):
        row = Row(trie.ids, trie.depths, trie.ends)
        taught: list[tuple[tuple[int, ...], tuple[int, list[int]]]] = []
        for path, sequence in members:
            for span in sequence.spans:
                first = len(row.targets)
                row.given += span.end - 1
                row.targets += [
                    Target(path[at - 1], sequence.ids[at], sequence.part, span.weight, None)
                    for at in range(span.start, span.end)
                ]
                if span.teacher is not None:
                    reads = (*span.teacher, *sequence.ids[span.start : span.end - 1])
                    targets = list(range(first, len(row.targets)))
                    taught.append((reads, (len(span.teacher) - 1, targets)))
        for nth, (teacher, spans) in enumerate(_tries(taught, limits)):
            row.teachers.append(Row(teacher.ids, teacher.depths, teacher.ends))
            for path, (start, targets) in spans:
                for offset, target in enumerate(targets):
                    place = (nth, path[start + offset])
                    row.targets[target] = row.targets[target]._replace(teacher=place)
        rows.append(row)
    return rows


class _Trie:
    """A growing row: paths are added in lexicographic order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.last: tuple[int, ...] = ()
        self.path: list[int] = []

    def admits(self, ids: tuple[int, ...], limits: RowLimits) -> bool:
        shared = _common_prefix(self.last, ids)
        if not limits.branching:
            return shared == len(self.last)
        now, then = len(self.ids), len(self.ids) + len(ids) - shared
        added = _cost(then, limits.width) - _cost(now, limits.width)
        return then == now or (then <= limits.tokens and added <= _cost(len(ids), limits.width))

    def add(self, ids: tuple[int, ...]) -> list[int]:
        """Add a path; the node of each of its ids."""
        shared = _common_prefix(self.last, ids)
        first = len(self.ids)
        for node in self.path[shared:]:
            self.ends[node] = first
        self.ids += ids[shared:]
        self.depths += range(shared, len(ids))
        self.ends += [0] * (len(ids) - shared)
        self.path = [*self.path[:shared], *range(first, len(self.ids))]
        self.last = ids
        return self.path

    def close(self) -> None:
        for node in self.path:
            self.ends[node] = len(self.ids)


def _tries(
    inputs: Iterable[tuple[tuple[int, ...], _T]], limits: RowLimits
) -> Iterator[tuple[_Trie, list[tuple[list[int], _T]]]]:
    """The paths of ids as tries, each with its members: a path's nodes, and the item given with
    it."""
    trie = _Trie()
    members: list[tuple[list[int], _T]] = []
    for ids, item in sorted(inputs, key=lambda pair: pair[0]):
        if members and not trie.admits(ids, limits):
            trie.close()
            yield trie, members
            trie, members = _Trie(), []
        members.append((trie.add(ids), item))
    if members:
        trie.close()
        yield trie, members


def _cost(length: int, width: float) -> float:
    return length + length * length / width


def _common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is fast."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high - 1:  # a[:low] == b[:low], and a[:high] != b[:high]
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
