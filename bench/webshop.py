"""Measures WebShop's store by the number of products: build, opening, and search.

python bench/webshop.py 1000 10000 100000

The products are those of the embedded catalogue, written in the published form
(`items_shuffle.json`) and filled up with words to the length of the 100 real products of the test
data (122 words for the index, 74 of them different, 1.9 KB). The vocabulary grows by one word a
product. Each measurement runs in a process of its own. `private` is what one more worker costs;
`mapped` is shared by all workers, and the system can drop it.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from leafe.envs.webshop import WebShop
from leafe.envs.webshop._catalogue import catalogue

FILLER = 80
"""How many words a description is filled up with."""


def write(folder: Path, size: int) -> None:
    chance = random.Random(0)
    words = [
        f"{a}{b}{c}"
        for a in ("ba", "co", "di", "fu", "ge", "lo", "mi", "pa", "re", "su")
        for b in ("r", "n", "l", "st")
        for c in range(100)
    ]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    with (
        (folder / "items_shuffle.json").open("w") as items,
        (folder / "items_ins_v2.json").open("w") as instructions,
    ):
        for number, (item, instruction) in enumerate(catalogue(size, 0)):
            item["full_description"] += (
                " " + " ".join(chance.choices(words, weights, k=FILLER)) + f" part{number}x."
            )
            items.write(("[" if number == 0 else ",\n") + json.dumps(item))
            instructions.write(
                ("{" if number == 0 else ",\n") + f'"{item["asin"]}": ' + json.dumps(instruction)
            )
        items.write("]")
        instructions.write("}")


def memory() -> tuple[float, float]:
    """(private, mapped from files) MiB of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["RssFile"].split()[0]) / 1024


def build(folder: str) -> dict[str, float]:
    before, began, cpu = memory()[0], time.perf_counter(), time.process_time()
    private, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            private.append(memory()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with WebShop(products=folder, cache=f"{folder}/cache"):
        took = {"build_s": time.perf_counter() - began, "build_cpu_s": time.process_time() - cpu}
    done.set()
    watcher.join()
    return took | {
        "peak_private_mib": max(private) - before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def use(folder: str) -> dict[str, float]:
    import bm25s  # noqa: F401 (imported first, so that the import is not measured)

    before, began = memory(), time.perf_counter()
    env = WebShop(products=folder, cache=f"{folder}/cache")
    opened = time.perf_counter() - began
    tasks = env.tasks("test", 100)
    drawn = time.perf_counter() - began - opened
    searches, clicks = [], []
    for task in tasks:
        env.reset(task, 0)
        for action in (
            f"search[{task.payload['query']} {' '.join(task.payload['attributes'])}]",
            f"search[{task.instruction}]",
        ):
            began = time.perf_counter()
            env.step(action)
            searches.append(time.perf_counter() - began)
        for _ in range(3):
            action = random.Random(task.id).choice(
                [a for a in env.valid_actions() if "search" not in a and "buy" not in a]
            )
            began = time.perf_counter()
            env.step(action)
            clicks.append(time.perf_counter() - began)
    after = memory()
    search, click = (1000 * statistics.median(seconds) for seconds in (searches, clicks))
    times = {
        "open_ms": 1000 * opened,
        "tasks_ms": 1000 * drawn,
        "search_ms": search,
        "search_max_ms": 1000 * max(searches),
        "click_ms": click,
    }
    return times | {"private_mib": after[0] - before[0], "mapped_mib": after[1] - before[1]}


def main() -> None:
    for size in map(int, sys.argv[1:] or ("1000", "10000")):
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            write(Path(folder), size)
            row = pool.apply(build, (folder,)) | pool.apply(use, (folder,))
            files = [p for p in Path(folder, "cache").rglob("*") if p.is_file()]
            row |= {
                "disk_mib": sum(p.stat().st_size for p in files) / 2**20,
                "index_mib": sum(p.stat().st_size for p in files if "index" in p.parts) / 2**20,
            }
            row["input_mib"] = sum(p.stat().st_size for p in Path(folder).glob("*.json")) / 2**20
            print(
                size, json.dumps({name: round(value, 2) for name, value in row.items()}), flush=True
            )


if __name__ == "__main__":
    main()
