"""Build a base policy for `gates`, or measure what a checkpoint can do there.

python -m studies.base build DIR --seed 1           # the base policy of seed 1
python -m studies.base measure CHECKPOINT ...       # what training has kept of its skills
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from leafe.policies.hf import HFPolicy
from leafe.prompts import Prompts, load_prompt_set
from studies.base.build import build
from studies.base.measure import measure_policy
from studies.command import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `build` or `measure`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="Pretrain a base policy and write it to a folder.")
    building.add_argument("out", type=Path)
    building.add_argument("--seed", type=int, default=0)
    building.add_argument("--steps", type=int, default=2000)
    building.add_argument(
        "--strict", action="store_true", help="Write nothing where it misses a requirement."
    )
    measuring = commands.add_parser(
        "measure", help="Print following, following_way and reflection_right of checkpoints."
    )
    measuring.add_argument("checkpoints", type=Path, nargs="+")
    args = parser.parse_args(arguments)
    if args.command == "build":
        build(args.out, args.seed, steps=args.steps, strict=args.strict)
        return
    for path in args.checkpoints:
        rates = asyncio.run(_measured(path))
        print(f"{path}: " + ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))


async def _measured(checkpoint: Path) -> dict[str, float]:
    policy = HFPolicy(checkpoint, threads=1)
    try:
        return await measure_policy(policy, Prompts(load_prompt_set("gates")))
    finally:
        await policy.close()


if __name__ == "__main__":
    run_command(main)
