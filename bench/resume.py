"""What a long run costs leafe itself: continuing after a million turns, beginning with ten thousand
tasks, and whether memory stays flat.

    python -m bench.resume [--turns 1000000] [--tasks 10000] [--flat 100000] [--folder FOLDER]

1. A journal of so many turns (100 a task: five episodes of 20) is written. A new process then
   continues as `leafe run` does: it reads the trees, calls `explore`, and asks the policy. Seconds
   until that first request, and peak memory.
2. `explore` is handed so many new tasks: seconds until its first request.
3. So many scripted turns with `keep=False`, journal on: resident memory every tenth of them.
Each part runs in a process of its own. Seconds are wall time, processor time in brackets; MB are
2**20 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.walk import Walk
from leafe.core import Completion, Episode, Kind, Request, Stop, Task, Tree, Turn, Usage, turn_id
from leafe.explore import EnvPool, ExploreConfig, Progress, explore
from leafe.prompts import Prompts, PromptSet
from leafe.runs import Journal, load_trees, read_tasks, write_tasks

EPISODES, STEPS = 5, 20


def rss() -> float:
    """Resident memory, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.wall:.2f} s ({time.process_time() - self.cpu:.2f})"


class FirstRequest:
    """A policy that notes that it was asked, and gives no answer."""

    name = "first"

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def complete(self, request: Request) -> list[Completion]:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    async def close(self) -> None:
        pass


class Scripted:
    """Acts, and blames the middle of every history."""

    name = "scripted"

    async def complete(self, request: Request) -> list[Completion]:
        await asyncio.sleep(0)
        said = sum(m.role == "assistant" for m in request.messages)
        text = (
            "Thought: I walk on.\nAction: go up"
            if request.schema is None
            else f'{{"step": {said // 2}, "experience": "The left door."}}'
        )
        return [Completion(text, usage=Usage(1000, 900, 20))]

    async def close(self) -> None:
        pass


def write(folder: Path, turns: int) -> None:
    tasks = Walk().tasks("train", turns // (EPISODES * STEPS))
    write_tasks(folder, tasks)
    with Journal(folder, fsync=False) as journal:
        for task in tasks:
            for index in range(EPISODES):
                journal.append(
                    [
                        Episode(
                            task.id,
                            index,
                            Stop.horizon,
                            _walked(task, index),
                            first_observation="You wake up in a hall. " * 10,
                            seconds=8.0,
                        )
                    ]
                )


def _walked(task: Task, index: int) -> tuple[Turn, ...]:
    made: list[Turn] = []
    for step in range(STEPS):
        text = f"Thought: I should leave room {step} by the door to the north.\nAction: go north"
        seen = f"You are in room {step}. There is a table, a lamp and two doors. " * 5
        parent = made[-1].id if made else None
        usage = Usage(900 + 90 * step, 890 + 90 * step, 25)
        made.append(
            Turn(
                turn_id(task.id, index, step),
                parent,
                task.id,
                step,
                Kind.act,
                text,
                "go north",
                f"I should leave room {step} by the door to the north.",
                seen,
                progress=float(step),
                policy="base",
                usage=usage,
                env_steps=1,
                seconds=0.4,
            )
        )
    return tuple(made)


async def until_first_request(tasks: Sequence[Task], known: dict[str, Tree]) -> None:
    policy = FirstRequest()
    config = ExploreConfig(limits={"policy_calls": 10.0 * EPISODES * STEPS}, concurrency=128)
    running = asyncio.ensure_future(
        explore(
            policy,
            EnvPool(Walk, 128),
            tasks,
            Prompts(PromptSet(name="walk")),
            config,
            known=known,
            keep=False,
        )
    )
    await policy.asked.wait()
    running.cancel()


def resume(folder: Path) -> str:
    before, clock = peak(), Clock()
    trees = load_trees(folder)
    read = str(clock)
    asyncio.run(_resumed(folder, trees, clock))
    turns = sum(map(len, trees.values()))
    size = sum(p.stat().st_size for p in folder.glob("journal*")) / 2**20
    return (
        f"{turns:,} turns, {size:,.0f} MB of journal: trees read in {read}; {RESUMED[0]} until "
        f"the first request; peak {peak():,.0f} MB ({before:.0f} before)"
    )


RESUMED: list[str] = []


async def _resumed(folder: Path, trees: dict[str, Tree], clock: Clock) -> None:
    await until_first_request(read_tasks(folder), trees)
    RESUMED.append(str(clock))


def plan(count: int) -> str:
    tasks = Walk().tasks("train", count)

    async def begin() -> str:
        clock = Clock()
        await until_first_request(tasks, {})
        return str(clock)

    return f"{count:,} tasks: {asyncio.run(begin())} until the first request"


async def flat(turns: int, folder: Path, parts: int = 10) -> list[tuple[int, float]]:
    """(turns, resident MB) after each of so many parts, and before the first."""
    calls = 40
    tasks = Walk().tasks("train", turns // calls)
    seen = [(0, rss())]

    def look(progress: Progress) -> None:
        if progress.spent.policy_calls >= len(seen) * turns // parts:
            seen.append((progress.spent.policy_calls, rss()))

    config = ExploreConfig(limits={"policy_calls": float(calls)}, concurrency=64)
    with Journal(folder) as journal:
        pool = EnvPool(Walk, 64)
        await explore(
            Scripted(),
            pool,
            tasks,
            Prompts(PromptSet(name="walk")),
            config,
            journal=journal,
            on_progress=look,
            keep=False,
        )
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--flat", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="for the journals; a temporary one otherwise")
    parser.add_argument(
        "--part", choices=["write", "resume", "plan", "flat"], help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.part is None:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for part in ("write", "resume", "plan", "flat"):
                own = [
                    "--part",
                    part,
                    "--folder",
                    folder,
                    "--turns",
                    str(args.turns),
                    "--tasks",
                    str(args.tasks),
                    "--flat",
                    str(args.flat),
                ]
                subprocess.run([sys.executable, "-m", "bench.resume", *own], check=True)
    elif args.part == "write":
        clock = Clock()
        write(args.folder / "long", args.turns)
        print(f"write: {args.turns:,} turns in {clock}", flush=True)
    elif args.part == "resume":
        print(f"resume: {resume(args.folder / 'long')}", flush=True)
    elif args.part == "plan":
        print(f"plan: {plan(args.tasks)}", flush=True)
    else:
        clock = Clock()
        seen = asyncio.run(flat(args.flat, args.folder / "flat"))
        print(
            "flat: " + ", ".join(f"{n:,}: {mb:.1f} MB" for n, mb in seen) + f"; {clock}", flush=True
        )


if __name__ == "__main__":
    main()
