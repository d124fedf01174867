"""The in-process engine against transformers' own `generate`, on a tiny random model, in one run on
one machine.

    python bench/engine.py [--rows 64 256] [--layers 4] [--width 128]

Three workloads, each the same for both sides: single answers (prompt about 100 tokens, 32 new
ones); episodes of ten turns with answers of three tokens (what exploration does; `generate` plays
them in lockstep, a batch a turn, and computes each prompt anew); and 128 samples of each prompt
(counted against expanded). Prints a table; tokens are the sampled ones that an agent sees, not the
computed ones.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers

from leafe.core import Message, Request
from leafe.policies.hf import HFPolicy
from tests.tiny import tiny_checkpoint

WORDS = [f"w{i}" for i in range(106)]
TURNS = 10


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def generate(
    policy: HFPolicy, prompts: list[tuple[int, ...]], new: int, samples: int = 1
) -> list[list[int]]:
    """transformers' own loop over one left-padded batch; every answer has exactly `new` tokens."""
    wide = max(map(len, prompts))
    ids = torch.tensor([[1] * (wide - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = policy.engine.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            top_k=0,
            num_return_sequences=samples,
            pad_token_id=1,
        )
    return out[:, wide:].tolist()


def never_ending(policy: HFPolicy) -> None:
    """No token ends an answer, so that both sides sample the same number of tokens."""
    policy.engine._stop_ids = frozenset()


async def ours_single(policy: HFPolicy, prompts: list[str], new: int) -> None:
    await asyncio.gather(
        *(
            policy.complete(Request((Message("user", p),), max_tokens=new, seed=i))
            for i, p in enumerate(prompts)
        )
    )


async def ours_episodes(policy: HFPolicy, firsts: list[str]) -> None:
    async def episode(i: int, first: str) -> None:
        rng = random.Random(i)
        talk = (Message("user", first),)
        for t in range(TURNS):
            (c,) = await policy.complete(
                Request(talk, max_tokens=3, seed=100 * i + t, cache_key=str(i))
            )
            talk = (*talk, Message("assistant", c.text, c.tokens), Message("user", words(rng, 6)))

    await asyncio.gather(*(episode(i, f) for i, f in enumerate(firsts)))


def theirs_episodes(policy: HFPolicy, firsts: list[str]) -> None:
    rngs = [random.Random(i) for i in range(len(firsts))]
    talks = [(Message("user", f),) for f in firsts]
    for _ in range(TURNS):
        answers = generate(policy, [policy.chat.prompt(t) for t in talks], 3)
        talks = [
            (*t, Message("assistant", "", tuple(a)), Message("user", words(r, 6)))
            for t, a, r in zip(talks, answers, rngs, strict=True)
        ]


async def ours_counted(policy: HFPolicy, prompts: list[str], new: int) -> int:
    found = await asyncio.gather(
        *(
            policy.complete(Request((Message("user", p),), n=128, max_tokens=new, seed=i))
            for i, p in enumerate(prompts)
        )
    )
    return sum(c.usage.generated for f in found for c in f)


def timed(run: object) -> tuple[float, object]:
    began = time.perf_counter()
    result = run()  # type: ignore[operator]
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{args.layers} layers x {args.width}, one thread"
    )
    print(
        f"{'workload':34} {'rows':>5} {'engine s':>9} {'generate s':>10} {'ratio':>6} "
        f"{'engine tok/s':>12} {'engine req/s':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        # peaked distributions for counted sampling: a trained policy repeats itself, a random one
        # never does
        path = tiny_checkpoint(
            folder, words=WORDS, layers=args.layers, width=args.width, kv_heads=4, scale=0.15
        )
        for rows in args.rows:
            rng = random.Random(0)
            prompts = [words(rng, rng.randint(80, 120)) for _ in range(rows)]
            firsts = [words(rng, 20) for _ in range(rows)]

            def show(
                name: str, ours: float, theirs: float, tokens: int, requests: int, rows: int = rows
            ) -> None:
                print(
                    (
                        f"{name:34} {rows:5} {ours:9.2f} {theirs:10.2f} {theirs / ours:6.1f} "
                        f"{tokens / ours:12.0f} {requests / ours:12.0f}"
                    ),
                    flush=True,
                )

            def fresh(rows: int = rows) -> HFPolicy:
                policy = HFPolicy(path, max_batch=rows, threads=1)
                never_ending(policy)
                return policy

            policy = fresh()
            ids = [policy.chat.prompt((Message("user", p),)) for p in prompts]
            generate(policy, ids[:2], 2)
            theirs, _ = timed(lambda policy=policy, ids=ids: generate(policy, ids, 32))
            ours, _ = timed(
                lambda policy=policy, prompts=prompts: asyncio.run(ours_single(policy, prompts, 32))
            )
            show("single answers, 32 tokens", ours, theirs, 32 * rows, rows)
            policy.engine.close()

            policy = fresh()
            theirs, _ = timed(lambda policy=policy, firsts=firsts: theirs_episodes(policy, firsts))
            ours, _ = timed(
                lambda policy=policy, firsts=firsts: asyncio.run(ours_episodes(policy, firsts))
            )
            show("episodes of 10 turns, 3 tokens", ours, theirs, 3 * TURNS * rows, TURNS * rows)
            policy.engine.close()

            policy = fresh()
            few = prompts[: max(1, rows // 64)]
            theirs, _ = timed(
                lambda policy=policy, ids=ids, few=few: generate(
                    policy, ids[: len(few)], 3, samples=128
                )
            )
            ours, computed = timed(
                lambda policy=policy, few=few: asyncio.run(ours_counted(policy, few, 3))
            )
            show(
                f"{len(few)} prompts x 128 samples, 3 tokens",
                ours,
                theirs,
                3 * 128 * len(few),
                128 * len(few),
            )
            print(f"{'':34} computed {computed} of {3 * 128 * len(few)} answer tokens")
            policy.engine.close()


if __name__ == "__main__":
    main()
