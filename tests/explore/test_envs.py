"""Borrowed environments find their way back: what dies or hangs is replaced, replayed, compared,
and the episode goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from leafe.core import EnvError, Environment, Request, StepResult, Stop, Task, Tree
from leafe.envs import make_env
from leafe.envs.worker import ProcessEnv, _proxy
from leafe.evaluate import evaluate
from leafe.explore import EnvLease, EnvPool, ExploreConfig, ReplayDiverged, SnapshotHandle, explore
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, PromptSet

HOSTED, FORKED = "tests.envs.hosted:Hosted", "tests.envs.hosted:Forked"
PROMPTS = Prompts(PromptSet(name="test", action="plain"))


def with_pool(
    make: Callable[[], Environment], use: Callable[[EnvPool], Awaitable[Any]], timeout: float = 60.0
) -> Any:
    async def main() -> Any:
        pool = EnvPool(make, size=2, timeout=timeout)
        try:
            return await use(pool)
        finally:
            pool.close()

    return asyncio.run(main())


def tree_of(
    make: Callable[[], Environment], actions: list[str], *, timeout: float = 60.0, **settings: Any
) -> tuple[Tree, EnvPool]:
    """One episode of the given actions."""

    def script(request: Request) -> str:
        return actions[sum(m.role == "assistant" for m in request.messages)]

    async def use(pool: EnvPool) -> tuple[Tree, EnvPool]:
        config = ExploreConfig(
            limits={"policy_calls": float(len(actions)), "episodes": 1.0},
            reflect_on_failure=False,
            horizon=len(actions),
            **settings,
        )
        found = await explore(
            ScriptedPolicy(script), pool, pool.facts.tasks("train", 1), PROMPTS, config
        )
        return next(iter(found.trees.values())), pool

    result: tuple[Tree, EnvPool] = with_pool(make, use, timeout)
    return result


def told(tree: Tree) -> list[str]:
    return [t.observation for t in tree.episodes[0].acts]


@pytest.mark.parametrize(("what", "timeout"), [("die once", 60.0), ("hang once", 1.0)])
def test_an_env_that_dies_or_hangs_once_costs_a_replay_and_nothing_else(
    what: str, timeout: float, tmp_path: Path
) -> None:
    actions = ["add", "add", what, "add"]
    broken, pool = tree_of(lambda: make_env(HOSTED, folder=str(tmp_path)), actions, timeout=timeout)
    whole, _ = tree_of(lambda: make_env(HOSTED), actions)
    assert told(broken) == told(whole)
    assert len(set(told(whole))) == 4
    assert broken.episodes[0].stop is Stop.horizon
    assert (broken.episodes[0].replayed, whole.episodes[0].replayed) == (2, 0)
    assert pool.broken == 1
    assert len(list(tmp_path.glob("open-*"))) == 2


def test_an_env_that_always_dies_is_a_typed_stop_and_keeps_what_was_done() -> None:
    tree, pool = tree_of(lambda: make_env(HOSTED), ["add", "die", "add"])
    episode = tree.episodes[0]
    assert episode.stop is Stop.env_error
    assert "died in step (status 9); its last words: the dam broke" in episode.error
    assert len(episode.acts) == 1
    assert episode.replayed == 2, "one step, replayed in two fresh environments"
    assert pool.broken == 3


def test_evaluation_recovers_too(tmp_path: Path) -> None:
    actions = ["add", "die once", "add", "add"]

    def script(request: Request) -> str:
        return actions[sum(m.role == "assistant" for m in request.messages)]

    async def use(pool: EnvPool) -> list[Tree]:
        return await evaluate(
            ScriptedPolicy(script),
            pool,
            pool.facts.tasks("train", 1),
            PROMPTS,
            samples=3,
            horizon=4,
        )

    broken = with_pool(lambda: make_env(HOSTED, folder=str(tmp_path)), use)
    whole = with_pool(lambda: make_env(HOSTED), use)
    assert told(broken[0]) == told(whole[0])
    assert broken[0].episodes[0].count == 3
    assert [t.episodes[0].replayed for t in (broken[0], whole[0])] == [1, 0]


def test_counted_evaluation_parts_by_forks_as_by_replay() -> None:
    """Every sample goes its own way: snapshots are taken where histories part, and freed at the
    end."""

    def script(request: Request) -> Any:
        from leafe.core import Completion

        names = ["add", "add more", "add even more", "no such"]
        return [Completion(names[(i + (request.seed or 0)) % 4]) for i in range(request.n)]

    async def use(pool: EnvPool) -> list[Tree]:
        return await evaluate(
            ScriptedPolicy(script),
            pool,
            pool.facts.tasks("train", 2),
            PROMPTS,
            samples=8,
            horizon=4,
        )

    forks = with_pool(lambda: make_env(FORKED), use)
    replays = with_pool(lambda: make_env(HOSTED), use)
    for a, b in zip(forks, replays, strict=True):
        assert [(told_of(e.acts), e.count, e.stop) for e in a.episodes] == [
            (told_of(e.acts), e.count, e.stop) for e in b.episodes
        ]
    assert sum(e.replayed for t in forks for e in t.episodes) == 0
    assert sum(e.replayed for t in replays for e in t.episodes) > 0
    assert not _proxy._snapshots


def told_of(turns: Any) -> list[tuple[str, str]]:
    return [(t.action, t.observation) for t in turns]


def test_a_snapshot_that_is_gone_is_a_replay() -> None:
    async def use(pool: EnvPool) -> None:
        task = pool.facts.tasks("train", 1)[0]
        replayed = 0

        def count() -> None:
            nonlocal replayed
            replayed += 1

        async with pool.acquire() as env:
            env.on_replay = count
            await env.reset(task, 1)
            await env.step("add")
            await env.step("add")
            held = await env.snapshot()
            after = (await env.step("add")).observation
            await env.restore(held)
            assert (await env.step("add")).observation == after
            assert replayed == 0
            assert isinstance(held.state, int)
            os.kill(_proxy._snapshots[held.state].pid, signal.SIGKILL)
            await env.restore(held)
            assert replayed == 2
            assert (await env.step("add")).observation == after
        async with pool.acquire() as env:
            env.on_replay = count
            await env.restore(SnapshotHandle(held.state, held.trace))
            assert (await env.step("add")).observation == after
            assert replayed == 4
        assert pool.broken == 0

    with_pool(lambda: make_env(FORKED), use)


def test_a_snapshot_that_hangs_is_a_replay_and_costs_no_thread() -> None:
    async def main() -> None:
        pool = EnvPool(lambda: make_env(FORKED), size=1, timeout=0.5)
        task = pool.facts.tasks("train", 1)[0]
        stopped = []
        try:
            async with pool.acquire() as env:
                await env.reset(task, 1)
                await env.step("add")
                for _ in range(3):
                    held = await env.snapshot()
                    after = (await env.step("add")).observation
                    assert isinstance(held.state, int)
                    stopped.append(_proxy._snapshots[held.state].pid)
                    os.kill(stopped[-1], signal.SIGSTOP)
                    await asyncio.wait_for(env.restore(held), 30)
                    assert (await env.step("add")).observation == after
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pool.close()

    asyncio.run(main())


def test_an_env_that_is_slow_to_close_holds_up_nobody() -> None:
    seen = threading.Event()
    heard: list[bool] = []

    class Lingers(Environment):
        made = 0

        def __init__(self) -> None:
            Lingers.made += 1
            self.number = Lingers.made

        def reset(self, task: Task, seed: int) -> str:
            return "hello"

        def step(self, action: str) -> StepResult:
            if self.number == 1:
                raise RuntimeError("the floor gave way")
            return StepResult("well")

        def close(self) -> None:
            if self.number == 1:
                heard.append(seen.wait(20))

    async def use(pool: EnvPool) -> None:
        async def other() -> None:
            while Lingers.made == 1 and not heard:
                await asyncio.sleep(0.01)
                if broken(pool):
                    seen.set()

        async def play() -> None:
            async with pool.acquire() as env:
                await env.reset(Task("t", "lingers", "train", ""), 0)
                assert (await env.step("x")).observation == "well"

        await asyncio.gather(play(), other())

    def broken(pool: EnvPool) -> bool:
        return pool.broken == 1

    with_pool(Lingers, use)
    assert heard == [True]


class Moody(Environment):
    """Says something else every time that it is made, and fails at its second step."""

    name = "moody"
    made = 0
    deterministic = True

    def __init__(self, sure: bool = True) -> None:
        type(self).made += 1
        self.deterministic = sure
        self.number = type(self).made

    def reset(self, task: Task, seed: int) -> str:
        self.steps = 0
        return "hello"

    def step(self, action: str) -> StepResult:
        self.steps += 1
        if self.steps == 2 and self.number < 99:
            raise RuntimeError("the floor gave way")
        return StepResult(f"environment {self.number}")


def steps_of(make: Callable[[], Environment], number: int) -> Any:
    async def use(pool: EnvPool) -> list[str]:
        async with pool.acquire() as env:
            await env.reset(Task("t", "moody", "train", ""), 0)
            return [(await env.step("x")).observation for _ in range(number)]

    return with_pool(make, use)


def test_a_recovery_that_does_not_reproduce_diverges() -> None:
    with pytest.raises(
        ReplayDiverged, match=r"at step 0 the environment said 'environment \d+', not"
    ):
        steps_of(Moody, 2)


def test_an_env_that_is_not_deterministic_is_not_replayed() -> None:
    before = Moody.made
    with pytest.raises(EnvError, match="RuntimeError: the floor gave way"):
        steps_of(lambda: Moody(sure=False), 2)
    assert Moody.made == before + 1


class Sleeper(Environment):
    """Hangs in this process."""

    name = "sleeper"

    def reset(self, task: Task, seed: int) -> str:
        return "zzz"

    def step(self, action: str) -> StepResult:
        time.sleep(1.0 if action == "sleep" else 0.0)
        return StepResult("awake")


def test_hung_threads_do_not_use_the_pool_up() -> None:
    async def use(pool: EnvPool) -> None:
        task = Task("t", "sleeper", "train", "")

        async def hang() -> None:
            async with pool.acquire() as env:
                await env.reset(task, 0)
                with pytest.raises(EnvError, match="no answer within"):
                    await env.step("sleep")

        await asyncio.gather(*(hang() for _ in range(4)))
        async with pool.acquire() as env:
            assert await env.reset(task, 0) == "zzz"
            assert (await env.step("wake")).observation == "awake"
        assert pool.broken >= 12

    with_pool(Sleeper, use, timeout=0.1)


def test_envs_are_made_as_they_are_needed_and_no_more(tmp_path: Path) -> None:
    async def use(pool: EnvPool) -> None:
        task = pool.facts.tasks("train", 1)[0]

        async def play() -> int | None:
            async with pool.acquire() as env:
                await env.reset(task, 0)
                assert isinstance(env.env, ProcessEnv)
                return env.env.pid

        assert len({await play() for _ in range(3)}) == 1, "one at a time: one process"
        assert len(set(await asyncio.gather(*(play() for _ in range(6))))) <= 2

    with_pool(lambda: make_env(HOSTED, folder=str(tmp_path)), use)
    assert 1 <= len(list(tmp_path.glob("open-*"))) <= 2


def test_a_pool_fits_its_envs() -> None:
    heavy = EnvPool.fitting(lambda: make_env(HOSTED), tasks=50, workers=2)
    assert (heavy.size, heavy.calls) == (2, 2)
    heavy.close()
    light = EnvPool.fitting(Sleeper, tasks=50, workers=2)
    assert (light.size, light.calls) == (50, 2)
    assert EnvPool.fitting(lambda: make_env("gates"), tasks=50, workers=2).size == 50


def test_many_light_envs_share_few_threads() -> None:
    """Every task in flight has its environment, though only two calls run at a time."""
    running = most = 0

    class Watched(Sleeper):
        def step(self, action: str) -> StepResult:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.01)
            running -= 1
            return StepResult("ok")

    async def main() -> None:
        pool = EnvPool.fitting(Watched, tasks=10, workers=2)
        inside = 0
        together = asyncio.Event()

        async def play() -> None:
            nonlocal inside
            async with pool.acquire() as env:
                await env.reset(Task("t", "sleeper", "train", ""), 0)
                inside += 1
                if inside == 10:
                    together.set()
                await (
                    together.wait()
                )  # as if ten answers of the policy were awaited, each holding its environment
                await env.step("x")

        await asyncio.wait_for(asyncio.gather(*(play() for _ in range(10))), 60)
        pool.close()

    asyncio.run(main())
    assert most == 2


def test_a_cancelled_borrower_takes_the_process_with_it() -> None:
    async def use(pool: EnvPool) -> None:
        task = pool.facts.tasks("train", 1)[0]
        leased: list[EnvLease] = []

        async def hang() -> None:
            async with pool.acquire() as env:
                leased.append(env)
                await env.reset(task, 0)
                await env.step("hang")

        waiting = asyncio.ensure_future(hang())
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert isinstance(leased[0].env, ProcessEnv)
        assert leased[0].env.pid is None

    with_pool(lambda: make_env(HOSTED), use)
