"""Encodes values as plain data, so that comparisons happen outside the program's process.

An `Encoder` turns a value into JSON: builtin values and some standard types by value, all else as
the caller's `keep` decides (a reference with type and repr). A `Decoder` turns it back. So an
object with its own `__eq__` decides nothing about equality with a plain value: it arrives as a
reference, which equals no plain value. Mutable containers are numbered in order of appearance, so
that one that appears twice is again one container, and so that changes of arguments can be sent
back (`_exchange`).
"""

from __future__ import annotations

import builtins
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

MAX_SHOWN = 240
"""The most characters of a value, message or source line in a report."""
FRAMES = 3
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
_SMALL = 2**53
_KEYS: Any = type({}.keys())
_ITEMS: Any = type({}.items())
_CONSTANTS = {"Ellipsis": ..., "NotImplemented": NotImplemented}
_VALUES = (str, int, float, complex, bytes, tuple, frozenset)
"""Types whose subclasses count as the type itself, as `==` would."""
_MAPPINGS: dict[str, type] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    "defaultdict": defaultdict,
}
_STANDARD: tuple[tuple[str, str, Callable[[Any], Any], Callable[[Any, Any], Any]], ...] = (
    ("decimal", "Decimal", str, lambda kind, part: kind(part)),
    (
        "fractions",
        "Fraction",
        lambda v: [hex(v.numerator), hex(v.denominator)],
        lambda kind, part: kind(*(int(p, 16) for p in part)),
    ),
    ("datetime", "datetime", lambda v: v.isoformat(), lambda kind, part: kind.fromisoformat(part)),
    ("datetime", "date", lambda v: v.isoformat(), lambda kind, part: kind.fromisoformat(part)),
    ("datetime", "time", lambda v: v.isoformat(), lambda kind, part: kind.fromisoformat(part)),
    (
        "datetime",
        "timedelta",
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda kind, part: kind(*part),
    ),
    ("re", "Pattern", lambda v: [v.pattern, v.flags], lambda _, part: re.compile(*part)),
)

Keep = Callable[[Any, "Encoder"], list[Any]]
Wrap = Callable[[str, list[Any], "Decoder"], Any]


class Unreadable(ValueError):
    """The data is not what an `Encoder` makes."""


class Encoder:
    """Encodes values as JSON.

    `keep` encodes what is not a plain value. `held` are containers that the other side already has,
    by number. With `subclasses` a value of a subclass also carries a reference, through which its
    attributes can be read.
    """

    def __init__(self, keep: Keep, held: Sequence[Any] = (), subclasses: bool = False) -> None:
        self.held = list(held)
        self._keep, self._subclasses = keep, subclasses
        self._seen = {id(value): number for number, value in enumerate(self.held)}

    def encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, _VALUES):
            coded = self._value(value)
            return (
                ["sub", coded, self._keep(value, self)]
                if self._subclasses and type(value) not in _VALUES
                else coded
            )
        if isinstance(value, list | dict | set | bytearray | deque):
            return self._container(value)
        return self._other(value)

    def contents(self, value: Any) -> Any:
        """The encoded contents of a container."""
        if isinstance(value, dict):
            return [[self.encode(k), self.encode(v)] for k, v in dict.items(value)]
        return (
            bytes(value).hex() if isinstance(value, bytearray) else [self.encode(v) for v in value]
        )

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            number = int.__index__(value)
            return number if -_SMALL < number < _SMALL else ["int", hex(number)]
        if isinstance(value, float):
            return float.__pos__(value)
        if isinstance(value, complex):
            return ["complex", [value.real, value.imag]]
        if isinstance(value, bytes):
            return ["bytes", bytes(value).hex()]
        return [
            "tuple" if isinstance(value, tuple) else "frozenset",
            [self.encode(v) for v in value],
        ]

    def _container(self, value: Any) -> Any:
        if (number := self._seen.get(id(value))) is not None:
            return ["same", number]
        self._seen[id(value)] = len(self.held)
        self.held.append(value)
        if type(value) is defaultdict:
            factory = value.default_factory
            return [
                "defaultdict",
                [
                    self.contents(value),
                    factory.__name__ if factory and _is_builtin(factory) else None,
                ],
            ]
        if isinstance(value, deque):
            return ["deque", [self.contents(value), value.maxlen]]
        name = (
            next((n for n, kind in _MAPPINGS.items() if type(value) is kind), "dict")
            if isinstance(value, dict)
            else ""
        )
        return [
            name or next(n for n in ("list", "set", "bytearray") if isinstance(value, _TYPES[n])),
            self.contents(value),
        ]

    def _other(self, value: Any) -> Any:
        if isinstance(value, _KEYS | _ITEMS):
            return [
                "keys" if isinstance(value, _KEYS) else "items",
                [self.encode(held) for held in value],
            ]
        if isinstance(value, range | slice):
            return [
                type(value).__name__,
                [self.encode(v) for v in (value.start, value.stop, value.step)],
            ]
        if _is_builtin(value):
            return ["type", value.__name__]
        if isinstance(value, BaseException) and _is_builtin(type(value)):
            return ["exception", [type(value).__name__, [self.encode(a) for a in value.args]]]
        for name, constant in _CONSTANTS.items():
            if value is constant:
                return ["constant", name]
        for module, name, parts, _ in _STANDARD:
            exact = getattr(sys.modules.get(module), name, None)
            if isinstance(exact, type) and isinstance(value, exact):
                return [name, parts(value)]
        return self._keep(value, self)


