"""Reference counts of KV slots: which are free, and who holds the others.

A KV slot is room for one token's keys and values in every layer. Equal tokens after equal
prefixes have equal keys and values, so any number of sequences may hold one slot: a branch holds
its parent's slots up to the rollback step and takes new ones from there. Nothing is copied. A hold
is pinned while its sequence is being computed. Slots without a pin can be evicted; slots without a
hold are free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_INITIAL = 1024


class KVSlots:
    """Counts the holds and pins of each slot. Slot 0 is reserved: tables point to it where they
    have no entry."""

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        """Most slots, slot 0 left out; only `grow(..., beyond=True)` exceeds it."""
        self.pinned = 0
        """Slots with a pin."""
        self._holds = np.ones(1, np.int32)
        self._pins = np.zeros(1, np.int32)
        self._free: list[int] = []

    @property
    def count(self) -> int:
        """All slots, slot 0 included: the size that the KV cache must have."""
        return len(self._holds)

    @property
    def free(self) -> int:
        return len(self._free)

    def grow(self, least: int, beyond: bool = False) -> None:
        """Double the slots, but add at least `least`, and stop at the limit unless `beyond`."""
        old = self.count
        new = old + least if beyond else min(max(old + least, 2 * old, _INITIAL), self.limit + 1)
        if new <= old:
            return
        more = np.zeros(new - old, np.int32)
        self._holds = np.concatenate((self._holds, more))
        self._pins = np.concatenate((self._pins, more))
        self._free = [*range(new - 1, old - 1, -1), *self._free]

    def take(self, n: int) -> NDArray[np.int32]:
        """n free slots, held and pinned once."""
        if not n:
            return np.zeros(0, np.int32)
        taken = np.array(self._free[: -n - 1 : -1], np.int32)
        del self._free[-n:]
        self._holds[taken] = self._pins[taken] = 1
        self.pinned += n
        return taken

    def hold(self, slots: NDArray[np.int32]) -> None:
        self._holds[slots] += 1
        self.pin(slots)

    def pin(self, slots: NDArray[np.int32]) -> None:
        self.pinned += self.unpinned(slots)
        self._pins[slots] += 1

    def unpinned(self, slots: NDArray[np.int32]) -> int:
        return len(slots) - int(np.count_nonzero(self._pins[slots]))

    def pinned_slots(self) -> NDArray[np.int32]:
        return np.flatnonzero(self._pins).astype(np.int32)

    def unpin(self, slots: NDArray[np.int32]) -> None:
        """Remove one pin from each; the holds stay."""
        self._pins[slots] -= 1
        self.pinned -= self.unpinned(slots)

    def drop(self, slots: NDArray[np.int32]) -> None:
        """Remove one hold from each and free those without any."""
        self._holds[slots] -= 1
        self._free += slots[self._holds[slots] == 0].tolist()
