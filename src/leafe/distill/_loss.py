"""The loss of one batch, exact however the batch is cut into forward passes.

    L = sum over parts p of  w_p * (sum over p's target tokens of weight * l) / (sum over p's target tokens of weight)

with l the cross-entropy of the target token, or, for anchors, the KL divergence from the start policy's distribution to the trained one's at the
target's position. The denominators belong to the whole batch, so that each piece's loss is a plain sum that is added up. Rows are padded on the
right and run without an attention mask: under causal attention no target sees the padding. Legend: B rows, T tokens, N target positions, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leafe.distill._config import PARTS, Part
from leafe.distill._tokens import TokenSequence


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward pass takes."""

    ids_BT: Tensor
    row_N: Tensor
    position_N: Tensor
    """Of the logits that predict the target: one before it."""
    target_N: Tensor
    scale_N: Tensor
    """The token's weight over its part's whole weight in the batch; 0 for filling."""
    part_N: Tensor
    """Index in PARTS."""

    def to(self, device: Any) -> Piece:
        return Piece(*(getattr(self, name).to(device) for name in self.__slots__))


def totals(batch: Sequence[TokenSequence]) -> dict[Part, float]:
    """The denominators: by part, the weights of all its target tokens in the batch."""
    out: dict[Part, float] = {}
    for sequence in batch:
        out[sequence.part] = out.get(sequence.part, 0.0) + sum(s.weight * (s.end - s.start) for s in sequence.spans)
    return out


def piece(sequences: Sequence[TokenSequence], total: Mapping[Part, float], pad: int) -> Piece:
    """The sequences as tensors; `total` are the batch's denominators."""
    length = max(len(s.ids) for s in sequences)
    # a row's last token is a target at most: what comes after it is not predicted, so it is no input
    ids = [[*s.ids, *([pad] * (length - len(s.ids)))] for s in sequences]
    rows: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    scales: list[float] = []
    parts: list[int] = []
    for row, sequence in enumerate(sequences):
        for span in sequence.spans:
            number = span.end - span.start
            rows += [row] * number
            positions += range(span.start - 1, span.end - 1)
            targets += sequence.ids[span.start : span.end]
            whole = total[sequence.part]
            scales += [span.weight / whole if whole > 0 else 0.0] * number
            parts += [PARTS.index(sequence.part)] * number
    return Piece(
        torch.tensor(ids)[:, :-1], torch.tensor(rows), torch.tensor(positions), torch.tensor(targets),
        torch.tensor(scales, dtype=torch.float32), torch.tensor(parts),
    )  # fmt: skip


def target_logits(model: Any, batch: Piece) -> Tensor:
    """Float32 logits_NV at the targets' positions; the output layer runs over no position that has no target in any row."""
    wanted, index_N = torch.unique(batch.position_N, return_inverse=True)
    logits_BPV = model(input_ids=batch.ids_BT, logits_to_keep=wanted, use_cache=False).logits
    return logits_BPV[batch.row_N, index_N].float()


def part_losses(model: Any, start: Any, batch: Piece) -> Tensor:
    """loss_P: by part in the order of PARTS, this piece's share of the part's mean; `start()` gives the start policy where there are anchors."""
    logits_NV = target_logits(model, batch)
    loss_N = F.cross_entropy(logits_NV, batch.target_N, reduction="none")
    anchor_N = batch.part_N == PARTS.index("anchor")
    if bool(anchor_N.any()):
        rows = batch.row_N[anchor_N].unique()
        order = torch.full((batch.ids_BT.shape[0],), -1, device=rows.device)
        order[rows] = torch.arange(len(rows), device=rows.device)
        of_N = (batch.position_N, batch.target_N, batch.scale_N, batch.part_N)
        anchors = Piece(batch.ids_BT[rows], order[batch.row_N[anchor_N]], *(x[anchor_N] for x in of_N))
        with torch.no_grad(), start() as teacher:
            before_MV = F.log_softmax(target_logits(teacher, anchors), -1)
        kl_M = F.kl_div(F.log_softmax(logits_NV[anchor_N], -1), before_MV, reduction="none", log_target=True).sum(-1)
        loss_N = loss_N.masked_scatter(anchor_N, kl_M)
    return torch.zeros(len(PARTS), device=loss_N.device).index_add(0, batch.part_N, loss_N * batch.scale_N)
