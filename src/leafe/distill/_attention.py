"""Runs a model on packed rows: every token attends to its ancestors alone, and the output layer is
applied only where there are targets.

In depth-first order the ancestors of node i are the nodes j <= i < ends[j], so one number per token
is the whole mask. It reaches the model through transformers' standard interface: a mask with four
dimensions is passed to every layer as it is, as an additive tensor (SDPA, any device) or as
FlexAttention's block mask (CUDA), which skips what is masked. Whether a model supports that is read
from its config and then measured: a small tree against its paths one by one. Other models run
causal rows.

Axes: B rows, T tokens, P positions, D width of the model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from leafe.core.rotary import rotary_switch
from leafe.distill._memory import short_message
from leafe.distill._pack import Row, RowLimits

_BLOCK = 128
"""Tokens in a block of FlexAttention's mask; its rows are padded to whole blocks."""
_ROW = 4096
"""Most tokens in a row under a dense mask, whose size is the square of that."""
_WIDTHS = 6
"""A dense mask's attention costs as much as the rest of a usual layer at a row of this many widths
of the model."""

Head = Callable[[Tensor], Tensor]
"""states_ND to logits_NV."""


class RowBatch(NamedTuple):
    """Packed rows as tensors, padded on the right; a padding token attends to itself."""

    ids_BT: Tensor
    depths_BT: Tensor
    ends_BT: Tensor
    branches: bool

    def to(self, device: Any) -> RowBatch:
        ids, depths, ends = (t.to(device) for t in self[:3])
        return RowBatch(ids, depths, ends, self.branches)


