"""Which operators an object of the program forwards to the program's box, and when.

`V(1) + V(2) == V(3)` is decided by the program's class. `f(2) == 4` and `abs(f(2) - 3.5) < 1e-6`
are decided by the judge alone: an object that `f` returns could answer yes without knowing the
value. So a binary operator is forwarded only if both sides are the program's. Against a plain value
the object equals nothing, and arithmetic is a TypeError.
"""

from __future__ import annotations

_ARITHMETIC = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("lshift", "rshift", "and", "xor", "or"),
)
_COMPARISONS = ["lt", "le", "eq", "ne", "gt", "ge", "contains"]
ASKED = frozenset(
    f"__{name}__"
    for name in [
        *(
            "len",
            "bool",
            "hash",
            "call",
            "getitem",
            "setitem",
            "delitem",
            "missing",
            "iter",
            "next",
        ),
        *("reversed", "enter", "exit", "abs", "neg", "pos", "invert", "int", "float", "complex"),
        *("index", "round", "trunc", "floor", "ceil", "bytes", "fspath"),
        *("instancecheck", "subclasscheck"),
    ]
)
"""Forwarded to the program's object with any argument."""
GUARDED = frozenset(
    f"__{name}__"
    for name in [*_COMPARISONS, *(how + name for name in _ARITHMETIC for how in ("", "r", "i"))]
)
"""Forwarded only if the other operand is the program's, too."""
READ = frozenset(
    f"__{name}__" for name in ["name", "qualname", "doc", "annotations", "dict", "wrapped"]
)
"""Attributes that can be read, beside those without underscores."""
NEVER_ASKED = frozenset(["startswith", "endswith", "issubset", "issuperset", "isdisjoint"])
"""Methods of texts and sets that compare: a test that calls them expects a plain value's."""


def lent(kind: type) -> list[str]:
    """The operators that a type has beyond those of `object`; `-__hash__` if its objects have no
    hash."""
    own = {
        name: value
        for base in reversed(kind.__mro__)
        if base is not object
        for name, value in vars(base).items()
    }
    return [
        f"-{name}" if own[name] is None else name for name in sorted((ASKED | GUARDED) & own.keys())
    ]
