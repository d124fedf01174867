"""Which operators an object of the program lends to its stand-in in the tests' box, and which of
them are not asked where the other side is a plain value.

`V(1) + V(2) == V(3)` is for the program's class to say: all of it is the program's. `f(2) == 4` and
`abs(f(2) - 3.5) < 1e-6` are for the judge alone: were
an object that `f` returns asked, it could say yes without knowing the answer. So a binary operator
is asked of an object only where both sides are the
program's; against a plain value the object equals nothing, and arithmetic is a TypeError.
"""

from __future__ import annotations

_ARITHMETIC = [
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "xor",
    "or",
]
_COMPARISONS = ["lt", "le", "eq", "ne", "gt", "ge", "contains"]
ASKED = frozenset(
    f"__{name}__"
    for name in [
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
        "reversed",
        "enter",
        "exit",
        "abs",
        "neg",
        "pos",
        "invert",
        "int",
        "float",
        "complex",
        "index",
        "round",
        "trunc",
        "floor",
        "ceil",
        "bytes",
        "fspath",
        "instancecheck",
        "subclasscheck",
    ]
)
"""Asked of the program's object, whatever the arguments."""
GUARDED = frozenset(
    f"__{name}__"
    for name in [*_COMPARISONS, *(how + name for name in _ARITHMETIC for how in ("", "r", "i"))]
)
"""Asked of the program's object only where the other side is one as well."""
READ = frozenset(
    f"__{name}__" for name in ["name", "qualname", "doc", "annotations", "dict", "wrapped"]
)
"""Attributes of its own that can be read, beside those without underscores."""
NEVER_ASKED = frozenset(["startswith", "endswith", "issubset", "issuperset", "isdisjoint"])
"""Methods of texts and sets that compare: a test that calls them means those of a plain value."""


def lent(kind: type) -> list[str]:
    """The operators that a type has beyond those of every object; `-__hash__` where its objects
    have no hash."""
    own = {
        name: value
        for base in reversed(kind.__mro__)
        if base is not object
        for name, value in vars(base).items()
    }
    return [
        f"-{name}" if own[name] is None else name for name in sorted((ASKED | GUARDED) & own.keys())
    ]
