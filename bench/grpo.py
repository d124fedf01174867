"""GRPO on the embedded environment: a sweep of the learning rate on validation tasks, and the
chosen one on test tasks beside the base policy.

    python bench/grpo.py OUT [--setting easy] [--rules habit] [--calls 12800] [--tasks 200]
        [--rates 2e-4 5e-4 1e-3] [--seeds 0] [--group 8] [--batch 16] [--iterations 1] [--beta 0]
        [--loss grpo] [--eval-steps 5] [--valid 100] [--test 200] [--samples 128] [--test-all]

`--calls`: policy calls of all rollouts of one training together, met exactly. A seed draws other
training, validation and test tasks and other samples. Every rate's training keeps the weights that
did best on the validation tasks (16 samples each; the start's weights included). The rate with the
highest mean over seeds is tested (all with --test-all). Rows are Pass@k in per cent with 95 %
intervals over tasks and seeds, and paired differences to the base policy on the same tasks. What is
in OUT already is not computed again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from leafe.baselines.grpo import GrpoConfig, GrpoResult, train
from leafe.core import Policy, derive_seed
from leafe.embedded import base_path
from leafe.envs import make_env
from leafe.evaluate import Counts, counts, evaluate, paired_difference, pass_estimate
from leafe.explore import EnvPool
from leafe.policies.hf import HFPolicy
from leafe.prompts import Prompts, load_prompt_set

KS = (1, 8, 32, 128)
VALID_SAMPLES = 16
PROMPTS = Prompts(load_prompt_set("gates"))


async def sampled(
    policy: Policy, args: argparse.Namespace, split: str, count: int, samples: int, seed: int
) -> Counts:
    pool = EnvPool(partial(make_env, "gates", setting=args.setting, rules=args.rules), size=512)
    try:
        tasks = list(pool.facts.tasks(split, count, seed))
        return counts(
            await evaluate(
                policy, pool, tasks, PROMPTS, samples=samples, seed=derive_seed(seed, split)
            )
        )
    finally:
        pool.close()


def trained(args: argparse.Namespace, rate: float, seed: int) -> GrpoResult:
    make = partial(make_env, "gates", setting=args.setting, rules=args.rules)
    config = GrpoConfig(
        limits={"policy_calls": args.calls},
        num_generations=args.group,
        tasks_per_batch=args.batch,
        num_iterations=args.iterations,
        beta=args.beta,
        loss_type=args.loss,
        learning_rate=rate,
        eval_steps=args.eval_steps,
        seed=seed,
    )

    async def validate(policy: Policy) -> float:
        found = await sampled(policy, args, "valid", args.valid, VALID_SAMPLES, seed)
        return float(found.c.sum() / found.n.sum())

    out = args.out / name_of(args) / f"seed{seed}" / f"lr{rate:g}"
    return train(
        base_path(),
        out,
        make,
        list(make().tasks("train", args.tasks, seed)),
        PROMPTS,
        config,
        validate=validate,
    )


def name_of(args: argparse.Namespace) -> str:
    sizes = f"g{args.group}b{args.batch}i{args.iterations}k{args.beta:g}{args.loss}"
    return f"{args.setting}-{args.rules}-{args.calls}-{sizes}"


def tested(args: argparse.Namespace, model: Path | None, seed: int) -> Counts:
    """Of a checkpoint, or of the base policy; kept beside it."""
    kept = (
        model or args.out / f"base-{args.setting}-{args.rules}-seed{seed}"
    ) / f"test-{args.test}x{args.samples}.json"
    if kept.is_file():
        data = json.loads(kept.read_text())
        return Counts(tuple(data["tasks"]), *(np.array(data[key]) for key in ("n", "c", "lost")))

    async def main() -> Counts:
        policy = HFPolicy(model or base_path(), max_batch=256, threads=1, cache_gib=0.5)
        try:
            return await sampled(policy, args, "test", args.test, args.samples, seed)
        finally:
            await policy.close()

    found = asyncio.run(main())
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(
        json.dumps(
            {"tasks": found.tasks}
            | {key: getattr(found, key).tolist() for key in ("n", "c", "lost")}
        )
    )
    return found


def shown(estimate: Any) -> str:
    return f"{100 * estimate.value:5.1f} [{100 * estimate.low:5.1f}, {100 * estimate.high:5.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--setting", default="easy")
    parser.add_argument("--rules", default="habit")
    parser.add_argument("--calls", type=int, default=12800)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--loss", default="grpo")
    parser.add_argument("--eval-steps", type=int, default=5)
    parser.add_argument("--valid", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--test-all", action="store_true")
    args = parser.parse_args()

    means = {}
    for rate in args.rates:
        results = []
        for seed in args.seeds:
            began = time.monotonic()
            result = trained(args, rate, seed)
            results.append(result)
            lines = [
                json.loads(line)
                for line in (result.path / "metrics.jsonl").read_text().splitlines()
            ]
            course = [
                f"{row['step']}:{100 * row['valid_success']:.1f}"
                for row in lines
                if "valid_success" in row
            ]
            print(
                f"{name_of(args)} rate {rate:g} seed {seed}: {result.steps} steps, "
                f"{result.spent['policy_calls']:.0f} calls, "
                f"{result.spent['env_steps']:.0f} environment steps, "
                f"{result.spent['episodes']:.0f} episodes; kept step {result.kept_step}; "
                "validation "
                f"{' '.join(course)}; last batch {100 * (result.reward or 0):.1f}; "
                f"{result.seconds:.0f} s ({time.monotonic() - began:.0f} s now)",
                flush=True,
            )
        means[rate] = float(
            np.mean([r.valid_success for r in results if r.valid_success is not None])
        )
    best = max(means, key=lambda rate: means[rate])
    print(
        "validation by rate: "
        + ", ".join(f"{rate:g} {100 * mean:.1f}" for rate, mean in means.items())
        + f"; chosen {best:g}",
        flush=True,
    )

    base = [tested(args, None, seed) for seed in args.seeds]
    print(
        "base            "
        + "  ".join(f"@{k} {shown(pass_estimate(base, k))}" for k in KS if k <= args.samples),
        flush=True,
    )
    for rate in args.rates if args.test_all else [best]:
        runs = [
            tested(args, args.out / name_of(args) / f"seed{seed}" / f"lr{rate:g}", seed)
            for seed in args.seeds
        ]
        print(
            f"GRPO {rate:g}".ljust(16)
            + "  ".join(f"@{k} {shown(pass_estimate(runs, k))}" for k in KS if k <= args.samples),
            flush=True,
        )
        print(
            " minus base     "
            + "  ".join(
                f"@{k} {shown(paired_difference(runs, base, k))}" for k in KS if k <= args.samples
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
