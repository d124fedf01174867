"""Runs the tests of a function in a box that the program never enters.

A name in a test that the test does not bind, and that is neither a builtin nor a module, is the
program's. It is fetched by a request, and its calls go to the program's box and return plain values
(`_remote`). All else (the comparison, the expected value, loops, tolerances) happens here.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import os
import symtable
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from leafe.envs.sandbox.guest._plain import safe_repr, short
from leafe.envs.sandbox.guest._remote import Link, Over, Remote


def judge(
    job: dict[str, Any], report: Callable[[dict[str, Any]], None], answers: io.FileIO
) -> None:
    """Report on each test, then `end`. Requests to the program are sent as reports, and answered on
    `answers`."""
    if any("numpy" in source for source in (job["setup"], *job["tests"])):
        from leafe.envs.sandbox.guest import _numpy

        sys.modules["numpy"] = _numpy.module()
    tests = _Tests(Link(report, io.BufferedReader(answers)), job["names"])
    over, broken = False, ""
    try:
        outcome, broken = tests.run(job["setup"])
        broken = f"the tests' own setup: {broken}" if outcome != "passed" else ""
    except Over:
        over = True
    for at, source in enumerate(job["tests"]):
        if over:
            break
        try:
            outcome, detail = ("error", broken) if broken else tests.run(source)
        except Over:
            break
        report({"event": "test", "at": at, "outcome": outcome, "detail": detail})
        if outcome == "memory":
            break
    report({"event": "end"})
    os._exit(0)


class _Tests:
    """The tests' namespace, and which of its names are the program's."""

    def __init__(self, link: Link, names: dict[str, str]) -> None:
        self.link, self.names = link, names
        self.space: dict[str, Any] = {"__name__": "tests"}
        self._fetched: dict[str, Any] = {}

    def run(self, source: str) -> tuple[str, str]:
        """(outcome, detail) of one test."""
        source = source.strip()
        try:
            tree, names = ast.parse(source), Names.of(source)
            self._fetch(names)
            if len(tree.body) == 1 and isinstance(only := tree.body[0], ast.Assert):
                return self._asserted(only.test, source)
            for at, statement in enumerate(tree.body):
                if at:
                    self._refresh(names)
                exec(compile(ast.Module([statement], []), "<test>", "exec"), self.space)
            return "passed", ""
        except Over:
            raise
        except BaseException as error:
            if hasattr(error, "leafe"):
                outcome, detail = error.leafe
                return outcome, detail
            return (
                "failed" if isinstance(error, AssertionError) else "error"
            ), f"{type(error).__name__}: {self._described(error)}".removesuffix(": ")

    def _asserted(self, test: ast.expr, source: str) -> tuple[str, str]:
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            got, want = (self._value(node) for node in (test.left, test.comparators[0]))
            test, holds = test.left, bool(got == want)
        else:
            got = self._value(test)
            holds = bool(got)
        return (
            ("passed", "")
            if holds
            else (
                "failed",
                f"{short(ast.get_source_segment(source, test) or '')} is {self._shown(got)}",
            )
        )

    def _value(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "<test>", "eval"), self.space)

    def _shown(self, value: object) -> str:
        self.link.describing = True
        try:
            return safe_repr(value)
        finally:
            self.link.describing = False

    def _described(self, error: BaseException) -> str:
        self.link.describing = True
        try:
            return short(str(error))
        finally:
            self.link.describing = False

    def _fetch(self, names: Names) -> None:
        """Put the program's names into the namespace, and the modules that the test reads from. A
        name that the program lacks stays unbound here too."""
        self._refresh(names)
        free = [name for name in names.read if name not in self.space and not name.startswith("__")]
        for name in free:
            if name in names.modules:
                self.space[name] = importlib.import_module(name)
        asked = [name for name in free if name not in self.space and not hasattr(builtins, name)]
        found = self._ask(asked)
        # a program may be asked for a function by a builtin's name (MBPP 126: sum); where a test
        # has another subject, abs and set are the real ones
        if (
            not found
            and not any(name not in names.bound for name in asked)
            and not any(name in self._fetched for name in names.read)
        ):
            self._ask(
                [name for name in names.called if name in free and hasattr(builtins, name)][:1]
            )

    def _refresh(self, names: Names) -> None:
        """Fetch plain values again: the program may have changed them."""
        self._ask(
            [
                n
                for n in names.read
                if n in self._fetched
                and self.space.get(n) is self._fetched[n]
                and not isinstance(self._fetched[n], Remote | type)
            ]
        )

    def _ask(self, names: list[str]) -> dict[str, Any]:
        if not names:
            return {}
        theirs = self.link.ask(
            "names", list(dict.fromkeys(self.names.get(name, name) for name in names))
        )
        found = {
            name: theirs[self.names.get(name, name)]
            for name in names
            if self.names.get(name, name) in theirs
        }
        self._fetched |= found
        self.space |= found
        return found


@dataclass(frozen=True, slots=True)
class Names:
    """How a test's code uses names, by Python's rules of scope."""

    read: tuple[str, ...]
    """Read as globals, at the top level or in functions, lambdas, classes and comprehensions."""
    bound: frozenset[str]
    """Bound by the test itself: assigned, imported, defined, caught or captured."""
    called: tuple[str, ...]
    modules: frozenset[str]
    """Standard-library modules whose attributes are read."""

    @staticmethod
    def of(source: str) -> Names:
        top = symtable.symtable(source, "<test>", "exec")
        read, bound = dict[str, None](), set[str]()
        for table in _tables(top):
            for symbol in table.get_symbols():
                if table is top or symbol.is_global():
                    if symbol.is_referenced():
                        read[symbol.get_name()] = None
                    if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                        bound.add(symbol.get_name())
        nodes = list(ast.walk(ast.parse(source)))
        called = {
            n.func.id: None
            for n in nodes
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        attributes = {
            n.value.id
            for n in nodes
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
        }
        modules = (attributes & sys.stdlib_module_names) - set(called) - bound
        return Names(tuple(read), frozenset(bound), tuple(called), frozenset(modules))


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
