"""Stage 1 at a size that no machine here has: the real scheduler, simulated servers and
environments, and a clock that jumps.

    python bench/scale.py [--tasks 4000] [--servers 64] [--workers 1000] ...

The event loop's clock moves to the next timer whenever nothing else is to be done, so that a day of
waiting costs nothing and every order of events is one
that could happen. What is simulated: inference servers that batch continuously (a request prefills
what its server has not cached, then decodes at a
speed that falls as the batch grows; beyond the batch limit it queues), and environments whose steps
take time in one of `workers` places. What is
real: leafe.explore, its strategy, budget, prompts and pool. What is not in the clock: the processor
time that leafe itself takes; it is
measured beside it, as the calls a second that one process of this machine can do. docs/scale.md
reads the table.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
import statistics
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

from leafe.core import Completion, Environment, Request, StepResult, Task, Usage, derive_seed
from leafe.explore import EnvLease, EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts, PromptSet

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Never sleeps: what would have been slept is added to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        elif not ready and timeout is None:
            return super().select(None)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds are not ours."""

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now


def run_virtually(main: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """The result, and the virtual seconds that it took."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(main)
        return result, runner.get_loop().time()


@dataclass(slots=True)
class Server:
    """One inference server. Seconds; rates in tokens a second."""

    batch: int
    prefill_rate: float
    token_seconds: float
    """One decoding step of a batch of one."""
    token_seconds_more: float
    """What each further sequence adds to a step."""
    cache_tokens: int
    slots: asyncio.Semaphore = field(init=False)
    running: int = 0
    busy: float = 0.0
    """Sequence-seconds served."""
    cached: dict[str, int] = field(default_factory=dict)
    """Tokens of the longest known prefix, by task; oldest use first."""
    held: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.batch)

    async def serve(self, key: str, prompt: int, generated: int) -> int:
        """Returns how many of the prompt's tokens were cached."""
        async with self.slots:
            self.running += 1
            hit = min(prompt, self.cached.pop(key, 0))
            step = self.token_seconds + self.token_seconds_more * self.running
            seconds = (prompt - hit) / self.prefill_rate + generated * step
            await asyncio.sleep(seconds)
            self.busy += seconds
            self.running -= 1
            self.cached[key] = prompt + generated
            self.held += prompt + generated - hit
            while self.held > self.cache_tokens and len(self.cached) > 1:
                oldest = next(iter(self.cached))
                self.held -= self.cached.pop(oldest)
            return hit


class Simulated:
    """The policy: tokens by a seeded law, routed to the task's own server (or to any, to see what
    affinity is worth)."""

    name = "simulated"

    def __init__(self, servers: list[Server], affine: bool, tokens: tuple[int, int]) -> None:
        self.servers, self.affine, self.tokens = servers, affine, tokens
        self.waits: list[float] = []

    async def complete(self, request: Request) -> list[Completion]:
        chance = random.Random(request.seed)
        key = request.cache_key if self.affine else f"{request.cache_key}{request.seed}"
        server = self.servers[
            int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "big") % len(self.servers)
        ]
        prompt = sum(len(m.content) for m in request.messages) // 4
        generated = round(min(8 * self.tokens[0], chance.lognormvariate(0, 0.5) * self.tokens[0]))
        if request.schema is not None:
            generated = self.tokens[1]
        began = asyncio.get_running_loop().time()
        hit = await server.serve(request.cache_key, prompt, max(1, generated))
        self.waits.append(asyncio.get_running_loop().time() - began)
        if request.schema is not None:
            step = chance.randrange(sum(m.role == "assistant" for m in request.messages))
            return [
                Completion(
                    f'{{"step": {step}, "experience": "do otherwise"}}',
                    usage=Usage(prompt, hit, generated),
                )
            ]
        return [
            Completion(
                "Thought: " + "so " * 40 + "\nAction: go", usage=Usage(prompt, hit, generated)
            )
        ]

    async def close(self) -> None:
        pass


class Errand(Environment):
    """Twenty steps, then failure or, now and then, success; observations of a usual length."""

    name, horizon, quick = "errand", 30, True

    def reset(self, task: Task, seed: int) -> str:
        self.chance, self.at = random.Random(derive_seed(seed, task.id)), 0
        return "You are in a house with many rooms. " * 12

    def step(self, action: str) -> StepResult:
        self.at += 1
        done = self.at >= 20
        won = done and self.chance.random() < 0.02
        return StepResult(
            f"Step {self.at}: " + "the corridor goes on and on. " * 8,
            done=done,
            success=won,
            reward=float(won),
        )


