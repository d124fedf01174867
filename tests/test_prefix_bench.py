"""The prefix-cache model against one that looks everything up, and the bench's requests against
those that an exploration really made."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.prefix_cache import PrefixCache


def naive(
    requests: list[tuple[tuple[int, ...], tuple[int, ...]]], room: int, block: int
) -> list[int]:
    """The same rules over whole prefixes in a plain list; the one to go next stands first."""
    kept: list[tuple[int, ...]] = []
    out = []
    for prompt, answer in requests:
        whole = prompt + answer[: len(answer) - 1]
        mine = [whole[:n] for n in range(block, len(whole) + 1, block)]
        hit = 0
        while hit + block < len(prompt) and prompt[: hit + block] in kept:
            hit += block
        out.append(hit)
        kept = [p for p in kept if p not in mine]
        took = len(mine) + (len(whole) % block > 0)
        kept = kept[max(0, len(kept) + took - room) :] + mine[::-1]
    return out


@pytest.mark.slow
@given(st.data())
def test_it_is_a_block_wise_cache_that_forgets_what_was_used_longest_ago(
    data: st.DataObject,
) -> None:
    block, room = data.draw(st.integers(1, 5)), data.draw(st.integers(8, 30))
    requests: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        earlier = sum(data.draw(st.sampled_from(requests)), ()) if requests else ()
        prompt = earlier[: data.draw(st.integers(0, len(earlier)))] + tuple(
            data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
        )
        answer = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
        if len(prompt) + len(answer) <= room * block:
            requests.append((prompt, answer))
    cache, endless = PrefixCache(room * block, block), PrefixCache(None, block)
    found = [cache.serve(*r) for r in requests]
    assert found == naive(requests, room, block)
    assert [endless.serve(*r) for r in requests] == naive(requests, 10**9, block)
    assert len(cache._known) <= room


def test_a_request_that_does_not_fit_is_refused_and_leaves_the_cache_as_it_was() -> None:
    cache = PrefixCache(64, 16)
    assert cache.serve(range(40), (1,)) == 0
    with pytest.raises(ValueError, match="does not fit 4 blocks"):
        cache.serve(range(70), (1,))
    assert cache.serve(range(40), (1,)) == 32


@pytest.mark.parametrize("scope", ["action", "branch"])
def test_what_is_asked_again_is_what_was_asked(scope: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from bench.prefix import Player, asks_of, in_turn
    from leafe.core import ChatTokens, Message, Request
    from leafe.explore import EnvPool, ExploreConfig, explore
    from leafe.policies.scripted import ScriptedPolicy
    from leafe.prompts import Prompts, load_prompt_set
    from tests.tiny import byte_tokenizer

    player, really = Player(), defaultdict[str, list[tuple[Message, ...]]](list)

    def script(request: Request) -> str:
        really[request.cache_key].append(request.messages)
        return player(request)

    pool = EnvPool(lambda: player.make("sokoban", {"horizon": 6}), size=3)
    prompts = Prompts(load_prompt_set("sokoban"), pool.facts.actions_help)
    config = ExploreConfig(limits={"policy_calls": 25}, stop_when="budget", scope=scope)  # type: ignore[arg-type]
    found = asyncio.run(
        explore(ScriptedPolicy(script), pool, pool.facts.tasks("train", 3, 0), prompts, config)
    )
    pool.close()
    trees = list(found.trees.values())
    chat = ChatTokens(byte_tokenizer())
    again = asks_of(trees, prompts, chat, "append")
    assert [[a.messages for a in mine] for mine in again] == [really[t.task.id] for t in trees]
    assert sum(e.depth > 0 for t in trees for e in t.episodes) > 3

    notes = {turn.note for t in trees for turn in t.reflections}
    for way in ("system", "window"):
        other = asks_of(trees, prompts, chat, way)
        assert [[(a.kind, a.answer) for a in mine] for mine in other] == [
            [(a.kind, a.answer) for a in mine] for mine in again
        ]
        for mine, theirs in zip(again, other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                said = [
                    {
                        n
                        for n in notes
                        if any(n in m.content for m in x.messages if m.role != "assistant")
                    }
                    for x in (a, b)
                ]
                # a window shows the advice at the step at which it is given, wherever the scope
                # ends
                assert said[1] == said[0] or (way == "window" and said[1] < said[0])
                if way == "system":
                    assert not any(
                        n in m.content for n in notes for m in b.messages if m.role == "user"
                    )

    order = [(a.task, a) for a in in_turn(again, 2)]
    assert {t for t, _ in order[:2]} == {0, 1}
    assert [[a for t, a in order if t == i] for i in range(3)] == again
