"""A chat-completions endpoint that costs next to nothing, to measure clients against.

One asyncio protocol, no web framework: about 30 microseconds a request. Latencies come from a seed
and are the time from the last byte of a request to the first of its answer. Prints its base_url and
serves until its standard input closes.

    python -m bench.mock_endpoint --latency normal --mean 0.04 --seed 1

With --by-turn the latency belongs to the turn, not to the order of requests: to the task's number
(`task-17` in the prompt), the number of answers in the prompt, and how often that was requested. So
every client that plays the same episodes waits the same times, and GET /v1/drawn reports them:
{"tasks": {"17": [seconds, ...]}, "cpu_s": processor time}. Where a JSON schema is requested the
answer is a reflection on an earlier step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TASK = re.compile(rb"task-(\d+)")
_ANSWER = re.compile(rb'"role": ?"assistant"')
TEXT = "Thought: the lamp is upstairs, so I go and look for it there.\nAction: go up"


def latencies(kind: str, mean: float, seed: int) -> list[float]:
    """4096 latencies in seconds.

    Args:
        kind: `none`, `fixed`, `normal` (deviation a quarter of the mean, at least a tenth of it) or
            `long` (log-normal, sigma 1: the slowest hundredth takes six times the mean and more).
        mean: Their mean.
        seed: Of the draw.
    """
    chance = random.Random(seed)
    if kind == "none":
        return [0.0]
    if kind == "fixed":
        return [mean]
    if kind == "normal":
        return [max(mean / 10, chance.gauss(mean, mean / 4)) for _ in range(4096)]
    return [chance.lognormvariate(math.log(mean) - 0.5, 1.0) for _ in range(4096)]


class ByTurn:
    """Latencies that belong to turns, and a record of them."""

    def __init__(self, waits: Sequence[float]) -> None:
        self.waits = waits
        self.asked: Counter[tuple[int, int]] = Counter()
        self.drawn: dict[int, list[float]] = defaultdict(list)
        self.reflections = [
            chat_answer(
                f'{{"step": {step}, "experience": "The door to the left was the right one."}}'
            )
            for step in range(64)
        ]

    def draw(self, body: bytes) -> tuple[float, bytes | None]:
        """Seconds to wait, and the answer where it is not the default."""
        found = _TASK.search(body)
        task, step = int(found[1]) if found else -1, len(_ANSWER.findall(body))
        self.asked[task, step] += 1
        at = zlib.crc32(b"%d %d %d" % (task, step, self.asked[task, step]))
        wait = self.waits[at % len(self.waits)]
        self.drawn[task].append(wait)
        return wait, self.reflections[
            at // 4096 % max(1, step) % 64
        ] if b'"json_schema"' in body else None

    def report(self) -> object:
        return {"tasks": self.drawn, "cpu_s": time.process_time()}


class Endpoint(asyncio.Protocol):
    """One connection; its requests are answered one after another."""

    answer = b""
    waits: Sequence[float] = (0.0,)
    by_turn: ByTurn | None = None
    served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = bytearray()
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self.buffer, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            get = self.buffer.startswith(b"GET")
            answer = self.answer
            if get and self.by_turn is not None and self.buffer.startswith(b"GET /v1/drawn"):
                del self.buffer[:whole]
                self._send(_framed(self.by_turn.report()))
                continue
            if self.by_turn is not None and not get:
                wait, other = self.by_turn.draw(bytes(self.buffer[end + 4 : whole]))
                answer = other or answer
            else:
                wait = self.waits[(Endpoint.served + 1) % len(self.waits)]
            del self.buffer[:whole]
            if get:
                self._send(_framed({"object": "list", "data": [{"id": "mock"}]}))
                continue
            Endpoint.served += 1
            if wait:
                self.loop.call_later(wait, self._send, answer)
            else:
                self._send(answer)

    def _send(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)  # type: ignore[attr-defined]


def _framed(answer: object) -> bytes:
    body = json.dumps(answer).encode()
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )


def chat_answer(text: str = TEXT) -> bytes:
    """An answer with the usual fields of servers, about 600 bytes."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "tool_calls": []},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    usage = {
        "prompt_tokens": 900,
        "total_tokens": 920,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 864},
    }
    head = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "mock",
    }
    return _framed(head | {"choices": [choice], "usage": usage, "prompt_logprobs": None})


async def serve(kind: str, mean: float, seed: int, port: int = 0, by_turn: bool = False) -> None:
    Endpoint.answer, Endpoint.waits = chat_answer(), latencies(kind, mean, seed)
    Endpoint.by_turn = ByTurn(Endpoint.waits) if by_turn else None
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    server = await loop.create_server(Endpoint, "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat-completions endpoint for benchmarks.")
    parser.add_argument("--latency", choices=["none", "fixed", "normal", "long"], default="normal")
    parser.add_argument("--mean", type=float, default=0.04, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--by-turn",
        action="store_true",
        help="latencies belong to turns; GET /v1/drawn reports them",
    )
    given = parser.parse_args()
    asyncio.run(serve(given.latency, given.mean, given.seed, given.port, given.by_turn))
