"""A policy around a model in memory answers with the weights of now, and with nothing that was
computed before they changed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.core import Completion, Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy, load_model, load_tokenizer  # noqa: E402
from tests.tiny import tiny_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("live") / "model", scale=0.3)


def talk(turns: int) -> tuple[Message, ...]:
    out = [Message("user", "rusty gate ; take key")]
    for turn in range(turns):
        out += [
            Message("assistant", "take key", (6, 15, 5)),
            Message("user", f"s{turn % 3} dark gate ; rope"),
        ]
    return tuple(out)


def answers(policy: HFPolicy, seeds: range = range(6)) -> list[list[Completion]]:
    async def main() -> list[list[Completion]]:
        requests = [
            Request(talk(seed % 3), n=3, max_tokens=6, seed=seed, cache_key=f"t{seed % 2}")
            for seed in seeds
        ]
        return list(await asyncio.gather(*(policy.complete(r) for r in requests)))

    return asyncio.run(main())


def same(found: list[list[Completion]], other: list[list[Completion]]) -> bool:
    def key(completion: Completion) -> tuple[int, ...]:
        return completion.tokens or ()

    pairs = [
        (a, b)
        for one, two in zip(found, other, strict=True)
        for a, b in zip(sorted(one, key=key), sorted(two, key=key), strict=False)
    ]
    return all(
        (a.tokens, a.count) == (b.tokens, b.count)
        and abs((a.logprob or 0) - (b.logprob or 0)) < 1e-3
        for a, b in pairs
    )


def shift(model: Any, by: float) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter) * parameter.std().nan_to_num())


def test_after_a_change_the_answers_are_those_of_a_new_policy_on_the_new_weights(
    folder: Path,
) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    live = HFPolicy.around(model, tokenizer, name="step 0", threads=1)
    before = answers(live)
    shift(model, 0.5)
    live.weights_changed("step 1")
    assert live.name == "step 1"
    after = answers(live)
    fresh = HFPolicy.around(model, tokenizer, name="fresh", threads=1)
    assert same(after, answers(fresh))
    assert not same(after, before)
    for policy in (live, fresh):
        asyncio.run(policy.close())


def test_without_being_told_old_keys_and_values_are_used(folder: Path) -> None:
    """What `changed` is for: else the same prompts are found in the cache."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    live = HFPolicy.around(model, tokenizer, name="m", threads=1)
    answers(live)
    shift(model, 0.5)
    untold = answers(live)
    live.weights_changed("m")
    told = answers(live)
    assert not same(untold, told)
    assert told[0][0].usage.cached == 0
    assert any(c.usage.cached for each in untold for c in each)
    asyncio.run(live.close())


def test_a_peft_model_answers_with_its_adapter(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    live = HFPolicy.around(adapted, tokenizer, name="lora", threads=1)
    before = answers(live)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    live.weights_changed("lora 1")
    after = answers(live)
    assert not same(after, before)
    merged = HFPolicy.around(adapted.merge_and_unload(), tokenizer, name="merged", threads=1)
    assert same(after, answers(merged))
    for policy in (live, merged):
        asyncio.run(policy.close())


def test_a_change_while_requests_are_in_flight_fails_them(folder: Path) -> None:
    """No answer is ever half of one policy and half of another."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    live = HFPolicy.around(model, tokenizer, name="m", threads=1)
    reached, go = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        reached.set()
        assert go.wait(20)

    async def main() -> None:
        hook = model.register_forward_pre_hook(hold)
        asked = asyncio.create_task(live.complete(Request(talk(1), max_tokens=8, seed=1)))
        await asyncio.to_thread(reached.wait, 20)
        hook.remove()
        live.weights_changed("n")
        go.set()
        with pytest.raises(RuntimeError, match="while requests were in flight"):
            await asked

    asyncio.run(main())
    asyncio.run(live.close())
