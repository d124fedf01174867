"""Tasks that are seeds: the splits of an environment that is started by a seed are seed ranges."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.core import Task
from leafe.envs._options import check_split, shuffled

SPLITS = ("train", "valid", "test")
SPLIT_SIZE = 1_000_000
"""Seeds of a split: train from 0, valid from a million, test from two million."""


def seed_tasks(
    env: str, label: str, instruction: str, number: int, split: str, count: int | None, seed: int
) -> Sequence[Task]:
    """The first `count` of the split's `number` tasks, in an order drawn by `seed`."""
    check_split(env, split, SPLITS)
    first = SPLIT_SIZE * SPLITS.index(split)
    seeds = shuffled(range(first, first + number), seed, env, label, split)
    return [Task(f"{env}-{label}-{n}", env, split, instruction, {"seed": n}) for n in seeds[:count]]