class _Timed(EnvLease):
    """Calls take virtual time, in one of the pool's places."""

    async def _call(self, what: str, function: Any, *args: Any) -> Any:
        pool = self._pool
        assert isinstance(pool, TimedPool)
        with pool.waits.on("envs"):
            async with pool.places:
                await asyncio.sleep(pool.seconds[what])
                pool.busy += pool.seconds[what]
        return function(*args)


class TimedPool(EnvPool):
    def __init__(self, size: int, workers: int, reset: float, step: float) -> None:
        super().__init__(Errand, size)
        self.places = asyncio.Semaphore(workers)
        self.seconds = {"reset": reset, "step": step}
        self.busy = 0.0

    def acquire(self) -> Any:
        return _borrow(self)


class _borrow:
    def __init__(self, pool: TimedPool) -> None:
        self.pool = pool

    async def __aenter__(self) -> _Timed:
        await self.pool._slots.acquire()
        return _Timed(Errand(), self.pool)

    async def __aexit__(self, *exc: object) -> None:
        self.pool._slots.release()


def simulate(args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    a = argparse.Namespace(**(vars(args) | changes))
    servers = [
        Server(a.batch, a.prefill_rate, a.token_seconds, a.token_seconds_more, a.cache_tokens)
        for _ in range(a.servers)
    ]
    policy = Simulated(servers, a.affine, (a.tokens, a.reflection_tokens))
    in_flight = min(a.in_flight, a.workers) if a.heavy else a.in_flight
    pool = TimedPool(in_flight, a.workers, a.reset_seconds, a.step_seconds)
    tasks = [
        Task(f"task-{i}", "errand", "train", "Find the lamp, clean it, and bring it to the desk.")
        for i in range(a.tasks)
    ]
    config = ExploreConfig(limits={"policy_calls": float(a.calls)}, concurrency=in_flight)
    began = time.process_time()
    found, seconds = run_virtually(
        explore(policy, pool, tasks, Prompts(PromptSet(name="scale")), config, keep=False)
    )
    cpu = time.process_time() - began
    spent = found.spent
    return {
        "tasks": a.tasks,
        "in flight": in_flight,
        "servers": a.servers,
        "environment workers": a.workers,
        "heavy environments": a.heavy,
        "affine": a.affine,
        "calls": spent.policy_calls,
        "virtual s": seconds,
        "calls/s": spent.policy_calls / seconds,
        "server use": sum(s.busy for s in servers) / (a.servers * a.batch * seconds),
        "environment use": pool.busy / (a.workers * seconds),
        "cached": spent.cached_tokens / max(1, spent.prompt_tokens),
        "wait s": statistics.median(policy.waits),
        "leafe calls/s": spent.policy_calls / cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=40_000)
    parser.add_argument("--calls", type=int, default=44, help="policy calls a task")
    parser.add_argument("--in-flight", type=int, default=16_384)
    parser.add_argument("--servers", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--prefill-rate", type=float, default=20_000.0)
    parser.add_argument("--token-seconds", type=float, default=0.012)
    parser.add_argument("--token-seconds-more", type=float, default=0.00008)
    parser.add_argument("--cache-tokens", type=int, default=600_000)
    parser.add_argument("--tokens", type=int, default=60, help="median tokens of an action")
    parser.add_argument("--reflection-tokens", type=int, default=120)
    parser.add_argument("--reset-seconds", type=float, default=0.3)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth of the size, for the tests"
    )
    args = parser.parse_args()
    args.heavy, args.affine = False, True
    if args.quick:
        args.tasks, args.in_flight, args.servers, args.workers = (
            args.tasks // 100,
            args.in_flight // 100,
            max(1, args.servers // 64),
            args.workers // 100,
        )
    cases: dict[str, dict[str, Any]] = {
        "as asked": {},
        "routed anyhow": {"affine": False},
        "a quarter of the servers": {"servers": max(1, args.servers // 4)},
        "a tenth of the environment workers": {"workers": max(1, args.workers // 10)},
        "environments that hold a process": {"heavy": True},
        "slow environments (0.2 s a step)": {"step_seconds": 0.2, "reset_seconds": 2.0},
    }
    columns: list[str] = []
    for name, changes in cases.items():
        row = simulate(args, **changes)
        if not columns:
            columns = list(row)
            print("| case | " + " | ".join(columns) + " |\n" + "| --- " * (len(columns) + 1) + "|")
        cells = [
            f"{v:.3g}"
            if isinstance(v, float) and v < 100
            else f"{v:,.0f}"
            if isinstance(v, float)
            else str(v)
            for v in row.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
