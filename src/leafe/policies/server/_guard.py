"""The parent of a model server, so that no server outlives the run: a small process that ends it
when leafe is gone, however leafe went.

Run as a file of its own (standard library alone, starts in milliseconds):

    python -I -S _guard.py LOG GRACE SECRETS COMMAND HIDING

LOG: the file that the server's output is appended to, without the secrets. GRACE: seconds between
SIGTERM and SIGKILL. SECRETS: JSON list
of environment variables whose values are cut out beside those whose name says key, token, secret or
password. HIDING: the path of `core.secret`. COMMAND: JSON list. The guard says {"pid": N} when the
server is started, {"error": "..."} where
it cannot be, and {"exit": N} when it has ended (minus the signal's number for a death by signal).
It ends the server, with all of its process
group, when its own standard input ends.
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

_LONGEST = 1 << 16
_LINE = re.compile(rb"[\r\n]")


class Log:
    """Appends whole lines to the log, so that a secret is never cut in two and missed."""

    def __init__(self, path: str, hide: Callable[[str], str]) -> None:
        self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115
        self._hide = hide
        self._rest = b""

    def write(self, data: bytes) -> None:
        data = self._rest + data
        ends = [m.end() for m in _LINE.finditer(data)]
        cut = ends[-1] if ends else len(data) if len(data) > _LONGEST else 0
        self._out(data[:cut])
        self._rest = data[cut:]

    def _out(self, data: bytes) -> None:
        if data:
            shown = self._hide(data.decode("utf-8", "surrogateescape"))
            data = shown.encode("utf-8", "surrogateescape")
        with contextlib.suppress(OSError):  # a full disk must not take the server with it
            self._file.write(data)

    def close(self) -> None:
        self._out(self._rest + b"\n" if self._rest else b"")
        self._file.close()


def in_server() -> None:
    """In the server, before it becomes itself: should the guard be killed, Linux kills the server
    (PR_SET_PDEATHSIG)."""
    for what in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(what, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def say(**event: object) -> None:
    with contextlib.suppress(OSError):  # perhaps nobody listens any more
        os.write(1, json.dumps(event).encode() + b"\n")


def to_group(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, what)


def guard(log: Log, grace_s: float, command: list[str]) -> None:
    try:
        # has default signals: this process was started so, and in_server sees to those that it
        # ignores
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=in_server,
        )
    except OSError as error:
        say(error=f"{error.strerror}: {command[0]}")
        return
    say(pid=server.pid)
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
            to_group(server.pid, signal.SIGTERM)
            stop_at = time.monotonic() + grace_s
        if stop_at is not None and time.monotonic() > stop_at:
            to_group(server.pid, signal.SIGKILL)
    to_group(server.pid, signal.SIGKILL)  # what it started goes with it
    pump(output, log)
    log.close()
    say(exit=server.returncode)


def pump(output: int, log: Log) -> bool:
    """Write what there is to read; False at its end."""
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
        signal.signal(
            what, signal.SIG_IGN
        )  # they are for leafe, whose end is the end of standard input here
    path, grace_s, secrets, command, hiding = sys.argv[1:6]
    ours = runpy.run_path(hiding)  # by its path: no package of ours is imported here
    log = Log(path, ours["hider"](ours["secret_values"](json.loads(secrets))))
    guard(log, float(grace_s), json.loads(command))


if __name__ == "__main__":
    main()
