"""Writes that are on disk as a whole or not at all, even when the process is killed meanwhile.

A small file is replaced by renaming a finished copy over it. A file of lines only grows: a line
counts once its newline is on disk, and what follows the last newline was being written when the
process died. It is cut off before the next line is written.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from leafe.core import JournalError, UserError

_BLOCK = 1 << 16


def atomic_write(path: Path, text: str) -> None:
    """Replace a file, durably: a reader sees the old file or the new one.

    Args:
        path: The file; its folder must exist.
        text: The new content, written as UTF-8.

    Raises:
        JournalError: The disk refuses. The old file is still there.
    """
    copy = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(copy, path)
        sync(path.parent)
    except OSError as error:
        raise JournalError(
            f"{path} could not be written: {error.strerror}; nothing that was there is "
            "lost, so free space and go on."
        ) from error


def is_leftover(name: str) -> bool:
    """Whether a file of this name is the unfinished copy of an interrupted `atomic_write`."""
    return name.startswith(".") and name.endswith(".tmp")


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes. A nearly full file system writes a part first and fails afterwards."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cut_torn(fd: int) -> bool:
    """Cut off what follows the last newline of a file of lines; returns whether there was any."""
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
    """Take the exclusive lock of an open file; it ends with the process however that ends.

    Args:
        fd: The open file.
        what: What the lock protects, for the error.
        holder: Who holds it, for the error.

    Raises:
        UserError: Another process has the lock, or the file system has no locks.
    """
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


def unlock(fd: int) -> None:
    """Release the lock and close the file: closing alone would leave the lock to a forked child."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
