"""Unbiased Pass@k: the chance that at least one of k samples solves the task, from n samples of
which c did.

`1 - C(n-c, k) / C(n, k)` (Chen et al. 2021), computed as a sum of logarithms so that neither large
n nor tiny rates lose digits. It is NaN where n < k: fewer than k samples say nothing about k
without a model of the task. On a counted tree the counts of the episodes are n and c, so the
estimate is that of the samples one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leafe.core import LOST, Tree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counts:
    """What n samples of each task came to. Arrays over the tasks, in the order of `tasks`."""

    tasks: tuple[str, ...]
    n: Ints
    """Samples that the policy itself ended (context_full included): the n of Pass@k."""
    c: Ints
    """Those of n that succeeded."""
    lost: Ints
    """Samples that ended in an outside error (`leafe.core.LOST`) and that no later sample makes up
    for; not part of n."""

    @property
    def asked(self) -> int:
        """Samples asked for: the most that any task has, lost ones included."""
        return int((self.n + self.lost).max()) if len(self.tasks) else 0

    @property
    def short(self) -> Ints:
        """Samples that each task lacks, whether recorded as lost or missing."""
        return self.asked - self.n

    def pass_at(self, k: int) -> Floats:
        """Pass@k of every task; NaN where its n < k."""
        return pass_at_k(self.n, self.c, k)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Floats:
    """The unbiased estimate of Pass@k.

    Args:
        n: Samples of each task.
        c: Successes among them; `n` and `c` broadcast.
        k: Samples drawn, from 1.

    Returns:
        An estimate for each task; NaN where n < k.

    Raises:
        ValueError: k < 1, or 0 <= c <= n does not hold.
    """
    if k < 1:
        raise ValueError(f"k = {k}: it counts samples, so it is at least 1")
    samples, solved = np.broadcast_arrays(
        np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64)
    )
    if np.any(solved < 0) or np.any(solved > samples):
        raise ValueError("0 <= c <= n does not hold")
    out = np.ones(samples.shape, dtype=np.float64)
    # where fewer than k samples failed, any k of them hold a success; elsewhere C(n-c, k) / C(n, k)
    # = prod_j (1 - c / (n - j)), j < k
    open_ = samples - solved >= k
    if np.any(open_):
        left = np.asarray(samples[open_], dtype=np.float64)
        hits = np.asarray(solved[open_], dtype=np.float64)
        log = np.zeros_like(left)
        for j in range(k):
            log += np.log1p(-hits / (left - j))
        out[open_] = -np.expm1(log)
    out[samples < k] = np.nan
    return out


def counts(trees: Sequence[Tree]) -> Counts:
    """n, c and lost of every tree, by the counts of its episodes. A lost sample that was sampled
    again no longer counts as lost."""
    n, c, lost = (np.zeros(len(trees), dtype=np.int64) for _ in range(3))
    for i, tree in enumerate(trees):
        for episode in tree.episodes:
            if episode.stop in LOST:
                lost[i] += episode.count
            else:
                n[i] += episode.count
                c[i] += episode.count * episode.success
            if episode.again is not None:
                lost[i] -= episode.count
    return Counts(tuple(t.task.id for t in trees), n, c, lost)
