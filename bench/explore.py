"""Stage 1 against the clock: how close it gets to the time that the engine's latencies allow,
beside other loops that play the same episodes.

    python -m bench.explore              under 5 minutes on two cores
    python -m bench.explore --quick      under a minute
    python -m bench.explore --inspect-python /tmp/inspect/bin/python \
        --verifiers-python /tmp/verifiers/bin/python

The engine is `bench.mock_endpoint` in a process of its own. It draws a latency for every turn of
every task from the seed, normal or long-tailed, and reports what it drew, so that the ideal is
exact: `slots` is the sum of all latencies over the places in flight, `path` the longest task's own
sum, and the larger of the two is a lower bound for every schedule: the ideal. `list` is a scheduler
without any cost of its own that knows nothing beforehand (tasks in their order, each begun when a
place is free).

First leafe itself: `leafe.explore` over its HTTP policy, rollback tree with reflections, synced
journal. Where its time goes is in task-seconds (`Exploration.waits`), per cent of their total;
`drawn` is the part of `engine` that the engine drew, the rest of `engine` is transport and answers
that wait for a busy loop. Then loops that play the same episodes, one a task, against the same
engine:

- leafe        leafe.explore, strategy `independent`, journal on
- lockstep     a batch of episodes takes one turn at a time, with a barrier after each (verl-agent's
  loop), over leafe's own client
- openai       tasks run independently, over the `openai` async client with its defaults; no tree,
  no journal
- openai/aio   the same with the client's other transport, aiohttp
- inspect      Inspect AI, an agent loop in a solver (its own environment: --inspect-python)
- verifiers    a MultiTurnEnv (its own environment: --verifiers-python)

Loops that would take too long play as many of the first tasks as are in flight, or --most seconds
of their work are measured once all places are busy ("part"); they are compared by turns a second.
`cpu` is the processor time of the loop's own process for one turn: comparable where the machine is
busy with other things.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import heapq
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import Ask, leafe_client
from bench.walk import SlowWalk, Walk
from leafe.core import Environment, Message, Task, Tree
from leafe.envs import make_env
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.http import HTTPPolicy
from leafe.prompts import Prompts, PromptSet
from leafe.runs import Journal

FIRST = "{}\n\n{}\n\n[Step 0]\n{}"
LATER = "[Step {}]\n{}"


@dataclass(slots=True)
class Run:
    """One measurement."""

    loop: str
    latency: str
    in_flight: int
    turns: int
    wall: float
    cpu: float
    """Processor seconds of the process that the loop ran in."""
    drawn: dict[int, list[float]] = field(default_factory=dict)
    """By task, the latencies of its requests in their order, and the seconds of its calls into the
    environment."""
    engine_cpu: float = 0.0
    requests: int = 0
    latencies: float = 0.0
    """Sum of what the engine drew, seconds."""
    whole: bool = True
    """All tasks were played to their end."""
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        return self.turns / self.wall

    @property
    def slots(self) -> float:
        return sum(map(sum, self.drawn.values())) / self.in_flight

    @property
    def path(self) -> float:
        return max(map(sum, self.drawn.values()))

    @property
    def ideal(self) -> float:
        return max(self.slots, self.path)

    @property
    def listed(self) -> float:
        free = [0.0] * self.in_flight
        for task in sorted(self.drawn):
            heapq.heappush(free, heapq.heappop(free) + sum(self.drawn[task]))
        return max(free)

    def to_json(self) -> dict[str, Any]:
        figures = {
            n: round(getattr(self, n), 4)
            for n in ("wall", "cpu", "per_s", "slots", "path", "listed", "engine_cpu")
        }
        same = {
            n: getattr(self, n) for n in ("loop", "latency", "in_flight", "turns", "whole", "waits")
        }
        return same | figures


class Engine:
    """The mock endpoint, in a process of its own."""

    def __init__(self, latency: str, mean: float, seed: int) -> None:
        command = [
            sys.executable,
            "-m",
            "bench.mock_endpoint",
            "--latency",
            latency,
            "--mean",
            str(mean),
            "--seed",
            str(seed),
            "--by-turn",
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def into(self, run: Run) -> Run:
        """Add what was drawn."""
        with urllib.request.urlopen(self.url + "/drawn") as answer:
            report = json.load(answer)
        run.requests = sum(map(len, report["tasks"].values()))
        run.drawn = {
            int(k): v for k, v in report["tasks"].items() if int(k) >= 0
        }  # -1: a request that belongs to no task
        run.latencies = sum(map(sum, run.drawn.values()))
        run.engine_cpu = report["cpu_s"]
        return run

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@contextlib.contextmanager
def engine(args: argparse.Namespace, latency: str) -> Iterator[Engine]:
    made = Engine(latency, args.mean, args.seed)
    try:
        yield made
    finally:
        made.stop()


# --- leafe


async def run_leafe(
    url: str, pool: EnvPool, tasks: Sequence[Task], config: ExploreConfig, latency: str, loop: str
) -> tuple[Run, dict[str, Tree]]:
    policy = HTTPPolicy(url, "mock", api_key_env=None)
    prompts = Prompts(PromptSet(name="walk"), pool.facts.actions_help)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        began, cpu = time.perf_counter(), time.process_time()
        found = await explore(policy, pool, tasks, prompts, config, journal=journal)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    await policy.close()
    pool.close()
    if set(found.stops) - {"failure", "budget"}:
        raise SystemExit(
            f"episodes ended with {found.stops}: the mock or the network failed, and the "
            "figures would mean nothing"
        )
    waits = found.waits.to_json()
    return Run(
        loop,
        latency,
        min(config.concurrency, pool.size),
        found.spent.policy_calls,
        wall,
        cpu,
        waits=waits,
    ), found.trees


def leafe_run(
    args: argparse.Namespace,
    latency: str,
    in_flight: int,
    tasks: int,
    *,
    calls: int | None,
    env: str = "walk",
) -> Run:
    """The rollback tree with so many calls a task, or (None) one episode a task."""
    strategy: dict[str, Any] = (
        {"limits": {"policy_calls": float(calls)}}
        if calls
        else {"strategy": "independent", "limits": {"episodes": 1.0}}
    )
    config = ExploreConfig(concurrency=in_flight, seed=args.seed, **strategy)
    makers: dict[str, Any] = {
        "walk": Walk,
        "threads": lambda: SlowWalk(args.step),
        "processes": lambda: make_env("bench.walk:ProcessWalk", step_s=args.step),
    }
    make = makers[env]
    pool = EnvPool.fitting(make, in_flight, args.workers)
    label = {
        "walk": "tree" if calls else "leafe",
        "threads": "tree, environments in threads",
        "processes": "tree, environments in processes",
    }[env]
    with engine(args, latency) as mock:
        if env == "processes":
            asyncio.run(_warm(pool))
        run, trees = asyncio.run(
            run_leafe(
                mock.url, pool, Walk().tasks("train", tasks, args.seed), config, latency, label
            )
        )
        mock.into(run)
    if env != "walk":
        for (
            task,
            tree,
        ) in (
            trees.items()
        ):  # a call into the environment is a wait of the task as much as one for the engine
            calls_made = sum(1 + e.replayed + len(e.acts) for e in tree.episodes)
            run.drawn[int(task.removeprefix("task-"))].append(calls_made * args.step)
    return run


async def _warm(pool: EnvPool) -> None:
    """Processes are started before the clock is: a run starts them once."""
    task = Walk().tasks("train", 1)[0]
    async with AsyncExitStack() as stack:
        for _ in range(pool.size):
            env = await stack.enter_async_context(pool.acquire())
            await env.reset(task, 0)


# --- other loops


@dataclass(slots=True)
class Player:
    """One episode, a turn at a time, with the messages that leafe sends."""

    task: Task
    env: Environment = field(default_factory=Walk)
    messages: tuple[Message, ...] = ()
    step: int = 0

    def begin(self) -> None:
        self.messages = (
            Message(
                "user",
                FIRST.format(
                    self.task.instruction, self.env.actions_help, self.env.reset(self.task, 0)
                ),
            ),
        )

    async def turn(self, ask: Ask) -> bool:
        """Whether the episode goes on."""
        text = await ask(self.messages, self.step, self.task.id)
        result = self.env.step(text.rpartition("Action: ")[2])
        self.step += 1
        self.messages = (
            *self.messages,
            Message("assistant", text),
            Message("user", LATER.format(self.step, result.observation)),
        )
        return not result.done


Played = tuple[int, float, float, bool]
"""Turns, wall seconds, processor seconds, and whether these are all tasks from beginning to end."""


async def lockstep(ask: Ask, tasks: Sequence[Task], in_flight: int, most: float) -> Played:
    """Batches of episodes, a barrier after each turn."""
    began, cpu, turns = time.perf_counter(), time.process_time(), 0
    for start in range(0, len(tasks), in_flight):
        players = [Player(task) for task in tasks[start : start + in_flight]]
        for player in players:
            player.begin()
        while players:
            goes_on = await asyncio.gather(*(player.turn(ask) for player in players))
            turns += len(players)
            players = [player for player, more in zip(players, goes_on, strict=True) if more]
    return turns, time.perf_counter() - began, time.process_time() - cpu, True


async def continuous(ask: Ask, tasks: Sequence[Task], in_flight: int, most: float) -> Played:
    """Every episode goes on by itself; the next begins where one has ended. Where it takes too
    long: `most` seconds of it, from when as many turns as are in
    flight were done (or 2 * `most` seconds are over), so that neither the start nor what is
    unfinished at the end counts."""
    waiting, turns = iter(tasks), 0

    async def lane() -> None:
        nonlocal turns
        for task in waiting:
            player = Player(task)
            player.begin()
            more = True
            while more:
                more = await player.turn(ask)
                turns += 1

    began, cpu = time.perf_counter(), time.process_time()
    lanes = {asyncio.ensure_future(lane()) for _ in range(in_flight)}
    at: tuple[int, float, float] | None = None
    running = lanes
    while running:
        _, running = await asyncio.wait(running, timeout=0.1)
        now = time.perf_counter()
        if at is None and (turns >= in_flight or now - began > 2 * most):
            at = turns, now, time.process_time()
        if at is not None and now - at[1] > most and running:
            stopped = turns - at[0], now - at[1], time.process_time() - at[2], False
            for each in running:
                each.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            return stopped
    await asyncio.gather(*lanes)
    return turns, time.perf_counter() - began, time.process_time() - cpu, True


async def openai_client(url: str, stack: AsyncExitStack, aio: bool) -> Ask:
    import openai

    client = openai.AsyncOpenAI(
        base_url=url, api_key="none", http_client=openai.DefaultAioHttpClient() if aio else None
    )
    stack.push_async_callback(client.close)

    async def ask(messages: tuple[Message, ...], seed: int, task: str) -> str:
        talk: list[Any] = [{"role": m.role, "content": m.content} for m in messages]
        got = await client.chat.completions.create(
            model="mock", messages=talk, temperature=1.0, top_p=1.0, max_tokens=256, seed=seed
        )
        return str(got.choices[0].message.content)

    return ask


def other_run(
    args: argparse.Namespace, name: str, latency: str, in_flight: int, tasks: Sequence[Task]
) -> Run:
    async def run(url: str) -> Run:
        async with AsyncExitStack() as stack:
            ask = await (
                leafe_client(url, stack)
                if name == "lockstep"
                else openai_client(url, stack, name == "openai/aio")
            )
            await ask(
                (Message("user", "Are you there?"),), 0, ""
            )  # what a first request imports and builds is not counted
            turns, wall, cpu, whole = await (lockstep if name == "lockstep" else continuous)(
                ask, tasks, in_flight, args.most
            )
            return Run(name, latency, in_flight, turns, wall, cpu, whole=whole)

    with engine(args, latency) as mock:
        return mock.into(asyncio.run(run(mock.url)))


def foreign_run(
    args: argparse.Namespace,
    name: str,
    python: str,
    latency: str,
    in_flight: int,
    tasks: Sequence[Task],
) -> Run | str:
    """A loop of another package in its own environment: `bench/peers/NAME.py` plays the tasks and
    prints what it took. A text: why it could not."""
    script = Path(__file__).parent / "peers" / f"{name}_loop.py"
    with engine(args, latency) as mock, tempfile.TemporaryDirectory() as folder:
        job = {
            "url": mock.url,
            "in_flight": in_flight,
            "lengths": {t.id: t.payload["length"] for t in tasks},
            "folder": folder,
        }
        surroundings = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        try:
            done = subprocess.run(
                [python, str(script)],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                timeout=args.peer_most,
                cwd=folder,
                env=surroundings,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            return f"{name}: {str(error)[:200]}"
        if done.returncode:
            return f"{name}: {' '.join(done.stderr.split())[-400:]}"
        got = json.loads(done.stdout.splitlines()[-1])
        run = Run(
            f"{name} {got['version']}", latency, in_flight, got["turns"], got["wall"], got["cpu"]
        )
        return mock.into(run)


# --- the tables


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def own_row(run: Run) -> list[str]:
    total = max(1e-9, run.waits["total"])
    waits = [f"{100 * run.latencies / total:.1f}"] + [
        f"{100 * run.waits[w] / total:.1f}" for w in ("engine", "envs", "slots", "journal", "leafe")
    ]
    figures = [
        f"{run.turns:,}",
        f"{run.per_s:,.0f}",
        f"{run.wall:.2f}",
        f"{run.slots:.2f}",
        f"{run.path:.2f}",
        f"{run.listed:.2f}",
    ]
    shares = [
        f"{100 * run.ideal / run.wall:.0f}",
        f"{100 * run.listed / run.wall:.0f}",
        f"{1000 * run.cpu / run.turns:.2f}",
    ]
    return [
        run.loop,
        run.latency,
        str(run.in_flight),
        *figures,
        *shares,
        f"{1000 * run.engine_cpu / run.requests:.2f}",
        *waits,
    ]


OWN = [
    "run",
    "latency",
    "in flight",
    "turns",
    "turns/s",
    "wall s",
    "slots s",
    "path s",
    "list s",
    "of ideal %",
    "of list %",
    "cpu ms/turn",
    "engine's cpu",
]
OWN += ["drawn %", "engine %", "environments %", "slots %", "journal %", "leafe %"]
SIDE = [
    "loop",
    "latency",
    "in flight",
    "turns",
    "turns/s",
    "wall s",
    "of ideal %",
    "of list %",
    "cpu ms/turn",
    "leafe is: turns/s",
    "leafe is: cpu",
]


def side_rows(runs: Sequence[Run]) -> list[list[str]]:
    base = runs[0]
    rows = []
    for run in runs:
        wall = f"{run.wall:.2f}" if run.whole else f"{run.wall:.0f} (part)"
        shares = [
            f"{100 * bound / run.wall:.0f}" if run.whole else ""
            for bound in (run.ideal, run.listed)
        ]
        told = run.turns >= min(50, base.turns)  # of fewer turns a rate says nothing
        cpu = f"{1000 * run.cpu / run.turns:.2f}" if told else ""
        ratios = (
            [
                f"{base.per_s / run.per_s:.2f} x",
                f"{run.cpu / run.turns / (base.cpu / base.turns):.1f} x",
            ]
            if told and run is not base
            else ["", ""]
        )
        rows.append(
            [
                run.loop,
                run.latency,
                str(run.in_flight),
                f"{run.turns:,}",
                f"{run.per_s:,.0f}",
                wall,
                *shares,
                cpu,
                *ratios,
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument(
        "--latency", choices=["normal", "long"], nargs="+", default=["normal", "long"]
    )
    parser.add_argument("--mean", type=float, default=0.15, help="seconds of a turn in the engine")
    parser.add_argument(
        "--calls", type=int, default=30, help="policy calls a task, for the rollback tree"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=16,
        help="environment workers, for the environments that block",
    )
    parser.add_argument(
        "--step",
        type=float,
        default=0.005,
        help="seconds of a call into an environment that blocks",
    )
    parser.add_argument(
        "--most",
        type=float,
        default=8.0,
        help="seconds of the openai client's work that are measured, once all places are at work",
    )
    parser.add_argument(
        "--peer-most",
        type=float,
        default=120.0,
        help="seconds after which a loop of another package is given up",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["own", "envs", "side"], default=["own", "envs", "side"]
    )
    parser.add_argument(
        "--inspect-python",
        help="the interpreter of an environment that holds inspect-ai and openai",
    )
    parser.add_argument(
        "--verifiers-python", help="the interpreter of an environment that holds verifiers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="16 and 64 in flight, short: whether it works, not how fast",
    )
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    if args.quick:
        args.in_flight, args.calls, args.mean, args.most, args.workers = [16, 64], 20, 0.03, 1.5, 4
    began = time.perf_counter()
    load = os.getloadavg()[0]
    machine = f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} at the start"
    print(f"{machine}; mean latency {args.mean * 1e3:.0f} ms, seed {args.seed}\n", flush=True)
    runs: list[Run] = []

    def note(run: Run) -> Run:
        runs.append(run)
        gc.collect()
        what = f"{run.loop}, {run.latency}, {run.in_flight} in flight"
        print(
            f"  {time.perf_counter() - began:5.0f} s: {what}: {run.per_s:,.0f} turns/s",
            file=sys.stderr,
            flush=True,
        )
        return run

    own: list[Run] = []
    if "own" in args.parts:
        own += [
            note(leafe_run(args, kind, n, n, calls=args.calls))
            for kind in args.latency
            for n in args.in_flight
        ]
    if "envs" in args.parts:
        least = args.in_flight[0]
        own.append(
            note(leafe_run(args, args.latency[0], least, least, calls=args.calls, env="threads"))
        )
        own.append(
            note(
                leafe_run(
                    args,
                    args.latency[0],
                    least,
                    min(least, 2 * args.workers),
                    calls=args.calls,
                    env="processes",
                )
            )
        )
    if own:
        print(
            "leafe.explore, rollback tree, journal on; slots, path and list are seconds "
            "that the latencies alone take"
        )
        table([own_row(run) for run in own], OWN)
    rows: list[list[str]] = []
    failures: list[str] = []
    foreign = [
        (name, python)
        for name, python in (("inspect", args.inspect_python), ("verifiers", args.verifiers_python))
        if python
    ]
    for kind in args.latency if "side" in args.parts else []:
        for n in args.in_flight:
            tasks = Walk().tasks("train", 2 * n if n == args.in_flight[0] else n, args.seed)
            here = [note(leafe_run(args, kind, n, len(tasks), calls=None))]
            here += [
                note(other_run(args, name, kind, n, tasks))
                for name in ("lockstep", "openai", "openai/aio")
            ]
            if n == args.in_flight[0]:
                for name, python in foreign:
                    got = foreign_run(args, name, python, kind, n, tasks[:n])
                    if isinstance(got, str):
                        failures.append(got)
                    else:
                        here.append(note(got))
            rows += side_rows(here)
    if rows:
        print(
            "The same episodes, one a task, through several loops; ratios are to leafe's row above"
        )
        table(rows, SIDE)
    for failure in failures:
        print(f"could not run: {failure}")
    print(f"{time.perf_counter() - began:.0f} s in all; load {os.getloadavg()[0]:.1f} at the end")
    if args.json:
        args.json.write_text(json.dumps([run.to_json() for run in runs], indent=1))


if __name__ == "__main__":
    main()
