"""Measures a run in the sandbox, in both ways of making a process, beside a bare interpreter.

python bench/sandbox.py [--runs 100] [--seconds 10]

`script`: a program that adds two numbers from stdin, one input. `function`: a program and three
asserts on its function (two boxes, four calls). `bare`: `python -I -S -c` with pipes and no walls.
Times are wall clock in ms: median, and 10th and 90th percentile. The last column is programs a
second, two at a time. A fork server's memory is the proportional share (PSS) of its process while
it is idle.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from leafe.envs.sandbox import Outcome, Sandbox, _sandbox

SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"
FUNCTION = "def double(x):\n    return 2 * x\n"
TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double(-1) == -2"]


def ways() -> dict[tuple[str, str], Callable[[], None]]:
    found: dict[tuple[str, str], Callable[[], None]] = {("bare", "script"): bare}
    for way in ("fork", "fresh"):
        sandbox = Sandbox(way=way)

        def script(sandbox: Sandbox = sandbox) -> None:
            assert sandbox.run_script(SCRIPT, b"2 3\n").stdout == b"5\n"

        def function(sandbox: Sandbox = sandbox) -> None:
            assert sandbox.run(FUNCTION, TESTS).outcome is Outcome.passed

        found[way, "script"], found[way, "function"] = script, function
    return found


def bare() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT], input=b"2 3\n", capture_output=True, check=True
    )
    assert done.stdout == b"5\n"


def one_by_one(run: Callable[[], None], count: int) -> list[float]:
    run()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)


def two_at_a_time(run: Callable[[], None], seconds: float) -> float:
    """Programs a second."""
    until = time.perf_counter() + seconds

    def loop(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            run()
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        count = sum(pool.map(loop, range(2)))
    return count / (time.perf_counter() - start)


def memory(process: int) -> float:
    """MB of a process and all below it."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and f"PPid:\t{process}\n" in (folder / "status").read_text():
            total += memory(int(folder.name))
    lines = (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines()
    return total + sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    table = Table(
        "process", "run", "ms, median", "10 %", "90 %", "a second, two at a time", box=box.MARKDOWN
    )
    for (way, what), run in ways().items():
        times = one_by_one(run, arguments.runs)
        low, middle, high = (f"{times[int(len(times) * part)]:.1f}" for part in (0.1, 0.5, 0.9))
        table.add_row(way, what, middle, low, high, f"{two_at_a_time(run, arguments.seconds):.0f}")
    Console(width=120).print(table)
    servers = [zygote for boxes in _sandbox._BOXES["fork"] for zygote in boxes._idle]
    shares = ", ".join(f"{memory(zygote._popen.pid):.1f}" for zygote in servers)
    print(f"{len(servers)} fork servers, MB each with bubblewrap: {shares}")


if __name__ == "__main__":
    main()
