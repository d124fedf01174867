"""A right program and the mistakes that can be made in it: a few places, each right or wrong on its
own.

A mistake is one that people and models make: an operator or a comparison swapped, a constant off by
one, a special case left out, a result printed and not returned, an import forgotten, another name
for the function. The set of wrong places identifies a version of the program.
"""

from __future__ import annotations

import ast
import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Mistakes = frozenset[int]
"""The places that are wrong, by number."""

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
class MistakeSite:
    """One place where a mistake is made. `right` and `wrong` are advice: write the place so, or
    wrongly so."""

    at: int
    """The node, by its number in `ast.walk`."""
    right: str
    wrong: str


class ProgramVersions:
    """The versions of a reference by the mistakes that were chosen."""

    def __init__(self, reference: str, places: Sequence[MistakeSite] = ()) -> None:
        self.reference = reference
        self.places = tuple(places)
        self._texts: dict[Mistakes, str] = {}
        self._wrong: dict[str, Mistakes] = {}
        for wrong in self.all():
            self._texts[wrong] = self._render(wrong)
            self._wrong.setdefault(
                self._texts[wrong], wrong
            )  # the fewest mistakes: one may stand in what another leaves out

    def all(self) -> Iterator[Mistakes]:
        """Every version, fewest mistakes first; the right one is the empty set."""
        for size in range(len(self.places) + 1):
            for some in itertools.combinations(range(len(self.places)), size):
                yield frozenset(some)

    def text(self, wrong: Mistakes) -> str:
        return self._texts[wrong]

    def read(self, text: str) -> Mistakes | None:
        """The mistakes in a program; None where it is no version of the reference."""
        return self._wrong.get(text)

    def _render(self, wrong: Mistakes) -> str:
        tree = ast.parse(self.reference)
        nodes = list(ast.walk(tree))
        for place in wrong:
            _inject(nodes[self.places[place].at])
        return ast.unparse(tree)


def mistake_sites(reference: str, called: str, seed: int) -> list[MistakeSite]:
    """Every place where a mistake can be made, in an order drawn by `seed`; of those that read
    alike the first.

    Args:
        reference: the right program.
        called: the tests, which name the function that they call.
        seed: draws the order.

    Raises:
        SyntaxError: the reference does not parse.
    """
    found: dict[str, MistakeSite] = {}
    for at, node in enumerate(ast.walk(ast.parse(reference))):
        if isinstance(node, ast.FunctionDef) and f"{node.name}(" not in called:
            continue
        changed = copy.deepcopy(node)
        if _inject(changed):
            line, right, wrong = getattr(node, "lineno", 0), _excerpt(node), _excerpt(changed)
            place = MistakeSite(
                at,
                f"In line {line} write `{right}`, not `{wrong}`.",
                f"In line {line} write `{wrong}`, not `{right}`.",
            )
            found.setdefault(place.right, place)
    places = list(found.values())
    random.Random(seed).shuffle(places)
    return places


def _excerpt(node: ast.AST) -> str:
    """A node as text: the head of a block, of a special case its first line too."""
    lines = ast.unparse(node).split("\n")[: 2 if isinstance(node, ast.If) else 1]
    return " ".join(line.strip() for line in lines)


def _inject(node: ast.AST) -> bool:
    """Make the mistake of this node in place; False where it has none."""
    return any(mistake(node) for mistake in _MISTAKES)


def _swap_operator(node: ast.AST) -> bool:
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


def _drop_special_case(node: ast.AST) -> bool:
    if (
        isinstance(node, ast.If)
        and not node.orelse
        and isinstance(node.body[-1], ast.Return | ast.Continue | ast.Break)
    ):
        node.test = ast.Constant(False)
        return True
    return False


def _print_result(node: ast.AST) -> bool:
    if isinstance(node, ast.Return) and node.value is not None and not _is_print(node.value):
        node.value = ast.Call(ast.Name("print", ast.Load()), [node.value], [])
        return True
    return False


def _is_print(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def _break_import(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom) and not (
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ):
        for alias in node.names:
            if alias.name == "*":
                return False
            alias.asname = "_" + (alias.asname or alias.name).replace(".", "_")
        return True
    return False


def _rename_function(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        node.name = "solution" if node.name != "solution" else "solve"
        return True
    return False


_MISTAKES: tuple[Callable[[ast.AST], bool], ...] = (
    _swap_operator,
    _off_by_one,
    _drop_special_case,
    _print_result,
    _break_import,
    _rename_function,
)
