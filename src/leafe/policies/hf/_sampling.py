"""Many samples of one distribution at once, each equal to what it would have been alone.

Sample j of a request has its own stream of uniform numbers, a hash of (request seed, j, t): it has
no state and no order. A row of the batch stands for all samples that have drawn the same tokens so
far. Their numbers are looked up together in the row's cumulative distribution, and equal draws stay
together. The counts of the draws are an exact multinomial split, and batching does not change them.

Axes: R rows, V vocabulary, N samples of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_STEP_J = np.uint64(0x9E3779B97F4A7C15)
_STEP_T = np.uint64(0xD1B54A32D192ED03)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit changes every output bit with probability about
    one half."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(
    seeds_N: NDArray[np.uint64], samples_N: NDArray[np.int64], steps_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, sample j, token index t)."""
    with np.errstate(over="ignore"):
        stream = _mix(_mix(seeds_N) + (samples_N.astype(np.uint64) + np.uint64(1)) * _STEP_J)
        bits = _mix(stream + (steps_N.astype(np.uint64) + np.uint64(1)) * _STEP_T)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(slots=True)
class Draws:
    """The distinct (row, token) pairs, ordered by row then token, and which samples drew them."""

    row: NDArray[np.int64]
    token: NDArray[np.int64]
    logprob: NDArray[np.float64]
    """At the row's temperature (greedy: at temperature 1), before top-p cuts."""
    order: NDArray[np.int64]
    """Indices of the samples, grouped by pair and in their own order within it."""
    start: NDArray[np.int64]
    """Where each pair's samples begin in `order`; one entry more than pairs."""


def draw(
    logits_RV: torch.Tensor,
    temperature_R: NDArray[np.float64],
    top_p_R: NDArray[np.float64],
    row_N: NDArray[np.int64],
    uniform_N: NDArray[np.float64],
) -> Draws:
    """Draw one token for each sample.

    Args:
        logits_RV: Of each row.
        temperature_R: 0 is greedy.
        top_p_R: Nucleus; 1 keeps every token.
        row_N: The row of each sample, ascending.
        uniform_N: The random number of each sample.
    """
    greedy_R = temperature_R <= 0
    scale = torch.from_numpy(np.where(greedy_R, 1.0, temperature_R)).to(
        logits_RV.device, torch.float32
    )
    logp_RV = torch.log_softmax(logits_RV.float() / scale[:, None], dim=-1)
    p_RV = logp_RV.double().exp() if logits_RV.device.type != "mps" else logp_RV.exp()
    cut = np.flatnonzero((top_p_R < 1) & ~greedy_R)
    if len(cut):
        index = torch.from_numpy(cut).to(p_RV.device)
        p_RV[index] = _nucleus(
            p_RV[index], torch.from_numpy(top_p_R[cut]).to(p_RV.device, p_RV.dtype)
        )
    best_R = logp_RV.argmax(-1)
    cdf_RV = p_RV.cumsum(-1)
    token_N = _look_up(cdf_RV, p_RV, best_R, row_N, uniform_N)
    if greedy_R.any():
        token_N = np.where(greedy_R[row_N], best_R.cpu().numpy()[row_N], token_N)
    n = len(row_N)
    if n == len(temperature_R):  # one sample a row: nothing can be equal
        row, token, order, start = row_N, token_N, np.arange(n), np.arange(n + 1)
    else:
        pair_N = row_N * logits_RV.shape[1] + token_N
        pairs, counts = np.unique(pair_N, return_counts=True)
        row, token = np.divmod(pairs, logits_RV.shape[1])
        order = np.argsort(pair_N, kind="stable")
        start = np.concatenate(([0], np.cumsum(counts)))
    chosen = logp_RV[
        torch.from_numpy(row).to(logp_RV.device), torch.from_numpy(token).to(logp_RV.device)
    ]
    return Draws(row, token, chosen.double().cpu().numpy(), order, start)


def _look_up(
    cdf_RV: torch.Tensor,
    p_RV: torch.Tensor,
    best_R: torch.Tensor,
    row_N: NDArray[np.int64],
    uniform_N: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The inverse of each row's cumulative distribution at its samples' numbers."""
    rows, vocabulary = cdf_RV.shape
    first_R = np.searchsorted(row_N, np.arange(rows))
    place_N = np.arange(len(row_N)) - first_R[row_N]
    u_RM = torch.zeros(rows, int(place_N.max()) + 1, dtype=cdf_RV.dtype)
    u_RM[torch.from_numpy(row_N), torch.from_numpy(place_N)] = torch.from_numpy(uniform_N).to(
        cdf_RV.dtype
    )
    found_RM = torch.searchsorted(
        cdf_RV, u_RM.to(cdf_RV.device) * cdf_RV[:, -1:], right=True
    ).clamp_(max=vocabulary - 1)
    # rounding can land past the last token with any probability: take the most likely one
    found_RM = torch.where(p_RV.gather(1, found_RM) > 0, found_RM, best_R[:, None])
    out: NDArray[np.int64] = found_RM.cpu().numpy()[row_N, place_N]
    return out


def _nucleus(p_RV: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """The smallest set of most likely tokens that reaches top_p (at least one), the others set to
    0."""
    sorted_RV, index_RV = p_RV.sort(dim=-1, descending=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    keep_RV = before_RV < top_p_R[:, None].clamp(min=1e-9)
    return torch.zeros_like(p_RV).scatter(1, index_RV, sorted_RV * keep_RV)
