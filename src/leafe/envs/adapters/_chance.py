"""The random state of another library's environment, kept apart from everybody else's.

Many environments draw from the global generators of Python's `random` and of numpy. Inside
`with chance:` both hold this environment's own state; outside, the state they held before.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class Chance:
    """One environment's state of both global generators. A context manager; do not nest it."""

    def __init__(self) -> None:
        self._outside: tuple[Any, Any] | None = None
        self.state: tuple[Any, Any] = _now()
        """Keep this value and assign it later to return to this point."""

    def seed(self, seed: int) -> None:
        """Seed both generators; `seed` is at least 0."""
        with self:
            random.seed(seed)
            np.random.seed(seed % 2**32)

    def __enter__(self) -> None:
        self._outside = _now()
        _set(self.state)

    def __exit__(self, *exc: object) -> None:
        self.state = _now()
        assert self._outside is not None
        _set(self._outside)


def _now() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _set(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
