"""What environments share: checks of their options, and the order in which tasks are drawn."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

from leafe.core import UserError, derive_seed

T = TypeVar("T")
IMPORT_PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
"""`package.module:Name`."""


def whole_number(
    env: str, option: str, value: object, least: int = 1, most: int | None = None
) -> int:
    """The option's value if it is a whole number from `least` to `most`, else UserError."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value <= (value if most is None else most)
    ):
        return value
    to = "" if most is None else f" to {most}"
    raise UserError(
        f"The environment {env!r} cannot have {option} = {value!r}: give a whole number from "
        f"{least}{to}."
    )


def check_split(env: str, split: str, splits: Iterable[str]) -> None:
    """Raise UserError if `split` is not one of the environment's splits."""
    if split not in splits:
        raise UserError(
            f"The environment {env!r} has no split {split!r}: its splits are {', '.join(splits)}."
        )


def require_package(env: str, package: str, extra: str, module: str | None = None) -> None:
    """Raise UserError if `module` (by default named as its package) is not installed."""
    if find_spec(module or package) is None:
        raise UserError(
            f"The environment {env!r} needs the package {package!r}: run pip install "
            f"'leafe[{extra}]'."
        )


def shuffled(items: Iterable[T], seed: int, *labels: str | int) -> Sequence[T]:
    """The items in an order that follows from `seed` and `labels` alone."""
    drawn = list(items)
    random.Random(derive_seed(seed, *labels)).shuffle(drawn)
    return drawn
