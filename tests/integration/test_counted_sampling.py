"""Counted sampling with a real model draws what plain sampling of the same model draws (two-sample
chi-square, fixed seeds)."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from leafe.core import Tree
from leafe.envs.gates import Gates
from leafe.evaluate import evaluate, measure
from leafe.explore import EnvPool
from leafe.prompts import Prompts, load_prompt_set
from tests.evaluate.envs import said

pytestmark = [pytest.mark.slow, pytest.mark.real]
pytest.importorskip("torch")


class Alone(Gates):
    """Gates that do not promise to be deterministic: every sample plays alone."""

    deterministic = False
    can_snapshot = False


def sample(env: type[Gates], samples: int, temperature: float = 1.0, seed: int = 0) -> list[Tree]:
    from leafe.embedded import base_path
    from leafe.policies.hf import HFPolicy

    async def main() -> list[Tree]:
        policy, pool = HFPolicy(base_path(), max_batch=256), EnvPool(env, size=256)
        try:
            prompts = Prompts(load_prompt_set("gates"), pool.facts.actions_help)
            tasks = list(Gates().tasks("valid", 2))
            return await evaluate(
                policy,
                pool,
                tasks,
                prompts,
                samples=samples,
                temperature=temperature,
                horizon=3,
                seed=seed,
            )
        finally:
            await policy.close()
            pool.close()

    return asyncio.run(main())


def paths(trees: list[Tree]) -> Counter[str]:
    out: Counter[str] = Counter()
    for tree in trees:
        for episode in tree.episodes:
            out[f"{tree.task.id}: {said(tree, episode)} {episode.stop}"] += episode.count
    return out


def same_distribution_p(a: Counter[str], b: Counter[str]) -> float:
    """Pearson's test of homogeneity; cells that are rare in both are put together, the tail by
    Wilson and Hilferty."""
    total_a, total_b = a.total(), b.total()
    share = total_b / (total_a + total_b)
    cells, rare = [], [0, 0]
    for path in sorted(set(a) | set(b)):
        if (a[path] + b[path]) * share < 5:
            rare[0] += a[path]
            rare[1] += b[path]
        else:
            cells.append((a[path], b[path]))
    if sum(rare) * share >= 5:
        cells.append((rare[0], rare[1]))
    statistic = 0.0
    for x, y in cells:
        for got, size in ((x, total_a), (y, total_b)):
            expected = (x + y) * size / (total_a + total_b)
            statistic += (got - expected) ** 2 / expected
    df = len(cells) - 1
    assert df >= 3  # else there is nothing to compare
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_counted_and_plain_sampling_of_the_embedded_policy_agree() -> None:
    counted = sample(Gates, 3000)
    plain = sample(Alone, 500, seed=1)
    assert all(e.count == 1 for t in plain for e in t.episodes)
    assert same_distribution_p(paths(counted), paths(plain)) > 0.01
    assert (
        same_distribution_p(paths(counted), paths(sample(Alone, 500, temperature=1.7, seed=1)))
        < 0.001
    )  # the test can tell
    means = measure(counted)
    assert means.computed.env_steps < means.plain_steps / 20
    assert means.tokens == pytest.approx(measure(plain).tokens, rel=0.05)
