"""The baselines without RL on the embedded environment, beside the base policy.

    python bench/baselines.py hard ace-first ace-step tries early

Small on purpose: it shows what each does, with intervals over tasks. One torch thread.

- ace-first, ace-step   build a playbook within 20 policy calls a training task, freeze it, sample
  the base policy with it
- tries                 up to `--attempts` attempts a sample at test time: independent, refine,
  reflexion, with their price
- early                 trees of 20 calls a task, alternatives at their successes' states on top
  (counted), implicit world modelling, then the expert's actions; rehearsal of the same ones beside
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from leafe.baselines.ace import AceConfig, ace, with_playbook
from leafe.baselines.attempts import sample_attempts
from leafe.baselines.early_experience import EarlyConfig, collect, early_data, train_early
from leafe.core import Policy
from leafe.distill import preset, train
from leafe.embedded import base_path
from leafe.envs.gates import Gates
from leafe.evaluate import (
    Counts,
    Estimate,
    counts,
    evaluate,
    measure,
    paired_difference,
    pass_estimate,
)
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies import make_policy
from leafe.prompts import Prompts, load_prompt_set

PARTS = ("ace-first", "ace-step", "tries", "early")


class Bench:
    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self.args, self.out = args, out
        env = Gates(args.setting)
        self.train, self.test = (
            env.tasks("train", args.train, args.seed),
            env.tasks("test", args.test, args.seed),
        )
        self.prompts = Prompts(load_prompt_set("gates"))
        self.config = ExploreConfig(
            limits={"policy_calls": 20}, seed=args.seed, concurrency=args.train
        )
        self.rows: dict[str, Counts] = {}

    def say(self, *words: object) -> None:
        print(time.strftime("%H:%M:%S"), self.args.setting, *words, flush=True)

    def policy(self, model: Path) -> Policy:
        return make_policy("hf", model=str(model), max_batch=256, threads=1, cache_gib=0.5)

    def pool(self) -> EnvPool:
        return EnvPool(lambda: Gates(self.args.setting), size=max(self.args.train, self.args.test))

    async def row(
        self, name: str, model: Path | None = None, prompts: Prompts | None = None
    ) -> None:
        policy, pool, k = self.policy(model or base_path()), self.pool(), self.args.samples
        try:
            trees = await evaluate(
                policy, pool, self.test, prompts or self.prompts, samples=k, seed=self.args.seed
            )
        finally:
            await policy.close()
            pool.close()
        mine = self.rows[name] = counts(trees)
        tokens = measure(trees).computed.prompt_tokens / len(self.test)
        self.say(
            name,
            *(f"@{n} {_shown(pass_estimate([mine], n))}" for n in (1, 8, k)),
            f"prompt tokens a task {tokens:.0f}",
        )
        for other in ("base", "rehearsal"):
            if other in self.rows and other != name:
                self.say(
                    f"  {name} - {other}",
                    *(
                        f"@{n} {_shown(paired_difference([mine], [self.rows[other]], n))}"
                        for n in (1, k)
                    ),
                )

    async def ace(self, place: str) -> None:
        policy, pool = self.policy(base_path()), self.pool()
        own = AceConfig(batch=8, max_items=self.args.max_items, place=place)  # type: ignore[arg-type]
        grown = await ace(policy, pool, self.train, self.prompts, self.config, own)
        await policy.close()
        pool.close()
        solved = sum(t.solved for t in grown.trees.values())
        self.say(
            (
                f"ace {place}: {grown.spent.policy_calls} calls, {solved} of {len(self.train)} "
                "tasks solved on the way"
            ),
            grown.merges,
            grown.unusable,
        )
        for item in sorted(grown.playbook.items, key=lambda i: -i.worth):
            self.say(f"    {item.text} +{item.helpful} -{item.harmful}")
        await self.row(f"ace {place}", prompts=with_playbook(self.prompts, grown.playbook, place))  # type: ignore[arg-type]

    async def tries(self) -> None:
        for method in ("independent", "refine", "reflexion"):
            policy, pool = self.policy(base_path()), self.pool()
            found = await sample_attempts(
                policy,
                pool,
                self.test,
                self.prompts,
                self.config,
                method=method,
                attempts=self.args.attempts,
                samples=6,
            )  # type: ignore[arg-type]
            await policy.close()
            pool.close()
            for row in found.rows():
                self.say(
                    {
                        k: round(v, 3) if isinstance(v, float) else v
                        for k, v in row.items()
                        if v is not None
                    }
                )
            self.say(
                f"  {method} within policy calls",
                {c: round(found.rate(calls=c), 3) for c in (10, 20, 30, 40)},
            )

    async def early(self) -> None:
        policy, pool, seed = self.policy(base_path()), self.pool(), self.args.seed
        own = EarlyConfig(alternatives=3)
        trees = (await explore(policy, pool, self.train, self.prompts, self.config)).trees
        wider = self.config.model_copy(update={"limits": {}, "temperature": 1.5})
        found = await collect(policy, pool, trees, self.prompts, wider, own)
        await policy.close()
        pool.close()
        spent = found.spent
        self.say(
            (
                f"trees: {sum(t.solved for t in trees.values())} solved; on top: "
                f"{spent.policy_calls} calls, {spent.env_steps} steps"
            ),
            dict(found.counts),
        )
        config = preset("rehearsal", max_steps=80, learning_rate=5e-4, eval_steps=5, seed=seed)
        data = early_data(trees, found.trees, self.prompts, own)
        learn, valid = data.expert.split(config.valid_fraction, seed)
        train(base_path(), self.out / "rehearsal", learn, valid, config)
        await self.row("rehearsal", self.out / "rehearsal")
        for steps, rate in ((20, 1e-4), (90, 6e-4)):
            first = preset("rehearsal", max_steps=steps, learning_rate=rate, seed=seed)
            results = train_early(
                base_path(), self.out / f"early{steps}", data, "world_model", config, first
            )
            self.say(
                f"world model {len(data.world_model.samples)} samples, loss "
                f"{results['world_model'].loss:.3f}; expert {len(data.expert.samples)} samples"
            )
            await self.row(
                f"early, world model {steps} steps", self.out / f"early{steps}" / "checkpoint"
            )


def _shown(e: Estimate) -> str:
    return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


async def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", choices=("easy", "hard", "random"))
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=PARTS)
    for name, default in (
        ("train", 100),
        ("test", 60),
        ("samples", 64),
        ("seed", 0),
        ("max-items", 24),
        ("attempts", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as out:
        bench = Bench(args, Path(out))
        await bench.row("base")
        for part in args.parts:
            await (
                bench.ace(part.removeprefix("ace-"))
                if part.startswith("ace")
                else bench.tries()
                if part == "tries"
                else bench.early()
            )


if __name__ == "__main__":
    asyncio.run(main())
