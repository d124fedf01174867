"""A right program and the mistakes that can be made in it: a few places, each of them right or
wrong on its own.

A mistake is one that people and models make: an operator or a comparison swapped, a constant off by
one, a special case left out, a result printed and not
returned, an import forgotten, another name for the function. Which of the places are wrong says
everything about a version of the program.
"""

from __future__ import annotations

import ast
import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Wrong = frozenset[int]
"""The places that are wrong, by their number."""

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.FloorDiv,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitXor: ast.BitOr,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True, slots=True)
class Place:
    """One place where a mistake is made. `right` and `wrong` are advice: how the place is to be
    written, and how not."""

    at: int
    """The node, by its number in `ast.walk`."""
    right: str
    wrong: str


class Versions:
    """A reference and those of its mistakes that were chosen."""

    def __init__(self, reference: str, places: Sequence[Place] = ()) -> None:
        self.reference = reference
        self.places = tuple(places)
        self._texts: dict[Wrong, str] = {}
        self._wrong: dict[str, Wrong] = {}
        for wrong in self.all():
            self._texts[wrong] = self._written(wrong)
            self._wrong.setdefault(
                self._texts[wrong], wrong
            )  # the fewest mistakes: one may stand in what another leaves out

    def all(self) -> Iterator[Wrong]:
        """Every version, those with few mistakes first; the right one is empty."""
        for size in range(len(self.places) + 1):
            for some in itertools.combinations(range(len(self.places)), size):
                yield frozenset(some)

    def text(self, wrong: Wrong) -> str:
        return self._texts[wrong]

    def read(self, text: str) -> Wrong | None:
        """What is wrong in a program; None where it is no version of this one."""
        return self._wrong.get(text)

    def _written(self, wrong: Wrong) -> str:
        tree = ast.parse(self.reference)
        nodes = list(ast.walk(tree))
        for place in wrong:
            _err(nodes[self.places[place].at])
        return ast.unparse(tree)


def places_of(reference: str, called: str, seed: int) -> list[Place]:
    """Every place where a mistake can be made, in an order drawn by `seed`; of those that read
    alike the first. `called`: the tests, so that the function
    that they call is known. SyntaxError where the reference does not parse."""
    found: dict[str, Place] = {}
    for at, node in enumerate(ast.walk(ast.parse(reference))):
        if isinstance(node, ast.FunctionDef) and f"{node.name}(" not in called:
            continue
        changed = copy.deepcopy(node)
        if _err(changed):
            line, right, wrong = getattr(node, "lineno", 0), _shown(node), _shown(changed)
            place = Place(
                at,
                f"In line {line} write `{right}`, not `{wrong}`.",
                f"In line {line} write `{wrong}`, not `{right}`.",
            )
            found.setdefault(place.right, place)
    places = list(found.values())
    random.Random(seed).shuffle(places)
    return places


def _shown(node: ast.AST) -> str:
    """A node in words: of one that opens a block the head, of a special case its first line too."""
    lines = ast.unparse(node).split("\n")[: 2 if isinstance(node, ast.If) else 1]
    return " ".join(line.strip() for line in lines)


def _err(node: ast.AST) -> bool:
    """Make the mistake that can be made at this node; False where there is none."""
    return any(mistake(node) for mistake in _MISTAKES)


def _swapped(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()  # type: ignore[assignment]
    else:
        return False
    return True


def _off_by_one(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        node.value = not node.value
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    else:
        return False
    return True


def _without_a_special_case(node: ast.AST) -> bool:
    if (
        isinstance(node, ast.If)
        and not node.orelse
        and isinstance(node.body[-1], ast.Return | ast.Continue | ast.Break)
    ):
        node.test = ast.Constant(False)
        return True
    return False


def _printed(node: ast.AST) -> bool:
    if isinstance(node, ast.Return) and node.value is not None and not _is_print(node.value):
        node.value = ast.Call(ast.Name("print", ast.Load()), [node.value], [])
        return True
    return False


def _is_print(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def _not_imported(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom) and not (
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ):
        for alias in node.names:
            if alias.name == "*":
                return False
            alias.asname = "_" + (alias.asname or alias.name).replace(".", "_")
        return True
    return False


def _misnamed(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        node.name = "solution" if node.name != "solution" else "solve"
        return True
    return False


_MISTAKES: tuple[Callable[[ast.AST], bool], ...] = (
    _swapped,
    _off_by_one,
    _without_a_special_case,
    _printed,
    _not_imported,
    _misnamed,
)
