"""The sequences whose keys and values are there, and which one serves a new prompt best.

A slot is a line of two tables: the token ids of a sequence, and the cells that hold their keys and
values. A new prompt looks for the slot that shares its
longest prefix and holds the same cells as far as that goes. So an episode's next turn computes its
new tokens alone, and so do a branch from any earlier
turn and its siblings, and what tasks have in common (a system message, examples) is stored once for
all of them.

Where cells are short, idle sequences give theirs back from their ends: first those of tasks that
are no longer served, then those that their task has left
long ago. A task that is being explored keeps its branches as long as there is one that is not.
Where all that is of use is too much, one task gives up
what it has and is `cold`: it should wait until there is room, or the tasks would take each other's
cells in turn and each compute its history anew at
every step.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leafe.policies.hf._kv_slots import KVSlots

WORTHWHILE = 32
"""Tokens: a shorter gain is not worth a search over all slots or a wait of one iteration."""
_FIRST_SLOTS, _FIRST_LENGTH = 16, 64
_PATIENCE = 4
"""Times the average gap between a task's requests: one that was not served for longer is taken to
be over."""
_ENTRIES = 16
"""Entries of the tables for each cell, at most."""

Tokens = NDArray[np.int32]
HeldCells = NDArray[np.int32]
"""Cells of the first tokens of a sequence, in order."""


@dataclass(frozen=True, slots=True)
class Found:
    """The first `cached` tokens of a prompt are those of `slot`."""

    slot: int
    cached: int


class Slots:
    """Bookkeeping in numpy, one line a slot. What a line holds beyond `known` are leavings."""

    def __init__(self, limit: int) -> None:
        """`limit`: cells at most; passed only where what is pinned needs more."""
        self.pool = KVSlots(limit)
        self.tokens = np.zeros((_FIRST_SLOTS, _FIRST_LENGTH), np.int32)
        self.cells = np.zeros((_FIRST_SLOTS, _FIRST_LENGTH), np.int32)
        self.ready = np.zeros(_FIRST_SLOTS, np.int64)
        """How many tokens have their keys and values computed."""
        self.stored = np.zeros(_FIRST_SLOTS, np.int64)
        """How many have a cell; equal to `ready` in an idle slot."""
        self.known = np.zeros(_FIRST_SLOTS, np.int64)
        """How many there are; equal to `ready` in an idle slot."""
        self.busy = np.zeros(_FIRST_SLOTS, bool)
        self._used = np.zeros(_FIRST_SLOTS, np.int64)
        """When the slot was last let go."""
        self._served = np.zeros(_FIRST_SLOTS, np.int64)
        """When its task last was."""
        self._key = [""] * _FIRST_SLOTS
        self._of_key: defaultdict[str, set[int]] = defaultdict(set)
        self._empty = list(range(_FIRST_SLOTS - 1, -1, -1))
        self._clock = 0
        """Counts how often a slot was claimed or let go."""
        self._warm: dict[str, int] = {}
        """When each task was served last, those left out that had to give up cells since."""
        self._gap = 64.0
        """How long a task takes from one request to the next, on average; at first a guess that
        lets tasks be."""

    # finding

    def find(self, prompt: Tokens, key: str) -> Found | None:
        """The longest prefix that is there; None: wait, much more of it is being computed for
        another one right now."""
        known = (
            np.fromiter(self._of_key[key], np.int64)
            if key in self._of_key
            else np.zeros(0, np.int64)
        )
        slot, cached, coming = self._match(prompt, known)
        if len(prompt) - max(cached, coming) >= WORTHWHILE and len(known) < len(self._key) - len(
            self._empty
        ):
            everywhere = self._match(prompt, None)
            if max(everywhere[1:]) >= max(cached, coming) + WORTHWHILE:
                slot, cached, coming = everywhere
        return None if coming - cached >= WORTHWHILE else Found(slot, cached)

    def _match(self, prompt: Tokens, among: NDArray[np.int64] | None) -> tuple[int, int, int]:
        """(slot, tokens of the prompt that are ready there, tokens that are ready or on their way
        in the best such slot); the last token is left to compute."""
        width = min(len(prompt) - 1, self.tokens.shape[1])
        if width <= 0 or (among is not None and not len(among)):
            return 0, 0, 0
        lines, ready, known = (
            (self.tokens, self.ready, self.known)
            if among is None
            else (self.tokens[among], self.ready[among], self.known[among])
        )
        equal = lines[:, :width] == prompt[:width]
        shared = np.where(equal.all(1), width, equal.argmin(1))
        there = np.minimum(shared, ready)
        best = int(there.argmax())
        return (
            best if among is None else int(among[best]),
            int(there[best]),
            int(np.minimum(shared, known).max()),
        )

    def pins(self, found: Found) -> int:
        """How many cells of the prefix are not pinned so far: the room that holding it takes."""
        return self.pool.without_pin(self.cells[found.slot, : found.cached])

    def cold(self, key: str) -> bool:
        """The task was never served, or not for several times as long as a task takes to come
        again, or gave up cells since. Requests without a key are not."""
        return bool(key) and self._warm.get(key, -(10**9)) < self._clock - _PATIENCE * self._gap

    def quiet(self) -> int:
        """Cells that can be had without taking any that a task which is not cold has used of
        late."""
        kept = np.flatnonzero(self._worth(np.arange(len(self.busy))) > 1)
        held = np.concatenate(
            [self.pool.pinned_cells(), *(self.cells[s, : self.stored[s]] for s in kept)]
        )
        return self.pool.limit - len(np.unique(held))

    def _worth(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """0: of a cold task; 1: of another one that has long gone on elsewhere; 2: of use."""
        since = self._clock - _PATIENCE * self._gap
        warm = self._served[slots] >= since
        return warm.astype(np.int64) + (warm & (self._used[slots] >= since))

    # working on a sequence

    def claim(self, tokens: Tokens, key: str, prefix: Found | HeldCells) -> int:
        """A busy slot with these tokens, a cell for each; the prefix's cells are held (those of a
        `HeldCells` already are)."""
        if (
            isinstance(prefix, Found)
            and prefix.cached
            and not self.busy[prefix.slot]
            and self.ready[prefix.slot] - prefix.cached < 2
        ):
            slot, cached = prefix.slot, prefix.cached  # goes on in its own line
            self._cut(slot, cached)
            self.pool.pin(self.cells[slot, :cached])
        else:
            held = prefix
            if isinstance(prefix, Found):
                held = self.cells[prefix.slot, : prefix.cached].copy()
                self.pool.hold(held)
            assert not isinstance(held, Found)
            slot, cached = self._line(), len(held)
            self._lengthen(len(tokens))
            self.cells[slot, :cached] = held
        self.busy[slot] = True
        self.ready[slot] = self.stored[slot] = self.known[slot] = cached
        self._label(slot, key)
        if key in self._warm:
            self._gap += 0.05 * (self._clock - self._warm[key] - self._gap)
        self._serve(slot)
        self.append(slot, tokens[cached:])
        self.tokens[slot, :cached] = tokens[:cached]
        self.fill(np.array([slot]))
        return slot

    def append(self, slot: int, tokens: Tokens | tuple[int, ...]) -> None:
        """More tokens; their cells are taken by `fill`."""
        begin = int(self.known[slot])
        end = begin + len(tokens)
        self._lengthen(end)
        self.tokens[slot, begin:end] = tokens
        self.known[slot] = end

    def fill(self, slots: NDArray[np.int64]) -> None:
        """A cell for every known token that has none."""
        lacking = self.known[slots] - self.stored[slots]
        total = int(lacking.sum())
        if not total:
            return
        taken = self._take(total)
        place = (
            np.arange(total)
            - np.repeat(lacking.cumsum() - lacking, lacking)
            + np.repeat(self.stored[slots], lacking)
        )
        self.cells[np.repeat(slots, lacking), place] = taken
        self.stored[slots] = self.known[slots]

    def fork(self, slot: int) -> HeldCells:
        """The cells of all that is ready in a busy slot, held once more and pinned: for `claim`, or
        for `forget`."""
        held = self.cells[slot, : self.ready[slot]].copy()
        self.pool.hold(held)
        return held

    def forget(self, held: HeldCells) -> None:
        self.pool.unpin(held)
        self.pool.drop(held)

    def release(self, slot: int) -> None:
        """The row is done; what is ready stays for a later prompt."""
        self.pool.unpin(self.cells[slot, : self.stored[slot]])
        self.busy[slot] = False
        self._serve(slot)
        self._used[slot] = self._clock
        self._cut(slot, int(self.ready[slot]))

    # room

    def _serve(self, slot: int) -> None:
        self._clock += 1
        self._served[slot] = self._clock
        if key := self._key[slot]:
            self._warm[key] = self._clock
            self._served[list(self._of_key[key])] = self._clock

    def _label(self, slot: int, key: str | None) -> None:
        if key != self._key[slot] or slot not in self._of_key[key]:
            mine = self._of_key[self._key[slot]]
            mine.discard(slot)
            if not mine:
                del self._of_key[self._key[slot]]
                self._warm.pop(self._key[slot], None)
            self._key[slot] = key or ""
            if key is not None:
                self._of_key[key].add(slot)

    def _take(self, n: int) -> NDArray[np.int32]:
        """n cells: free ones, then new ones up to the limit, then those of idle slots, and beyond
        the limit where all that does not do."""
        pool = self.pool
        if pool.free < n:
            pool.grow(n - pool.free)
        if pool.free < n:
            self._evict(max(n, pool.count // 64))
        if pool.free < n:
            pool.grow(n - pool.free, beyond=True)
        return pool.take(n)

    def _evict(self, wanted: int) -> None:
        """Cut idle slots from their ends until so many cells are free."""
        idle = np.flatnonzero(~self.busy & (self.ready > 0))
        worth = self._worth(idle)
        order = np.lexsort((self._used[idle], self._served[idle], worth))
        for slot, of_use in zip(idle[order].tolist(), (worth[order] > 1).tolist(), strict=True):
            mine = list(self._of_key[self._key[slot]])
            if of_use and self._key[slot] in self._warm and not self.busy[mine].any():
                del self._warm[self._key[slot]]
                self._served[mine] = 0  # and the rest of it is the next to go
            self._cut(slot, max(0, int(self.ready[slot]) - wanted + self.pool.free))
            if (
                self.pool.free < wanted and self.ready[slot]
            ):  # what it shares with another is not free by that: then all of it goes
                self._cut(slot, 0)
            if self.pool.free >= wanted:
                return

    def _cut(self, slot: int, length: int) -> None:
        """Keep the first tokens of an idle slot; an empty one has no owner."""
        self.pool.drop(self.cells[slot, length : self.stored[slot]])
        self.ready[slot] = self.stored[slot] = self.known[slot] = length
        if not length and not self.busy[slot]:
            self._label(slot, None)
            self._empty.append(slot)

    def _line(self) -> int:
        """An empty line: a new one where the tables may grow, else that of the idle slot whose turn
        it is to go."""
        slots, length = self.tokens.shape
        if not self._empty and 2 * slots * length > _ENTRIES * self.pool.limit:
            idle = np.flatnonzero(~self.busy)
            if len(idle):
                self._cut(int(idle[np.lexsort((self._used[idle], self._served[idle]))[0]]), 0)
        if not self._empty:
            for name in ("tokens", "cells", "ready", "stored", "known", "busy", "_used", "_served"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros_like(old))))
            self._key += [""] * slots
            self._empty += range(2 * slots - 1, slots - 1, -1)
        return self._empty.pop()

    def _lengthen(self, length: int) -> None:
        slots, old = self.tokens.shape
        if length > old:
            more = np.zeros((slots, max(2 * old, length) - old), np.int32)
            self.tokens, self.cells = np.hstack((self.tokens, more)), np.hstack((self.cells, more))
