"""Environments, servers and a bad network for the tests of remote environments. All on
127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from leafe.core import Environment, SnapshotGone, StepResult, Task, UserError
from leafe.envs.remote import PROTOCOL
from leafe.envs.remote._server import EnvServer

ROOT = Path(__file__).parents[2]
TALLY = "tests.envs.remote_envs:Tally"
TASK = Task("t", "tally", "train", "Add up.", {"from": 0})
PASSING = ["before", "after", "half", "500", "503", "garbage", "list", "html"]
"""What passes by itself when it is asked again."""
FACTS = {
    "protocol": PROTOCOL,
    "name": "tally",
    "deterministic": True,
    "horizon": 9,
    "snapshots": True,
}


class Tally(Environment):
    """Adds up what it is told. Everything that happens to any instance is counted, and some words
    do harm."""

    name = "tally"
    can_snapshot = True
    horizon = 9
    happened: ClassVar[Counter[str]] = Counter()
    go_on: ClassVar[threading.Event] = threading.Event()

    def __init__(self, quick: bool = False, broken: str = "") -> None:
        self.quick = quick
        if broken == "user":
            raise UserError("The environment tally is broken: mend it.")
        if broken == "slow":
            print("making", flush=True)
            time.sleep(600)
        self.happened["made"] += 1
        self.total: int | None = None
        self.thread = threading.get_ident()

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        if split != "train":
            raise UserError(f"tally has no split {split!r}: use train.")
        return [
            Task(
                f"t{n}", "tally", split, "Add up.", {"from": n + seed, "text": "é\ud800\u2028\x00"}
            )
            for n in range(3 if count is None else count)
        ]

    def reset(self, task: Task, seed: int) -> str:
        self.happened["reset"] += 1
        self.total = task.payload["from"]
        if seed == 13:
            raise UserError("tally plays no seed 13: take another.")
        return f"You have {self.total}, by {seed}. {task.payload.get('text', '')}"

    def step(self, action: str) -> StepResult:
        self.happened["step"] += 1
        assert self.total is not None
        verb, _, number = action.partition(" ")
        match verb:
            case "add":
                self.total += int(number)
            case "wait":
                self.go_on.wait(30)
            case "raise":
                raise ValueError(f"so it\nis {number}")
            case "exit":
                sys.exit(3)
            case "none":
                return None  # type: ignore[return-value]
            case "number":
                return StepResult(7)  # type: ignore[arg-type]
            case "nan":
                return StepResult("Not a number.", reward=float("nan"))
            case "odd":
                return StepResult("Odd.", info={"path": Path("x"), "nan": float("nan")})
            case _:
                return StepResult(f"There is no {action!r}: say add N.", valid=False, progress=0.0)
        return StepResult(
            f"You have {self.total}.", reward=0.5, progress=1.0, info={"total": self.total}
        )

    def valid_actions(self) -> Sequence[str]:
        return ["add 1", "add 2"]

    def snapshot(self) -> object:
        self.happened["snapshot"] += 1
        return [self.total]

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, list)
        if snapshot == ["released"]:
            raise SnapshotGone("It has been released.")
        self.total = snapshot[0]

    def release(self, snapshot: object) -> None:
        self.happened["release"] += 1
        assert isinstance(snapshot, list)
        snapshot[0] = "released"

    def close(self) -> None:
        self.happened["close"] += 1


class Loose(Environment):
    """No task list, no snapshots."""

    name = "loose"
    deterministic = False

    def reset(self, task: Task, seed: int) -> str:
        return "Loose."

    def step(self, action: str) -> StepResult:
        return StepResult("So.", done=True)


class Stuck(Tally):
    """In a process of its own, where it can hang for ever."""

    name = "stuck"
    process = True
    forkable = True

    def step(self, action: str) -> StepResult:
        if action == "hang":
            time.sleep(3600)
        return super().step(action)


class Served:
    """An environment server in a thread of this process, so that what its environments did can be
    looked at."""

    def __init__(
        self,
        name: str = TALLY,
        *,
        port: int = 0,
        workers: int = 8,
        token: str | None = None,
        idle: float = 600.0,
        **options: Any,
    ) -> None:
        self.server = EnvServer(
            name, options, host="127.0.0.1", port=port, workers=workers, token=token, idle=idle
        )
        self.ready = threading.Event()
        self.ended: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return self.server.address

    def __enter__(self) -> Served:
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        assert self.ready.wait(20), "the server did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.loop is not None
        assert self.ended is not None
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"

    async def _serve(self) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        await self.server.start()
        self.ready.set()
        await self.ended.wait()
        await self.server.stop()


@contextlib.contextmanager
def process(
    code: str | list[str], env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address: the last word of its first line. Killed at the end, should
    it still live."""
    words = [sys.executable, "-c", code] if isinstance(code, str) else [sys.executable, *code]
    started = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, started.communicate()[1]
        yield started, line.split()[-1]
    finally:
        started.kill()
        started.communicate()


