"""Which sequences have keys and values in the cache, and which of them serves a new prompt best.

An entry is a row of two tables: a sequence's token ids, and the KV slots of these tokens. A new
prompt takes the longest prefix that some entry shares with it and holds the same KV slots that
far. So the next turn of an episode computes only its new tokens, and so does a branch from any
earlier turn. What tasks have in common (a system message, examples) is stored once.

When KV slots run out, idle entries are truncated from their ends: first those of tasks that are no
longer served, then those that their task has not used for long. An active task keeps its branches
as long as there is an entry of another kind. When the working sets of all active tasks do not fit,
one task loses its entries and becomes *cold*. A cold task waits until there is room; otherwise
tasks would evict each other at every step and each would recompute its whole history.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leafe.policies.hf._kv_slots import KVSlots

MIN_GAIN = 32
"""Tokens: a smaller gain is worth neither a search over all entries nor a wait."""
_ENTRIES, _LENGTH = 16, 64
"""Initial size of the tables."""
_COLD_AFTER = 4
"""A task is cold when it was not served for this many times the average gap between requests."""
_CELLS_PER_SLOT = 16
"""Most cells of the tables per KV slot."""

Tokens = NDArray[np.int32]
HeldPrefix = NDArray[np.int32]
"""KV slots of the first tokens of a sequence, in order; held and pinned by whoever has it."""


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The first `length` tokens of a prompt are those of `entry`."""

    entry: int
    length: int


