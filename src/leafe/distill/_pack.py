"""Sequences to packed rows: the tokens that samples have in common stand there, and are computed,
once.

The inputs of a batch are put in lexicographic order, which is the depth-first order of their trie:
a sequence adds to the row what it does not share
with the one before it. A token's position is its depth, and it attends to its ancestors alone, so
that what is computed for it is what its own sequence
alone would give. Every target stays, with its own part and weight: sharing changes compute, never
the objective. Needs no torch.
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
    """(row of `Row.teachers`, node) whose logits under the start policy are to be matched; None:
    cross-entropy on `token`."""


@dataclass(slots=True)
class Row:
    """Several samples in one sequence: nodes in depth-first order."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    """The position of each node in its own sequence, from 0."""
    ends: list[int] = field(default_factory=list)
    """One past the last descendant of each node: node i attends to node j where j <= i <
    ends[j]."""
    targets: list[Target] = field(default_factory=list)
    teachers: list[Row] = field(default_factory=list)
    """What the start policy reads; these have no targets of their own."""
    given: int = 0
    """Tokens that its samples would take one by one."""

    @property
    def tokens(self) -> int:
        """Tokens that the trained policy computes."""
        return len(self.ids)

    @property
    def teacher_tokens(self) -> int:
        return sum(len(t.ids) for t in self.teachers)

    @property
    def branches(self) -> bool:
        """Whether some node has two children: if not, causal attention does."""
        return any(end != len(self.ids) for end in self.ends)

    @property
    def parents(self) -> list[int]:
        """The node before each node in its own sequence; -1 for the first."""
        path: list[int] = []
        out = []
        for node, depth in enumerate(self.depths):
            del path[depth:]
            out.append(path[-1] if path else -1)
            path.append(node)
        return out


class Shape(NamedTuple):
    """How rows may grow."""

    limit: float = math.inf
    """Most tokens in a row; a sequence that is longer has a row of its own."""
    width: float = math.inf
    """Length of a row at which attention over all of it costs as much as everything else of the
    model; infinite where attention skips what is masked. A
    sequence joins the row where that costs less than a row of its own."""
    branching: bool = True
    """False: a row is one path, for models that know causal attention alone."""


def pack(batch: Sequence[TokenSequence], shape: Shape) -> list[Row]:
    """The batch as rows; their order and content depend on the batch's sequences alone, not on
    their order."""
    rows = []
    inputs = [(s.ids[: max(span.end for span in s.spans) - 1], s) for s in batch if s.spans]
    for trie, members in _tries(inputs, shape):
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
                    taught.append(
                        (reads, (len(span.teacher) - 1, list(range(first, len(row.targets)))))
                    )
        for nth, (teacher, spans) in enumerate(_tries(taught, shape)):
            row.teachers.append(Row(teacher.ids, teacher.depths, teacher.ends))
            for path, (start, targets) in spans:
                for offset, target in enumerate(targets):
                    row.targets[target] = row.targets[target]._replace(
                        teacher=(nth, path[start + offset])
                    )
        rows.append(row)
    return rows


class _Trie:
    """A row while it grows: paths are added in lexicographic order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.last: tuple[int, ...] = ()
        self.path: list[int] = []

    def admits(self, ids: tuple[int, ...], shape: Shape) -> bool:
        shared = _common(self.last, ids)
        if not shape.branching:
            return shared == len(self.last)
        now, then = len(self.ids), len(self.ids) + len(ids) - shared
        return then == now or (
            then <= shape.limit
            and _cost(then, shape.width) - _cost(now, shape.width) <= _cost(len(ids), shape.width)
        )

    def add(self, ids: tuple[int, ...]) -> list[int]:
        """The node of each of the ids."""
        shared = _common(self.last, ids)
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
    inputs: Iterable[tuple[tuple[int, ...], _T]], shape: Shape
) -> Iterator[tuple[_Trie, list[tuple[list[int], _T]]]]:
    """The paths of ids as tries, each with the paths that it holds: their nodes, and what came with
    them."""
    trie = _Trie()
    members: list[tuple[list[int], _T]] = []
    for ids, item in sorted(inputs, key=lambda pair: pair[0]):
        if members and not trie.admits(ids, shape):
            trie.close()
            yield trie, members
            trie, members = _Trie(), []
        members.append((trie.add(ids), item))
    if members:
        trie.close()
        yield trie, members


def _cost(length: int, width: float) -> float:
    return length + length * length / width


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common prefix, by halving: comparing slices is quick."""
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
