"""What Stage 2 costs before it trains: reading the trees, selecting the samples, and their file.

    python -m bench.selection [--turns 1000000] [--folder FOLDER]

A journal of so many turns is written: 120 a task, five episodes of 20 turns, each with a branch
from step 16, all reflected on; four of five actions are rehearsed. The preset leafe+ is built from
it, once from trees that are all loaded and once from trees that are read when they are asked for;
then the samples are saved and loaded again. Seconds are wall time, processor time in brackets; MB
are 2**20 bytes, peak of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.resume import Clock, peak, rss
from bench.walk import Walk
from leafe.core import Episode, Kind, Stop, Task, Tree, Turn, turn_id
from leafe.distill import Dataset, build, preset
from leafe.prompts import Prompts, PromptSet
from leafe.runs import Journal, StoredTrees, load_trees, write_tasks

EPISODES, STEPS, BLAMED, BLAMED_AGAIN = 10, 20, 16, 18
TURNS = EPISODES // 2 * (2 * STEPS - BLAMED)
"""Actions of a task."""
PROMPTS = Prompts(PromptSet(name="walk"))


def write(folder: Path, turns: int) -> None:
    tasks = Walk().tasks("train", turns // TURNS)
    write_tasks(folder, tasks)
    with Journal(folder, fsync=False) as journal:
        for first in range(0, len(tasks), 100):  # so many tasks interleaved, as a run has them
            trees = [Tree(task) for task in tasks[first : first + 100]]
            for index in range(EPISODES):
                for tree in trees:
                    tree.add(grown(tree, index))
                    journal.append([tree.episodes[-1]])


def grown(tree: Tree, index: int) -> Episode:
    """One more episode: one from the root, then one that branches off it."""
    task, branch = tree.task, index % 2
    first = BLAMED if branch else 0
    start = tree.episodes[-1].acts[BLAMED - 1].id if branch else None
    reflection = tree.reflections[-1].id if branch else None
    target = BLAMED_AGAIN if branch else BLAMED
    turns: list[Turn] = []
    for step in range(first, STEPS):
        parent = turns[-1].id if turns else start
        turns.append(_act(task, index, step, parent, reflection if step == first else None))
    note = (
        f"Room {index} of {task.id} is a dead end: take the door to the south and look behind "
        "the table before you go on."
    )
    turns.append(
        Turn(
            turn_id(task.id, index, STEPS, Kind.reflect),
            turns[-1].id,
            task.id,
            STEPS,
            Kind.reflect,
            f'{{"step": {target}, "experience": "{note}"}}',
            target=target,
            note=note,
            policy="base",
            tokens=tuple(range(30000, 30040)),
        )
    )
    return Episode(
        task.id,
        index,
        Stop.horizon,
        tuple(turns),
        "You wake up in a hall. " * 10,
        start,
        reflection,
        depth=branch,
    )


def _act(task: Task, index: int, step: int, parent: str | None, experience: str | None) -> Turn:
    text = (
        f"Thought: I should leave room {step} by the door to the north, try {index}.\nAction: "
        f"go north {index}"
    )
    seen = f"You are in room {step}. There is a table, a lamp and two doors. " * 5
    return Turn(
        turn_id(task.id, index, step),
        parent,
        task.id,
        step,
        Kind.act,
        text,
        f"go north {index}",
        f"I should leave room {step} by the door.",
        seen,
        progress=float(step + index),
        experience=experience,
        policy="base",
        env_steps=1,
        tokens=tuple(range(20000, 20025)),
        seconds=0.4,
    )


def selected(trees: Mapping[str, Tree], clock: Clock, out: Path | None) -> str:
    read, held = str(clock), rss()
    data = build(trees, PROMPTS, preset("leafe+"), 0)
    said = (
        f"read in {read}, then {held:,.0f} MB; {len(data.samples):,} samples after {clock}, "
        f"then {rss():,.0f} MB; peak {peak():,.0f} MB"
    )
    if out is not None:
        again = Clock()
        data.save(out)
        said += f"; saved in {again}: {out.stat().st_size / 2**20:,.0f} MB"
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for the journal; a temporary one otherwise")
    parser.add_argument(
        "--part", choices=["write", "loaded", "stored", "again"], help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.part is None:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for part in ("write", "loaded", "stored", "again"):
                own = ["--part", part, "--folder", folder, "--turns", str(args.turns)]
                subprocess.run([sys.executable, "-m", "bench.selection", *own], check=True)
        return
    clock, journal, file = Clock(), args.folder / "journal", args.folder / "data.jsonl"
    if args.part == "write":
        write(journal, args.turns)
        said = (
            f"{args.turns:,} turns, "
            f"{sum(p.stat().st_size for p in journal.iterdir()) / 2**20:,.0f} MB in {clock}"
        )
    elif args.part == "loaded":
        said = selected(load_trees(journal), clock, None)
    elif args.part == "stored":
        said = selected(StoredTrees(journal), clock, file)
    else:
        data = Dataset.load(file)
        said = (
            f"{len(data.samples):,} samples loaded in {clock}; {rss():,.0f} MB, peak "
            f"{peak():,.0f} MB"
        )
    print(f"{args.part}: {said}", flush=True)


if __name__ == "__main__":
    main()
