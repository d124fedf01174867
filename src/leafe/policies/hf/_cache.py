"""Keys and values by slot: every row of a batch owns one slot of one tensor, at whatever length it has reached.

A batch is ragged: each row has its own number of positions. New keys and values are written by index to (slot, position), and a layer reads its rows'
slots cut to the longest one; the mask hides what lies beyond a row's own position. So rows join, leave, fork and roll back without moving each other.
Axes: S slots, B rows of this forward pass, H key-value heads, W new tokens of a row, L positions, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Goes into a standard model as `past_key_values`; `plan` says beforehand which slots and positions the next forward pass is for."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor] = []  # each SHLD
        self.values: list[torch.Tensor] = []
        self.slots = 0
        self.length = 0

    @property
    def bytes_per_token(self) -> int:
        """Over all layers; 0 before the first forward pass has shown the shapes."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (*self.keys, *self.values))

    def plan(self, slots_B: torch.Tensor, positions_BW: torch.Tensor, real_BW: torch.Tensor, longest: int, first: int | None) -> None:
        """`real` is False at padding, which is not stored. `longest`: L to read. `first`: the rows own the slots first, first + 1, ...: read without a copy."""
        rows, columns = real_BW.nonzero(as_tuple=True)
        self._slots_B = slots_B
        self._longest = longest
        self._first = first
        self._rows, self._columns = rows, columns
        self._at = (slots_B[rows], positions_BW[rows, columns])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Store BHWD new keys and values, return BHLD ones to attend to."""
        if layer_idx == len(self.keys):
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                _, heads, _, size = states.shape
                store.append(states.new_zeros(self.slots, heads, self.length, size))
        return self._through(self.keys[layer_idx], key_states), self._through(self.values[layer_idx], value_states)

    def _through(self, store: torch.Tensor, states_BHWD: torch.Tensor) -> torch.Tensor:
        slot, position = self._at
        store[slot, :, position] = states_BHWD[self._rows, :, self._columns]
        seen = store[:, :, : self._longest]
        if self._first is not None:
            return seen[self._first : self._first + len(self._slots_B)]
        return seen.index_select(0, self._slots_B)

    def copy(self, sources: list[int], targets: list[int], longest: int) -> None:
        """Copy the first `longest` positions of slots to other slots, all read before any is written."""
        for store in (*self.keys, *self.values):
            of = torch.tensor(sources, device=store.device)
            to = torch.tensor(targets, device=store.device)
            seen = store[:, :, :longest]
            seen.index_copy_(0, to, seen.index_select(0, of))

    def resize(self, kept: list[int], slots: int, length: int) -> None:
        """New capacity; slot `kept[i]` becomes slot i, the others are gone. Layer by layer, so that little memory is held twice."""
        self.slots, held, self.length = slots, min(length, self.length), length
        for stores in (self.keys, self.values):
            for i, old in enumerate(stores):
                new = old.new_zeros(slots, old.shape[1], length, old.shape[3])
                if kept:
                    new[: len(kept), :, :held] = old[torch.tensor(kept, device=old.device), :, :held]
                stores[i] = new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._longest
