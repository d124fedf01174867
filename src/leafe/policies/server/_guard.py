"""The parent process of a model server: it ends the server when leafe is gone, for any reason.

Run as a file of its own (standard library alone, starts in milliseconds):

    python -I -S _guard.py LOG GRACE SECRETS COMMAND HIDING

LOG: the file that the server's output is appended to, without the secrets. GRACE: seconds between
SIGTERM and SIGKILL. SECRETS: JSON list of environment variables whose values are hidden, beside
those whose name says key, token, secret or password. COMMAND: JSON list. HIDING: the path of
`core.secret`. The guard prints {"pid": N} when the server is started, {"error": "..."} where it
cannot be, and {"exit": N} when it has ended (minus the signal's number for a death by signal). It
ends the server, with its process group, when its own standard input ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

_MAX_LINE = 1 << 16
_LINE_END = re.compile(rb"[\r\n]")


class Log:
    """Appends whole lines to the log, so that a secret is never cut in two and missed."""

    def __init__(self, path: str, hide: Callable[[str], str]) -> None:
        self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115
        self._hide = hide
        self._rest = b""

    def write(self, data: bytes) -> None:
        data = self._rest + data
        ends = [m.end() for m in _LINE_END.finditer(data)]
        cut = ends[-1] if ends else len(data) if len(data) > _MAX_LINE else 0
        self._write(data[:cut])
        self._rest = data[cut:]

    def _write(self, data: bytes) -> None:
        if data:
            shown = self._hide(data.decode("utf-8", "surrogateescape"))
            data = shown.encode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError):  # a full disk must not end the server
            self._file.write(data)

    def close(self) -> None:
        self._write(self._rest + b"\n" if self._rest else b"")
        self._file.close()


def before_exec() -> None:
    """Before the server's exec: default signals, and death with the guard (PR_SET_PDEATHSIG)."""
    for what in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(what, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def report(**event: object) -> None:
    with contextlib.suppress(OSError):  # leafe may be gone
        os.write(1, json.dumps(event).encode() + b"\n")


def signal_group(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, what)


def guard(log: Log, grace_s: float, command: list[str]) -> None:
    try:
        # the server has default signals: before_exec restores those that this process ignores
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before_exec,
        )
    except OSError as error:
        report(error=f"{error.strerror}: {command[0]}")
        return
    report(pid=server.pid)
    assert server.stdout is not None
    output = server.stdout.fileno()
    os.set_blocking(output, False)
    stop_at: float | None = None
    listening = [0, output]
    while server.poll() is None:
        ready, _, _ = select.select(listening, [], [], 0.1)
        if output in ready and not pump(output, log):
            listening.remove(output)
        if 0 in ready and not os.read(0, 4096):
            listening.remove(0)
            signal_group(server.pid, signal.SIGTERM)
            stop_at = time.monotonic() + grace_s
        if stop_at is not None and time.monotonic() > stop_at:
            signal_group(server.pid, signal.SIGKILL)
    signal_group(server.pid, signal.SIGKILL)  # and what it started
    pump(output, log)
    log.close()
    report(exit=server.returncode)


def pump(output: int, log: Log) -> bool:
    """Log what there is to read; False at its end."""
    while True:
        try:
            data = os.read(output, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        log.write(data)


def main() -> None:
    for what in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(what, signal.SIG_IGN)  # leafe handles them, and closes our standard input
    path, grace_s, secrets, command, hiding = sys.argv[1:6]
    secret = runpy.run_path(hiding)  # by its path: no package is imported here
    log = Log(path, secret["hider"](secret["secret_values"](json.loads(secrets))))
    guard(log, float(grace_s), json.loads(command))


if __name__ == "__main__":
    main()
