"""Measures what a process, a thread and the pool add to a step of an environment that does nothing.

python bench/pool.py [--steps 2000] [--rounds 5]

Rounds alternate between the four ways. A cell is the median over rounds of a round's mean, with the
lowest and highest round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from leafe.core import Environment, StepResult, Task
from leafe.envs import make_env
from leafe.explore import EnvPool


class Idle(Environment):
    """An environment whose steps cost nothing."""

    name = "idle"
    text: ClassVar[str] = "You are in the kitchen. " * 40

    def reset(self, task: Task, seed: int) -> str:
        return "hello"

    def step(self, action: str) -> StepResult:
        return StepResult(self.text)


class IdleQuick(Idle):
    """Called in the event loop."""

    quick = True


class IdleProcess(Idle):
    """In a process of its own."""

    process = True


class IdleForked(Idle):
    """In a process of its own, with forks for snapshots."""

    process = True
    forkable = True


TASK = Task("t", "idle", "train", "")


def direct(env: Environment) -> Callable[[int], float]:
    def run(steps: int) -> float:
        env.reset(TASK, 0)
        began = time.perf_counter()
        for _ in range(steps):
            env.step("look around")
        return (time.perf_counter() - began) / steps

    return run


def pooled(make: Callable[[], Environment]) -> Callable[[int], float]:
    async def main(steps: int) -> float:
        pool = EnvPool(make, size=1)
        try:
            async with pool.acquire() as env:
                await env.reset(TASK, 0)
                began = time.perf_counter()
                for _ in range(steps):
                    await env.step("look around")
                return (time.perf_counter() - began) / steps
        finally:
            pool.close()

    return lambda steps: asyncio.run(main(steps))


def forks(env: Environment) -> tuple[Callable[[int], float], Callable[[int], float]]:
    def snapshots(steps: int) -> float:
        env.reset(TASK, 0)
        spent = 0.0
        for _ in range(steps):
            began = time.perf_counter()
            held = env.snapshot()
            spent += time.perf_counter() - began
            env.release(held)
        return spent / steps

    def restores(steps: int) -> float:
        env.reset(TASK, 0)
        held = env.snapshot()
        began = time.perf_counter()
        for _ in range(steps):
            env.restore(held)
        spent = (time.perf_counter() - began) / steps
        env.release(held)
        return spent

    return snapshots, restores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    process, forked = make_env("pool:IdleProcess"), make_env("pool:IdleForked")
    snapshots, restores = forks(forked)
    ways: dict[str, tuple[Callable[[int], Awaitable[float] | float], int]] = {
        "step, called directly": (direct(Idle()), args.steps),
        "step, quick environment in the pool": (pooled(IdleQuick), args.steps),
        "step, thread environment in the pool": (pooled(Idle), args.steps),
        "step, process environment called directly": (direct(process), args.steps),
        "step, process environment in the pool": (
            pooled(lambda: make_env("pool:IdleProcess")),
            args.steps,
        ),
        "snapshot by fork": (snapshots, max(1, args.steps // 20)),
        "restore by fork": (restores, max(1, args.steps // 20)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (way, steps) in ways.items():
            value = way(steps)
            assert isinstance(value, float)
            found[name].append(1000 * value)
    process.close()
    forked.close()
    print(
        f"{args.rounds} rounds of {args.steps} steps ({args.steps // 20} forks), "
        f"observation of {len(Idle.text)} characters, ms a call\n"
    )
    print("| way | median | lowest | highest |\n| --- | --- | --- | --- |")
    for name, values in found.items():
        print(
            f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
        )


if __name__ == "__main__":
    main()
