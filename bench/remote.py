"""The cost of a step when the environment is on a server: the same steps in this process, over HTTP
on 127.0.0.1, and there in the thread of a blocking environment.

    python bench/remote.py [--steps 5000] [--sessions 1 8]

Server and client are two processes on one machine. `ms a step` is the mean over blocks of 100 steps
with its 95 % interval (bootstrap over blocks), beside the median step and the 99th percentile. The
sessions of one row play at the same time, each in a thread of the client. `overhead` is the mean
less that of the same environment in this process; `cpu` is the processor time of client and server
a step, which other load does not change.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from leafe.core import Environment
from leafe.envs import load_tasks
from leafe.envs.gates import Gates
from leafe.envs.remote import Remote

ROOT = Path(__file__).parents[1]
BLOCK = 100


class Blocking(Gates):
    """Gates as if its steps took their time: they run in a thread of the server."""

    quick = False


@contextmanager
def server(command: list[str]) -> Iterator[tuple[str, int]]:
    started = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        yield started.stdout.readline().split()[-1], started.pid
    finally:
        started.terminate()
        started.communicate()


def play(action: str, steps: int, env: Environment) -> np.ndarray:
    """Milliseconds of each step; resets after an episode are not counted."""
    task = load_tasks(env, "train", 1)[0]
    env.reset(task, 0)
    out = np.empty(steps)
    for at in range(steps):
        began = time.perf_counter()
        result = env.step(action)
        out[at] = time.perf_counter() - began
        if result.done:
            env.reset(task, 0)
    return 1000 * out


def cpu(pid: int | None = None) -> float:
    """Processor time of this process and the other one so far, in milliseconds."""
    there = 0.0
    with suppress(OSError):  # no /proc
        fields = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if pid is not None
            else ["0"] * 13
        )
        there = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 1000 * (time.process_time() + there)


def others(env: Environment, rounds: int) -> dict[str, float]:
    """Median milliseconds of the other calls."""
    task = load_tasks(env, "train", 1)[0]
    seen: dict[str, list[float]] = {"reset": [], "snapshot": [], "restore": []}
    for _ in range(rounds):
        mark: list[object] = []
        calls = {
            "reset": partial(env.reset, task, 0),
            "snapshot": lambda m=mark: m.append(env.snapshot()),
            "restore": lambda m=mark: env.restore(m[0]),
        }
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seen[name].append(1000 * (time.perf_counter() - began))
        env.release(mark[0])
    return {name: float(np.median(values)) for name, values in seen.items()}


def interval(steps: np.ndarray) -> tuple[float, float]:
    blocks = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
    drawn = np.random.default_rng(0).choice(blocks, (2000, len(blocks))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    table = Table(box=box.SIMPLE, title=f"{args.steps} steps a row")
    for column in (
        "env",
        "sessions",
        "ms a step",
        "95 %",
        "median",
        "p99",
        "overhead",
        "cpu",
        "steps/s",
        "reset",
        "snapshot",
        "restore",
    ):
        table.add_column(column, justify="left" if column == "env" else "right")

    def row(
        name: str,
        sessions: int,
        steps: np.ndarray,
        home: float,
        computed: float,
        rest: dict[str, float],
    ) -> None:
        low, high = interval(steps)
        mean, median, slowest = steps.mean(), np.median(steps), np.quantile(steps, 0.99)
        figures = [
            f"{mean:.3f}",
            f"[{low:.3f}, {high:.3f}]",
            f"{median:.3f}",
            f"{slowest:.3f}",
            f"{mean - home:.3f}",
            f"{computed / len(steps):.3f}",
            f"{1000 * sessions / mean:,.0f}",
        ]
        table.add_row(
            name,
            str(sessions),
            *figures,
            *(
                f"{rest[call]:.3f}" if call in rest else ""
                for call in ("reset", "snapshot", "restore")
            ),
        )

    # valid nowhere at the start of a task: the environment answers, and stays where it is
    action = "walk on"
    before = cpu()
    here = play(action, args.steps, Gates())
    row("gates, at home", 1, here, float(here.mean()), cpu() - before, others(Gates(), 500))
    served = {
        "gates, served": ["-c", "from leafe.envs.remote import serve; serve('gates', {})"],
        "gates, served, blocking": [
            "-c",
            "from leafe.envs.remote import serve; serve('bench.remote:Blocking', {})",
        ],
    }
    for name, command in served.items():
        with server(command) as (url, pid):
            for sessions in args.sessions:
                with ThreadPoolExecutor(sessions) as threads:
                    envs = [Remote(url) for _ in range(sessions)]
                    before = cpu(pid)
                    parts = list(threads.map(partial(play, action, args.steps // sessions), envs))
                    row(
                        name,
                        sessions,
                        np.concatenate(parts),
                        float(here.mean()),
                        cpu(pid) - before,
                        others(envs[0], 200) if sessions == 1 else {},
                    )
                    for env in envs:
                        env.close()
    with server(["docs/examples/remote_server.py"]) as (url, pid), Remote(url) as env:
        before = cpu(pid)
        steps = play("guess 50", args.steps, env)
        row("docs/examples/remote_server.py", 1, steps, 0.0, cpu(pid) - before, others(env, 200))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
