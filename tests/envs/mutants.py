"""Programs with one small mistake: an operator swapped, a comparison shifted, a constant off by
one."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutants(program: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(what was changed, the program with it) for `count` places drawn by `seed`, or for all where
    there are fewer. None for what does not parse."""
    tree = ast.parse(program)
    places = list(_places(tree))
    random.Random(seed).shuffle(places)
    made = []
    for at, what in places[:count]:
        changed = copy.deepcopy(tree)
        node = list(ast.walk(changed))[at]
        _change(node)
        made.append((what, ast.unparse(changed)))
    return made


def _places(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for at, node in enumerate(ast.walk(tree)):
        before = ast.dump(node)
        trial = copy.deepcopy(node)
        if _change(trial):
            yield at, f"line {getattr(node, 'lineno', 0)}: {before[:60]}"


def _change(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    else:
        return False
    return True
