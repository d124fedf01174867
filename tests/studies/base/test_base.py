"""The checkpoint in the package: standard, small, and as able as its build program asks."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.core import ChatTokens, Kind, Tree, UserError
from leafe.embedded import base_path
from leafe.envs.gates import Gates
from leafe.envs.gates.rules import WORDS
from leafe.explore import EnvPool, Exploration, ExploreConfig, explore
from leafe.policies.hf import HFPolicy
from leafe.policies.hf.loading import load_model, load_tokenizer
from leafe.prompts import Prompts, load_prompt_set
from studies.base.build import build, make_tokenizer
from studies.base.measure import REQUIRED, measure_base, measure_policy

PROMPTS = Prompts(load_prompt_set("gates"))


def test_the_checkpoint_is_a_standard_one_of_at_most_four_megabytes() -> None:
    assert (base_path() / "model.safetensors").stat().st_size <= 4_000_000
    assert json.loads((base_path() / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    tokenizer = load_tokenizer(base_path())
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert tokenizer.chat_template == make_tokenizer().chat_template
    for word in WORDS:
        assert len(tokenizer(word)["input_ids"]) == 1
    text = "s4 rusty gate note rusty needs lamp"
    assert ChatTokens(tokenizer).decode(tokenizer(text)["input_ids"]) == text


def test_the_base_passes_its_gates() -> None:
    measured = measure_base(
        load_model(base_path()), ChatTokens(load_tokenizer(base_path())), PROMPTS, tasks=24, seed=2
    )
    assert all(measured[name] >= least for name, least in REQUIRED.items() if name in measured)
    assert measured["reflection_right"] > 0.8
    assert measured["shifted"] < 0.05
    assert measured["habit"] > 0.8
    facts = json.loads((base_path() / "facts.json").read_text())
    assert all(facts[name] >= least for name, least in REQUIRED.items())


def test_a_checkpoint_is_measured_by_the_probabilities_of_its_answers() -> None:
    async def run() -> dict[str, float]:
        policy = HFPolicy(base_path(), threads=1)
        try:
            return await measure_policy(policy, PROMPTS, tasks=12)
        finally:
            await policy.close()

    measured = asyncio.run(run())
    assert set(measured) == {"following", "following_way", "reflection_right"}
    assert all(0.5 < rate <= 1 for rate in measured.values())


def test_the_build_is_seeded_and_refuses_a_model_that_misses_a_gate(tmp_path: Path) -> None:
    from safetensors import safe_open

    said: list[str] = []
    with pytest.raises(UserError, match="following"):
        build(tmp_path / "no", steps=2, batch_tokens=256, tasks=2, say=said.append)
    assert not (tmp_path / "no").exists()
    assert any("following" in line for line in said)
    weights = []
    for name in ("a", "b"):
        build(
            tmp_path / name,
            seed=5,
            steps=3,
            batch_tokens=256,
            tasks=2,
            say=said.append,
            strict=False,
        )
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            weights.append(file.get_tensor("model.layers.0.mlp.up_proj.weight"))
    assert weights[0].equal(weights[1])


def grown(strategy: str) -> Exploration:
    async def run() -> Exploration:
        policy = HFPolicy(base_path(), threads=1)
        try:
            config = ExploreConfig(strategy=strategy, limits={"policy_calls": 24}, seed=1)
            return await explore(
                policy,
                EnvPool(lambda: Gates("hard"), 16),
                Gates("hard").tasks("valid", 16, seed=4),
                PROMPTS,
                config,
            )
        finally:
            await policy.close()

    return asyncio.run(run())


@pytest.mark.parametrize("strategy", ["tree", "refine"])
def test_no_prompt_holds_a_rule_that_the_env_did_not_say_in_that_task(strategy: str) -> None:
    told = 0
    for tree in grown(strategy).trees.values():
        right = {name: answer for _, name, answer, _ in tree.task.payload["stages"]}
        said: set[str] = set()
        for episode in tree.episodes:
            prompts = [*episode.preamble]
            if episode.experience is not None:
                prompts.append(tree[episode.experience].note)
            for prompt in prompts:
                for name, answer in re.findall(r"(\w+) (?:needs|go) (\w+)", prompt):
                    if right.get(name) == answer:
                        assert f"{name} {answer}" in said, (
                            f"{prompt!r} in {tree.task.id}: nobody had said so"
                        )
                        told += 1
            for turn in episode.acts:
                said |= {
                    f"{name} {answer}"
                    for name, answer in re.findall(r"(\w+) (?:needs|go) (\w+)", turn.observation)
                }
    assert told > 10


def test_the_tree_corrects_mistakes_with_the_policys_own_reflections() -> None:
    trees: list[Tree] = list(grown("tree").trees.values())
    reflections = [t for tree in trees for t in tree.reflections]
    assert all(t.kind is Kind.reflect for t in reflections)
    assert sum(t.valid for t in reflections) / len(reflections) > 0.9
    branches = [b for tree in trees for b in tree.branches()]
    assert sum(b.improved for b in branches) / len(branches) > 0.5
