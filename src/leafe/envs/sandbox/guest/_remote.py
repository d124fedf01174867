"""The tests' side of the connection to the program's box: requests, and proxies of its objects.

A value that is not plain arrives as a `Remote`, which can be called, passed back, read, iterated,
and asked for the operators of its own type (`_protocol`). An exception of the program's own class
arrives as an instance of a class made for it, below the builtin class that it derives from, so that
a test can catch it by either name.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from leafe.envs.sandbox.guest._exchange import Called, answered, outgoing
from leafe.envs.sandbox.guest._plain import Decoder, Encoder, Unreadable, short
from leafe.envs.sandbox.guest._protocol import ASKED, GUARDED, NEVER_ASKED, READ

_MAX_ITEMS = 100_000
_MAX_AHEAD = 1024
"""Items of an iterator that are requested at once."""


class Raised(Exception):
    """An exception of the program of unknown type."""


class Over(BaseException):
    """The program has ended: no more tests."""


class Remote:
    """Proxy of a value in the program's box."""

    __slots__ = ("__weakref__", "leafe_ahead", "leafe_link", "leafe_number", "leafe_shown")

    def __getattr__(self, name: str) -> Any:
        return self.leafe_link.attribute(self.leafe_number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.leafe_link.ask("assign", value, ref=self.leafe_number, name=name)

    def __delattr__(self, name: str) -> None:
        self.leafe_link.ask("delete", ref=self.leafe_number, name=name)

    def __repr__(self) -> str:
        link = self.leafe_link
        return str(self.leafe_shown if link.describing else link.ask("operate", self, name="repr"))

    def __str__(self) -> str:
        link = self.leafe_link
        return str(self.leafe_shown if link.describing else link.ask("operate", self, name="str"))

    def __format__(self, spec: str) -> str:
        return str(self.leafe_link.ask("operate", self, spec, name="format"))

    def __copy__(self) -> Any:
        return self.leafe_link.ask("operate", self, name="copy")

    def __deepcopy__(self, memo: object) -> Any:
        return self.leafe_link.ask("operate", self, name="deepcopy")


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Remote, *args: Any, **named: Any) -> Any:
        return self.leafe_link.ask("method", *args, named=named, ref=self.leafe_number, name=name)

    return method