@dataclass(frozen=True, slots=True)
class Attention:
    """What works for one model."""

    kind: Literal["sdpa", "flex", "causal"] = "causal"
    """causal: rows are single paths, and the model masks as usual."""
    head: bool = False
    """Whether the output layer can be applied by itself, to some positions at a time."""
    width: float = math.inf
    """See `RowLimits.width`."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: why a model cannot have more."""

    def limits(self, tokens: int) -> RowLimits:
        """How rows of at most `tokens` are packed for it."""
        most = tokens if self.kind == "flex" else min(tokens, _ROW)
        return RowLimits(most, self.width, self.kind != "causal")

    def batch(self, rows: Sequence[Row], pad: int) -> RowBatch:
        """The rows as tensors, padded with the token `pad`."""
        length = max(len(r.ids) for r in rows)
        if self.kind == "flex":
            length = -(-length // _BLOCK) * _BLOCK
        ids = [[*r.ids, *([pad] * (length - len(r.ids)))] for r in rows]
        depths = [[*r.depths, *([0] * (length - len(r.ids)))] for r in rows]
        ends = [[*r.ends, *range(len(r.ids) + 1, length + 1)] for r in rows]
        branches = any(r.branches for r in rows)
        return RowBatch(torch.tensor(ids), torch.tensor(depths), torch.tensor(ends), branches)

    def run(self, model: Any, rows: RowBatch, at_P: Tensor) -> Tensor:
        """Run the model; call it inside of the wrapper's forward pass (DDP, FSDP).

        Args:
            model: Wrapped or bare.
            rows: What it reads.
            at_P: Flat positions (b * T + t).

        Returns:
            states_PD, the last hidden states there, for `layer`; logits_PV if `head` is false.
        """
        bare = unwrapped(model)
        if self.kind == "flex" and bare.config._attn_implementation != "flex_attention":
            bare.set_attn_implementation("flex_attention")  # the start policy's copy
        arguments: dict[str, Any] = {"input_ids": rows.ids_BT, "use_cache": False}
        if rows.branches:  # without branches causal attention is the same, and faster
            mask = (
                block_mask(rows.ends_BT)
                if self.kind == "flex"
                else dense_mask(rows.ends_BT, next(bare.parameters()).dtype)
            )
            arguments |= {"attention_mask": mask, "position_ids": rows.depths_BT}
        if self.head:
            states_BTD: Tensor = bare.get_decoder()(**arguments).last_hidden_state
            return states_BTD.flatten(0, 1)[at_P]
        length = rows.ids_BT.shape[1]
        wanted, index_P = torch.unique(at_P % length, return_inverse=True)
        logits_BWV: Tensor = bare(logits_to_keep=wanted, **arguments).logits
        return logits_BWV[at_P // length, index_P]

    def layer(self, model: Any) -> Head:
        """The function from what `run` gives to logits."""
        return output_layer(unwrapped(model)) if self.head else lambda logits: logits


def dense_mask(ends_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask_B1TT: 0 for the ancestors and the token itself, else minus infinity."""
    node_T = torch.arange(ends_BT.shape[1], device=ends_BT.device)
    seen_BTT = (node_T <= node_T[:, None]) & (node_T[:, None] < ends_BT[:, None, :])
    return torch.zeros(seen_BTT.shape, dtype=dtype, device=ends_BT.device).masked_fill_(
        ~seen_BTT, -math.inf
    )[:, None]


def block_mask(ends_BT: Tensor) -> Any:
    """The same as FlexAttention's BlockMask, without looking at every pair.

    A block of queries sees an earlier block of keys in part if the last of its keys' ends lies past
    the queries' first token, and wholly if the first lies past their last one. On the diagonal it
    always sees it in part.
    """
    from torch.nn.attention.flex_attention import BlockMask

    number, length = ends_BT.shape
    blocks = length // _BLOCK
    block_Q = torch.arange(blocks, device=ends_BT.device)
    first_Q = block_Q[:, None] * _BLOCK
    ends_BKb = ends_BT.view(number, blocks, _BLOCK)
    some_BQK = (block_Q < block_Q[:, None]) & (ends_BKb.amax(-1)[:, None, :] > first_Q)
    whole_BQK = some_BQK & (ends_BKb.amin(-1)[:, None, :] >= first_Q + _BLOCK)
    part_BQK = (some_BQK & ~whole_BQK) | torch.eye(blocks, dtype=torch.bool, device=ends_BT.device)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < ends_BT[b, k])

    def listed(blocks_BQK: Tensor) -> tuple[Tensor, Tensor]:
        """(how many blocks of keys each block of queries has, their numbers first in its list)."""
        order = blocks_BQK.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return blocks_BQK.sum(-1)[:, None].to(torch.int32), order[:, None].to(torch.int32)

    return BlockMask.from_kv_blocks(
        *listed(part_BQK),
        *listed(whole_BQK),
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


def unwrapped(model: Any) -> Any:
    """The transformers model inside of DDP, DeepSpeed and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_layer(bare: Any, linear: Head | None = None) -> Head:
    """The model's own output layer (or `linear` in its place), with the scaling that some
    architectures apply to logits."""
    layer, config = linear or bare.get_output_embeddings(), bare.config.get_text_config()
    divisor, factor, cap = (
        getattr(config, name, None)
        for name in ("logits_scaling", "logit_scale", "final_logit_softcapping")
    )

    def head(states: Tensor) -> Tensor:
        logits: Tensor = layer(states)
        if divisor is not None:
            logits = logits / divisor
        if factor is not None:
            logits = logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


def select_attention(
    model: Any, longest: int, packing: Literal["tree", "causal"] = "tree"
) -> Attention:
    """What works for this model on its device, for paths of at most `longest` tokens. It may switch
    the model to FlexAttention.

    All processes call it, inside of the wrapper's forward pass (DDP, FSDP).
    """
    bare = unwrapped(model)
    was = bare.training
    bare.eval()
    try:
        with torch.no_grad():
            return _select(bare, longest, packing)
    finally:
        bare.train(was)


def _select(bare: Any, longest: int, packing: Literal["tree", "causal"]) -> Attention:
    head = _close(*_heads(bare))
    if packing == "causal":
        return Attention("causal", head)
    config = bare.config.get_text_config()
    why = unsupported(config, longest)
    notes: tuple[str, ...] = ()
    on_cuda = next(bare.parameters()).device.type == "cuda"
    dropout = getattr(bare.config, "attention_dropout", 0.0)  # FlexAttention has none
    if why is None and on_cuda and not dropout:
        before = bare.config._attn_implementation
        found = Attention("flex", head)
        reason = _failure(bare, found, "it fails ({})")
        if reason is None:
            return found
        bare.set_attn_implementation(before)
        notes = (f"Training runs SDPA with a dense mask instead of FlexAttention: {reason}.",)
    if why is None:
        found = Attention("sdpa", head, _WIDTHS * float(config.hidden_size), notes)
        why = _failure(bare, found, "it takes no mask with four dimensions ({})")
        if why is None:
            return found
    note = (
        f"Samples of {bare.config.model_type} models are not packed as trees but path by path, "
        f"which computes more tokens: {why}."
    )
    return Attention("causal", head, notes=(note,))


def unsupported(config: Any, longest: int) -> str | None:
    """Why a model of this config cannot attend along the paths of a tree; None if its config does
    not rule it out."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else window is not None
    if slides and (window is None or window < longest):
        return (
            f"it has layers with a sliding window of {window} tokens, and paths have up to "
            f"{longest}"
        )
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    if other:
        return f"it has layers that are not attention to all earlier tokens ({', '.join(other)})"
    switch = rotary_switch(config)
    if switch is not None and switch < longest:
        return (
            f"it uses other rotary factors in a batch that has a row of more than {switch} tokens "
            f"(max_length {switch} or less avoids that), and paths have up to {longest}"
        )
    return None


def _toy(bare: Any) -> Tensor:
    """ids_T of a stem and two branches of three tokens each."""
    words = int(bare.get_input_embeddings().weight.shape[0])
    return (torch.arange(9) * 7919 + 3).remainder(words).to(next(bare.parameters()).device)


def _heads(bare: Any) -> tuple[Tensor, Tensor]:
    """logits_TV of a toy path by the output layer alone and by the model."""
    ids_T = _toy(bare)
    whole_TV: Tensor = bare(input_ids=ids_T[None], use_cache=False).logits[0]
    row = Row(ids_T.tolist(), list(range(9)), [9] * 9)
    try:
        alone_TV = _all_logits(bare, row, Attention("causal", head=True))
    except Exception:  # a model without these names
        alone_TV = torch.full_like(whole_TV, math.nan)
    return alone_TV, whole_TV


def _all_logits(bare: Any, row: Row, attention: Attention) -> Tensor:
    device = next(bare.parameters()).device
    rows = attention.batch([row], 0).to(device)
    states = attention.run(bare, rows, torch.arange(row.tokens, device=device))
    return attention.layer(bare)(states)


def _close(found: Tensor, expected: Tensor) -> bool:
    off, scale = float((found - expected).abs().max()), float(expected.abs().max())
    tolerance = max(1e-5, 4 * torch.finfo(expected.dtype).eps)
    return found.shape == expected.shape and off <= tolerance * scale


def _failure(bare: Any, attention: Attention, fails: str) -> str | None:
    """Why the attention does not work on the toy tree; None if it does. `fails` words an error."""
    ids_T = _toy(bare)
    row = Row(ids_T.tolist(), [0, 1, 2, 3, 4, 5, 3, 4, 5], [9, 9, 9, 6, 6, 6, 9, 9, 9])
    paths = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7, 8]]
    try:
        packed = _all_logits(bare, row, attention)
        alone = torch.cat(
            [bare(input_ids=ids_T[p][None], use_cache=False).logits[0] for p in paths]
        )
        causal = bare(input_ids=ids_T[None], use_cache=False).logits[0]
    except Exception as error:  # the model's, the compiler's and the kernel's own kinds
        return fails.format(short_message(error, 200))
    order = torch.tensor(paths[0] + paths[1], device=ids_T.device)
    off = float((packed[order].float() - alone.float()).abs().max())
    wrong = float((causal[order].float() - alone.float()).abs().max())
    if off <= 0.05 * wrong:
        return None
    return (
        f"on a small tree its logits are off by {off:.1e}, where plain causal attention is off by "
        f"{wrong:.1e}"
    )
