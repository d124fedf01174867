"""Several endpoints: where requests go, and that none is lost or answered twice when servers fail,
lag or come back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Message, PolicyError, Request, UserError
from leafe.policies.http import HTTPPolicy, _pool
from leafe.policies.http._client import HTTPClient
from leafe.policies.http._endpoint import Endpoint
from tests.faulty_server import FaultyServer, hasty, until

T = TypeVar("T")


def run(
    work: Callable[[HTTPPolicy], Awaitable[T]], servers: list[str], **options: Any
) -> tuple[T, HTTPPolicy]:
    async def go() -> tuple[T, HTTPPolicy]:
        policy = HTTPPolicy(
            servers, "mock", **({"backoff_s": 0.005, "retries": 3, "api_key_env": None} | options)
        )
        try:
            return await work(policy), policy
        finally:
            await policy.close()

    return asyncio.run(go())


def request(task: str, turn: int = 0) -> Request:
    return Request((Message("user", f"{task}, turn {turn}"),), seed=turn, cache_key=task)


@contextlib.contextmanager
def serving(count: int, **options: Any) -> Iterator[list[FaultyServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FaultyServer(**options)) for _ in range(count)]


def urls(servers: list[FaultyServer]) -> list[str]:
    return [s.base_url for s in servers]


def tasks_of(server: FaultyServer) -> Counter[str]:
    return Counter(b["messages"][0]["content"].partition(",")[0] for b in server.bodies)


async def turns(policy: HTTPPolicy, tasks: int, count: int) -> dict[tuple[str, int], str]:
    """Every task takes its turns one after another, all tasks at a time."""
    out: dict[tuple[str, int], str] = {}

    async def play(task: str) -> None:
        for turn in range(count):
            (answer,) = await policy.complete(request(task, turn))
            out[task, turn] = answer.text

    await asyncio.gather(*(play(f"task {i}") for i in range(tasks)))
    return out


# --- affinity


def pool(names: list[str]) -> _pool.EndpointPool:
    stats: Counter[str] = Counter()
    return _pool.EndpointPool(
        [Endpoint(f"http://{n}/v1", HTTPClient(None), 1.0, stats) for n in names],
        stats,
        retries=0,
        backoff_s=0.1,
        concurrency=9,
    )


def test_a_task_stays_with_its_server_and_tasks_are_spread() -> None:
    with serving(3) as servers:
        _, policy = run(lambda p: turns(p, 30, 4), urls(servers))
        seen = [tasks_of(s) for s in servers]
        assert policy.stats["spilled"] == 0
        assert sorted(set().union(*seen)) == sorted(f"task {i}" for i in range(30))
        assert sum(len(s) for s in seen) == 30
        assert all(seen)
        assert all(n == 4 for s in seen for n in s.values())


@given(st.integers(2, 12), st.text(min_size=1, max_size=20), st.integers(0, 11))
def test_a_server_that_is_taken_away_moves_only_its_own_tasks(
    count: int, key: str, gone: int
) -> None:
    names = [f"host{i}:8000" for i in range(count)]
    before = [e.base_url for e in pool(names)._ranked(key)]
    left = [n for i, n in enumerate(names) if i != gone % count]
    after = [e.base_url for e in pool(left[::-1])._ranked(key)]
    assert after == [url for url in before if url != f"http://{names[gone % count]}/v1"]


def test_load_is_bounded_by_the_stated_share() -> None:
    some = pool([f"h{i}:1" for i in range(4)])
    for i in range(400):
        endpoint = some._pick("one task and no other", set())
        endpoint.in_flight += 1
        assert endpoint.in_flight <= max(16, 1.5 * (i + 1) / 4 + 1)
    assert some.stats["spilled"] > 0
    assert some._pick("one task and no other", set()) in some._ranked("one task and no other")[:4]
    few = pool(["a:1", "b:1"])
    for _ in range(16):
        few._pick("t", set()).in_flight += 1
    assert sorted(e.in_flight for e in few.endpoints) == [0, 16]
    assert few.stats["spilled"] == 0


def test_requests_without_a_key_go_where_least_is_to_do() -> None:
    some = pool(["a:1", "b:1", "c:1"])
    for _ in range(9):
        some._pick("", set()).in_flight += 1
    assert [e.in_flight for e in some.endpoints] == [3, 3, 3]


# --- servers that fail


@pytest.mark.parametrize("fault", ["500", "reset", "garbage", "hang"])
def test_what_one_server_fails_at_another_does_without_a_wait(fault: str) -> None:
    with serving(1) as (good,), serving(1, rates={fault: 1.0}) as (bad,):

        async def go(policy: HTTPPolicy) -> dict[tuple[str, int], str]:
            if fault == "hang":
                hasty(policy._endpoints[0], 99)
            return await turns(policy, 8, 1)

        got, policy = run(go, urls([bad, good]), backoff_s=60.0, retries=1)
        assert len(got) == 8
        assert len(good.bodies) == 8
        assert policy.stats["failed_over"] == policy.stats["retries"] > 0
        assert policy.stats["retries"] == len(bad.bodies) or fault == "hang"
        assert policy.stats["given_up"] == 0


def test_a_dead_server_is_taken_out_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr(_pool.asyncio, "sleep", lambda s: real(min(s, 0.02)))
    with serving(2) as (first, second):
        dead = FaultyServer(port=second.port)

        async def go(policy: HTTPPolicy) -> list[int]:
            await turns(policy, 12, 2)
            counts = [len(second.bodies)]
            second.__exit__()
            await turns(policy, 12, 2)
            counts.append(len(second.bodies))
            assert policy.stats["taken_out"] == 1
            lost = policy.stats["connection"]
            await turns(policy, 12, 2)
            assert policy.stats["connection"] == lost  # nothing more was sent there, only probes
            with dead:
                while not policy.stats["brought_back"]:
                    await real(0.02)
                await turns(policy, 12, 2)
                counts.append(len(dead.bodies))
            return counts

        counts, _ = run(go, urls([first, second]))
        assert counts[0] == counts[1] == counts[2] > 0  # its own tasks came back to it
        assert len(first.bodies) + len(second.bodies) + len(dead.bodies) == 4 * 24


def test_a_server_that_is_up_and_not_healthy_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr(_pool.asyncio, "sleep", lambda s: real(min(s, 0.01)))
    with serving(1) as (good,), serving(1, rates={"503": 1.0}, healthy=False) as (bad,):

        async def go(policy: HTTPPolicy) -> None:
            await turns(policy, 20, 1)
            while not policy.stats["taken_out"]:
                await turns(policy, 20, 1)
            seen = len(bad.bodies)
            await real(0.1)
            await turns(policy, 20, 1)
            assert len(bad.bodies) == seen
            bad.healthy = True
            while not policy.stats["brought_back"]:
                await real(0.01)

        run(go, urls([good, bad]))


def test_all_servers_down_is_one_sentence_after_bounded_tries() -> None:
    with serving(2) as servers:
        addresses = urls(servers)
    with pytest.raises(
        PolicyError,
        match=(
            r"of 2 servers\) gave no answer after 4 tries: the connection failed \(Connection "
            r"refused\)\.$"
        ),
    ):
        run(lambda p: p.complete(request("t")), addresses)


def test_check_goes_on_without_the_absent_and_not_without_all() -> None:
    with serving(2) as (one, two):
        gone = two.base_url
    with serving(1) as (one,):

        async def go(policy: HTTPPolicy) -> dict[tuple[str, int], str]:
            with pytest.warns(
                UserWarning, match=r"Connection refused\)\. It is left out until it answers"
            ):
                await policy.check()
            before = policy.stats["connection"]
            got = await turns(policy, 9, 1)
            assert policy.stats["connection"] == before
            return got

        assert len(run(go, [one.base_url, gone])[0]) == 9
    with pytest.raises(UserError, match="start the server or correct base_url"):
        run(lambda p: p.check(), [one.base_url, gone])


def test_check_names_the_server_that_serves_another_model() -> None:
    with serving(1) as (good,), serving(1, models=["other"]) as (odd,):
        with pytest.raises(
            UserError, match=r"refuses model 'mock' \(it serves 'other'\)"
        ) as raised:
            run(lambda p: p.check(), urls([good, odd]))
        assert odd.base_url in str(raised.value)


def test_faults_by_chance_on_every_server_change_no_sample() -> None:
    rates = {"429": 0.05, "500": 0.05, "garbage": 0.05, "reset": 0.05, "partial": 0.05}
    with serving(3, rates=rates, seed=3) as faulty, serving(1) as calm:
        got, policy = run(lambda p: turns(p, 30, 3), urls(faulty), retries=12)
        assert got == run(lambda p: turns(p, 30, 3), urls(calm))[0]
        assert policy.stats["retries"] > 5
        assert policy.stats["given_up"] == 0
        report = policy.report()
        assert sum(r["requests"] for r in report) == policy.stats["requests"]
        assert policy.stats["requests"] + sum(r["renewed"] for r in report) == sum(
            len(s.bodies) for s in faulty
        )


# --- deadlines


def test_a_deadline_holds_over_all_tries() -> None:
    with serving(1, rates={"500": 1.0}) as servers:
        with pytest.raises(PolicyError, match=r"within the deadline of 2 s, retries included\.$"):
            run(
                lambda p: p.complete(request("t")),
                urls(servers),
                deadline_s=2.0,
                retries=10**6,
                backoff_s=0.01,
            )
        assert len(servers[0].bodies) >= 1


def test_a_cancelled_caller_leaves_no_request_behind() -> None:
    with serving(2, rates={"hang": 1.0}) as servers:

        async def go(policy: HTTPPolicy) -> None:
            going = asyncio.ensure_future(policy.complete(request("t")))
            await until(lambda: sum(len(s.bodies) for s in servers) == 1)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            assert sum(e.in_flight for e in policy._pool.endpoints) == 0
            await until(lambda: sum(s.cancelled for s in servers) == 1)

        run(go, urls(servers))


def test_restarts_and_faults_of_every_kind_change_no_answer() -> None:
    rates = {
        "429": 0.03,
        "500": 0.03,
        "garbage": 0.03,
        "reset": 0.03,
        "partial": 0.03,
        "hang": 0.005,
        "html": 0.02,
        "slow": 0.01,
    }
    servers = [FaultyServer(rates=rates, seed=i, latency_s=0.004).__enter__() for i in range(3)]
    over = threading.Event()

    def storm() -> None:
        chance = random.Random(0)
        while not over.wait(chance.uniform(0.1, 0.4)):
            i = chance.randrange(3)
            servers[i].__exit__()
            time.sleep(chance.uniform(0.0, 0.5))
            servers[i] = FaultyServer(
                rates=rates, seed=i, latency_s=0.004, port=servers[i].port
            ).__enter__()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        options = {"retries": 50, "timeout_s": 5.0, "backoff_s": 0.02}
        got, policy = run(lambda p: turns(p, 100, 12), urls(servers), **options)
    finally:
        over.set()
        thread.join()
        for server in servers:
            server.__exit__()
    with serving(1) as calm:
        assert got == run(lambda p: turns(p, 100, 12), urls(calm))[0]
    assert policy.stats["given_up"] == 0
    assert policy.stats["retries"] > 50
    assert [e.in_flight for e in policy._pool.endpoints] == [0, 0, 0]
