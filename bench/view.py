"""How long the viewer's pages take on a large run, by default 10,000 tasks and a million turns.

    python bench/view.py [--tasks N] [--turns N] [--text BYTES] [--folder DIR]

A synthetic run is written (rollback trees with reflections, texts of about BYTES an observation,
and one task with a hundred times the others' episodes), `leafe view` is started on it, and pages
are asked for while the index is made and afterwards. Prints a table of page times (median and worst
of 7, each of another task or place; beside them the viewer's own processor time, which does not
depend on what else the machine does), of sizes, and of what the index takes. Everything is on
127.0.0.1 and in a temporary folder, which is deleted; --folder keeps the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from leafe.core import Episode, Kind, Stop, Task, Turn, Usage, turn_id
from leafe.recipes import load_recipe
from leafe.runs import Journal, RunFolder, write_tasks

STEPS = 8
REPEATS = 7
WORDS = (
    "the",
    "lamp",
    "a",
    "door",
    "key",
    "under",
    "north",
    "of",
    "table",
    "opens",
    "slowly",
    "rusty",
    "iron",
    "gate",
    "behind",
    "which",
    "water",
    "runs",
    "and",
    "you",
    "see",
    "nothing",
    "more",
    "than",
    "dust",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--text", type=int, default=150)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leafe-view-bench-") as temporary:
        folder = asked.folder or Path(temporary) / "run"
        if not (folder / "manifest.json").is_file():
            began = time.monotonic()
            turns = write_run(folder, asked.tasks, asked.turns, asked.text)
            size = sum(path.stat().st_size for path in folder.glob("explore/tree/*.jsonl"))
            print(
                (
                    f"written: {asked.tasks:,} tasks, {turns:,} turns, {size / 1e6:,.0f} MB of "
                    f"journal, in {time.monotonic() - began:.0f} s"
                ),
                flush=True,
            )
        measure(folder, Path(temporary) / "cache", asked.tasks)


def write_run(folder: Path, tasks: int, turns: int, text: int) -> int:
    """A finished exploration; returns the number of its turns."""
    recipe = load_recipe("demo")
    with RunFolder.open(folder, recipe.model_dump(mode="json", exclude_none=True)) as run:
        stage = run.stage("explore/tree")
        write_tasks(stage, (task(nth) for nth in range(tasks)))
        chance = random.Random(0)
        each = max(1, round(turns / tasks / STEPS))
        done = 0
        with Journal(stage, fsync=False) as journal:
            for nth in range(tasks):
                for episode in episodes(
                    nth, each * 100 if nth == tasks // 2 else each, text, chance
                ):
                    journal.append([episode])
                    done += len(episode.turns)
        run.finish("explore/tree", {})
    return done


def task(nth: int) -> Task:
    return Task(
        f"environment-train-{nth}",
        "gates",
        "train",
        f"find {WORDS[nth % len(WORDS)]} number {nth}",
        {"nth": nth},
    )


def episodes(nth: int, number: int, text: int, chance: random.Random) -> Iterator[Episode]:
    """A root, and branches of the episode before, each with a reflection; the last one wins in one
    task of three."""
    name = task(nth).id
    reflection: Turn | None = None
    path: list[Turn] = []
    for index in range(number):
        begin = reflection.target or 0 if reflection is not None else 0
        path = path[:begin]
        start = path[-1].id if path else None
        turns: list[Turn] = []
        won = index == number - 1 and nth % 3 == 0
        for step in range(begin, begin + STEPS - 1):
            seen = " ".join(chance.choices(WORDS, k=max(1, text // 6)))
            turns.append(
                Turn(
                    turn_id(name, index, step),
                    path[-1].id if path else None,
                    name,
                    step,
                    Kind.act,
                    f"Thought: {seen[:60]}\nAction: open {step} {chance.random():.6f}",
                    f"open {step}",
                    seen[:60],
                    seen,
                    progress=float(step),
                    policy="base",
                    usage=Usage(100 + 40 * step, 60, 12),
                    env_steps=1,
                    tokens=tuple(chance.choices(range(96), k=12)),
                    logprob=-1.5,
                    seconds=0.1,
                    success=won and step == begin + STEPS - 2,
                    experience=reflection.id if reflection is not None and step == begin else None,
                )
            )
            path.append(turns[-1])
        asked, before = reflection, index
        if not won:
            target = min(chance.randrange(len(path)), 40)
            reflection = Turn(
                turn_id(name, index, len(path), Kind.reflect),
                path[-1].id,
                name,
                len(path),
                Kind.reflect,
                f"s{target} open the iron gate {before}",
                target=target,
                note=f"open the iron gate {before}",
                policy="base",
            )
            turns.append(reflection)
        yield Episode(
            name,
            index,
            Stop.success if won else Stop.failure,
            tuple(turns),
            "A dusty room.",
            start,
            asked.id if asked is not None else None,
            depth=index,
        )


def measure(folder: Path, cache: Path, tasks: int) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    command = [sys.executable, "-m", "leafe.cli", "view", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        base = next(
            word for word in server.stdout.readline().split() if word.startswith("http://")
        ).rstrip("/")
        print(f"answers after {time.monotonic() - began:.1f} s", flush=True)
        chance = random.Random(1)
        some = [f"environment-train-{chance.randrange(tasks // 20)}" for _ in range(REPEATS)]
        while json.loads(get(base + "/pulse"))["read"] == 0:
            time.sleep(0.05)
        rows = [
            row("stages, while reading", base, server.pid, ["/"] * REPEATS),
            row(
                "list, while reading",
                base,
                server.pid,
                ["/tasks/explore/tree?show=rescued"] * REPEATS,
            ),
            row("tree, while reading", base, server.pid, [tree(name) for name in some]),
        ]
        while (state := json.loads(get(base + "/pulse")))["read"] < state["of"] or not state["of"]:
            time.sleep(0.5)
        took = time.monotonic() - began
        size = sum(path.stat().st_size for path in cache.rglob("*.sqlite*"))
        print(
            (
                f"index: {took:.0f} s for {state['of'] / 1e6:,.0f} MB, {size / 1e6:,.0f} MB on "
                f"disk; the viewer's memory {memory(server.pid):,.0f} MB"
            ),
            flush=True,
        )
        time.sleep(5)  # the tokenizer, in the background
        some = [f"environment-train-{chance.randrange(tasks)}" for _ in range(REPEATS)]
        starts = [chance.randrange(tasks) for _ in range(REPEATS)]
        sorts = ("episodes", "turns", "saved", "branches", "tokens", "rate", "task")
        shows = ("all", "solved", "rescued", "never", "diverged", "unusable", "saved")
        rows += [
            row("stages", base, server.pid, ["/"] * REPEATS),
            row(
                "list, any filter",
                base,
                server.pid,
                [f"/tasks/explore/tree?show={show}" for show in shows],
            ),
            row(
                "list, any order",
                base,
                server.pid,
                [f"/tasks/explore/tree?sort={sort}" for sort in sorts],
            ),
            row(
                "list, far down",
                base,
                server.pid,
                [f"/tasks/explore/tree?from={start}" for start in starts],
            ),
            row(
                "list, by name",
                base,
                server.pid,
                [f"/tasks/explore/tree?named=number+{start}" for start in starts],
            ),
            row("tree and turn", base, server.pid, [tree(name) for name in some]),
            row(
                "the largest tree",
                base,
                server.pid,
                [tree(f"environment-train-{tasks // 2}")] * REPEATS,
            ),
            row(
                "search, a rare text",
                base,
                server.pid,
                [f"/search?q={urllib.parse.quote(f'number {start}')}" for start in starts],
            ),
            row(
                "search, in every turn",
                base,
                server.pid,
                [f"/search?q={word}&stage=explore/tree" for word in WORDS[:REPEATS]],
            ),
            row("search, a phrase", base, server.pid, ["/search?q=%22iron+gate%22+dust"] * REPEATS),
        ]
        print(
            f"the viewer's memory afterwards {memory(server.pid):,.0f} MB (largest "
            f"{memory(server.pid, 'VmHWM'):,.0f} MB)\n"
        )
        print(
            "| page | median, ms | worst, ms | processor, ms | largest, KB |\n| --- | --- "
            "| --- | --- | --- |"
        )
        for name, times, used, largest in rows:
            print(
                f"| {name} | {1000 * statistics.median(times):.0f} | "
                f"{1000 * max(times):.0f} | {1000 * used:.0f} | {largest / 1000:.0f} |"
            )
    finally:
        server.terminate()
        server.wait(60)


def row(name: str, base: str, pid: int, paths: list[str]) -> tuple[str, list[float], float, int]:
    """(name, seconds of each page, the viewer's processor seconds a page, bytes of the largest)."""
    times, largest, before = [], 0, processor(pid)
    for path in paths:
        began = time.monotonic()
        largest = max(largest, len(get(base + path)))
        times.append(time.monotonic() - began)
    return name, times, (processor(pid) - before) / len(paths), largest


def processor(pid: int) -> float:
    """Seconds that the process has used, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return bytes(answer.read())


def tree(name: str, turn: str = "") -> str:
    return f"/tree/explore/tree?task={name}" + (f"&turn={turn}" if turn else "")


def memory(pid: int, what: str = "VmRSS") -> float:
    """MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith(what + ":"))
        / 1000
    )


if __name__ == "__main__":
    main()
