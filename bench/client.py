"""Turns a second through leafe's HTTP policy, a bare aiohttp session and the `openai` async client,
against one endpoint in a process of its own.

    python -m bench.client                      64, 256 and 1024 in flight, latencies of 40 ms
    python -m bench.client --mean 0.01 --latency long --turns 20

Each client plays episodes of 20 turns, whose history grows by two messages a turn as in a rollout,
without environment or journal. The clients take turns, `--rounds` times; figures are medians over
the rounds. `cpu` is the client's own processor time for one turn, `ideal` the turns that the
latencies alone allow. The `openai` client is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

from bench.mock_endpoint import TEXT, latencies
from leafe.core import Message, Request
from leafe.policies.http import HTTPPolicy

Ask = Callable[[tuple[Message, ...], int, str], Awaitable[str]]

SYSTEM = Message(
    "system",
    "You are an agent in a house with many rooms. Say what you think and then what you do. " * 6,
)
SEEN = (
    "You are in a room with a table, a lamp and two doors, one of them open. On the table "
    "there is a letter and a key, number {}. "
)


async def leafe_client(url: str, stack: AsyncExitStack) -> Ask:
    policy = HTTPPolicy(url, "mock", api_key_env=None)
    stack.push_async_callback(policy.close)

    async def ask(messages: tuple[Message, ...], seed: int, task: str) -> str:
        return (await policy.complete(Request(messages, seed=seed, cache_key=task)))[0].text

    return ask


async def aiohttp_client(url: str, stack: AsyncExitStack) -> Ask:
    import aiohttp

    session = await stack.enter_async_context(
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    )

    async def ask(messages: tuple[Message, ...], seed: int, task: str) -> str:
        talk = [{"role": m.role, "content": m.content} for m in messages]
        body = {
            "model": "mock",
            "messages": talk,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 256,
            "seed": seed,
        }
        async with session.post(url + "/chat/completions", json=body) as response:
            return str((await response.json())["choices"][0]["message"]["content"])

    return ask


async def openai_client(url: str, stack: AsyncExitStack) -> Ask:
    import httpx
    import openai

    http = httpx.AsyncClient(
        limits=httpx.Limits(max_connections=2048, max_keepalive_connections=2048), timeout=300
    )
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=2, http_client=http)
    stack.push_async_callback(client.close)

    async def ask(messages: tuple[Message, ...], seed: int, task: str) -> str:
        talk: list[Any] = [{"role": m.role, "content": m.content} for m in messages]
        got = await client.chat.completions.create(
            model="mock", messages=talk, temperature=1.0, top_p=1.0, max_tokens=256, seed=seed
        )
        return str(got.choices[0].message.content)

    return ask


CLIENTS = {"leafe": leafe_client, "aiohttp": aiohttp_client, "openai": openai_client}


async def play(ask: Ask, in_flight: int, seconds: float, turns: int) -> dict[str, float]:
    """Play episodes for `seconds`, after a quarter of it to warm up."""
    done, stop = 0, False

    async def lane(number: int) -> None:
        nonlocal done
        episode = number
        while True:
            messages = (SYSTEM, Message("user", SEEN.format(episode) * 2))
            for turn in range(turns):
                text = await ask(messages, episode * 100 + turn, f"task {episode}")
                assert text == TEXT
                done += 1
                if stop:
                    return
                messages = (
                    *messages,
                    Message("assistant", text),
                    Message("user", SEEN.format(f"{episode}.{turn}")),
                )
            episode += in_flight

    began = time.perf_counter()
    lanes = [asyncio.ensure_future(lane(i)) for i in range(in_flight)]
    await asyncio.sleep(seconds / 4)  # connections are made, and all lanes are at work
    before, cpu, then = done, time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    count, cpu, wall = done - before, time.process_time() - cpu, time.perf_counter() - then
    stop = True
    await asyncio.gather(*lanes)
    return {
        "turns": count,
        "seconds": wall,
        "per_s": count / wall,
        "cpu_us": cpu / max(1, count) * 1e6,
        "began_s": then - began,
    }


async def measure(
    name: str, url: str, in_flight: int, seconds: float, turns: int
) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        return await play(await CLIENTS[name](url, stack), in_flight, seconds, turns)


def measure_once(given: argparse.Namespace, name: str, in_flight: int) -> dict[str, float]:
    """One figure of one client, with an endpoint of its own."""
    command = [sys.executable, "-m", "bench.mock_endpoint", "--latency", given.latency]
    command += ["--mean", str(given.mean), "--seed", str(given.seed)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            return asyncio.run(measure(name, url, in_flight, given.seconds, given.turns))
        finally:
            server.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Turns a second through three HTTP clients.")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--latency", choices=["none", "fixed", "normal", "long"], default="normal")
    parser.add_argument("--mean", type=float, default=0.04, help="seconds")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20, help="of an episode")
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    given = parser.parse_args()
    clients = list(given.clients)
    if "openai" in clients and importlib.util.find_spec("openai") is None:
        print("openai is not installed and is left out: pip install openai")
        clients.remove("openai")
    waits = latencies(given.latency, given.mean, given.seed)
    mean = sum(waits) / len(waits)
    print(
        f"endpoint: {given.latency} latency, mean {mean * 1e3:.0f} ms, seed {given.seed}; episodes "
        f"of {given.turns} turns; medians of {given.rounds} rounds of {given.seconds:g} s; "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"in flight   client   turns/s  of ideal  cpu us/turn    leafe is  {'(each round)':>12}")
    rows = []
    for in_flight in given.in_flight:
        ideal = in_flight / mean if mean else float("inf")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
        for _ in range(given.rounds):
            for name in clients:
                found[name].append(measure_once(given, name, in_flight))
        for name, figures in found.items():
            per_s = median(f["per_s"] for f in figures)
            ratios = [
                ours["per_s"] / f["per_s"]
                for ours, f in zip(found.get("leafe", ()), figures, strict=False)
            ]
            print(
                f"{in_flight:9} {name:>8} {per_s:9.0f} {per_s / ideal:9.0%} "
                f"{median(f['cpu_us'] for f in figures):12.0f} "
                f"{f'{median(ratios):.1f} x' if ratios else '':>11}  "
                f"({', '.join(f'{r:.1f}' for r in ratios)})",
                flush=True,
            )
            rows += [{"in_flight": in_flight, "client": name, **f} for f in figures]
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
