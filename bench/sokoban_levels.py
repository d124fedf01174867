"""Measures how fast Sokoban levels are generated, and how long their shortest solutions are.

python bench/sokoban_levels.py [--count 1000] [--split train] [--seed 0]
    [--setting 6x6:1:15 ...]

A setting is size:boxes:horizon. Each level is solved again by the forward A* search of the tests,
outside the timed part: `agree` counts the levels whose solution has the length that the generator
reports. Levels/s are those of one process with one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from leafe.envs import make_env
from tests.envs.sokoban_solver import solve

SETTINGS = ("6x6:1:15", "6x6:2:20", "8x8:1:20", "8x8:2:30", "10x10:2:40")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", nargs="+", default=SETTINGS)
    args = parser.parse_args()
    table = Table(box=box.SIMPLE)
    for column in (
        "setting",
        "levels",
        "seconds",
        "levels/s",
        "agree",
        "shortest solution: min",
        "10 %",
        "median",
        "90 %",
        "max",
    ):
        table.add_column(column, justify="right")
    for setting in args.setting:
        size, boxes, horizon = setting.split(":")
        env = make_env("sokoban", size=size, boxes=int(boxes), horizon=int(horizon))
        begun = time.perf_counter()
        tasks = env.tasks(args.split, args.count, args.seed)
        seconds = time.perf_counter() - begun
        moves = [task.payload["moves"] for task in tasks]
        agree = sum(
            len(solve(task.payload["level"]) or ()) == task.payload["moves"] for task in tasks
        )
        spread = [f"{value:.0f}" for value in np.quantile(moves, [0, 0.1, 0.5, 0.9, 1])]
        table.add_row(
            setting,
            str(len(tasks)),
            f"{seconds:.2f}",
            f"{len(tasks) / seconds:.0f}",
            f"{agree}/{len(tasks)}",
            *spread,
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
