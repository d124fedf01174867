"""Scores are the model's own: the sum that one plain forward pass over prompt and answer gives,
whatever is scored beside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.core import Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy, _policy  # noqa: E402
from tests.tiny import WORDS, tiny_checkpoint  # noqa: E402

Asked = list[tuple[tuple[Message, ...], Message]]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def policy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HFPolicy]:
    made = HFPolicy(
        tiny_checkpoint(tmp_path_factory.mktemp("tiny"), request.param, scale=0.15, context=64),
        threads=1,
    )
    yield made
    asyncio.run(made.close())


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def talks(number: int, seed: int = 3) -> Asked:
    rng = random.Random(seed)
    out: Asked = []
    for _ in range(number):
        prompt = [Message("user", words(rng, 1, 12))]
        for _ in range(rng.randint(0, 2)):
            prompt += [Message("assistant", words(rng, 1, 4)), Message("user", words(rng, 1, 6))]
        out.append((tuple(prompt), Message("assistant", words(rng, 1, 6))))
    return out


def plain(policy: HFPolicy, prompt: tuple[Message, ...], answer: Message) -> float:
    before, after = policy.chat.prompt(prompt), policy.chat.answer(answer)
    with torch.no_grad():
        logp = (
            policy.engine.model(input_ids=torch.tensor([[*before, *after]]), use_cache=False)
            .logits[0]
            .double()
            .log_softmax(-1)
        )
    return float(sum(logp[len(before) - 1 + i, token] for i, token in enumerate(after)))


def test_equals_the_plain_forward_pass_for_prompts_of_all_lengths(
    policy: HFPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = talks(25)
    expected = [plain(policy, *pair) for pair in asked]
    together = asyncio.run(policy.score(asked))
    assert together == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(_policy, "_SCORED_TOKENS", 40)
    assert asyncio.run(policy.score(asked)) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(_policy, "_SCORED_LOGITS", 1)
    assert asyncio.run(policy.score(asked[:5])) == pytest.approx(expected[:5], abs=1e-4)
    assert asyncio.run(policy.score([])) == []


def test_a_sampled_answer_scores_as_it_was_sampled_also_while_the_engine_works(
    policy: HFPolicy,
) -> None:
    async def main() -> None:
        prompt = (Message("user", "take key"),)
        request = Request(prompt, n=8, max_tokens=6, seed=4)
        answers, *_ = await asyncio.gather(policy.complete(request), policy.score(talks(30)))
        whole = [a for a in answers if a.finish == "stop"]
        scores = await policy.score(
            [(prompt, Message("assistant", a.text, a.tokens)) for a in answers]
        )
        assert scores == pytest.approx([a.logprob for a in answers], abs=1e-4)
        assert all(score is not None and score < 0 for score in scores)
        assert len(whole) <= len(answers)

    asyncio.run(main())


def test_what_does_not_fit_the_context_has_no_score(policy: HFPolicy) -> None:
    long = (Message("user", " ".join(["take"] * 60)),)
    short = talks(1)[0]
    got = asyncio.run(policy.score([(long, Message("assistant", "key lamp rope")), short]))
    assert got[0] is None
    assert got[1] == pytest.approx(plain(policy, *short), abs=1e-4)
