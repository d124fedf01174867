"""The model and its KV cache: one forward pass over entries of the sequence table.

Axes: B entries of a forward pass, W new tokens of an entry (padded on the left, so that the last
column is the last token), L positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leafe.policies.hf._kv_cache import KVCache
from leafe.policies.hf._sequence_table import PrefixHit, SequenceTable


class ModelRunner:
    """Runs the model; the engine's thread alone may call it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.computed = 0
        """Tokens computed so far, padding left out."""
        self.device = next(model.parameters()).device
        self.cache = KVCache()
        self._dtype = next(model.parameters()).dtype

    def forward(
        self,
        table: SequenceTable,
        entries: NDArray[np.int64],
        start: NDArray[np.int64],
        widths: NDArray[np.int64],
    ) -> torch.Tensor:
        """Compute the tokens start .. start + width of each entry and store their keys and values.

        Returns:
            Logits (B, V) after each entry's last token.
        """
        if self.cache.count < table.pool.count:
            self.cache.resize(table.pool.count)
        ends = start + widths
        wide, longest = int(widths.max()), int(ends.max())
        column = np.arange(wide) - (wide - widths)[:, None]
        real = column >= 0
        position = np.where(real, start[:, None] + column, 0)
        ids = np.where(real, table.tokens[entries[:, None], position], 0)
        read = np.where(np.arange(longest) < ends[:, None], table.kv[entries, :longest], 0)
        write = np.where(real, table.kv[entries[:, None], position], 0)
        device = self.device
        position_BW = torch.from_numpy(position).to(device)
        self.cache.plan(torch.from_numpy(read).to(device), torch.from_numpy(write).to(device))
        hidden_BWL = torch.arange(longest, device=device) > position_BW[:, :, None]
        mask = torch.zeros(hidden_BWL.shape, dtype=self._dtype, device=device).masked_fill_(
            hidden_BWL, torch.finfo(self._dtype).min
        )
        out = self.model(
            input_ids=torch.from_numpy(ids.astype(np.int64)).to(device),
            position_ids=position_BW,
            attention_mask=mask[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.computed += int(widths.sum())
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def check(self) -> tuple[float, int]:
        """Compare logits with and without the cache on a small tree of sequences.

        Returns:
            The largest difference relative to the largest logit, and the cache's bytes per token.
        """
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        ids = (np.arange(24) * 7919 % vocabulary).astype(np.int32)
        table, nothing = SequenceTable(64), PrefixHit(0, 0)
        with torch.inference_mode():
            whole = torch.from_numpy(ids[None].astype(np.int64)).to(self.device)
            plain = self.model(input_ids=whole, use_cache=False).logits[0].float()
            entries = np.array([table.acquire(ids[:n], "", nothing) for n in (20, 15)])
            self.forward(table, entries, np.array([0, 0]), np.array([20, 9]))
            table.append(int(entries[0]), ids[20:21])
            table.allocate(entries)
            branch = table.acquire(ids[:19], "", PrefixHit(int(entries[0]), 12))
            later = self.forward(
                table, np.append(entries, branch), np.array([20, 9, 12]), np.array([1, 6, 7])
            ).float()
        difference = (later - plain[[20, 14, 18]]).abs().max() / plain.abs().max().clamp(min=1e-6)
        size = self.cache.bytes_per_token
        self.cache = KVCache()
        return float(difference), size
