"""Writes that are either there as a whole or not there at all, even when the process is killed in
the middle.

A small file is replaced by renaming a finished copy over it. A file of lines only grows; a line
counts once its newline
is on disk, and what stands after the last newline is what a killed process left behind: it is cut
off before the next line is written.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from leafe.core import JournalError, UserError

_BLOCK = 1 << 16


def atomic_write(path: Path, text: str) -> None:
    """Replace `path` by this text (UTF-8, durable): a reader sees the old file or the new one.
    JournalError where the disk refuses."""
    copy = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(copy, path)
        sync_folder(path.parent)
    except OSError as error:
        raise JournalError(
            f"{path} could not be written: {error.strerror}; nothing that was there is "
            "lost, so free space and go on."
        ) from error


def is_leftover(name: str) -> bool:
    """Whether a file of this name is the unfinished copy of an `atomic_write` that was cut off."""
    return name.startswith(".") and name.endswith(".tmp")


def write_all(fd: int, data: bytes) -> None:
    """Write all of it. Nearly always one system call; a file system that is nearly full writes a
    part first and fails afterwards."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cut_torn(fd: int) -> bool:
    """Cut off what stands after the last newline of a file of lines; whether there was anything."""
    size = end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end == size:
        return False
    os.ftruncate(fd, end)
    os.fsync(fd)
    return True


def lock(fd: int, what: Path, holder: str = "another process") -> None:
    """Take the exclusive lock of an open file, which ends with the process however it ends;
    UserError where another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{what} is in use by {holder}: wait until that has ended, or stop it."
        ) from None
    except OSError as error:
        raise UserError(
            f"{what} lies on a file system that cannot lock files ({error.strerror}): put "
            "it on another one."
        ) from error
