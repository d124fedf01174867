"""Start a model server, wait until it answers, restart it when it dies, and end it.

The command stands in the recipe (`policy.launch = "vllm serve {checkpoint} --port {port}"`). It is
split as a shell would and run without one. The server lives in a process group of its own under a
guard (`_guard.py`), which ends it when this process is gone, however that happened. A process has
one server at a time: another checkpoint is another server, and a later stage uses the running one
where it fits.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from leafe.core import PolicyError, UserError, secret
from leafe.core.processes import with_default_signals
from leafe.policies.server import _guard
from leafe.policies.server._fetch import fetch

RESTARTS = 5
"""Restarts in a row; the count starts anew after an hour without a death."""
STOP_S = 10.0
HUNG_S = 120.0
_QUIET_S = 3600.0
_POLL_S = 0.1
_TAIL = 300


def check_command(command: str) -> list[str]:
    """The words of a launch command.

    Raises:
        UserError: It cannot be split, or lacks {checkpoint} or {port}.
    """
    where = f"policy.launch = {command!r}"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(
            f"{where} cannot be split into words ({error}): quote it as for a shell."
        ) from error
    for mark in ("{checkpoint}", "{port}"):
        if not any(mark in word for word in words):
            raise UserError(
                f"{where} has no {mark}: write something like vllm serve {{checkpoint}} "
                f"--port {{port}}."
            )
    return words


class Launched:
    """A server process on a free port of 127.0.0.1, from its construction until `stop`.

    Args:
        command: The launch command, with {checkpoint} and {port}.
        checkpoint: A folder or hub id.
        log: Its output is appended there.
        start_s: Seconds until it must answer.
        stop_s: Seconds between SIGTERM and SIGKILL.
        hung_s: Seconds without an answer of its health after which it counts as dead.
        restarts: Restarts in a row.
        secrets: Environment variables whose values are kept out of the log, beside those whose
            name says key, token, secret or password.

    Raises:
        UserError: The command cannot be one.
    """

    def __init__(
        self,
        command: str,
        checkpoint: str,
        log: Path,
        *,
        start_s: float = 900.0,
        stop_s: float = STOP_S,
        hung_s: float = HUNG_S,
        restarts: int = RESTARTS,
        secrets: Sequence[str] = (),
    ) -> None:
        words = check_command(command)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.command = [
            w.replace("{checkpoint}", checkpoint).replace("{port}", str(self.port)) for w in words
        ]
        self.checkpoint = checkpoint
        self.log = log
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.pid: int | None = None
        """Of the server, which leads its process group; None while there is none."""
        self.deaths = 0
        self.state: Literal["starting", "up", "failed", "stopped"] = "starting"
        self.failure = ""
        """Why it failed, in one sentence."""
        self._start_s, self._stop_s, self._restarts, self._secrets = (
            start_s,
            stop_s,
            restarts,
            list(secrets),
        )
        self._hung_s = hung_s
        self._deaths_in_row = 0
        self._stop = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(
            target=self._supervise, name=f"server {self.port}", daemon=True
        )
        self._thread.start()

    async def ready(self) -> None:
        """Return as soon as it takes requests.

        Raises:
            UserError: It never answered.
            PolicyError: It has died too often, or is stopped.
        """
        while self.state == "starting":
            await asyncio.sleep(_POLL_S / 2)
        if self.state != "up":
            raise (PolicyError if self.deaths else UserError)(
                self.failure or f"The server at {self.base_url} was stopped."
            )

    def model_name(self, key: str = "") -> str:
        """The only name in its models list, else the checkpoint. `key`: its API key."""
        try:
            models = json.loads(fetch(f"{self.base_url}/models", key=key)[1])["data"]
            names = [str(m["id"]) for m in models]
        except (ValueError, KeyError, TypeError):
            names = []
        return names[0] if len(names) == 1 else self.checkpoint

    def stop(self) -> None:
        """End it and all that it started: SIGTERM, then SIGKILL. Returns when it is gone."""
        with self._lock:
            self._stop.set()
            guard = self._guard
        if guard is not None and guard.stdin is not None and not guard.stdin.closed:
            guard.stdin.close()
        self._thread.join(self._stop_s + 10)
        if self.state != "failed":
            self.state = "stopped"

    # --- in the thread

    def _supervise(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            was_up, how = self._run_once()
            if self._stop.is_set():
                return
            if not was_up and not self.deaths:
                self.failure = f"The server of policy.launch {how}{self._last_line()}."
                self.state = "failed"
                return
            self.deaths += 1
            self._deaths_in_row = (
                1 if time.monotonic() - began > _QUIET_S else self._deaths_in_row + 1
            )
            if self._deaths_in_row > self._restarts:
                self.failure = (
                    f"The server of policy.launch {how}, as it did {self._deaths_in_row - 1} times "
                    f"before{self._last_line()}."
                )
                self.state = "failed"
                return
            self.state = "starting"
            self._note(
                f"the server {how} and is started again ({self._deaths_in_row} of {self._restarts})"
            )
            self._stop.wait(min(0.5 * 2 ** (self._deaths_in_row - 1), 30.0))

    def _run_once(self) -> tuple[bool, str]:
        """Whether it ever answered, and how it ended, as the rest of a sentence on the server."""
        with self._lock:
            if self._stop.is_set():
                return False, "was stopped"
            given, shown = _keys_in(self.command)
            self._note(shlex.join(shown))
            guard = subprocess.Popen(
                with_default_signals(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        _guard.__file__,
                        str(self.log),
                        str(self._stop_s),
                        json.dumps(self._secrets),
                        json.dumps(self.command),
                        secret.__file__,
                    ]
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", **os.environ, **given},
            )
            self._guard = guard
        assert guard.stdin is not None
        assert guard.stdout is not None
        ended: list[str] = []
        pid: int | None = None
        try:
            first = json.loads(guard.stdout.readline() or b"{}")
            if "pid" not in first:
                return False, f"cannot be started ({first.get('error', 'its guard died')})"
            pid = self.pid = int(first["pid"])
            listener = threading.Thread(target=self._listen, args=(guard, ended), daemon=True)
            listener.start()
            deadline = time.monotonic() + self._start_s
            while listener.is_alive() and not self._stop.is_set():
                if self._answers():
                    self.state = "up"
                    return True, self._watch(listener, ended)
                if time.monotonic() > deadline:
                    return (
                        False,
                        f"did not answer within {self._start_s:g} s (policy.launch_timeout)",
                    )
                self._stop.wait(_POLL_S)
            listener.join()
            return False, f"{ended[0]} before it answered"
        finally:
            self.pid = None
            if not guard.stdin.closed:
                guard.stdin.close()
            try:
                guard.wait(self._stop_s + 5)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
            if pid is not None and not ended:
                _guard.signal_group(pid, signal.SIGKILL)  # the guard itself was killed
            guard.stdout.close()

    def _watch(self, listener: threading.Thread, ended: list[str]) -> str:
        """Watch a server that is up; returns how it ended."""
        heard = time.monotonic()
        while listener.is_alive():
            listener.join(min(5.0, self._hung_s / 4))
            if listener.is_alive() and self._answers(min(30.0, self._hung_s / 2)):
                heard = time.monotonic()
            elif listener.is_alive() and time.monotonic() - heard > self._hung_s:
                return f"did not answer for {self._hung_s:g} s"
        return ended[0]

    def _listen(self, guard: subprocess.Popen[bytes], ended: list[str]) -> None:
        """Wait until the guard reports the exit."""
        assert guard.stdout is not None
        line = guard.stdout.readline()
        code = json.loads(line).get("exit") if line else None
        if code is None:
            if self.pid is not None:
                _guard.signal_group(self.pid, signal.SIGKILL)
            ended.append("ended with its guard")
        else:
            ended.append(
                f"was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"ended with code {code}"
            )

    def _note(self, event: str) -> None:
        with self.log.open("ab") as log:
            log.write(f"# leafe, {time.strftime('%Y-%m-%d %H:%M:%S')}: {event}\n".encode())

    def _answers(self, timeout_s: float = 5.0) -> bool:
        status, _ = fetch(f"http://127.0.0.1:{self.port}/health", timeout_s=timeout_s)
        if status not in (401, 403, 404, 405):
            return status == 200
        status, _ = fetch(f"{self.base_url}/models", timeout_s=timeout_s)
        return status in (200, 401, 403)  # 401, 403: it is up, and wants a key

    def _last_line(self) -> str:
        """The end of the last line that the server wrote; "" where it wrote none."""
        try:
            lines = (
                self.log.read_bytes()[-20_000:]
                .decode("utf-8", "replace")
                .replace("\r", "\n")
                .splitlines()
            )
        except OSError:
            return ""
        own = [line.strip() for line in lines if line.strip()]
        return (
            f"; the end of {self.log}: {own[-1][-_TAIL:]!r}"
            if own and not own[-1].startswith("# leafe, ")
            else ""
        )


def _keys_in(command: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The API keys in a command, as variables whose values the guard hides, and the command without
    them."""
    given: dict[str, str] = {}
    shown = list(command)
    for i, word in enumerate(command):
        flag, sign, value = word.partition("=")
        if flag.startswith("-") and secret.field_holds_secret(flag.lstrip("-")):
            if not sign and i + 1 < len(command):
                given[f"LEAFE_HIDDEN_KEY_{i}"], shown[i + 1] = command[i + 1], secret.MASK
            elif sign:
                given[f"LEAFE_HIDDEN_KEY_{i}"], shown[i] = value, f"{flag}={secret.MASK}"
    return given, shown


