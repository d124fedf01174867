"""A newcomer's walk, by the documentation alone: from an empty folder to (a) the demo's report, (b)
a tree of one's own environment in the viewer, (c) a data
set in TRL. Every block of the pages is played as it stands there, in one empty folder, and timed.

    python -m bench.newcomer                 # a, b and c, with the commands as the pages have them
    python -m bench.newcomer --small         # with the changes that the tests make, so that it
    takes a minute or two
    python -m bench.newcomer --install .     # first makes an environment and installs leafe with
    its extra hf into it from here

What it cannot time is reading: the words of each page are counted, at 200 a minute.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.pages import ROOT, Block, blocks, play

WALK = {
    "a: the demo's report": "quickstart.md",
    "b: a tree of one's own environment": "own-environment.md",
    "c: a data set in TRL": "own-trainer.md",
}


def steps(page: Path, small: bool) -> list[Block]:
    """The page's blocks; of the third page those up to TRL's training, since the walk ends there.
    `serves` blocks wait until the viewer answers."""
    found = [b for b in blocks(page) if not re.search(r"venv|activate", b.text)]
    if page.name == "own-trainer.md":
        found = found[: 1 + next(n for n, b in enumerate(found) if "SFTTrainer" in b.text)]
    if not small:
        found = [
            replace(b, notes={k: v for k, v in b.notes.items() if k != "run with"}) for b in found
        ]
    return found


def words(page: Path) -> int:
    return len(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL).split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument(
        "--install",
        metavar="WHAT",
        help="what pip installs, such as . or a wheel; none: leafe is there already",
    )
    parser.add_argument("--only", choices=["a", "b", "c"], action="append")
    asked = parser.parse_args()
    rows, total, read = [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        if asked.install:
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/.venv"], check=True)
            subprocess.run(
                [
                    f"{folder}/.venv/bin/python",
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    f"{asked.install}[hf]",
                ],
                check=True,
            )
            total += time.monotonic() - began
            rows.append(("install", "", total))
        for name, page in WALK.items():
            if asked.only and name[0] not in asked.only:
                continue
            path = ROOT / "docs" / page
            read += words(path)
            for block, seconds in play(steps(path, asked.small), Path(folder), timeout=3600):
                rows.append(
                    (
                        name,
                        f"{page}:{block.line} {block.title or block.text.splitlines()[0][:60]}",
                        seconds,
                    )
                )
                total += seconds
        reached = [
            p
            for p in (
                Path(folder) / "runs/demo/report.html",
                Path(folder) / "out/trl/rehearsal/train.parquet",
            )
            if p.is_file()
        ]
    print("| part | block | seconds |\n| --- | --- | --- |")
    for part, what, seconds in rows:
        print(f"| {part} | {what} | {seconds:.1f} |")
    print(
        f"\n{total / 60:.1f} minutes of commands, {read / 200:.0f} minutes of reading "
        f"({read} words at 200 a minute)."
    )
    print(
        "There at the end: "
        f"{', '.join(p.name for p in reached) or 'neither report nor data set (not asked for?)'}."
    )


if __name__ == "__main__":
    main()