def _guarded(name: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        return (
            self.leafe_link.ask("method", other, ref=self.leafe_number, name=name)
            if isinstance(other, Remote)
            else NotImplemented
        )

    return method


def _contains(self: Remote, item: Any) -> bool:
    if isinstance(item, Remote):
        return bool(self.leafe_link.ask("method", item, ref=self.leafe_number, name="__contains__"))
    return any(item is one or item == one for one in self)  # type: ignore[attr-defined]


def _exit(self: Remote, kind: object, error: object, trace: object) -> Any:
    return self.leafe_link.ask("method", kind, error, None, ref=self.leafe_number, name="__exit__")


def _next(self: Remote) -> Any:
    if self.leafe_ahead:
        return self.leafe_ahead.pop(0)
    return self.leafe_link.ask("method", ref=self.leafe_number, name="__next__")


def _items(self: Remote) -> Iterator[Any]:
    """Iterate with growing batches; items that nobody wanted are kept for the next reader."""
    many, count = 1, 0
    while True:
        while self.leafe_ahead:
            yield self.leafe_ahead.pop(0)
        items = self.leafe_link.ask("items", ref=self.leafe_number, many=many)
        if not items:
            return
        count += len(items)
        if count > _MAX_ITEMS:
            raise OverflowError(f"more than {_MAX_ITEMS} items")
        self.leafe_ahead.extend(items)
        many = min(2 * many, _MAX_AHEAD)


_OWN: dict[str, Callable[..., Any]] = {
    "__contains__": _contains,
    "__exit__": _exit,
    "__next__": _next,
}


class Link:
    """Sends requests to the program and reads their answers; holds the proxies, and the functions
    that tests passed."""

    def __init__(self, report: Callable[[dict[str, Any]], None], lines: Any) -> None:
        self.describing = False
        """Proxies are only being shown, which is not worth a request."""
        self._report, self._lines = report, lines
        self._known: dict[int, Any] = {}
        self._kinds: dict[tuple[str, ...], type[Remote]] = {}
        self._functions: list[Any] = []

    def ask(self, op: str, *args: Any, named: dict[str, Any] | None = None, **request: Any) -> Any:
        parts, held = outgoing(args, named or {}, self._outward)
        self._report({"event": "ask", "op": op, **request, **parts})
        while True:
            line = self._lines.readline()
            if not line:
                raise Over
            try:
                answer = json.loads(line)
                if "callback" not in answer:
                    if "ok" in answer:
                        return answered(answer, "ok", held, self._inward)
                    break
                called, function = Called(answer, self._inward), self._functions[answer["callback"]]
            except (
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
                RecursionError,
                MemoryError,
            ) as error:
                if hasattr(error, "leafe"):
                    raise
                raise Unreadable("the program's answer is no value") from error
            self._called_back(called, function)
        raise self._raised(answer, held)

    def _called_back(self, called: Called, function: Any) -> None:
        try:
            said = called.answer("ok", function(*called.args, **called.named), self._outward)
        except Over:
            raise
        except BaseException as error:
            said = called.answer("raised", _builtin(error), self._outward)
        self._report({"event": "ask", "op": "returned", **said})

    def _raised(self, answer: dict[str, Any], held: list[Any]) -> BaseException:
        """The exception that the program raised."""
        detail, outcome = str(answer.get("detail", "")), answer.get("outcome")
        error: Any = None
        try:
            error = answered(answer, "raised", held, self._inward)
        except Exception:
            error = None
        if not isinstance(error, BaseException) or isinstance(error, Over):
            error = Raised(detail)
        found: BaseException = error
        found.leafe = (outcome if outcome in ("memory", "exited") else "error", detail)  # type: ignore[attr-defined]
        return found

    def _outward(self, value: Any, encoder: Encoder) -> list[Any]:
        number = getattr(value, "leafe_number", None)
        if number is not None:
            return ["ref", number]
        if (named := _global(value)) is not None:
            return ["global", *named]
        iterator = hasattr(type(value), "__next__")
        if callable(value) or iterator:
            function = value.__next__ if iterator else value
            if function not in self._functions:
                self._functions.append(function)
            return [
                "iterator" if iterator else "callback",
                self._functions.index(function),
                getattr(function, "__name__", "function"),
            ]
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program")

    def _inward(self, tag: str, rest: list[Any], decoder: Decoder) -> Any:
        if tag == "yours":
            return self._functions[rest[0]]
        if tag == "sub":
            return self._with_attributes(decoder.decode(rest[0]), rest[1])
        number = int(rest[0])
        if number not in self._known:
            make: Callable[[int, list[Any], Decoder], Any] = {
                "ref": self._remote,
                "class": self._exception_class,
                "error": self._exception,
            }[tag]
            self._known[number] = make(number, rest[1:], decoder)
        return self._known[number]

    def _remote(self, number: int, rest: list[Any], _: Decoder) -> Remote:
        kind, shown, lent = (
            short(str(rest[0])).replace("\0", ""),
            short(str(rest[1])),
            tuple(map(str, rest[2])),
        )
        made = self._kinds.get((kind, *lent))
        if made is None:
            methods: dict[str, Any] = {
                "__slots__": (),
                "__doc__": property(lambda remote: remote.__getattr__("__doc__")),
            }
            for name in lent:
                if name.removeprefix("-") not in ASKED | GUARDED:
                    continue
                if name.startswith("-"):
                    methods[name[1:]] = None
                else:
                    methods[name] = _OWN.get(name) or (
                        _guarded(name) if name in GUARDED else _forwarded(name)
                    )
            if "__next__" in methods:
                methods["__iter__"] = _items
            made = self._kinds[kind, *lent] = type(kind, (Remote,), methods)
        remote = made()
        for name, value in (("link", self), ("number", number), ("shown", shown), ("ahead", [])):
            object.__setattr__(remote, f"leafe_{name}", value)
        return remote

    def _with_attributes(self, value: Any, reference: list[Any]) -> Any:
        """A plain value whose type has further attributes, such as a named tuple."""
        number, kind = int(reference[1]), str(reference[2]).replace("\0", "")

        def attribute(_: Any, name: str) -> Any:
            return self.attribute(number, name)

        return type(kind, (type(value),), {"__getattr__": attribute})(value)

    def _exception_class(
        self, number: int, rest: list[Any], decoder: Decoder
    ) -> type[BaseException]:
        bases = tuple(decoder.decode(base) for base in rest[1])
        methods = {
            "leafe_number": number,
            "__new__": lambda _, *args, **named: self.ask(
                "method", *args, named=named, ref=number, name="__call__"
            ),
            "__init__": lambda *_, **__: None,
            "__getattr__": lambda error, name: self.attribute(error.leafe_number, name),
            "__str__": lambda error: str(self.ask("operate", error, name="str")),
        }
        try:
            made: type[BaseException] = type(str(rest[0]).replace("\0", ""), bases, methods)
        except TypeError:  # these bases cannot be combined here
            made = type(str(rest[0]).replace("\0", ""), bases[:1], methods)
        return made

    def _exception(self, number: int, rest: list[Any], decoder: Decoder) -> BaseException:
        kind, args = decoder.decode(rest[0]), [decoder.decode(a) for a in rest[1]]
        builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        error: BaseException = builtin.__new__(kind, *args)
        error.args = tuple(args)
        error.leafe_number = number  # type: ignore[attr-defined]
        return error

    def attribute(self, number: int, name: str) -> Any:
        """The value of an attribute; AttributeError for names that a test never asks for."""
        if (
            name in NEVER_ASKED
            or name.startswith("leafe")
            or (name.startswith("__") and name.endswith("__") and name not in READ)
        ):
            raise AttributeError(f"no test may ask {name} of an object of the program")
        return self.ask("attribute", ref=number, name=name)


def _global(value: Any) -> tuple[str, str] | None:
    """Module and name of a standard-library function or class, which both boxes have."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (
        isinstance(module, str)
        and isinstance(name, str)
        and module.split(".")[0] in sys.stdlib_module_names
    ):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name) if found is value else None


def _builtin(error: BaseException) -> BaseException:
    """The nearest builtin exception to one raised by a test's function."""
    if getattr(error, "leafe_number", None) is not None:
        return error
    kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
    try:
        return copy.copy(error) if kind is type(error) else kind(*error.args)
    except Exception:
        return RuntimeError(str(error))
