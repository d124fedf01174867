"""How a program that nobody trusts is run: as a script that reads stdin, or as a module whose functions are called from outside.

Nothing that decides a verdict is here. A script is judged by its output and exit status, which are seen from outside; a function by the values that
it returns, compared elsewhere. What this process reports of itself (a traceback, that memory ran out) only explains a failure.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import resource
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from leafe.envs.sandbox.guest._plain import decode, described, encode, safe_repr

Report = Callable[[dict[str, Any]], None]
_LONGEST_REPLY = 1 << 20
"""Characters of one returned value."""
_MOST_ITEMS = 100_000
_FILE = "/box/solution.py"
"""There is no such file; programs ask for its folder."""


def run_script(job: dict[str, Any], report: Report) -> None:
    """The program as `__main__`, ended as the interpreter ends: threads joined, exit functions called, streams flushed."""
    sources = {"<solution>": job["program"]}
    module = types.ModuleType("__main__")
    module.__file__ = _FILE
    sys.modules["__main__"] = module
    threading.excepthook = lambda args: report({"event": "error", "detail": described(args.exc_value or SystemExit(), sources)})
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
    gc.collect()  # files that the program left open write what they hold
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


def _explain(error: BaseException, sources: dict[str, str], space: dict[str, Any], report: Report) -> None:
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
    """Load the program, say how that went, then answer requests, one line each, until there are no more."""
    module = types.ModuleType("solution")
    module.__file__ = _FILE
    sys.modules["solution"] = sys.modules["__main__"] = module
    space = module.__dict__
    sources = {"<given>": job["given"], "<solution>": job["program"], "<setup>": job["setup"]}
    for name, text in sources.items():
        if text:
            answer = _tried(lambda name=name, text=text: exec(compile(text, name, "exec"), space), sources, space)  # type: ignore[misc]
            if "ok" not in answer:
                report({"event": "load", **answer})
                os._exit(0)
    report({"event": "load", "outcome": "passed", "detail": ""})
    server = _Server(space)
    for line in io.BufferedReader(requests):
        request = json.loads(line)
        report(_tried(lambda request=request: server.answer(request), sources, space))  # type: ignore[misc]
    os._exit(0)


def _tried(act: Callable[[], Any], sources: dict[str, str], space: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": act()}
    except MemoryError as error:
        _make_room(error, space)
        return {"outcome": "memory", "error": "MemoryError", "detail": ""}
    except SystemExit as error:
        return {"outcome": "exited", "error": "SystemExit", "detail": f"SystemExit: {safe_repr(error.code)}"}
    except BaseException as error:
        return {"outcome": "error", "error": type(error).__name__, "detail": described(error, sources)}


class _Server:
    """Names, calls and attributes of the program's module; what is no plain value is kept here and referred to by its number."""

    def __init__(self, space: dict[str, Any]) -> None:
        self.space = space
        self.kept: list[Any] = []

    def answer(self, request: dict[str, Any]) -> Any:
        value = self._value(request)
        try:
            coded = encode(value, self._keep)
        except RecursionError:
            coded = self._keep(value)
        if len(json.dumps(coded)) > _LONGEST_REPLY:
            raise OverflowError(f"the value is longer than {_LONGEST_REPLY >> 20} MB")
        return coded

    def _value(self, request: dict[str, Any]) -> Any:
        what = request["op"]
        if what == "get":
            try:
                return self.space[request["name"]]
            except KeyError:
                raise NameError(f"name {request['name']!r} is not defined") from None
        subject = self.kept[request["ref"]]
        if what == "call":
            given = {name: decode(v, self._kept) for name, v in request["named"].items()}
            return subject(*(decode(v, self._kept) for v in request["args"]), **given)
        if what == "attribute":
            return getattr(subject, request["name"])
        if what == "assign":
            return setattr(subject, request["name"], decode(request["value"], self._kept))
        items = []
        for item in subject:
            items.append(item)
            if len(items) > _MOST_ITEMS:
                raise OverflowError(f"more than {_MOST_ITEMS} items")
        return items

    def _keep(self, value: Any) -> list[Any]:
        self.kept.append(value)
        return ["ref", len(self.kept) - 1, type(value).__name__, safe_repr(value)]

    def _kept(self, reference: list[Any]) -> Any:
        return self.kept[reference[0]]
