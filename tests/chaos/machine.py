"""What the storm does to the machine: marked processes, signals, a small disk."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

MARK = "LEAFE_CHAOS"
"""The environment variable by which a storm's processes are known."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def marked_processes(mark: str) -> Iterator[int]:
    """The living processes that were started with this mark, by whomever."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and is_marked(int(entry), mark):
            yield int(entry)


def is_marked(pid: int, mark: str) -> bool:
    return f"{MARK}={mark}\0".encode() in read_proc(pid, "environ")


def read_proc(pid: int, what: str) -> bytes:
    """Empty for a process that is gone, or dead and not yet reaped."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def signal_and_close(handle: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, what)
    os.close(handle)


def fill_disk(path: Path) -> None:
    """Leave less room than an episode needs."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, str]]:
    """A small file system, or a plain folder and why."""
    folder.mkdir(parents=True)
    why = "mounting a small file system needs root and the right to mount"
    with contextlib.suppress(OSError):
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "leafe-chaos", str(folder)],
            capture_output=True,
            check=False,
        )
        why = why if mounted.returncode else ""
    try:
        yield folder, why
    finally:
        if not why:
            subprocess.run(["umount", str(folder)], check=True)
