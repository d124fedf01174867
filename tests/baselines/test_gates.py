"""The baselines on the embedded environment and model: they run through, within their budgets, and
learn what can be learnt."""

from __future__ import annotations

import asyncio

import pytest

from leafe.baselines.ace import AceConfig, AceResult, ace, with_playbook
from leafe.baselines.attempts import Attempts, sample_attempts
from leafe.baselines.early_experience import Collected, EarlyConfig, collect, early_data
from leafe.core import Tree
from leafe.embedded import base_path
from leafe.envs.gates import Gates
from leafe.envs.gates.rules import TARGET
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies import make_policy
from leafe.prompts import Prompts, load_prompt_set

pytest.importorskip("torch").set_num_threads(1)
PROMPTS = Prompts(load_prompt_set("gates"))


def test_all_three_with_the_embedded_model() -> None:
    async def main() -> tuple[AceResult, list[Tree], Attempts, dict[str, Tree], Collected]:
        policy = make_policy("hf", model=str(base_path()), max_batch=64, threads=1)
        pool = EnvPool(lambda: Gates("easy"), size=32)
        tasks = Gates("easy").tasks("train", 16, 0)
        config = ExploreConfig(limits={"policy_calls": 20})
        try:
            grown = await ace(policy, pool, tasks, PROMPTS, config, AceConfig(batch=8, max_items=4))
            trees = await evaluate(
                policy,
                pool,
                Gates("easy").tasks("test", 3, 0),
                with_playbook(PROMPTS, grown.playbook),
                samples=4,
            )
            tried = await sample_attempts(
                policy, pool, tasks[:3], PROMPTS, config, method="reflexion", attempts=3, samples=2
            )
            found = (await explore(policy, pool, tasks, PROMPTS, config)).trees
            collected = await collect(
                policy, pool, found, PROMPTS, config, EarlyConfig(alternatives=3)
            )
            return grown, trees, tried, found, collected
        finally:
            await policy.close()
            pool.close()

    grown, trees, tried, found, collected = asyncio.run(main())
    assert grown.spent.policy_calls <= 16 * 20
    assert 0 < len(grown.playbook.items) <= 4
    said = [
        i
        for i in (*grown.playbook.items, *(g.item for g in grown.playbook.gone))
        if " needs " in i.text
    ]
    assert said
    right = [
        i.text == f"{i.section} needs {TARGET[i.section]}" for i in said if i.section in TARGET
    ]
    assert sum(right) > len(said) / 2  # the reflector mostly says what the environment said
    plain_prompt, with_it = (
        Prompts(load_prompt_set("gates"), playbook=p)
        for p in ("", grown.playbook.render(PROMPTS.set))
    )
    assert with_it.playbook.startswith("earlier ")
    assert not plain_prompt.playbook
    first = next(t for t in trees[0])
    assert first.usage.prompt >= 5 * len(
        grown.playbook.items
    )  # the playbook's tokens are seen in the usage
    assert len(tried.samples) == 6
    assert all(1 <= len(s.after) <= 3 for s in tried.samples)
    data = early_data(found, collected.trees, PROMPTS, EarlyConfig(alternatives=3))
    assert data.expert.samples
    assert {s.answer.content.split()[0] for s in data.world_model.samples} & {
        "hold",
        "path",
        "no",
        "gate",
    }
    assert all(s.messages[-1].content.split()[-3:-2] == ["say"] for s in data.world_model.samples)
