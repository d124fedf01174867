"""A bounded set of environments that coroutines borrow, each of which finds its way back: where an
environment fails, another is brought to the same point.

Quick environments are called in the event loop, all others in threads (one that lives in a process
of its own waits there for its answer). An environment that
raises, dies or outlasts `timeout` seconds is thrown away, a fresh one is reset and the actions so
far are replayed, every observation compared, and the call is
made again, `RETRIES` times. An environment that is not deterministic cannot be replayed: there the
failure is the episode's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from leafe.core import (
    EnvError,
    Environment,
    SnapshotGone,
    StepResult,
    Task,
    Turn,
    UserError,
    observation_hash,
)
from leafe.core.answers import check_facts, observation_text, step_result
from leafe.explore._waits import Waits
from leafe.prompts import cut_middle

T = TypeVar("T")

RETRIES = 2
"""Fresh environments for one call, after which its failure ends the episode."""


class Diverged(Exception):
    """A replay gave another observation than the first time."""


@dataclass(frozen=True, slots=True)
class ActionTrace:
    """A point in a task: from the reset, through actions, with what the environment said after
    each."""

    task: Task
    seed: int
    first: str | None
    """o_0; None where it is not known yet, and whatever reset says is right."""
    steps: tuple[tuple[str, str], ...] = ()
    """(action, observation)."""

    @staticmethod
    def along(task: Task, seed: int, first: str | None, turns: Sequence[Turn]) -> ActionTrace:
        return ActionTrace(task, seed, first, tuple((t.action, t.observation) for t in turns))


@dataclass(frozen=True, slots=True)
class SnapshotHandle:
    """A snapshot, and the path that leads to the same state where the snapshot is gone."""

    state: object
    path: ActionTrace


def _nothing() -> None:
    pass


class EnvLease:
    """One environment, awaited. Borrowed from a `EnvPool` by one coroutine at a time. `on_replay`
    is told of every replayed step."""

    def __init__(self, env: Environment, pool: EnvPool) -> None:
        self.env = env
        self.broken = False
        self.on_replay: Callable[[], None] = _nothing
        self._pool = pool
        self._path: ActionTrace | None = None

    async def reset(self, task: Task, seed: int) -> str:
        self._path = None
        first = await self._again(lambda: self._reset(task, seed))
        self._path = ActionTrace(task, seed, first)
        return first

    async def step(self, action: str) -> StepResult:
        result = await self._again(lambda: self._step(action))
        self._went(action, result.observation)
        return result

    async def follow(self, path: ActionTrace) -> str:
        """Reset and replay, compared; returns o_0. `Diverged` where the environment says something
        else."""
        if path.first is None and not path.steps:
            return await self.reset(path.task, path.seed)
        self._path = path
        await self._again(self._replay)
        assert self._path.first is not None
        return self._path.first

    async def snapshot(self) -> SnapshotHandle:
        state = await self._again(lambda: self._call("snapshot", self.env.snapshot))
        assert self._path is not None
        return SnapshotHandle(state, self._path)

    async def restore(self, held: SnapshotHandle) -> None:
        """The held state; by replay where the snapshot is gone or the environment fails."""
        try:
            await self._call("restore", self.env.restore, held.state)
            self._path = held.path
        except SnapshotGone:
            await self.follow(held.path)
        except EnvError:
            if not self.env.deterministic:
                raise
            await self.follow(held.path)

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt; where the environment fails in it, once more in a fresh one that stands at
        the same point."""
        for left in reversed(range(RETRIES + 1)):
            try:
                if self.broken:
                    await self._renew()
                    if attempt != self._replay and self._path is not None:
                        await self._replay()
                return await attempt()
            except EnvError:
                if not left or (self._path is not None and not self.env.deterministic):
                    raise
        raise AssertionError("not reached")

    async def _renew(self) -> None:
        if self.env.quick:
            self._pool.discard(self.env)
        else:  # it may take its time
            self._pool.broken += 1
            await asyncio.to_thread(_close, self.env)
        self.env = await self._pool.fresh()
        self.broken = False

    async def _replay(self) -> None:
        path = self._path
        assert path is not None
        first = await self._reset(path.task, path.seed)
        if path.first is not None and observation_hash(first) != observation_hash(
            self._pool.short(path.first)
        ):
            raise Diverged(
                f"after reset the environment said {first[:120]!r}, not {path.first[:120]!r}"
            )
        for at, (action, observation) in enumerate(path.steps):
            said = (await self._step(action)).observation
            self.on_replay()
            if observation_hash(said) != observation_hash(self._pool.short(observation)):
                raise Diverged(
                    f"at step {at} the environment said {said[:120]!r}, not {observation[:120]!r}"
                )

    def _went(self, action: str, observation: str) -> None:
        path = self._path
        if path is not None:
            self._path = ActionTrace(
                path.task, path.seed, path.first, (*path.steps, (action, observation))
            )

    async def _reset(self, task: Task, seed: int) -> str:
        return self._cut(
            self._plain(observation_text, await self._call("reset", self.env.reset, task, seed))
        )

    async def _step(self, action: str) -> StepResult:
        result = self._plain(step_result, await self._call("step", self.env.step, action))
        short = self._cut(result.observation)
        return result if short is result.observation else replace(result, observation=short)

    def _cut(self, observation: str) -> str:
        short = self._pool.short(observation)
        self._pool.cut += short is not observation
        return short

    def _plain(self, taken: Callable[[object, str], T], answer: object) -> T:
        try:
            return taken(answer, self.env.name)
        except EnvError:
            self.broken = True
            raise

    def _fail(self, what: str, why: str) -> EnvError:
        self.broken = True
        return EnvError(f"The environment {self.env.name} failed in {what}: {why}.")

    async def _call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        began = time.perf_counter()
        try:
            if self.env.quick:
                return function(*args)
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._pool.threads, function, *args),
                self._pool.timeout,
            )
        except TimeoutError as error:
            self._pool.lost_a_thread(self.env)
            raise self._fail(what, f"no answer within {self._pool.timeout:g} s") from error
        except SnapshotGone:
            raise
        except UserError:
            self.broken = True
            raise
        except EnvError:
            self.broken = True
            raise
        # an environment is foreign code: whatever it raises ends the episode, not the run
        except Exception as error:
            raise self._fail(
                what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        finally:
            self._pool.waits.envs += time.perf_counter() - began


class EnvPool:
    """Makes environments as they are needed, at most `size`, and hands them out again. `timeout` is
    in seconds a call; `threads` bounds the calls at a time
    into environments that are not quick (None: as many as environments); of an observation longer
    than `max_observation` characters (None: there is no bound) the middle
    is cut out, which the text says itself."""

    def __init__(
        self,
        make: Callable[[], Environment],
        size: int = 8,
        timeout: float = 120.0,
        threads: int | None = None,
        max_observation: int | None = None,
    ) -> None:
        self._make = make
        self.size = size
        self.timeout = timeout
        self.calls = min(size, threads) if threads is not None else size
        self.waits = Waits()
        self._idle: list[Environment] = []
        self._first: Environment | None = None
        self._slots = asyncio.Semaphore(size)
        self._threads: ThreadPoolExecutor | None = None
        self.broken = 0
        """Environments thrown away after a failure."""
        self.max_observation = max_observation
        self.cut = 0
        """Observations that were cut, replayed ones included."""

    @staticmethod
    def fitting(
        make: Callable[[], Environment],
        tasks: int,
        workers: int,
        timeout: float = 120.0,
        max_observation: int | None = None,
    ) -> EnvPool:
        """For so many tasks in flight: an environment for each, or at most `workers` where an
        environment is heavy; at most `workers` calls at a time where they block."""
        first = _made(make)
        pool = EnvPool(
            make,
            min(tasks, workers) if first.heavy else tasks,
            timeout,
            None if first.quick else workers,
            max_observation,
        )
        pool._first = first
        pool._idle.append(first)
        return pool

    def short(self, observation: str) -> str:
        """The observation as the policy sees it: the same object where it is short enough."""
        return (
            observation
            if self.max_observation is None
            else cut_middle(observation, self.max_observation)
        )

    @property
    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.calls, thread_name_prefix="env")
        return self._threads

    @property
    def facts(self) -> Environment:
        """An environment to read class facts, horizon and tasks from; it is one of the pool's."""
        if self._first is None:
            self._first = _made(self._make)
            self._idle.append(self._first)
        return self._first

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[EnvLease]:
        """An environment for the length of the block; waits while all are lent. EnvError where none
        can be made."""
        with self.waits.on("slots"):
            await self._slots.acquire()
        try:
            quick = self.facts.quick  # the first environment is made here, where there was none
            leased = EnvLease(self._idle.pop() if self._idle else await self._born(), self)
            try:
                yield leased
            except asyncio.CancelledError:
                leased.broken = not quick  # its thread may still be inside the environment
                raise
            finally:
                leased.on_replay = (
                    _nothing  # it led back to the episode, and kept it until the next collection
                )
                if leased.broken:
                    self.discard(leased.env)
                else:
                    self._idle.append(leased.env)
        finally:
            self._slots.release()

    async def _born(self) -> Environment:
        for _ in range(RETRIES):
            with contextlib.suppress(EnvError):
                return await self.fresh()
        return await self.fresh()

    async def fresh(self) -> Environment:
        """A new environment. EnvError where none can be made."""
        if self.facts.quick:
            return self._make()
        return await asyncio.get_running_loop().run_in_executor(
            self.threads, self._make
        )  # it may start a process

    def discard(self, env: Environment) -> None:
        self.broken += 1
        _close(env)

    def lost_a_thread(self, env: Environment) -> None:
        """A call into this environment hangs. One that lives in a process of its own is killed,
        which frees the thread; else the thread is left behind."""
        if not env.process:
            self.threads.shutdown(wait=False)
            self._threads = None

    def release(self, held: Iterable[SnapshotHandle]) -> None:
        """These snapshots are not needed any more."""
        if self._first is not None and type(self._first).release is not Environment.release:
            for each in held:
                with contextlib.suppress(Exception):  # freeing is a courtesy
                    self._first.release(each.state)

    def close(self) -> None:
        """Close every idle environment and let go of the threads."""
        for env in self._idle:
            _close(env)
        self._idle.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


def _made(make: Callable[[], Environment]) -> Environment:
    """An environment; one whose process dies at its start is made again."""
    for _ in range(RETRIES):
        with contextlib.suppress(EnvError):
            return check_facts(make())
    return check_facts(make())


def _close(env: Environment) -> None:
    with contextlib.suppress(Exception):  # it is thrown away whatever it says
        env.close()
