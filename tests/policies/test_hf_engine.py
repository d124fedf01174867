"""The engine against the plain forward pass: whatever was cached, copied, rolled back or forked,
the probabilities are the model's own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.core import Completion, ContextFull, Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy  # noqa: E402
from tests.tiny import WORDS, tiny_checkpoint  # noqa: E402


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(
        tmp_path_factory.mktemp("tiny") / request.param, request.param, scale=0.15
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama", scale=0.15)


def ask(policy: HFPolicy, requests: list[Request]) -> list[list[Completion]]:
    async def main() -> list[list[Completion]]:
        return list(await asyncio.gather(*(policy.complete(r) for r in requests)))

    return asyncio.run(main())


def close(policy: HFPolicy) -> None:
    asyncio.run(policy.close())


def true_logprob(policy: HFPolicy, request: Request, tokens: tuple[int, ...]) -> float:
    """By one plain forward pass over prompt and answer, without any cache."""
    prompt = policy.chat.prompt(request.messages)
    with torch.no_grad():
        logits = (
            policy.engine.model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False)
            .logits[0]
            .double()
        )
    logp = torch.log_softmax(logits / (request.temperature or 1.0), -1)
    return float(sum(logp[len(prompt) - 1 + i, t] for i, t in enumerate(tokens)))


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def test_probabilities_are_those_of_the_plain_forward_pass_through_turns_branches_and_forks(
    checkpoint: Path,
) -> None:
    """Conversations grow, roll back to earlier turns, start afresh, and run beside each other;
    slots are few, so that they are evicted too."""
    rng = random.Random(5)
    policy = HFPolicy(checkpoint, max_batch=5)
    talks: list[tuple[str, tuple[Message, ...]]] = [
        (f"task{i}", (Message("user", words(rng, 3, 60)),)) for i in range(7)
    ]
    seen = cached = 0
    for _ in range(6):
        requests = [
            Request(
                m,
                n=rng.choice([1, 1, 5]),
                max_tokens=rng.randint(1, 9),
                temperature=rng.choice([0.7, 1.0]),
                seed=rng.randrange(999),
                cache_key=key,
            )
            for key, m in talks
        ]
        grown = []
        for (key, messages), request, found in zip(
            talks, requests, ask(policy, requests), strict=True
        ):
            assert sum(c.count for c in found) == request.n
            cached += found[0].usage.cached
            assert found[0].usage.prompt == len(policy.chat.prompt(messages))
            for c in found:
                assert c.tokens is not None
                assert c.logprob == pytest.approx(true_logprob(policy, request, c.tokens), abs=2e-4)
                seen += 1
            pick = rng.choice(found)
            talk = (
                *messages,
                Message("assistant", pick.text, pick.tokens),
                Message("user", words(rng, 1, 20)),
            )
            cut = rng.choice([len(talk), len(talk), 1, 3])
            grown.append((key, talk[: min(cut, len(talk))]))
        talks = grown
    close(policy)
    assert seen > 42
    assert cached > 500


def test_a_next_turn_and_a_branch_compute_only_what_is_new(llama: Path) -> None:
    policy = HFPolicy(llama, max_batch=4)
    first = (Message("user", words(random.Random(0), 60, 60)),)

    def one(messages: tuple[Message, ...]) -> Completion:
        return ask(policy, [Request(messages, max_tokens=4, seed=1, cache_key="t")])[0][0]

    a = one(first)
    assert a.usage.cached == 0
    second = (*first, Message("assistant", a.text, a.tokens), Message("user", "go left"))
    b = one(second)
    assert b.usage.cached >= a.usage.prompt + len(a.tokens or ()) - 1
    one((*second, Message("assistant", b.text, b.tokens), Message("user", "go up")))
    branch = one((*second[:2], Message("user", "go right")))
    assert branch.usage.cached >= a.usage.prompt
    again = one(second)
    assert again.usage.cached == b.usage.prompt - 1
    assert again.tokens == b.tokens
    close(policy)


def test_requests_that_share_a_long_prefix_compute_it_once(llama: Path) -> None:
    policy = HFPolicy(llama, max_batch=8)
    shared = Message("system", words(random.Random(1), 100, 100))
    requests = [
        Request((shared, Message("user", w)), max_tokens=2, seed=1, cache_key=w) for w in WORDS[:8]
    ]
    found = ask(policy, requests)
    assert sum(c[0].usage.cached == 0 for c in found) == 1
    assert sorted(c[0].usage.cached for c in found)[1] >= 100
    close(policy)


def test_answers_do_not_depend_on_what_else_is_in_flight(checkpoint: Path) -> None:
    rng = random.Random(3)
    requests = [
        Request(
            (Message("user", words(rng, 2, 40)),),
            n=rng.choice([1, 3, 20]),
            max_tokens=6,
            seed=i,
            top_p=rng.choice([1.0, 0.8]),
        )
        for i in range(30)
    ]
    results = []
    for batch, together in ((64, True), (3, True), (8, False)):
        policy = HFPolicy(checkpoint, max_batch=batch)
        found = ask(policy, requests) if together else [ask(policy, [r])[0] for r in requests]
        results.append([[(c.text, c.count, c.tokens, c.finish) for c in f] for f in found])
        close(policy)
    assert results[0] == results[1] == results[2]


def test_a_small_memory_limit_slows_and_changes_nothing(llama: Path) -> None:
    rng = random.Random(4)
    requests = [
        Request(
            (Message("user", words(rng, 10, 150)),), n=4, max_tokens=8, seed=i, cache_key=str(i % 5)
        )
        for i in range(20)
    ]
    roomy, tight = (
        HFPolicy(llama, max_batch=32),
        HFPolicy(llama, max_batch=32, cache_gib=300_000 / 2**30),
    )
    assert [[(c.tokens, c.count) for c in f] for f in ask(roomy, requests)] == [
        [(c.tokens, c.count) for c in f] for f in ask(tight, requests)
    ]
    held = sum(
        t.numel() * t.element_size()
        for t in (*tight.engine.runner.cache.keys, *tight.engine.runner.cache.values)
    )
    assert held <= 300_000
    close(roomy)
    close(tight)


def test_usage_counts_a_token_that_many_samples_share_once(llama: Path) -> None:
    policy = HFPolicy(llama, max_batch=16)
    found = ask(policy, [Request((Message("user", "go"),), n=50, max_tokens=5, seed=0)])[0]
    prefixes = {c.tokens[:k] for c in found if c.tokens for k in range(1, len(c.tokens) + 1)}
    assert sum(c.usage.generated for c in found) == len(prefixes)
    assert sum(c.usage.prompt for c in found) == len(policy.chat.prompt((Message("user", "go"),)))
    close(policy)


def test_greedy_is_the_most_likely_token_at_each_step(checkpoint: Path) -> None:
    policy = HFPolicy(checkpoint)
    request = Request((Message("user", "take key"),), n=7, temperature=0.0, max_tokens=8)
    (only,) = ask(policy, [request])[0]
    assert only.count == 7
    ids = list(policy.chat.prompt(request.messages))
    for token in only.tokens or ():
        with torch.no_grad():
            assert (
                int(policy.engine.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                == token
            )
        ids.append(token)
    close(policy)


def test_end_of_turn_ends_an_answer_and_its_id_is_kept(llama: Path) -> None:
    policy = HFPolicy(llama)
    found = ask(policy, [Request((Message("user", "go"),), n=400, max_tokens=6, seed=2)])[0]
    stopped = [c for c in found if c.finish == "stop"]
    assert stopped
    for c in found:
        assert c.tokens is not None
        assert (c.tokens[-1] == policy.chat.end_of_turn) == (c.finish == "stop")
        assert policy.chat.end_of_turn not in c.tokens[:-1]
        assert (len(c.tokens) == 6) or c.finish == "stop"
        assert c.text == policy.chat.decode(c.tokens)
    close(policy)


def test_stop_strings_cut_text_and_tokens(llama: Path) -> None:
    policy = HFPolicy(llama)
    free = Request((Message("user", "go"),), n=300, max_tokens=6, seed=2)
    held = Request(free.messages, n=300, max_tokens=6, seed=2, stop=(" left", "lam"))
    for c in ask(policy, [held])[0]:
        assert " left" not in c.text
        assert "lam" not in c.text
        if c.tokens is not None and policy.chat.end_of_turn not in c.tokens:
            assert policy.chat.decode(c.tokens) == c.text
            if c.tokens:
                assert c.logprob == pytest.approx(true_logprob(policy, held, c.tokens), abs=2e-4)
    cut = {c.text for c in ask(policy, [held])[0] if c.finish == "stop"}
    whole = [c.text for c in ask(policy, [free])[0] if " left" in c.text and "lamp" not in c.text]
    assert whole
    assert all(t[: t.index(" left")] in cut for t in whole)
    close(policy)


def test_a_prompt_that_does_not_fit_is_context_full_and_the_longest_that_fits_is_answered(
    llama: Path,
) -> None:
    policy = HFPolicy(llama, max_context=40)
    room = 40 - len(policy.chat.prompt((Message("user", "go"),)))
    (found,) = ask(
        policy, [Request((Message("user", "go"),), max_tokens=room, seed=1, temperature=0.0)]
    )
    assert sum(c.count for c in found) == 1
    with pytest.raises(ContextFull, match="context of 40"):
        ask(policy, [Request((Message("user", "go"),), max_tokens=room + 1)])
    close(policy)


def test_an_abandoned_request_frees_its_rows(llama: Path) -> None:
    policy = HFPolicy(llama, max_batch=2)

    async def main() -> list[Completion]:
        long = [
            asyncio.create_task(
                policy.complete(Request((Message("user", "go"),), n=64, max_tokens=400, seed=i))
            )
            for i in range(4)
        ]
        await asyncio.sleep(0.05)
        for task in long:
            task.cancel()
        return await asyncio.wait_for(
            policy.complete(Request((Message("user", "go"),), max_tokens=3, seed=1)), 20
        )

    assert sum(c.count for c in asyncio.run(main())) == 1
    assert not policy.engine._table.busy.any()
    close(policy)


def test_a_failing_model_fails_every_request_with_its_own_error(llama: Path) -> None:
    policy = HFPolicy(llama)

    def broken(**_: object) -> None:
        raise ArithmeticError("boom")

    policy.engine.model.forward = broken
    with pytest.raises(ArithmeticError, match="boom"):
        ask(policy, [Request((Message("user", "go"),), max_tokens=3)])
    with pytest.raises(RuntimeError, match="closed"):
        ask(policy, [Request((Message("user", "go"),), max_tokens=3)])
    close(policy)


def test_closing_fails_what_is_in_flight(llama: Path) -> None:
    policy = HFPolicy(llama, max_batch=1)

    async def main() -> None:
        task = asyncio.create_task(
            policy.complete(Request((Message("user", "go"),), n=200, max_tokens=400, seed=0))
        )
        await asyncio.sleep(0.05)
        await policy.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task

    asyncio.run(main())
