"""The loss of one batch, exact however the batch is cut into forward passes.

    L = sum over parts p of  w_p * (sum over p's target tokens of weight * l) / (sum over p's target
    tokens of weight)

with l the cross-entropy of the target token, or, for a span with a teacher, the KL divergence from
the start policy's distribution at the teacher's prompt
to the trained one's at the sample's own. The denominators belong to the whole batch, so that each
piece's loss is a plain sum that is added up. Logits
exist for so many positions at a time, and are computed again in the backward pass where there are
more. Legend: B rows, T tokens, P positions that have
targets, N targets, M of them with a teacher, D width of the model, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leafe.distill._attention import Attention, Head, Rows, output_layer, unwrapped
from leafe.distill._config import PARTS, Part
from leafe.distill._pack import Row
from leafe.distill._tokens import TokenSequence

_LOGITS = 1 << 24
"""Logits that exist at a time: 64 MiB in float32, and as much again for each step from them to the
loss."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward pass takes, and the start policy's before it."""

    attention: Attention
    rows: Rows
    at_P: Tensor
    """Flat positions (b * T + t) whose logits are of use, ascending."""
    of_N: Tensor
    """Index in at_P of the position that predicts the target, ascending."""
    target_N: Tensor
    scale_N: Tensor
    """The target's weight over its part's whole weight in the batch; float64."""
    part_N: Tensor
    """Index in PARTS."""
    teacher: Rows | None
    """What the start policy reads."""
    taught_M: Tensor
    """Which of N have a teacher, ascending."""
    teacher_at_M: Tensor
    """The flat position in `teacher` that says what the target should be."""

    @property
    def tokens(self) -> int:
        """Tokens that the trained policy runs, padding included."""
        return self.rows.ids_BT.numel()

    def to(self, device: Any) -> Piece:
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device)
            for name in self.__slots__
            if isinstance(getattr(self, name), Tensor | Rows)
        }
        return replace(self, **moved)


def totals(batch: Sequence[TokenSequence]) -> dict[Part, float]:
    """The denominators: by part, the weights of all its target tokens in the batch."""
    out: dict[Part, float] = {}
    for sequence in batch:
        out[sequence.part] = out.get(sequence.part, 0.0) + sum(
            s.weight * (s.end - s.start) for s in sequence.spans
        )
    return out


def collate(
    rows: Sequence[Row], total: Mapping[Part, float], pad: int, attention: Attention
) -> Piece:
    """The rows as tensors; `total` are the batch's denominators. A part without weight counts 0."""
    student = attention.rows(rows, pad)
    length = student.ids_BT.shape[1]
    teachers = [t for row in rows for t in row.teachers]
    teacher = attention.rows(teachers, pad) if teachers else None
    entries: list[tuple[int, int, float, int, int]] = []
    before = 0
    for b, row in enumerate(rows):
        for target in row.targets:
            whole = total[target.part]
            taught = (
                -1
                if target.teacher is None or teacher is None
                else (before + target.teacher[0]) * teacher.ids_BT.shape[1] + target.teacher[1]
            )
            entries.append(
                (
                    b * length + target.at,
                    target.token,
                    target.weight / whole if whole > 0 else 0.0,
                    PARTS.index(target.part),
                    taught,
                )
            )
        before += len(row.teachers)
    entries.sort(key=lambda e: e[0])
    at, target_tokens, scales, parts, taught_at = zip(*entries, strict=True)
    at_N, target_N, part_N, taught_N = (
        torch.tensor(column) for column in (at, target_tokens, parts, taught_at)
    )
    at_P, of_N = torch.unique(at_N, return_inverse=True)
    taught_M = torch.nonzero(taught_N >= 0)[:, 0]
    return Piece(
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


def part_losses(model: Any, start: Any, piece: Piece) -> Tensor:
    """loss_P: by part in the order of PARTS, this piece's share of the part's mean. `start()` gives
    the start policy where there are teachers.

    Where the model is wrapped (DDP, FSDP) this is called inside of the wrapper's forward pass.
    """
    attention = piece.attention
    taught_MD: Tensor | None = None
    start_head: Head | None = None
    if piece.teacher is not None:
        with torch.no_grad(), start() as teacher:
            taught_MD = attention.run(teacher, piece.teacher, piece.teacher_at_M)
            start_head = _start_head(teacher) if attention.head else attention.layer(teacher)
    states_PD = attention.run(model, piece.rows, piece.at_P)
    head = attention.layer(model)
    size = max(1, _LOGITS // int(unwrapped(model).config.get_text_config().vocab_size))
    losses = []
    for first in range(0, len(states_PD), size):
        low, high = _within(piece.of_N, first, first + size)
        from_m, to_m = _within(piece.taught_M, low, high)
        arguments = (
            states_PD[first : first + size],
            head,
            piece.of_N[low:high] - first,
            piece.target_N[low:high],
            piece.taught_M[from_m:to_m] - low,
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
        0, piece.part_N, loss_N * piece.scale_N.to(loss_N.dtype)
    )


def _within(ascending: Tensor, first: int, end: int) -> tuple[int, int]:
    """The slice of the values in [first, end)."""
    low, high = torch.searchsorted(
        ascending, torch.tensor([first, end], device=ascending.device)
    ).tolist()
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
    """loss_N of the targets of these positions, at least in float32."""
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
    """The start policy's output layer as it is now, to be used later: without an adapter, which may
    be on again by then."""
    bare = unwrapped(teacher)
    layer = bare.get_output_embeddings()
    for name in (
        "base_layer",
        "original_module",
    ):  # what PEFT puts an adapter on, or a trained copy beside
        layer = getattr(layer, name, layer)
    weight, bias = layer.weight, getattr(layer, "bias", None)
    return output_layer(bare, lambda states: F.linear(states, weight, bias))
