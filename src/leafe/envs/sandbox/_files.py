"""The files of this machine that a box contains.

These are the interpreter, its standard library without installed packages, the libraries that these
load, and three devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from leafe.core import UserError
from leafe.core.processes import with_default_signals

PACKAGES = ("site-packages", "dist-packages")
"""Folders of installed packages within some standard libraries: hidden."""
DEVICES = ("null", "random", "urandom")
"""No terminals, which can be written to, and no zero, whose mappings can be shared."""
_CACHE = "/etc/ld.so.cache"
_UNUSED = (
    "_tkinter",
    "_curses",
    "readline",
    "_dbm",
    "_gdbm",
    "nis",
    "_test",
    "_xx",
    "xx",
    "ossaudiodev",
)
"""Extension modules without a use in a box. Some would load a display's libraries."""
_LOADED = """
import ctypes, json, os, sys
folder, unused = sys.argv[1], tuple(sys.argv[2:])
kept = []
for name in ("libgcc_s.so.1", *sorted(os.listdir(folder) if os.path.isdir(folder) else ())):
    if name.startswith(unused) or ".so" not in name: continue
    try: kept.append(ctypes.CDLL(name if name.startswith("libgcc") else os.path.join(folder, name)))
    except OSError: pass
class Info(ctypes.Structure): _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
found = []
each = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def add(info, size, data): return found.append(os.fsdecode(info[0].name or b"")) or 0
ctypes.CDLL(None).dl_iterate_phdr(each(add), None)
print(json.dumps(found))
"""


@cache
def interpreter() -> str:
    """The interpreter, not that of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def standard_library() -> tuple[str, ...]:
    """The folders of the standard library, with its extension modules."""
    found = dict.fromkeys(
        os.path.realpath(path)
        for name in ("stdlib", "platstdlib")
        if (path := sysconfig.get_path(name))
    )
    base, own = (os.path.realpath(path) for path in (sys.base_prefix, sys.prefix))
    found = dict.fromkeys(
        base + path.removeprefix(own) if own != base and Path(path).is_relative_to(own) else path
        for path in found
    )
    return tuple(path for path in found if os.path.isdir(path))


@cache
def mounted() -> tuple[tuple[str, str], ...]:
    """(file or folder, its path in the box) for all that is mounted; UserError if the interpreter
    does not run."""
    folders = standard_library()
    found = {path: path for path in (interpreter(), *folders)}
    extensions = next(
        (path for folder in folders if os.path.isdir(path := os.path.join(folder, "lib-dynload"))),
        "",
    )
    command = with_default_signals([interpreter(), "-I", "-S", "-c", _LOADED, extensions, *_UNUSED])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"The interpreter {interpreter()} does not run by itself: "
            f"{done.stderr.strip()[-300:]}. Install it anew."
        )
    for name in json.loads(done.stdout):
        place = os.path.normpath(name)
        if (
            name.startswith("/")
            and os.path.isfile(place)
            and not any(Path(place).is_relative_to(folder) for folder in folders)
        ):
            found[place] = os.path.realpath(place)
    if os.path.isfile(_CACHE):  # the loader's index of libraries in other folders
        found[_CACHE] = _CACHE
    return tuple((source, place) for place, source in found.items())


def hidden() -> list[str]:
    """Folders to hide, since they hold installed packages."""
    return [
        path
        for folder in standard_library()
        for name in PACKAGES
        if os.path.isdir(path := os.path.join(folder, name))
    ]
