"""Runs an untrusted program: as a script that reads stdin, or as a module whose functions are
called.

Nothing here decides a verdict. A script is judged by its output and exit status, seen from outside;
a function by the values that it returns, compared elsewhere. What this process reports (a
traceback, a memory error) only explains a failure.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
import importlib
import io
import itertools
import json
import os
import resource
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from leafe.envs.sandbox.guest._exchange import Called, answered, outgoing
from leafe.envs.sandbox.guest._plain import Decoder, Encoder, described, safe_repr
from leafe.envs.sandbox.guest._protocol import lent

Report = Callable[[dict[str, Any]], None]
_MAX_REPLY = 1 << 20
"""Characters of one returned value."""
_FILE = "/box/solution.py"
"""Not a real file; programs ask for its folder."""


def run_script(job: dict[str, Any], report: Report) -> None:
    """Run the program as `__main__`, and end as the interpreter does: join threads, call exit
    functions, flush streams."""
    sources = {"<solution>": job["program"]}
    module = types.ModuleType("__main__")
    module.__file__ = _FILE
    sys.modules["__main__"] = module
    threading.excepthook = lambda args: report(
        {"event": "error", "detail": described(args.exc_value or SystemExit(), sources)}
    )
    status, outputs = 0, [sys.stdout]
    try:
        exec(compile(job["program"], "<solution>", "exec"), module.__dict__)
    except SystemExit as error:
        status = _exit_status(error)
    except BaseException as error:
        status = 1
        _explain(error, sources, module.__dict__, report)
    try:
        threading._shutdown()  # type: ignore[attr-defined] # threads that are no daemons are waited for
        atexit._run_exitfuncs()
    except BaseException as error:
        _explain(error, sources, module.__dict__, report)
    status = _flush([sys.stdout], status, sources, report)
    outputs.append(sys.__stdout__)
    sys.modules.pop("__main__", None)
    del module
    atexit._clear()
    gc.collect()  # files that the program left open are flushed
    status = _flush(outputs, status, sources, report)
    os._exit(status)


def _flush(streams: list[Any], status: int, sources: dict[str, str], report: Report) -> int:
    for stream in streams:
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException as error:
            status = status or 120
            _explain(error, sources, {}, report)
    return status


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _explain(
    error: BaseException, sources: dict[str, str], space: dict[str, Any], report: Report
) -> None:
    if isinstance(error, MemoryError):
        _make_room(error, space)
        report({"event": "memory", "detail": ""})
    else:
        report({"event": "error", "detail": described(error, sources)})


def _make_room(error: BaseException, space: dict[str, Any]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    error.__traceback__ = None
    space.clear()
    gc.collect()


def serve_calls(job: dict[str, Any], report: Report, requests: io.FileIO) -> None:
    """Load the program, report how that went, then answer requests, one line each."""
    module = types.ModuleType("solution")
    module.__file__ = _FILE
    sys.modules["solution"] = sys.modules["__main__"] = module
    space = module.__dict__
    sources = {"<given>": job["given"], "<solution>": job["program"], "<setup>": job["setup"]}
    for name, text in sources.items():
        if text:
            answer = _reported(partial(_executed, name, text, space), sources, space)
            if answer:
                report({"event": "load", **answer})
                os._exit(0)
    report({"event": "load", "outcome": "passed", "detail": ""})
    _Server(space, sources, report, io.BufferedReader(requests)).serve()
    os._exit(0)


def _executed(name: str, text: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run one source in the module; returns no report unless it raises."""
    exec(compile(text, name, "exec"), space)
    return {}


def _reported(
    act: Callable[[], dict[str, Any]],
    sources: dict[str, str],
    space: dict[str, Any],
    more: Any = None,
) -> dict[str, Any]:
    """The report of `act`, or of its failure, with what `more` adds about the exception."""
    try:
        return act()
    except MemoryError as error:
        _make_room(error, space)
        return {"outcome": "memory", "error": "MemoryError", "detail": ""}
    except SystemExit as error:
        said = {
            "outcome": "exited",
            "error": "SystemExit",
            "detail": f"SystemExit: {safe_repr(error.code)}",
        }
        raised: BaseException = error
    except BaseException as error:
        said = {
            "outcome": "error",
            "error": type(error).__name__,
            "detail": described(error, sources),
        }
        raised = error
    if more is not None:
        with contextlib.suppress(BaseException):
            said |= more(raised)
    return said


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