def serving(name: str, port: int = 0, **options: Any) -> str:
    return f"from leafe.envs.remote import serve; serve({name!r}, {options!r}, port={port})"


class BadNetwork:
    """Stands between a client and a server, and does to each answer what the script says, one entry
    a request, then nothing.

    before (closed before the server hears of it), after (closed when the server has answered), half
    (half the answer), 500, 503, garbage, list, html,
    302, 404, drip (a byte of the body now and then), drip-head, declared (a length past all
    bounds), endless (chunks without end), hang, echo (401 with
    the Authorization header), a dict: the answer itself, or bytes: its body.
    """

    def __init__(self, url: str = "http://127.0.0.1:1", script: Sequence[Any] = ()) -> None:
        self.target = urlsplit(url)
        self.script = list(script)
        self.paths: list[str] = []
        self.released = threading.Event()
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                network.handle(self)

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> BadNetwork:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def handle(self, client: BaseHTTPRequestHandler) -> None:
        fault = self.script.pop(0) if self.script else "ok"
        self.paths.append(client.path)
        body = client.rfile.read(int(client.headers.get("Content-Length", 0)))
        if fault in ("ok", "after", "half", "drip"):
            connection = HTTPConnection(self.target.hostname or "", self.target.port)
            try:
                connection.request(
                    client.command, client.path, body, {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                status, raw = answer.status, answer.read()
            except OSError:
                fault, status, raw = "before", 0, b""
            finally:
                connection.close()
        try:
            match fault:
                case "before" | "after":
                    client.close_connection = True
                case bytes():
                    self.send(client, 200, fault)
                case "ok":
                    self.send(client, status, raw)
                case "half":
                    self.send(client, status, raw[: len(raw) // 2], length=len(raw))
                    client.close_connection = True
                case "500" | "503" | "404" | "302":
                    self.send(client, int(fault), b"no JSON")
                case "garbage":
                    self.send(client, 200, b'{"observation": "half a')
                case "list":
                    self.send(client, 200, b"[1]")
                case "html":
                    self.send(client, 200, b"<html>gateway</html>")
                case "echo":
                    self.send(
                        client,
                        401,
                        json.dumps(
                            {
                                "error": {
                                    "kind": "user",
                                    "message": f"not {client.headers['Authorization']}",
                                }
                            }
                        ).encode(),
                    )
                case "declared":
                    self.send(client, 200, b"{", length=10**12)
                case "endless":
                    client.send_response(200)
                    client.send_header("Transfer-Encoding", "chunked")
                    client.end_headers()
                    while not self.released.is_set():
                        client.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                case "drip":
                    self.send(client, status, b"", length=len(raw))
                    self.drip(client, raw)
                case "drip-head":
                    self.drip(client, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)
                case "hang":
                    self.released.wait(60)
                case dict():
                    self.send(client, 200, json.dumps(fault).encode())
                case _:
                    raise AssertionError(fault)
        except OSError:  # the client has gone
            client.close_connection = True

    def drip(self, client: BaseHTTPRequestHandler, raw: bytes) -> None:
        for byte in raw:
            client.wfile.write(bytes([byte]))
            if self.released.wait(0.05):
                break
        client.close_connection = True

    @staticmethod
    def send(
        client: BaseHTTPRequestHandler, status: int, raw: bytes, length: int | None = None
    ) -> None:
        client.send_response(status)
        client.send_header("Content-Length", str(len(raw) if length is None else length))
        client.end_headers()
        client.wfile.write(raw)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def send(connection: HTTPConnection, path: str, **body: Any) -> None:
    connection.request("POST", f"/{path}", json.dumps(body), {"Content-Type": "application/json"})


def receive(connection: HTTPConnection) -> tuple[int, dict[str, Any]]:
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def ask(connection: HTTPConnection, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    send(connection, path, **body)
    return receive(connection)