_running: list[Launched] = []
_numbers: dict[Path, int] = {}


def serve(
    command: str,
    checkpoint: str,
    logs: Path,
    *,
    start_s: float = 900.0,
    secrets: Sequence[str] = (),
) -> Launched:
    """The server of a checkpoint: the running one where it fits, else a new one in its place.

    Args:
        command: The launch command, with {checkpoint} and {port}.
        checkpoint: A folder or hub id.
        logs: Its log is server-PID-N.log in this folder.
        start_s: Seconds until it must answer.
        secrets: Environment variables whose values are kept out of the log.

    Raises:
        UserError: The command cannot be one.
    """
    words = check_command(command)
    for server in list(_running):
        fits = [
            w.replace("{checkpoint}", checkpoint).replace("{port}", str(server.port)) for w in words
        ] == server.command
        if fits and server.state in ("starting", "up"):
            return server
    stop_all()
    number = _numbers.get(logs, 0)
    while (log := logs / f"server-{os.getpid()}-{number}.log").exists():
        number += 1
    _numbers[logs] = number + 1
    server = Launched(command, checkpoint, log, start_s=start_s, secrets=secrets)
    _running.append(server)
    return server


def deaths() -> int:
    """How often the running server died and was restarted."""
    return sum(server.deaths for server in _running)


def stop_all() -> None:
    """End every server that this process started and has not ended."""
    while _running:
        _running.pop().stop()


atexit.register(stop_all)
