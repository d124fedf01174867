"""python -m tests.chaos [--seconds 60] [--seed 0] [--tasks 120]: the chaos test by hand, with its
table."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import Storm

parser = argparse.ArgumentParser(
    description=(
        "Explore while everything breaks, and hold the journal against a run in which nothing did."
    )
)
parser.add_argument("--seconds", type=float, default=60.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tasks", type=int, default=120)
given = parser.parse_args()
with tempfile.TemporaryDirectory(prefix="leafe-chaos-") as folder:
    storm = Storm(Path(folder), given.seconds, given.seed, given.tasks)
    try:
        storm.run()
    finally:
        print(storm.table())
    print(*storm.verdict.problems[:20], sep="\n")
sys.exit(bool(storm.verdict.problems))