class SequenceTable:
    """Cached sequences, one row of numpy arrays each. Values past `lengths` are stale."""

    def __init__(self, limit: int) -> None:
        """`limit`: most KV slots; only pinned slots may exceed it."""
        self.pool = KVSlots(limit)
        self.tokens = np.zeros((_ENTRIES, _LENGTH), np.int32)
        self.kv = np.zeros((_ENTRIES, _LENGTH), np.int32)
        """The KV slot of each token."""
        self.computed = np.zeros(_ENTRIES, np.int64)
        """How many tokens have their keys and values computed."""
        self.allocated = np.zeros(_ENTRIES, np.int64)
        """How many tokens have a KV slot; equal to `computed` in an idle entry."""
        self.lengths = np.zeros(_ENTRIES, np.int64)
        """How many tokens there are; equal to `computed` in an idle entry."""
        self.busy = np.zeros(_ENTRIES, bool)
        self._released = np.zeros(_ENTRIES, np.int64)
        """When the entry was last released."""
        self._served = np.zeros(_ENTRIES, np.int64)
        """When its task was last served."""
        self._key = [""] * _ENTRIES
        self._of_key: defaultdict[str, set[int]] = defaultdict(set)
        self._empty = list(range(_ENTRIES - 1, -1, -1))
        self._clock = 0
        """Counts acquisitions and releases."""
        self._warm: dict[str, int] = {}
        """When each task was last served, without the tasks that lost entries since."""
        self._gap = 64.0
        """Average time between two requests of one task; starts with a guess that evicts nobody."""

    # finding a prefix

    def find(self, prompt: Tokens, key: str) -> PrefixHit | None:
        """The longest cached prefix; None: wait, since another sequence is computing much more of
        the prompt right now."""
        own = np.fromiter(self._of_key.get(key, ()), np.int64)
        entry, cached, pending = self._match(prompt, own)
        others = len(own) < len(self._key) - len(self._empty)
        if others and len(prompt) - max(cached, pending) >= MIN_GAIN:
            best = self._match(prompt, None)
            if max(best[1:]) >= max(cached, pending) + MIN_GAIN:
                entry, cached, pending = best
        return None if pending - cached >= MIN_GAIN else PrefixHit(entry, cached)

    def _match(self, prompt: Tokens, among: NDArray[np.int64] | None) -> tuple[int, int, int]:
        """(entry, tokens of the prompt computed there, most tokens computed or pending in any
        entry). The last token is always left to compute: it gives the logits."""
        width = min(len(prompt) - 1, self.tokens.shape[1])
        if width <= 0 or (among is not None and not len(among)):
            return 0, 0, 0
        rows: NDArray[np.int64] | slice = slice(None) if among is None else among
        equal = self.tokens[rows][:, :width] == prompt[:width]
        shared = np.where(equal.all(1), width, equal.argmin(1))
        cached = np.minimum(shared, self.computed[rows])
        best = int(cached.argmax())
        pending = int(np.minimum(shared, self.lengths[rows]).max())
        return best if among is None else int(among[best]), int(cached[best]), pending

    def newly_pinned(self, hit: PrefixHit) -> int:
        """How many KV slots of the prefix have no pin yet: the room that holding it takes."""
        return self.pool.unpinned(self.kv[hit.entry, : hit.length])

    def is_cold(self, key: str) -> bool:
        """Whether the task was never served, not for long, or lost entries since. Requests without
        a key are never cold."""
        return bool(key) and self._warm.get(key, -(10**9)) < self._clock - _COLD_AFTER * self._gap

    def evictable(self) -> int:
        """KV slots that can be taken without touching what a warm task used of late."""
        kept = np.flatnonzero(self._priority(np.arange(len(self.busy))) > 1)
        held = [self.pool.pinned_slots(), *(self.kv[e, : self.allocated[e]] for e in kept)]
        return self.pool.limit - len(np.unique(np.concatenate(held)))

    def _priority(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """0: of a cold task; 1: of a warm task that has not used it for long; 2: in use."""
        since = self._clock - _COLD_AFTER * self._gap
        warm = self._served[entries] >= since
        return warm.astype(np.int64) + (warm & (self._released[entries] >= since))

    # computing a sequence

    def acquire(self, tokens: Tokens, key: str, prefix: PrefixHit | HeldPrefix) -> int:
        """A busy entry with these tokens and a KV slot for each; takes over the hold of a
        `HeldPrefix`."""
        if (
            isinstance(prefix, PrefixHit)
            and prefix.length
            and not self.busy[prefix.entry]
            and self.computed[prefix.entry] - prefix.length < 2
        ):  # extend the entry itself
            entry, cached = prefix.entry, prefix.length
            self._truncate(entry, cached)
            self.pool.pin(self.kv[entry, :cached])
        else:
            if isinstance(prefix, PrefixHit):
                held = self.kv[prefix.entry, : prefix.length].copy()
                self.pool.hold(held)
            else:
                held = prefix
            entry, cached = self._empty_entry(), len(held)
            self._reserve_length(len(tokens))
            self.kv[entry, :cached] = held
        self.busy[entry] = True
        self.computed[entry] = self.allocated[entry] = self.lengths[entry] = cached
        self._set_key(entry, key)
        if key in self._warm:
            self._gap += 0.05 * (self._clock - self._warm[key] - self._gap)
        self._mark_served(entry)
        self.append(entry, tokens[cached:])
        self.tokens[entry, :cached] = tokens[:cached]
        self.allocate(np.array([entry]))
        return entry

    def append(self, entry: int, tokens: Tokens | tuple[int, ...]) -> None:
        """Add tokens; `allocate` gives them KV slots."""
        begin = int(self.lengths[entry])
        end = begin + len(tokens)
        self._reserve_length(end)
        self.tokens[entry, begin:end] = tokens
        self.lengths[entry] = end

    def allocate(self, entries: NDArray[np.int64]) -> None:
        """Give every token of these entries a KV slot."""
        lacking = self.lengths[entries] - self.allocated[entries]
        total = int(lacking.sum())
        if not total:
            return
        taken = self._take(total)
        first = self.allocated[entries] - (lacking.cumsum() - lacking)
        place = np.arange(total) + np.repeat(first, lacking)
        self.kv[np.repeat(entries, lacking), place] = taken
        self.allocated[entries] = self.lengths[entries]

    def fork(self, entry: int) -> HeldPrefix:
        """Hold and pin all that is computed in a busy entry: for `acquire` or `release_held`."""
        held = self.kv[entry, : self.computed[entry]].copy()
        self.pool.hold(held)
        return held

    def release_held(self, held: HeldPrefix) -> None:
        """Drop a fork that is not needed any more."""
        self.pool.unpin(held)
        self.pool.drop(held)

    def release(self, entry: int) -> None:
        """The sequence is done; what is computed stays cached."""
        self.pool.unpin(self.kv[entry, : self.allocated[entry]])
        self.busy[entry] = False
        self._mark_served(entry)
        self._released[entry] = self._clock
        self._truncate(entry, int(self.computed[entry]))

    # making room

    def _mark_served(self, entry: int) -> None:
        self._clock += 1
        self._served[entry] = self._clock
        if key := self._key[entry]:
            self._warm[key] = self._clock
            self._served[list(self._of_key[key])] = self._clock

    def _set_key(self, entry: int, key: str | None) -> None:
        """Make the entry the task's, or nobody's (None)."""
        if key != self._key[entry] or entry not in self._of_key[key]:
            own = self._of_key[self._key[entry]]
            own.discard(entry)
            if not own:
                del self._of_key[self._key[entry]]
                self._warm.pop(self._key[entry], None)
            self._key[entry] = key or ""
            if key is not None:
                self._of_key[key].add(entry)

    def _take(self, n: int) -> NDArray[np.int32]:
        """n KV slots: free ones, new ones up to the limit, those of idle entries, and past the
        limit where that is not enough."""
        pool = self.pool
        if pool.free < n:
            pool.grow(n - pool.free)
        if pool.free < n:
            self._evict(max(n, pool.count // 64))
        if pool.free < n:
            pool.grow(n - pool.free, beyond=True)
        return pool.take(n)

    def _evict(self, wanted: int) -> None:
        """Truncate idle entries until so many KV slots are free."""
        idle = np.flatnonzero(~self.busy & (self.computed > 0))
        priority = self._priority(idle)
        order = np.lexsort((self._released[idle], self._served[idle], priority))
        for entry, in_use in zip(idle[order].tolist(), (priority[order] > 1).tolist(), strict=True):
            own = list(self._of_key[self._key[entry]])
            if in_use and self._key[entry] in self._warm and not self.busy[own].any():
                del self._warm[self._key[entry]]
                self._served[own] = 0  # the task is cold now: its other entries go next
            self._truncate(entry, max(0, int(self.computed[entry]) - wanted + self.pool.free))
            if self.pool.free < wanted and self.computed[entry]:
                self._truncate(entry, 0)  # the end was shared, so nothing got free: drop it all
            if self.pool.free >= wanted:
                return

    def _truncate(self, entry: int, length: int) -> None:
        """Keep the first tokens of an idle entry; an empty one has no owner."""
        self.pool.drop(self.kv[entry, length : self.allocated[entry]])
        self.computed[entry] = self.allocated[entry] = self.lengths[entry] = length
        if not length and not self.busy[entry]:
            self._set_key(entry, None)
            self._empty.append(entry)

    def _empty_entry(self) -> int:
        """An empty entry: a new one while the tables may grow, else that of the idle sequence that
        is next to be evicted."""
        entries, length = self.tokens.shape
        if not self._empty and 2 * entries * length > _CELLS_PER_SLOT * self.pool.limit:
            idle = np.flatnonzero(~self.busy)
            if len(idle):
                order = np.lexsort((self._released[idle], self._served[idle]))
                self._truncate(int(idle[order[0]]), 0)
        if not self._empty:
            arrays = "tokens kv computed allocated lengths busy _released _served"
            for name in arrays.split():
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros_like(old))))
            self._key += [""] * entries
            self._empty += range(2 * entries - 1, entries - 1, -1)
        return self._empty.pop()

    def _reserve_length(self, length: int) -> None:
        entries, old = self.tokens.shape
        if length > old:
            more = np.zeros((entries, max(2 * old, length) - old), np.int32)
            self.tokens, self.kv = np.hstack((self.tokens, more)), np.hstack((self.kv, more))
