"""The loss of one batch, exact however the batch is split into forward passes.

    L = sum over parts p of  w_p * (sum over p's target tokens of weight * l) / (sum over p's target
    tokens of weight)

with l the cross-entropy of the target token, or, for a span with a teacher, the KL divergence from
the start policy's distribution at the teacher's prompt to the trained policy's at the sample's own.
The denominators belong to the whole batch, so that the losses of micro-batches simply add up.
Logits exist for a limited number of positions at a time; with more positions they are computed
again in the backward pass.

Axes: B rows, T tokens, P positions with targets, N targets, M of them with a teacher, D width of
the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leafe.distill._attention import Attention, Head, RowBatch, output_layer, unwrapped
from leafe.distill._config import PARTS, Part
from leafe.distill._pack import Row
from leafe.distill._tokens import TokenSequence

_LOGITS = 1 << 24
"""Logits that exist at a time: 64 MiB in float32, and as much for each step to the loss."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The input of one forward pass, and of the start policy's before it."""

    attention: Attention
    rows: RowBatch
    at_P: Tensor
    """Flat positions (b * T + t) whose logits are needed, ascending."""
    of_N: Tensor
    """Index in at_P of the position that predicts the target, ascending."""
    target_N: Tensor
    scale_N: Tensor
    """The target's weight over its part's whole weight in the batch; float64."""
    part_N: Tensor
    """Index in PARTS."""
    teacher: RowBatch | None
    """What the start policy reads."""
    taught_M: Tensor
    """Which of N have a teacher, ascending."""
    teacher_at_M: Tensor
    """The flat position in `teacher` that gives the target distribution."""

    @property
    def tokens(self) -> int:
        """Tokens that the trained policy computes, padding included."""
        return self.rows.ids_BT.numel()

    def to(self, device: Any) -> MicroBatch:
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device)
            for name in self.__slots__
            if isinstance(getattr(self, name), Tensor | RowBatch)
        }
        return replace(self, **moved)


def totals(batch: Sequence[TokenSequence]) -> dict[Part, float]:
    """The denominators: by part the weights of all its target tokens in the batch."""
    out: dict[Part, float] = {}
    for sequence in batch:
        weights = sum(s.weight * (s.end - s.start) for s in sequence.spans)
        out[sequence.part] = out.get(sequence.part, 0.0) + weights
    return out


def collate(
    rows: Sequence[Row], total: Mapping[Part, float], pad: int, attention: Attention
) -> MicroBatch:
    """The rows as tensors; `total` are the batch's denominators. A part without weight counts 0."""
    student = attention.batch(rows, pad)
    length = student.ids_BT.shape[1]
    teachers = [t for row in rows for t in row.teachers]
    teacher = attention.batch(teachers, pad) if teachers else None
    entries: list[tuple[int, int, float, int, int]] = []
    before = 0
    for b, row in enumerate(rows):
        for target in row.targets:
            whole = total[target.part]
            scale = target.weight / whole if whole > 0 else 0.0
            taught = -1
            if target.teacher is not None and teacher is not None:
                taught = (before + target.teacher[0]) * teacher.ids_BT.shape[1] + target.teacher[1]
            part = PARTS.index(target.part)
            entries.append((b * length + target.at, target.token, scale, part, taught))
        before += len(row.teachers)
    entries.sort(key=lambda e: e[0])
    at, target_tokens, scales, parts, taught_at = zip(*entries, strict=True)
    at_N, target_N, part_N, taught_N = (
        torch.tensor(column) for column in (at, target_tokens, parts, taught_at)
    )
    at_P, of_N = torch.unique(at_N, return_inverse=True)
    taught_M = torch.nonzero(taught_N >= 0)[:, 0]
    return MicroBatch(
        attention,
        student,
        at_P,
        of_N,
        target_N,
        torch.tensor(scales, dtype=torch.float64),
        part_N,
        teacher,
        taught_M,
        taught_N[taught_M],
    )


def part_losses(model: Any, start: Any, micro: MicroBatch) -> Tensor:
    """The micro-batch's share of each part's mean; call it inside of the wrapper's forward pass.

    Args:
        model: Wrapped or bare.
        start: `start()` gives the start policy, if there are teachers.
        micro: The input.

    Returns:
        loss_P, in the order of PARTS.
    """
    attention = micro.attention
    taught_MD: Tensor | None = None
    start_head: Head | None = None
    if micro.teacher is not None:
        with torch.no_grad(), start() as teacher:
            taught_MD = attention.run(teacher, micro.teacher, micro.teacher_at_M)
            start_head = _start_head(teacher) if attention.head else attention.layer(teacher)
    states_PD = attention.run(model, micro.rows, micro.at_P)
    head = attention.layer(model)
    size = max(1, _LOGITS // int(unwrapped(model).config.get_text_config().vocab_size))
    losses = []
    for first in range(0, len(states_PD), size):
        low, high = _range(micro.of_N, first, first + size)
        from_m, to_m = _range(micro.taught_M, low, high)
        arguments = (
            states_PD[first : first + size],
            head,
            micro.of_N[low:high] - first,
            micro.target_N[low:high],
            micro.taught_M[from_m:to_m] - low,
            None if taught_MD is None or from_m == to_m else taught_MD[from_m:to_m],
            start_head,
        )
        # with one chunk there is nothing to save
        losses.append(
            _losses(*arguments)
            if len(states_PD) <= size
            else checkpoint(_losses, *arguments, use_reentrant=False)
        )
    loss_N = torch.cat(losses)
    return torch.zeros(len(PARTS), device=loss_N.device, dtype=loss_N.dtype).index_add(
        0, micro.part_N, loss_N * micro.scale_N.to(loss_N.dtype)
    )


def _range(ascending: Tensor, first: int, end: int) -> tuple[int, int]:
    """The slice of the values in [first, end)."""
    bounds = torch.tensor([first, end], device=ascending.device)
    low, high = torch.searchsorted(ascending, bounds).tolist()
    return low, high


def _losses(
    states_PD: Tensor,
    head: Head,
    of_N: Tensor,
    target_N: Tensor,
    taught_M: Tensor,
    taught_MD: Tensor | None,
    start_head: Head | None,
) -> Tensor:
    logits_PV = _exact(head(states_PD))
    loss_N = logits_PV.logsumexp(-1)[of_N] - logits_PV[of_N, target_N]
    if taught_MD is None or start_head is None:
        return loss_N
    with torch.no_grad():
        before_MV = F.log_softmax(_exact(start_head(taught_MD)), -1)
    kl_M = F.kl_div(
        F.log_softmax(logits_PV[of_N[taught_M]], -1), before_MV, reduction="none", log_target=True
    ).sum(-1)
    return loss_N.index_copy(0, taught_M, kl_M)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype is torch.float64 else logits.float()


def _start_head(teacher: Any) -> Head:
    """The start policy's output layer for later use: without an adapter, which may be on again by
    then."""
    bare = unwrapped(teacher)
    layer = bare.get_output_embeddings()
    for name in ("base_layer", "original_module"):  # inside of PEFT's adapter or trained copy
        layer = getattr(layer, name, layer)
    weight, bias = layer.weight, getattr(layer, "bias", None)
    return output_layer(bare, lambda states: F.linear(states, weight, bias))