class _Server:
    """Answers requests for names, calls, attributes and operators of the program's objects. Values
    that are not plain are kept here and referred to by number."""

    def __init__(
        self,
        space: dict[str, Any],
        sources: dict[str, str],
        report: Report,
        lines: io.BufferedReader,
    ) -> None:
        self.space = space
        self.kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._sources, self._report, self._lines = sources, report, lines

    def serve(self, called_back: bool = False) -> dict[str, Any]:
        """Answer requests until there are no more, or until a called-back test function has
        returned."""
        for line in self._lines:
            request: dict[str, Any] = json.loads(line)
            if called_back and request["op"] == "returned":
                return request
            self._report(self.answer(request))
        os._exit(0)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        called = None

        def act() -> dict[str, Any]:
            nonlocal called
            called = Called(request, self._inward)
            value = self._value(request, called.args, called.named)
            try:
                said = called.answer("ok", value, self._keep, subclasses=True)
            except RecursionError:
                said = {"ok": self._reference(value)}
            # send references instead: the test may not need the long values
            if request["op"] == "names" and len(json.dumps(said)) > _MAX_REPLY:
                said = {
                    "ok": ["dict", [[name, self._reference(held)] for name, held in value.items()]]
                }
            if len(json.dumps(said)) > _MAX_REPLY:
                raise OverflowError(f"the value is longer than {_MAX_REPLY >> 20} MB")
            return said

        def more(error: BaseException) -> dict[str, Any]:
            said = called.answer("raised", error, self._keep) if called else {}
            return said if len(json.dumps(said)) <= _MAX_REPLY else {}

        return _reported(act, self._sources, self.space, more)

    def _value(self, request: dict[str, Any], args: list[Any], named: dict[str, Any]) -> Any:
        what = request["op"]
        if what == "names":
            return {name: self.space[name] for name in args[0] if name in self.space}
        if what == "operate":
            return _OPERATIONS[request["name"]](*args)
        subject = self.kept[request["ref"]]
        if what == "method":
            # a call of the object itself, or an operator, looked up on the type as Python does
            return (
                subject(*args, **named)
                if request["name"] == "__call__"
                else getattr(type(subject), request["name"])(subject, *args, **named)
            )
        if what == "attribute":
            return getattr(subject, request["name"])
        if what == "assign":
            return setattr(subject, request["name"], args[0])
        if what == "delete":
            return delattr(subject, request["name"])
        return list(itertools.islice(subject, request["many"]))

    def _keep(self, value: Any, encoder: Encoder) -> list[Any]:
        if id(value) in self._theirs:
            return ["yours", self._theirs[id(value)][0]]
        number = self._number(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = [
                encoder.encode(base) for base in value.__bases__ if issubclass(base, BaseException)
            ]
            return ["class", number, value.__name__, bases]
        if isinstance(value, BaseException):
            return [
                "error",
                number,
                encoder.encode(type(value)),
                [encoder.encode(a) for a in value.args],
            ]
        return self._reference(value)

    def _reference(self, value: Any) -> list[Any]:
        return [
            "ref",
            self._number(value),
            type(value).__name__,
            safe_repr(value),
            lent(type(value)),
        ]

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return self._numbers[id(value)]

    def _inward(self, tag: str, rest: list[Any], decoder: Decoder) -> Any:
        if tag == "ref":
            return self.kept[rest[0]]
        if tag == "global":
            found: Any = importlib.import_module(rest[0])
            for part in rest[1].split("."):
                found = getattr(found, part)
            return found
        known = next((proxy for number, proxy in self._theirs.values() if number == rest[0]), None)
        return known or self._theirs_to_call(tag, *rest)

    def _theirs_to_call(self, tag: str, number: int, name: str) -> Any:
        """A function of the tests, or an iterator over items that they hand over one by one."""

        def call(*args: Any, **named: Any) -> Any:
            parts, held = outgoing(args, named, self._keep)
            self._report({"callback": number, **parts})
            said = self.serve(called_back=True)
            if "raised" in said:
                raise answered(said, "raised", held, self._inward)
            return answered(said, "ok", held, self._inward)

        def items() -> Iterator[Any]:
            while True:
                try:
                    item = call()
                except StopIteration:
                    return
                yield item

        call.__name__ = call.__qualname__ = name
        proxy = call if tag == "callback" else items()
        self._theirs[id(proxy)] = (number, proxy)
        return proxy
