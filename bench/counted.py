"""Counted sampling against plain sampling: the same evaluation of the embedded base policy on
gates, both ways, on one machine.

    python bench/counted.py [--tasks 100] [--samples 128] [--seeds 0 1 2] [--setting hard]
        [--plain-tasks 100] [--scripted]

Counted: samples with the same history are one row. Plain: the same code with an environment that
says it is not deterministic, so that every sample plays alone (with the engine's key-value cache
between turns). `computed` are the prompt tokens that no cache held plus the generated ones. Where
--plain-tasks is less than --tasks, both sides are compared on those first tasks, and what all
counted samples would have cost alone is read off their counts. Ratios are plain / counted; their
95 % intervals resample seeds and then tasks. Pass@1 of both sides is shown as well: they sample the
same distribution.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from leafe.core import Environment, Policy, Tree
from leafe.envs import make_env
from leafe.evaluate import counts, evaluate, measure, paired_difference, pass_estimate
from leafe.explore import EnvPool
from leafe.policies import make_policy
from leafe.prompts import Prompts, load_prompt_set


def make_base(scripted: bool) -> Policy:
    if scripted:
        from tests.evaluate.envs import Chance

        return Chance()
    from leafe.embedded import base_path

    return make_policy("hf", model=str(base_path()), name="base", max_batch=256)


def alone(setting: str) -> Environment:
    """An environment whose samples are not counted together."""
    env = make_env("gates", setting=setting)
    kind = type(env)
    env.__class__ = type(kind.__name__, (kind,), {"deterministic": False, "can_snapshot": False})
    return env


async def play(args: argparse.Namespace, seed: int, counted: bool) -> tuple[list[Tree], float]:
    pool = EnvPool(
        (lambda: make_env("gates", setting=args.setting))
        if counted
        else (lambda: alone(args.setting)),
        size=512,
    )
    policy = make_base(args.scripted)
    tasks = list(pool.facts.tasks("test", args.tasks if counted else args.plain_tasks, seed))
    prompts = Prompts(load_prompt_set("gates"), pool.facts.actions_help)
    began = time.perf_counter()
    try:
        trees = await evaluate(
            policy,
            pool,
            tasks,
            prompts,
            samples=args.samples,
            seed=seed if counted else seed + 1000,
            concurrency=args.tasks,
        )
        return trees, time.perf_counter() - began
    finally:
        await policy.close()
        pool.close()


def costs(trees: list[Tree]) -> dict[str, float]:
    spent = measure(trees).computed
    return {
        "computed": spent.prompt_tokens - spent.cached_tokens + spent.generated_tokens,
        "generated": spent.generated_tokens,
        "calls": spent.policy_calls,
        "env steps": spent.env_steps,
    }


def ratio_interval(pairs: list[tuple[list[Tree], list[Tree]]], name: str) -> tuple[float, float]:
    """95 % interval of the ratio of sums, seeds and then tasks drawn with replacement."""
    rng = np.random.default_rng(0)
    tables = [
        np.array(
            [[costs([p])[name], costs([c])[name]] for p, c in zip(plain, counted, strict=True)]
        )
        for plain, counted in pairs
    ]
    drawn = []
    for _ in range(2000):
        total = np.zeros(2)
        for run in rng.integers(len(tables), size=len(tables)):
            total += tables[run][rng.integers(len(tables[run]), size=len(tables[run]))].sum(axis=0)
        drawn.append(total[0] / total[1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--setting", default="hard")
    parser.add_argument("--plain-tasks", type=int, default=None)
    parser.add_argument(
        "--scripted",
        action="store_true",
        help="a scripted stochastic policy instead of the embedded model",
    )
    args = parser.parse_args()
    args.plain_tasks = args.tasks if args.plain_tasks is None else min(args.plain_tasks, args.tasks)
    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True)
    title = (
        f"gates {args.setting}, {args.plain_tasks} tasks x {args.samples} samples: policy "
        "tokens, calls, env steps"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("seed", no_wrap=True)
    for column in ("", "computed", "generated", "calls", "env steps", "seconds", "Pass@1"):
        table.add_column(column, justify="right", no_wrap=True)
    pairs: list[tuple[list[Tree], list[Tree]]] = []
    for seed in args.seeds:
        whole, whole_seconds = asyncio.run(play(args, seed, counted=True))
        plain, plain_seconds = asyncio.run(play(args, seed, counted=False))
        counted = whole[: len(plain)]
        pairs.append((plain, counted))
        # seconds of the counted side are those of all its tasks: where fewer were played alone, its
        # share is not known
        rows: list[tuple[str, list[Tree], float | None]] = [
            ("plain", plain, plain_seconds),
            ("counted", counted, whole_seconds if len(plain) == len(whole) else None),
        ]
        for name, trees, seconds in rows:
            cost = costs(trees)
            figures = [f"{cost[c]:,.0f}" for c in cost] + [
                "" if seconds is None else f"{seconds:.1f}"
            ]
            table.add_row(
                str(seed), name, *figures, f"{100 * pass_estimate([counts(trees)], 1).value:.2f}"
            )
        a, b = costs(plain), costs(counted)
        speed = f"{plain_seconds / whole_seconds:.1f}" if len(plain) == len(whole) else ""
        table.add_row(
            str(seed), "ratio", *(f"{a[c] / b[c]:.1f}" for c in a), speed, end_section=True
        )
        means = measure(whole)
        own = (
            f"its {means.samples:,} samples hold "
            f"{means.plain_steps / means.computed.env_steps:.1f} times the steps that were "
            "taken"
        )
        own += (
            f" and {means.plain_tokens / means.computed.generated_tokens:.1f} times the tokens "
            "that were generated"
        )
        times = (
            f"counted {whole_seconds:.1f} s for {len(whole)} tasks, plain {plain_seconds:.1f} "
            f"s for {len(plain)}"
        )
        say(f"seed {seed}: {times}; {own}")
    console.print(table)
    for name in costs(pairs[0][0]):
        low, high = ratio_interval(pairs, name)
        value = sum(costs(p)[name] for p, _ in pairs) / sum(costs(c)[name] for _, c in pairs)
        say(
            f"{name}: {value:.1f} times fewer, 95 % interval [{low:.1f}, {high:.1f}], "
            f"{len(pairs)} seeds x {args.plain_tasks} tasks"
        )
    apart: Any = paired_difference([counts(p) for p, _ in pairs], [counts(c) for _, c in pairs], 1)
    say(
        f"Pass@1, plain - counted: {100 * apart.value:+.2f} points, 95 % interval "
        f"[{100 * apart.low:+.2f}, {100 * apart.high:+.2f}]"
    )


if __name__ == "__main__":
    main()
