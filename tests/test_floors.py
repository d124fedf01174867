"""Imports go down the floors of the house only, and nothing heavy is imported at the top of a
module that need not be.

cli -> view, data -> pipeline, embedded -> recipes -> report -> baselines, evaluate -> explore,
distill -> prompts, runs -> core;
testing imports envs and core; envs and policies import core alone
"""

from __future__ import annotations

import ast
from pathlib import Path

import leafe

SOURCE = Path(leafe.__file__).parent

FLOORS = [
    {"cli", "__main__"},
    {"data", "view"},
    {"pipeline", "embedded"},
    {"recipes"},
    {"report"},
    {"baselines", "evaluate"},
    {"explore", "distill"},
    {"prompts", "runs", "testing"},
    {"envs", "policies"},
    {"core"},
]
"""Top floor first; a part may import from the floors below its own. Parts of one floor may not
import each other, unless `BESIDE` says so."""
BESIDE: dict[str, set[str]] = {"pipeline": {"embedded"}}
"""What a part may import from its own floor."""
ONLY: dict[str, set[str]] = {
    "prompts": {"core"},
    "runs": {"core"},
    "envs": {"core"},
    "policies": {"core"},
    "testing": {"envs", "core"},
    "explore": {"prompts", "runs", "core"},
    "distill": {"prompts", "runs", "core"},
}
"""Parts that may import less than the floors below: environments and policies are never named below
the pipeline."""
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "gguf",
    "ray",
    "matplotlib",
    "scipy",
    "pandas",
}
HEAVY_AT_HOME = {"policies.hf", "policies._hf", "distill", "baselines.grpo"}
"""Where a module may import a heavy package at its top; such a module is itself imported lazily
(tests/test_imports.py)."""


def allowed(part: str) -> set[str]:
    floor = next(n for n, parts in enumerate(FLOORS) if part in parts)
    below = set[str]().union(*FLOORS[floor + 1 :])
    return ONLY.get(part, below) | BESIDE.get(part, set()) | {part}


def modules() -> list[tuple[str, Path, ast.Module]]:
    return [
        (".".join(p.relative_to(SOURCE).with_suffix("").parts), p, ast.parse(p.read_text("utf-8")))
        for p in sorted(SOURCE.rglob("*.py"))
    ]


def imported(tree: ast.AST, name: str) -> list[tuple[int, str]]:
    """(line, absolute module) of every import statement; `from leafe import x` counts as
    `leafe.x`."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: relative import; say where from"
            out += (
                [(node.lineno, f"leafe.{alias.name}") for alias in node.names]
                if node.module == "leafe"
                else [(node.lineno, node.module or "")]
            )
    return out


def test_every_part_has_a_floor() -> None:
    parts = {name.split(".")[0] for name, _, _ in modules()} - {"__init__"}
    assert parts <= set[str]().union(*FLOORS)


def test_imports_go_down() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {part} may not import {target}"
        for name, path, tree in modules()
        if (part := name.split(".")[0]) != "__init__"
        for line, target in imported(tree, name)
        if target.startswith("leafe.")
        and not target.startswith("leafe.__")
        and target.split(".")[1] not in allowed(part)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_face_of_the_package_imports_core_alone() -> None:
    assert {
        target
        for _, target in imported(
            ast.parse((SOURCE / "__init__.py").read_text("utf-8")), "__init__"
        )
        if target.startswith("leafe")
    } <= {"leafe.core"}


def test_private_modules_are_imported_within_their_part_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {target} is private to {target.split('.')[1]}"
        for name, path, tree in modules()
        for line, target in imported(tree, name)
        if target.startswith("leafe.")
        and not target.startswith("leafe.__")
        and "._" in target
        and target.split(".")[1] != name.split(".")[0]
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_at_the_top_at_home_only() -> None:
    wrong = []
    for name, path, tree in modules():
        if any(name == home or name.startswith((f"{home}.", f"{home}_")) for home in HEAVY_AT_HOME):
            continue
        for node in top(tree):
            wrong += [
                f"{path.relative_to(SOURCE)}:{line}: {target} at the top"
                for line, target in imported(node, name)
                if target.split(".")[0] in HEAVY
            ]
    assert not wrong, "\n".join(wrong)


def top(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run at import: not those within functions, nor those for the type checker
    alone."""
    out: list[ast.stmt] = []
    queue: list[ast.stmt] = list(tree.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With | ast.For | ast.While):
            queue += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            queue += [child for handler in getattr(node, "handlers", []) for child in handler.body]
        else:
            out.append(node)
    return out


def graph(found: list[tuple[str, Path, ast.Module]]) -> dict[str, set[str]]:
    """By module, the modules that it imports: at its top, in a function, or for the type checker.
    `from leafe.a import b` is `a.b` where that is a module."""
    known = {name.removesuffix(".__init__") for name, _, _ in found}
    out: dict[str, set[str]] = {}
    for name, _, tree in found:
        targets = out.setdefault(name.removesuffix(".__init__"), set())
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                each = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [
                    n if n.removeprefix("leafe.") in known else node.module or "" for n in each
                ]
            targets |= {n.removeprefix("leafe.") for n in names} & known
    return out


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, by who reaches whom."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        seen: set[str] = set()
        queue = [start]
        while queue:
            fresh = imports.get(queue.pop(), set()) - seen
            seen |= fresh
            queue += fresh
        reached[start] = seen
    both = {a: frozenset(b for b in reached[a] if a in reached[b]) for a in imports}
    return sorted(sorted(c) for c in set(both.values()) if len(c) > 1)


def test_there_is_no_circle_of_imports() -> None:
    """Not within a part either, and none that an import in a function hides."""
    assert circles(graph(modules())) == []


def test_circles_are_found() -> None:
    def parsed(**sources: str) -> list[tuple[str, Path, ast.Module]]:
        return [(name, Path(), ast.parse(text)) for name, text in sources.items()]

    late = "def f():\n    from leafe import a\n"
    assert circles(graph(parsed(a="import leafe.b", b=late, c="from leafe.a import x"))) == [
        ["a", "b"]
    ]
    assert circles(graph(parsed(a="import leafe.b", b="from leafe import c", c="x = 1"))) == []


def test_no_module_is_past_six_hundred_lines() -> None:
    assert [str(p) for _, p, _ in modules() if len(p.read_text("utf-8").splitlines()) > 600] == []
