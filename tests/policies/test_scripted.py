from __future__ import annotations

import asyncio
import time

import pytest

from leafe.core import Completion, Message, Policy, Request
from leafe.policies.scripted import ScriptedPolicy

ASKED = Request((Message("user", "one two three"),), n=4, seed=7)


def test_one_text_stands_for_all_samples_and_is_charged_once() -> None:
    policy = ScriptedPolicy(lambda r: f"seed {r.seed}")
    assert isinstance(policy, Policy)
    (found,) = asyncio.run(policy.complete(ASKED))
    assert (found.text, found.count, found.usage.prompt, found.usage.generated) == (
        "seed 7",
        4,
        3,
        2,
    )
    assert policy.calls == 1


def test_completions_are_handed_on_and_must_sum_to_n() -> None:
    good = [Completion("a", 3), Completion("b", 1)]
    assert asyncio.run(ScriptedPolicy(lambda r: good).complete(ASKED)) == good
    with pytest.raises(ValueError, match="3 samples where 4"):
        asyncio.run(ScriptedPolicy(lambda r: good[:1]).complete(ASKED))


def test_latency_does_not_block_others() -> None:
    policy = ScriptedPolicy(lambda r: "x", latency=0.2)
    order: list[str] = []

    async def main() -> None:
        async def ask() -> None:
            await policy.complete(ASKED)
            order.append("answered")

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        order.append("free")
        await task

    began = time.monotonic()
    asyncio.run(main())
    assert order == ["free", "answered"]
    assert time.monotonic() - began >= 0.19
