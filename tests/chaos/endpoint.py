"""The mock endpoint, in a process of its own that may be killed at any time: what it says is a
function of the request, how it fails comes from a seed.

    python -m tests.chaos.endpoint PORT COUNTERS SEED

COUNTERS is a file of numbers shared with whoever started this, so that the counts outlive a kill;
the first of them, where it is not 0, ends the faults.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import random
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leafe.core import Message
from tests.chaos.envs import reply

RATES: Mapping[str, float] = {
    "500": 0.015,
    "503": 0.01,
    "429 with Retry-After": 0.02,
    "connection reset": 0.015,
    "closed without a word": 0.005,
    "garbage for HTTP": 0.005,
    "HTML": 0.005,
    "JSON cut short": 0.01,
    "body cut short": 0.01,
    "no choices": 0.005,
    "error with status 200": 0.005,
    "text of the wrong type": 0.003,
    "hang": 0.002,
    "body byte by byte": 0.002,
    "slow head": 0.005,
    "slow answer": 0.01,
}
"""Chance of each fault, a request."""
PLACES = ("calm", "starts", "answered", *RATES)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Counters:
    """Numbers by name in a shared file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * len(PLACES)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(PLACES))

    def __getitem__(self, name: str) -> int:
        return int(struct.unpack_from("<q", self._map, 8 * PLACES.index(name))[0])

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("<q", self._map, 8 * PLACES.index(name), value)


class Connection(asyncio.Protocol):
    """Requests on it are answered one after another."""

    counters: Counters
    chance: random.Random

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self.buffer, 0, end)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < whole:
            return
        get, body = self.buffer.startswith(b"GET"), bytes(self.buffer[end + 4 : whole])
        del self.buffer[:whole]
        if get:
            self.send(framed({"object": "list", "data": [{"id": "mock"}]}))
            return
        good = framed(chat(json.loads(body)))
        fault = self.next_fault()
        self.counters[fault] += 1
        later = asyncio.get_running_loop().call_later
        if fault == "answered":
            later(self.chance.random() * 0.01, self.send, good)
        else:
            self.fail(fault, good)

    def next_fault(self) -> str:
        dice = self.chance.random()
        for fault, rate in RATES.items():
            dice -= rate
            if dice < 0 and not self.counters["calm"]:
                return fault
        return "answered"

    def fail(self, fault: str, good: bytes) -> None:
        later = asyncio.get_running_loop().call_later
        body = good.partition(b"\r\n\r\n")[2]
        match fault:
            case "500" | "503":
                self.send(framed({"error": {"message": "internal error"}}, f"{fault} Oh No"))
            case "429 with Retry-After":
                self.send(
                    framed({"error": {"message": "slow down"}}, "429 Busy", "Retry-After: 0.1\r\n")
                )
            case "connection reset":
                self.transport.abort()
            case "closed without a word":
                self.transport.close()
            case "garbage for HTTP":
                self.send(bytes(self.chance.randrange(256) for _ in range(200)))
            case "HTML":
                self.send(framed("<html>gateway</html>"))
            case "JSON cut short":
                self.send(framed(body[: len(body) // 2]))
            case "body cut short":
                self.send(good[: -len(body) // 2])
                self.transport.close()
            case "no choices":
                self.send(framed({"choices": []}))
            case "error with status 200":
                self.send(framed({"error": {"message": "upstream overloaded"}}))
            case "text of the wrong type":
                self.send(
                    framed(
                        {"choices": [{"index": 0, "message": {"role": "assistant", "content": 7}}]}
                    )
                )
            case "hang":
                pass
            case "body byte by byte":
                self.drip(good, 0.2)
            case "slow head":
                self.send(good[:9])
                later(0.2, self.send, good[9:30])
                later(0.4, self.send, good[30:])
            case "slow answer":
                later(0.5, self.send, good)
            case _:
                raise AssertionError(fault)

    def drip(self, rest: bytes, wait: float) -> None:
        if rest and not self.transport.is_closing():
            self.send(rest[:1])
            asyncio.get_running_loop().call_later(wait, self.drip, rest[1:], wait)

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


def chat(body: Mapping[str, Any]) -> dict[str, Any]:
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    made = [reply(messages, body.get("seed", 0) + i) for i in range(body.get("n", 1))]
    usage = made[0].usage
    return {
        "model": "mock",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": c.text},
                "finish_reason": "stop",
            }
            for i, c in enumerate(made)
        ],
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": sum(c.usage.generated for c in made),
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        },
    }


def framed(content: object, status: str = "200 OK", head: str = "") -> bytes:
    body = (
        content
        if isinstance(content, bytes)
        else content.encode()
        if isinstance(content, str)
        else json.dumps(content).encode()
    )
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{head}Content-Length: "
        f"{len(body)}\r\n\r\n"
    ).encode() + body


async def serve(port: int, counters: Counters, seed: int) -> None:
    Connection.counters, Connection.chance = counters, random.Random(f"{seed} {counters['starts']}")
    counters["starts"] += 1
    server = await asyncio.get_running_loop().create_server(
        Connection, "127.0.0.1", port, backlog=1024, reuse_address=True
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Counters(Path(sys.argv[2])), int(sys.argv[3])))
