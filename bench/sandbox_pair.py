"""Measures a run in the sandbox in two versions of leafe, in pairs.

python bench/sandbox_pair.py OLD/src NEW/src [--pairs 100]

The order within a pair is random, so that the machine's load affects both. `script` and `function`
as in bench/sandbox.py. The ratio is the median of the pairs' ratios, with a 95 % bootstrap interval
over the pairs.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import sys

TIMED = """
import sys, time
from leafe.envs.sandbox import Sandbox
SCRIPT = "a, b = map(int, input().split())\\nprint(a + b)"
FUNCTION = "def double(x):\\n    return 2 * x\\n"
TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double(-1) == -2"]
boxes = {way: Sandbox(way=way) for way in ("fork", "fresh")}
def seconds(way, what):
    begun = time.perf_counter()
    if what == "script": assert boxes[way].run_script(SCRIPT, b"2 3\\n").stdout == b"5\\n"
    else: assert boxes[way].run(FUNCTION, TESTS).passed == 3
    return time.perf_counter() - begun
for way in boxes: seconds(way, "script"), seconds(way, "function")
for line in sys.stdin: print(seconds(*line.split()), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--pairs", type=int, default=100)
    given = parser.parse_args()
    chance = random.Random(0)
    sides = [
        subprocess.Popen(
            [sys.executable, "-c", TIMED],
            stdin=-1,
            stdout=-1,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for path in (given.old, given.new)
    ]

    def ask(side: subprocess.Popen[str], what: str) -> float:
        assert side.stdin is not None
        assert side.stdout is not None
        print(what, file=side.stdin, flush=True)
        return float(side.stdout.readline())

    print("| box | run | pairs | old, ms | new, ms | new / old |\n|---|---|---|---|---|---|")
    for way, part in (("fork", 1), ("fresh", 4)):
        for what in ("script", "function"):
            rows = []
            for _ in range(given.pairs // part):
                order = chance.sample([0, 1], 2)
                times = {at: ask(sides[at], f"{way} {what}") for at in order}
                rows.append((times[0], times[1]))
            ratios = [math.log(new / old) for old, new in rows]
            drawn = sorted(
                statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000)
            )
            middle, low, high = (
                math.exp(x) for x in (statistics.median(ratios), drawn[50], drawn[1949])
            )
            old, new = (1000 * statistics.median(row[at] for row in rows) for at in (0, 1))
            print(
                (
                    f"| {way} | {what} | {len(rows)} | {old:.1f} | {new:.1f} | {middle:.2f} "
                    f"[{low:.2f}, {high:.2f}] |"
                ),
                flush=True,
            )
    for side in sides:
        assert side.stdin is not None
        side.stdin.close()
        side.wait()


if __name__ == "__main__":
    main()