def _is_builtin(value: Any) -> bool:
    return isinstance(value, type) and _TYPES.get(value.__name__) is value


class Decoder:
    """Decodes what an `Encoder` made. `wrap` decodes what its `keep` made; `made` are the
    containers so far, by number."""

    def __init__(self, wrap: Wrap, made: Sequence[Any] = ()) -> None:
        self.made = list(made)
        self._wrap = wrap

    def decode(self, data: Any) -> Any:
        """The value that `data` stands for; Unreadable if it is none."""
        if data is None or isinstance(data, bool | str | int | float):
            return data
        if not (isinstance(data, list) and len(data) > 1 and isinstance(data[0], str)):
            raise Unreadable("no encoded value")
        tag, *rest = data
        try:
            return self._decoded(tag, rest)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            if hasattr(error, "leafe"):
                raise
            raise Unreadable(f"no encoded {tag}: {type(error).__name__}") from error

    def refill(self, container: Any, contents: Any) -> None:
        """Replace the contents of a container."""
        if isinstance(container, dict):
            pairs = [(self.decode(k), self.decode(v)) for k, v in contents]
            dict.clear(container)
            for key, value in pairs:
                dict.__setitem__(container, key, value)
        elif isinstance(container, bytearray):
            container[:] = bytes.fromhex(contents)
        else:
            values = [self.decode(v) for v in contents]
            container.clear()
            container.update(values) if isinstance(container, set) else container.extend(values)

    def _decoded(self, tag: str, rest: list[Any]) -> Any:
        part = rest[0]
        if tag == "same":
            return self.made[part]
        if tag in ("list", "set", "bytearray", "deque") or tag in _MAPPINGS:
            return self._container(tag, part)
        if tag in ("tuple", "frozenset", "keys", "items"):
            values = [self.decode(v) for v in part]
            return (
                dict.fromkeys(values).keys()
                if tag == "keys"
                else dict(values).items()
                if tag == "items"
                else _TYPES[tag](values)
            )
        if tag == "int":
            return int(part, 16)
        if tag == "complex":
            return complex(*part)
        if tag == "bytes":
            return bytes.fromhex(part)
        if tag in ("range", "slice"):
            return _TYPES[tag](*(self.decode(v) for v in part))
        if tag == "type":
            return _TYPES[part]
        if tag == "exception":
            return _exception_type(part[0])(*[self.decode(a) for a in part[1]])
        if tag == "constant":
            return _CONSTANTS[part]
        for module, name, _, made in _STANDARD:
            if tag == name:
                return made(getattr(__import__(module), name), part)
        return self._wrap(tag, rest, self)

    def _container(self, tag: str, part: Any) -> Any:
        container: Any
        if tag == "deque":
            part, most = part
            container = deque(maxlen=most)
        elif tag == "defaultdict":
            part, factory = part
            container = defaultdict(_TYPES[factory] if factory else None)
        else:
            container = _MAPPINGS[tag]() if tag in _MAPPINGS else _TYPES[tag]()
        self.made.append(container)
        self.refill(container, part)
        return container


def _exception_type(name: str) -> type[BaseException]:
    kind = _TYPES[name]
    if not issubclass(kind, BaseException):
        raise Unreadable(f"{name} is no exception")
    return kind


def short(text: str) -> str:
    """One line of about `MAX_SHOWN` characters at most; addresses, which differ from run to run,
    are blanked."""
    text = re.sub(r"\bat 0x[0-9a-f]+", "at 0x...", " ".join(text.split()))
    return (
        text
        if len(text) <= MAX_SHOWN
        else text[: MAX_SHOWN // 2] + " ... " + text[-MAX_SHOWN // 2 :]
    )


def safe_repr(value: object) -> str:
    try:
        return short(repr(value))
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def described(error: BaseException, sources: dict[str, str]) -> str:
    """The program's last frames and the exception: a traceback without leafe's own frames."""
    lines = []
    if isinstance(error, SyntaxError) and error.filename in sources:
        return (
            f"line {error.lineno}: {short(error.text or '')}\n{type(error).__name__}: "
            f"{short(error.msg)}"
        )
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == "<solution>":
            source = sources["<solution>"].splitlines()
            text = source[trace.tb_lineno - 1] if 0 < trace.tb_lineno <= len(source) else ""
            where = "" if code.co_name == "<module>" else f", in {code.co_name}"
            lines.append(f"line {trace.tb_lineno}{where}: {short(text)}")
        trace = trace.tb_next
    try:
        message = short(str(error))
    except Exception:
        message = "(its message cannot be read)"
    lines = [*lines[-FRAMES:], type(error).__name__ + (f": {message}" if message else "")]
    return "\n".join(lines)
