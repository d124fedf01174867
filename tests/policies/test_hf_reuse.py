"""Reuse of keys and values: a sequence holds what it would have computed, whoever computed it,
counted exactly and within the memory it may take."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from leafe.core import Completion, Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy  # noqa: E402
from leafe.policies.hf._engine import Engine  # noqa: E402
from leafe.policies.hf._jobs import Job, completions  # noqa: E402
from leafe.policies.hf._sequence_table import (  # noqa: E402
    MIN_GAIN,
    HeldPrefix,
    PrefixHit,
    SequenceTable,
)
from tests.tiny import WORDS, tiny_checkpoint  # noqa: E402


class Bench:
    """A table worked on as an engine would, with a record of what was computed into which cell."""

    def __init__(self, limit: int) -> None:
        self.table = SequenceTable(limit)
        self.inside: dict[int, tuple[int, ...]] = {}
        """Cell -> the token that was computed into it, and all before it."""
        self.busy: dict[int, tuple[tuple[int, ...], str]] = {}
        self.held: list[tuple[HeldPrefix, tuple[int, ...], str]] = []

    def compute(self, entry: int, tokens: tuple[int, ...]) -> None:
        s = self.table
        s.allocate(np.array(sorted(self.busy)))
        for i in range(int(s.computed[entry]), len(tokens)):
            self.inside[int(s.kv[entry, i])] = tokens[: i + 1]
        s.computed[entry] = len(tokens)

    def begin(self, tokens: tuple[int, ...], key: str) -> None:
        found = self.table.find(np.array(tokens, np.int32), key)
        assert found is not None, "whatever is known is computed here"
        same_key = max((self.common(tokens, entry) for entry in self.of(key)), default=0)
        anywhere = max(
            (self.common(tokens, entry) for entry in range(len(self.table.computed))), default=0
        )
        assert same_key <= found.length <= anywhere < found.length + MIN_GAIN
        self.put(tokens, key, found)

    def put(self, tokens: tuple[int, ...], key: str, prefix: PrefixHit | HeldPrefix) -> None:
        entry = self.table.acquire(np.array(tokens, np.int32), key, prefix)
        assert entry not in self.busy
        self.busy[entry] = (tokens, key)
        self.compute(entry, tokens)

    def of(self, key: str) -> list[int]:
        return [i for i, k in enumerate(self.table._key) if k == key and self.table.computed[i]]

    def common(self, tokens: tuple[int, ...], entry: int) -> int:
        """By a plain loop."""
        n = 0
        while (
            n < min(len(tokens) - 1, self.table.computed[entry])
            and self.table.tokens[entry, n] == tokens[n]
        ):
            n += 1
        return n

    def check(self) -> None:
        s, pool = self.table, self.table.pool
        holds, pins = [0] * pool.count, [0] * pool.count
        for entry in range(len(s.computed)):
            assert s.busy[entry] == (entry in self.busy)
            assert s.computed[entry] == s.allocated[entry] == s.lengths[entry]
            tokens = tuple(s.tokens[entry, : s.computed[entry]].tolist())
            cells = s.kv[entry, : s.computed[entry]].tolist()
            assert len(set(cells)) == len(cells)
            for i, cell in enumerate(cells):
                assert self.inside[cell] == tokens[: i + 1]
                holds[cell] += 1
                pins[cell] += entry in self.busy
        for cells, tokens, _ in self.held:
            for i, cell in enumerate(cells.tolist()):
                assert self.inside[cell] == tokens[: i + 1]
                holds[cell] += 1
                pins[cell] += 1
        assert pool._holds[1:].tolist() == holds[1:]
        assert pool._pins[1:].tolist() == pins[1:]
        assert sorted(pool._free) == [c for c in range(1, pool.count) if not holds[c]]
        assert pool.pinned == sum(p > 0 for p in pins)
        assert sorted(i for i in s._empty) == [
            i for i in range(len(s.computed)) if not s.computed[i]
        ]
        assert {k: sorted(v) for k, v in s._of_key.items()} == {k: self.of(k) for k in {*s._of_key}}


@settings(max_examples=80)
@given(st.data())
def test_a_cell_holds_what_every_sequence_that_holds_it_would_have_computed(
    data: st.DataObject,
) -> None:
    limit = data.draw(st.integers(30, 400))
    bench, rng, most = Bench(limit), random.Random(data.draw(st.integers(0, 999))), 0
    seen: list[tuple[tuple[int, ...], str]] = []
    for _ in range(data.draw(st.integers(5, 40))):
        what = rng.choice(("begin", "begin", "grow", "end", "end", "fork", "resume", "forget"))
        if what == "begin" and len(bench.busy) < 4:
            tokens, key = (
                rng.choice(seen) if seen and rng.random() < 0.8 else ((), rng.choice("abc "))
            )
            tokens = (
                *tokens[: rng.randint(0, len(tokens))],
                *(rng.randrange(3) for _ in range(rng.randint(1, 60))),
            )
            bench.begin(tokens, key.strip())
            seen.append((tokens, key))
        elif what == "grow" and bench.busy:
            entry = rng.choice([*bench.busy])
            tokens, key = bench.busy[entry]
            more = tuple(rng.randrange(3) for _ in range(rng.randint(1, 5)))
            bench.table.append(entry, more)
            bench.busy[entry] = ((*tokens, *more), key)
            bench.compute(entry, (*tokens, *more))
            seen.append(((*tokens, *more), key))
        elif what == "end" and bench.busy:
            entry = rng.choice([*bench.busy])
            del bench.busy[entry]
            bench.table.release(entry)
        elif what == "fork" and bench.busy:
            entry = rng.choice([*bench.busy])
            bench.held.append((bench.table.fork(entry), *bench.busy[entry]))
        elif what == "resume" and bench.held and len(bench.busy) < 4:
            cells, tokens, key = bench.held.pop(rng.randrange(len(bench.held)))
            bench.put((*tokens, rng.randrange(3)), key, cells)
        elif what == "forget" and bench.held:
            bench.table.release_held(bench.held.pop(rng.randrange(len(bench.held)))[0])
        bench.check()
        most = max(most, bench.table.pool.pinned)
        assert bench.table.pool.count - 1 <= max(limit, most)


def test_a_task_that_is_being_served_keeps_its_branches_before_one_that_is_not() -> None:
    bench = Bench(120)
    parent, other, branch = tuple(range(40)), tuple(range(100, 140)), (*range(20), *range(60, 80))
    for tokens, key in ((parent, "open"), (other, "done"), (branch, "open")):
        bench.begin(tokens, key)
        (entry,) = bench.busy
        bench.busy.clear()
        bench.table.release(entry)
    bench.begin(tuple(range(200, 235)), "new")
    bench.check()
    left = {
        key: max((int(bench.table.computed[s]) for s in bench.of(key)), default=0)
        for key in ("open", "done")
    }
    assert left["open"] == 40
    assert left["done"] < 40
    assert max(bench.common((*parent, 0), s) for s in bench.of("open")) == 40, (
        "the parent's tail is older than what `done` holds, and stays"
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama", scale=0.15)


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def play(policy: HFPolicy, seed: int) -> tuple[list[list[Completion]], list[Request]]:
    """Tasks that grow trees beside each other: turns, reflections, branches with a note, siblings,
    several samples, requests that nobody waits for any more."""
    asked: list[Request] = []
    answers: dict[int, list[Completion]] = {}

    async def ask(rng: random.Random, messages: tuple[Message, ...], key: str) -> list[Completion]:
        nth = len(asked)
        request = Request(
            messages,
            n=rng.choice([1, 1, 1, 6]),
            max_tokens=rng.randint(1, 7),
            seed=rng.randrange(10**6),
            cache_key=key,
        )
        asked.append(request)
        answers[nth] = await policy.complete(request)
        return answers[nth]

    async def task(i: int) -> None:
        rng = random.Random(f"{seed} {i}")
        path = [
            Message("user", "go left " + words(random.Random(seed), 40, 40) + words(rng, 1, 30))
        ]
        for _ in range(4):
            for _ in range(rng.randint(1, 4)):
                (first, *_) = await ask(rng, tuple(path), f"t{i}")
                path += [
                    Message("assistant", first.text, first.tokens),
                    Message("user", words(rng, 1, 12)),
                ]
            if rng.random() < 0.2:
                nobody = asyncio.create_task(
                    policy.complete(
                        Request(tuple(path), n=30, max_tokens=40, seed=1, cache_key=f"t{i}")
                    )
                )
                await asyncio.sleep(0.002)
                nobody.cancel()
            await ask(rng, (*path[:-1], Message("user", path[-1].content + " reflect")), f"t{i}")
            path = path[: 2 * rng.randrange(len(path) // 2) + 1]
            noted = (*path[:-1], Message("user", path[-1].content + " note " + words(rng, 2, 5)))
            siblings = await asyncio.gather(
                *(ask(rng, noted, f"t{i}") for _ in range(rng.randint(1, 3)))
            )
            path += [
                Message("assistant", siblings[0][0].text, siblings[0][0].tokens),
                Message("user", words(rng, 1, 12)),
            ]

    async def main() -> None:
        await asyncio.gather(*(task(i) for i in range(5)))
        while (
            policy.engine._table.busy.any() or policy.engine._waiting
        ):  # what nobody waits for is dropped at the next request
            await policy.complete(Request((Message("user", "go"),), max_tokens=1, seed=0))
        await policy.close()

    asyncio.run(main())
    by_request = sorted(range(len(asked)), key=lambda n: (asked[n].cache_key, n))
    return [answers[n] for n in by_request], [asked[n] for n in by_request]


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_the_same_without_reuse_and_every_computed_token_is_counted(
    checkpoint: Path, seed: int
) -> None:
    tokens = []
    for rows, limit, reuse in ((4, 260, True), (16, 100_000, True), (16, 100_000, False)):
        policy = HFPolicy(checkpoint, max_batch=rows)
        engine = policy.engine
        engine._table.pool.limit = limit
        if not reuse:
            engine._table.find = lambda prompt, key: PrefixHit(0, 0)  # type: ignore[method-assign]
        answers, requests = play(policy, seed)
        tokens.append([[(c.tokens, c.count) for c in a] for a in answers])
        for request, found in zip(requests, answers, strict=True):
            assert sum(c.usage.prompt for c in found) == len(policy.chat.prompt(request.messages))
            assert (sum(c.usage.cached for c in found) > 0) <= reuse
        pool = engine._table.pool
        assert pool.pinned == 0
        assert pool.count - 1 <= max(
            limit, max(len(policy.chat.prompt(r.messages)) + r.max_tokens for r in requests) + 40
        )
        if limit == 100_000 and reuse:
            assert (
                sum(c.usage.cached for a in answers for c in a)
                > sum(c.usage.prompt for a in answers for c in a) / 2
            )
    assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.parametrize(("rows", "limit"), [(3, 200), (32, 100_000)])
def test_prompt_tokens_are_cached_or_computed(checkpoint: Path, rows: int, limit: int) -> None:
    """What the forward passes computed is what the usage says, to the token: also where room is
    short and samples of a request split and wait."""
    rng = random.Random(rows)
    policy = HFPolicy(checkpoint, max_batch=rows)
    policy.engine._table.pool.limit = limit
    before = policy.engine.runner.computed
    shared = words(rng, 50, 50)
    requests = [
        Request(
            (Message("user", shared + words(rng, 1, 30)),),
            n=rng.choice([1, 9]),
            max_tokens=6,
            seed=i,
            cache_key=str(i % 4),
        )
        for i in range(25)
    ]

    async def main() -> list[list[Completion]]:
        found = list(await asyncio.gather(*(policy.complete(r) for r in requests)))
        await policy.close()
        return found

    answers = asyncio.run(main())
    prompts = sum(c.usage.prompt - c.usage.cached for a in answers for c in a)
    # a drawn token is computed once, if an answer goes on after it
    drawn = sum(
        len({c.tokens[:k] for c in a for k in range(1, len(c.tokens or ()))})
        for a in answers
        if all(c.tokens is not None for c in a)
    )
    assert policy.engine.runner.computed - before == prompts + drawn


@pytest.mark.parametrize("rows", [3, 8])
def test_tasks_that_do_not_fit_together_take_turns_instead_of_each_others_cells(
    checkpoint: Path, rows: int
) -> None:
    """Eight tasks of eight turns in the room of three, driven by hand: far from each history being
    computed at every step."""
    tasks, turns = 8, 8
    computed = {}
    for limit in (700, 100_000):
        policy = HFPolicy(checkpoint, max_batch=rows)
        engine, rng = policy.engine, random.Random(0)
        engine._thread = threading.current_thread()
        engine._table.pool.limit = limit
        done: list[Job] = []
        engine._deliver = done.extend

        def ask(i: int, prompt: tuple[int, ...], engine: Engine = engine) -> None:
            engine.submit(
                Job(
                    Request((), max_tokens=3, seed=i, cache_key=str(i)), prompt, i, i, lambda: False
                )
            )

        for i in range(tasks):
            ask(i, tuple(rng.randrange(6, 28) for _ in range(100)))
        answered = [0] * tasks
        total = 0
        with torch.inference_mode():
            while min(answered) < turns:
                assert engine._collect()
                engine._iterate()
                for job in done:
                    (c,) = completions(job)
                    total += c.usage.prompt - c.usage.cached
                    answered[job.receiver] += 1
                    if answered[job.receiver] < turns:
                        ask(
                            job.receiver,
                            (
                                *job.prompt,
                                *(c.tokens or ()),
                                *(rng.randrange(6, 28) for _ in range(10)),
                            ),
                        )
                done.clear()
        engine._thread = None
        assert answered == [turns] * tasks
        assert engine._table.pool.pinned == 0
        assert engine._table.pool.count - 1 <= limit
        computed[limit] = total
    assert computed[100_000] == tasks * (100 + 10 * (turns - 1)) + tasks * (
        turns - 1
    )  # the last token of an answer is computed with the next prompt
    assert computed[700] < 1.6 * computed[100_000]  # in turn, by age alone: 6.6 times


def test_a_branch_takes_room_for_its_own_tokens_alone(checkpoint: Path) -> None:
    policy = HFPolicy(checkpoint, max_batch=8)
    engine, rng = policy.engine, random.Random(2)

    def stored() -> int:
        return engine._table.pool.count - 1 - engine._table.pool.free

    async def main() -> None:
        path: tuple[Message, ...] = (Message("user", words(rng, 200, 200)),)
        for _ in range(4):
            (c,) = await policy.complete(Request(path, max_tokens=3, seed=1, cache_key="t"))
            path = (
                *path,
                Message("assistant", c.text, c.tokens),
                Message("user", words(rng, 10, 10)),
            )
        (c,) = await policy.complete(Request(path, max_tokens=3, seed=1, cache_key="t"))
        whole = stored()
        assert whole == c.usage.prompt + len(c.tokens or ()) - 1
        noted = (*path[:4], Message("user", path[4].content + " note go left"))
        siblings = await asyncio.gather(
            *(
                policy.complete(Request(noted, max_tokens=3, seed=i, cache_key="t"))
                for i in range(6)
            )
        )
        ahead = (
            len(policy.chat.prompt(path[:5])) - 2
        )  # without the marks that end the message and begin the answer
        assert all(s[0].usage.cached >= ahead for s in siblings)
        new = sum(
            s[0].usage.prompt - s[0].usage.cached + len(s[0].tokens or ()) - 1 for s in siblings
        )
        assert stored() - whole == new <= 6 * (5 + 2)
        (back,) = await policy.complete(Request(path, max_tokens=3, seed=9, cache_key="t"))
        assert back.usage.cached == back.usage.prompt - 1, "the parent's own tail is there still"
        await policy.close()

    asyncio.run(main())
