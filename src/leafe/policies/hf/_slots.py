"""What each slot of the cache holds, and which one serves a new prompt best.

A slot remembers the token ids whose keys and values it has. A new prompt looks for the slot that shares its longest prefix: it goes on in that slot
where the slot is idle and holds nothing else of worth, and otherwise copies the prefix into the idle slot that was used longest ago. So an episode's next turn
computes its new tokens alone, and so does a branch from any earlier turn.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORTHWHILE = 32
"""Tokens: a shorter gain is not worth a search over all slots or a wait of one iteration."""


@dataclass(slots=True)
class Place:
    """Where a prompt goes: into `slot`, whose first `cached` tokens are there once they are copied from `source` (None: they are there)."""

    slot: int
    cached: int
    source: int | None = None


class Slots:
    """Bookkeeping in numpy, one entry a slot. `tokens` is (slots, length); rows beyond `claimed` hold leavings."""

    def __init__(self) -> None:
        self.tokens = np.zeros((0, 0), np.int32)
        self.ready = np.zeros(0, np.int64)
        """How many tokens have their keys and values stored."""
        self.claimed = np.zeros(0, np.int64)
        """How many will have them after the next forward passes; equal to `ready` in an idle slot."""
        self.busy = np.zeros(0, bool)
        self.used = np.zeros(0, np.int64)
        """When the slot was last let go; 0: never used."""
        self.evicted = 0
        """How many times a slot that held something was given away since the last resize: a sign that more would help."""
        self._key: list[str] = []
        self._of_key: defaultdict[str, set[int]] = defaultdict(set)
        self._clock = 0

    @property
    def count(self) -> int:
        return len(self.ready)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def kept_within(self, slots: int) -> list[int]:
        """The slots to keep where there is room for `slots`: the busy ones, then the idle ones used last."""
        order = np.lexsort((-self.used, ~self.busy))
        return [int(s) for s in order[:slots] if self.busy[s] or self.ready[s]]

    def resize(self, kept: list[int], slots: int, length: int) -> None:
        """Slot `kept[i]` becomes slot i; the owners of busy slots are told by the caller."""
        tokens = np.zeros((slots, length), np.int32)
        held = min(length, self.length)
        tokens[: len(kept), :held] = self.tokens[kept, :held]
        self.tokens = tokens
        spare = slots - len(kept)
        self.evicted = 0
        for name in ("ready", "claimed", "busy", "used"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate((old[kept], np.zeros(spare, old.dtype))))
        np.minimum(self.ready, length, out=self.ready)
        np.minimum(self.claimed, length, out=self.claimed)
        self._key = [self._key[s] for s in kept] + [""] * spare
        self._of_key.clear()
        for slot in range(len(kept)):
            self._of_key[self._key[slot]].add(slot)

    def place(self, prompt: NDArray[np.int32], key: str) -> Place | None:
        """A slot for the prompt, claimed; None: wait, its prefix is being computed for another one right now. One slot at least must be idle."""
        known = np.fromiter(self._of_key[key], np.int64) if self._of_key.get(key) else np.zeros(0, np.int64)
        source, cached, coming = self._match(prompt, known)
        if len(prompt) - max(cached, coming) >= WORTHWHILE and len(known) < self.count:
            everywhere = self._match(prompt, np.arange(self.count))
            if max(everywhere[1:]) >= max(cached, coming) + WORTHWHILE:
                source, cached, coming = everywhere
        if coming - cached >= WORTHWHILE:
            return None
        idle = np.where(self.busy, np.iinfo(np.int64).max, self.used)
        oldest = int(idle.argmin())
        if cached and not self.busy[source] and (self.ready[source] - cached < 2 or source == oldest):
            place = Place(source, cached)
        else:
            place = Place(oldest, cached, source if cached else None)
            self.evicted += bool(self.ready[oldest])
        self._claim(place, prompt, key)
        return place

    def _match(self, prompt: NDArray[np.int32], among: NDArray[np.int64]) -> tuple[int, int, int]:
        """(slot, tokens of the prompt that are ready there, tokens that are ready or on their way in the best such slot); the last token is left to compute."""
        usable = len(prompt) - 1
        if not len(among) or usable <= 0:
            return 0, 0, 0
        width = min(usable, self.length)
        equal = self.tokens[among, :width] == prompt[:width]
        shared = np.where(equal.all(1), width, equal.argmin(1))
        ready = np.minimum(shared, self.ready[among])
        best = int(ready.argmax())
        return int(among[best]), int(ready[best]), int(np.minimum(shared, self.claimed[among]).max())

    def _claim(self, place: Place, prompt: NDArray[np.int32], key: str) -> None:
        slot = place.slot
        self.busy[slot] = True
        # what is to be copied is not there before all placing is done: nobody may copy it from here until then
        self.ready[slot] = place.cached if place.source is None else 0
        self.claimed[slot] = len(prompt)
        self.tokens[slot, : len(prompt)] = prompt
        if key != self._key[slot]:
            self._of_key[self._key[slot]].discard(slot)
            self._key[slot] = key
        self._of_key[key].add(slot)

    def release(self, slot: int) -> None:
        """The row is done; what is ready stays for a later prompt."""
        self._clock += 1
        self.busy[slot] = False
        self.used[slot] = self._clock
        self.claimed[slot] = self.ready[slot]
