"""Which cells of the key-value store are free, and who holds the others.

A cell is room for one token's keys and values in every layer. The same token after the same tokens
before it has the same keys and values, so any number
of sequences may hold one cell: a branch holds its parent's cells up to the rollback step and takes
new ones from there, and nothing is copied. A hold is
pinned while the sequence is being worked on; cells without a pin can be had back, those without a
hold are free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FIRST = 1024


class KVSlots:
    """Counts holds and pins of each cell. Cell 0 is nobody's: it stands where a table has nothing
    to say."""

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        """How many cells there may be, cell 0 left out; `grow` passes it only where it is told
        to."""
        self.pinned = 0
        """Cells with a pin."""
        self._holds = np.ones(1, np.int32)
        self._pins = np.zeros(1, np.int32)
        self._free: list[int] = []

    @property
    def count(self) -> int:
        """All cells, cell 0 included: the store must have room for so many."""
        return len(self._holds)

    @property
    def free(self) -> int:
        return len(self._free)

    def grow(self, least: int, beyond: bool = False) -> None:
        """More cells: as many again as there are, at least `least`, at most up to the limit, if it
        is not to be passed."""
        old = self.count
        wanted = max(old + least, 2 * old, _FIRST)
        new = old + least if beyond else min(wanted, self.limit + 1)
        if new <= old:
            return
        for name in ("_holds", "_pins"):
            setattr(
                self, name, np.concatenate((getattr(self, name), np.zeros(new - old, np.int32)))
            )
        self._free = [*range(new - 1, old - 1, -1), *self._free]

    def take(self, n: int) -> NDArray[np.int32]:
        """n free cells, held and pinned once."""
        if not n:
            return np.zeros(0, np.int32)
        taken = np.array(self._free[: -n - 1 : -1], np.int32)
        del self._free[-n:]
        self._holds[taken] = self._pins[taken] = 1
        self.pinned += n
        return taken

    def hold(self, cells: NDArray[np.int32]) -> None:
        """One more hold on each, pinned."""
        self._holds[cells] += 1
        self.pin(cells)

    def pin(self, cells: NDArray[np.int32]) -> None:
        self.pinned += self.without_pin(cells)
        self._pins[cells] += 1

    def without_pin(self, cells: NDArray[np.int32]) -> int:
        return len(cells) - int(np.count_nonzero(self._pins[cells]))

    def pinned_cells(self) -> NDArray[np.int32]:
        return np.flatnonzero(self._pins).astype(np.int32)

    def unpin(self, cells: NDArray[np.int32]) -> None:
        self._pins[cells] -= 1
        self.pinned -= self.without_pin(cells)

    def drop(self, cells: NDArray[np.int32]) -> None:
        """One hold less on each; those that nobody holds any more are free."""
        self._holds[cells] -= 1
        self._free += cells[self._holds[cells] == 0].tolist()
