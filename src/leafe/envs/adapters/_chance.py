"""Chance of a foreign environment, kept apart: its draws from the global generators follow from the
episode's seed, and nobody else's draws are touched.

Many environments draw from Python's `random` or numpy's global state. Inside `with chance:` both
hold this environment's own state; outside, what they held before.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class Chance:
    """The state of both global generators as one environment sees it. Use as a context manager; not
    nested."""

    def __init__(self) -> None:
        self._outside: tuple[Any, Any] | None = None
        self.state: tuple[Any, Any] = _now()
        """A value: keep it and put it back to return to this point."""

    def seed(self, seed: int) -> None:
        """Begin anew; `seed` is any number from 0."""
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
