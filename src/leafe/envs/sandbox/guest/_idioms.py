"""Supports idioms of contest programs that a box without /proc would refuse.

They open `/dev/stdin`, raise the limit of the main thread's stack before they recurse, and run in a
thread with a huge stack of which they use little.
"""

from __future__ import annotations

import _thread
import builtins
import io
import os
import resource
import threading
from typing import Any

_STANDARD = {
    f"{folder}/{name}": number
    for number, word in enumerate(("stdin", "stdout", "stderr"))
    for folder, name in (("/dev", word), ("/dev/fd", str(number)), ("/proc/self/fd", str(number)))
}
_LARGE = 16 << 20
"""A stack of this size or more counts by what is used of it."""


def open_standard_files() -> None:
    """Make open() of `/dev/stdin` and the like open the stream itself."""
    by_path, by_number = io.open, os.open

    def open_path(file: Any, *args: Any, **named: Any) -> Any:
        number = _standard(file)
        return by_path(file if number is None else os.dup(number), *args, **named)

    def open_number(path: Any, *args: Any, **named: Any) -> int:
        number = _standard(path)
        return by_number(path, *args, **named) if number is None else os.dup(number)

    open_path.__name__ = open_path.__qualname__ = open_number.__name__ = (
        open_number.__qualname__
    ) = "open"
    builtins.open = io.open = open_path
    os.open = open_number


def _standard(path: Any) -> int | None:
    if isinstance(path, int):
        return None
    try:
        return _STANDARD.get(os.fsdecode(path))
    except TypeError:
        return None


def allow_stacks(most: int) -> None:
    """If a program asks for a large stack, its address space may grow to `most` bytes; its memory
    is then judged by what it used."""
    limit, size = resource.setrlimit, _thread.stack_size

    def make_room() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit(resource.RLIMIT_AS, (max(soft, min(most, hard)), hard))

    def setrlimit(which: int, limits: Any) -> None:
        if which != resource.RLIMIT_STACK:
            return limit(which, limits)
        soft, hard = limits
        most = resource.getrlimit(which)[1]
        make_room()
        return limit(which, (_least(soft, most), _least(hard, most)))

    def stack_size(*wanted: int) -> int:
        if wanted and wanted[0] >= _LARGE:
            make_room()
        return size(*wanted)

    resource.setrlimit = setrlimit
    _thread.stack_size = threading.stack_size = stack_size


def _least(one: int, other: int) -> int:
    """The smaller limit; a negative number is no limit."""
    return min((value for value in (one, other) if value >= 0), default=resource.RLIM_INFINITY)
