"""Seeds as tasks: a foreign environment that is started by a seed has as many tasks as there are
seeds, and splits are ranges of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from leafe.core import Task, UserError, derive_seed

SPLITS = ("train", "valid", "test")
APART = 1_000_000
"""Seeds of a split: train from 0, valid from a million, test from two million."""


def seed_tasks(
    env: str, label: str, instruction: str, number: int, split: str, count: int | None, seed: int
) -> Sequence[Task]:
    """The first `count` of the split's `number` tasks in an order drawn by `seed`; a smaller count
    is a prefix of a larger one."""
    if split not in SPLITS:
        raise UserError(
            f"The environment {env!r} has no split {split!r}: its splits are {', '.join(SPLITS)}."
        )
    first = APART * SPLITS.index(split)
    seeds = list(range(first, first + number))
    random.Random(derive_seed(seed, env, label, split)).shuffle(seeds)
    return [Task(f"{env}-{label}-{n}", env, split, instruction, {"seed": n}) for n in seeds[:count]]


def whole(env: str, option: str, value: object, most: int | None = None) -> int:
    """The option's value, a whole number from 1 (to `most`); UserError for anything else."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < 1
        or (most is not None and value > most)
    ):
        raise UserError(
            f"The environment {env!r} cannot have {option} = {value!r}: give a whole number from 1"
            + (f" to {most}." if most else ".")
        )
    return value
