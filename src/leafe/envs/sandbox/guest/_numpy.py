"""The part of numpy that EvalPlus' tests use, for lists of numbers.

The box has the standard library alone, and these tests compare by `numpy.allclose`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Any


class ndarray:
    """No value is an instance."""


class float64(float):
    pass


class float32(float):
    pass


def isclose(
    a: float, b: float, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    if a == b or (equal_nan and a != a and b != b):
        return True
    gap = abs(a - b)
    return gap <= atol + rtol * abs(b) and not _infinite(a) and not _infinite(b)


def allclose(
    a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    return all(isclose(one, other, rtol, atol, equal_nan) for one, other in _pairs(a, b))


def assert_allclose(
    actual: Any, desired: Any, rtol: float = 1e-07, atol: float = 0, equal_nan: bool = True
) -> None:
    if not allclose(actual, desired, rtol, atol, equal_nan):
        raise AssertionError(f"Not equal to tolerance rtol={rtol:g}, atol={atol:g}")


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """The numbers of both, pairwise. A single number, or a list of one, is repeated."""
    lists = [x if isinstance(x, list | tuple) else None for x in (a, b)]
    if lists[0] is None and lists[1] is None:
        if not all(isinstance(x, int | float | complex) for x in (a, b)):
            raise TypeError("numpy.allclose compares numbers")
        yield a, b
        return
    size = max(len(x) if x is not None else 1 for x in lists)
    if 0 in [len(x) for x in lists if x is not None]:
        size = 0
    if any(x is not None and len(x) not in (1, size) for x in lists):
        raise ValueError("operands could not be broadcast together")
    for at in range(size):
        one, other = (
            y if x is None else x[at % len(x)] for x, y in zip(lists, (a, b), strict=True)
        )
        yield from _pairs(one, other)


def module() -> types.ModuleType:
    """The module `numpy` with these names."""
    made, testing = types.ModuleType("numpy"), types.ModuleType("numpy.testing")
    vars(testing).update(assert_allclose=assert_allclose)
    vars(made).update(
        ndarray=ndarray,
        float64=float64,
        float32=float32,
        isclose=isclose,
        allclose=allclose,
        testing=testing,
    )
    vars(made).update(inf=math.inf, nan=math.nan, pi=math.pi)
    return made
