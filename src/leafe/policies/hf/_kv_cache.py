"""Keys and values by KV slot: a forward pass says which slots each row reads and which it writes.

A batch is ragged: each row has its own number of positions, and rows may read the same slots. New
keys and values are written first. Then each layer gathers what its rows attend to, padded to the
longest row; the mask hides what lies past a row's own position. So rows join, leave, branch and
roll back without moving each other.

Axes: N KV slots, B rows of this forward pass, H key-value heads, W new tokens of a row, L
positions, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache


class KVCache(Cache):
    """Passed to a transformers model as `past_key_values`; `plan` names the slots of the next
    forward pass."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor] = []  # each NHD
        self.values: list[torch.Tensor] = []
        self._gathered: list[torch.Tensor] = []
        self.count = 0

    @property
    def bytes_per_token(self) -> int:
        """Over all layers; 0 before the first forward pass has shown the shapes."""
        return sum(t.shape[1] * t.shape[2] * t.element_size() for t in (*self.keys, *self.values))

    def plan(self, read_BL: torch.Tensor, write_BW: torch.Tensor) -> None:
        """`read` is 0 past a row's length, `write` at padding: slot 0 is never written and stays
        zero."""
        self._read_BL = read_BL
        self._rows, self._columns = write_BW.nonzero(as_tuple=True)
        self._write = write_BW[self._rows, self._columns]

    def resize(self, count: int) -> None:
        """Make room for more slots, layer by layer, so that little memory is held twice."""
        self.count = count
        for stores in (self.keys, self.values):
            for i, old in enumerate(stores):
                stores[i] = old.new_empty(count, *old.shape[1:])
                stores[i][: len(old)] = old

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values (BHWD); return those to attend to (BHLD)."""
        if layer_idx == len(self.keys):
            for stores, states in ((self.keys, key_states), (self.values, value_states)):
                store = states.new_empty(self.count, states.shape[1], states.shape[3])
                store[0] = 0
                stores.append(store)
        return self._exchange(self.keys[layer_idx], key_states, 0), self._exchange(
            self.values[layer_idx], value_states, 1
        )

    def _exchange(self, store: torch.Tensor, states_BHWD: torch.Tensor, which: int) -> torch.Tensor:
        """Write, then gather. All layers gather into the same buffer, since fresh memory costs
        more than the copy: the result is valid until the next layer's call."""
        store[self._write] = states_BHWD[self._rows, :, self._columns]
        needed = self._read_BL.numel()
        if len(self._gathered) <= which:
            self._gathered.append(store.new_empty(0, *store.shape[1:]))
        if len(self._gathered[which]) < needed:
            self._gathered[which] = store.new_empty(needed + needed // 4, *store.shape[1:])
        out = self._gathered[which][:needed]
        torch.index_select(store, 0, self._read_BL.flatten(), out=out)
        return out.unflatten(0, self._read_BL.shape).transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._read_BL.shape[1]
