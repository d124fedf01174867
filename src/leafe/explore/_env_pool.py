"""A bounded set of environments that coroutines acquire. Where one fails, another is brought to the
same point.

Quick environments are called in the event loop, all others in threads (one that lives in a process
of its own waits there for its answer). An environment that raises, dies or outlasts the timeout is
discarded; a fresh one is reset, the actions so far are replayed with every observation compared,
and the call is made again, at most `RETRIES` times. An environment that is not deterministic cannot
be replayed: there the failure ends the episode.
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


class ReplayDiverged(Exception):
    """A replay gave another observation than the first time."""


@dataclass(frozen=True, slots=True)
class ActionTrace:
    """A point in a task: the reset, then actions with the observation after each."""

    task: Task
    seed: int
    first_observation: str | None
    """o_0; None where it is not known yet: then any is accepted."""
    steps: tuple[tuple[str, str], ...] = ()
    """(action, observation)."""

    @staticmethod
    def of(
        task: Task, seed: int, first_observation: str | None, turns: Sequence[Turn]
    ) -> ActionTrace:
        """The trace of these act turns."""
        return ActionTrace(
            task, seed, first_observation, tuple((t.action, t.observation) for t in turns)
        )


@dataclass(frozen=True, slots=True)
class SnapshotHandle:
    """A snapshot, and the trace to the same state where the snapshot is gone."""

    state: object
    trace: ActionTrace


def _ignore() -> None:
    pass


class EnvLease:
    """One environment, awaited; acquired from an `EnvPool` by one coroutine at a time.

    Every method raises EnvError where the environment fails for good, and ReplayDiverged where a
    fresh environment does not repeat the observations.
    """

    def __init__(
        self, env: Environment, pool: EnvPool, on_replay: Callable[[], None] = _ignore
    ) -> None:
        self.env = env
        self.broken = False
        """The environment failed: it is discarded."""
        self.on_replay = on_replay
        """Called after every replayed step."""
        self._pool = pool
        self._trace: ActionTrace | None = None

    async def reset(self, task: Task, seed: int) -> str:
        """Start the task; returns o_0."""
        self._trace = None
        first = await self._retried(lambda: self._reset(task, seed))
        self._trace = ActionTrace(task, seed, first)
        return first

    async def step(self, action: str) -> StepResult:
        """Take one action."""
        result = await self._retried(lambda: self._step(action))
        if self._trace is not None:
            steps = (*self._trace.steps, (action, result.observation))
            self._trace = replace(self._trace, steps=steps)
        return result

    async def replay(self, trace: ActionTrace) -> str:
        """Reset and take the trace's actions again, every observation compared; returns o_0."""
        if trace.first_observation is None and not trace.steps:
            return await self.reset(trace.task, trace.seed)
        self._trace = trace
        await self._retried(self._replay)
        assert self._trace.first_observation is not None
        return self._trace.first_observation

    async def snapshot(self) -> SnapshotHandle:
        """The present state, to return to."""
        state = await self._retried(lambda: self._call("snapshot", self.env.snapshot))
        assert self._trace is not None
        return SnapshotHandle(state, self._trace)

    async def restore(self, snapshot: SnapshotHandle) -> None:
        """Return to a snapshot's state; by replay where it is gone or the environment fails."""
        try:
            await self._call("restore", self.env.restore, snapshot.state)
            self._trace = snapshot.trace
        except EnvError as error:
            if not isinstance(error, SnapshotGone) and not self.env.deterministic:
                raise
            await self.replay(snapshot.trace)

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt; where the environment fails, again in a fresh one at the same point."""
        for left in reversed(range(RETRIES + 1)):
            try:
                if self.broken:
                    await self._renew()
                    if attempt != self._replay and self._trace is not None:
                        await self._replay()
                return await attempt()
            except EnvError:
                if not left or (self._trace is not None and not self.env.deterministic):
                    raise
        raise AssertionError("not reached")

    async def _renew(self) -> None:
        self._pool.broken += 1
        if self.env.quick:
            _close(self.env)
        else:  # closing may take a while
            await asyncio.to_thread(_close, self.env)
        self.env = await self._pool.fresh()
        self.broken = False

    async def _replay(self) -> None:
        trace = self._trace
        assert trace is not None
        first = await self._reset(trace.task, trace.seed)
        if trace.first_observation is not None:
            self._compare("after reset", first, trace.first_observation)
        for at, (action, observation) in enumerate(trace.steps):
            result = await self._step(action)
            self.on_replay()
            self._compare(f"at step {at}", result.observation, observation)

    def _compare(self, where: str, seen: str, expected: str) -> None:
        if observation_hash(seen) != observation_hash(self._pool.shorten(expected)):
            raise ReplayDiverged(
                f"{where} the environment said {seen[:120]!r}, not {expected[:120]!r}"
            )

    async def _reset(self, task: Task, seed: int) -> str:
        answer = await self._call("reset", self.env.reset, task, seed)
        return self._shorten(self._validated(observation_text, answer))

    async def _step(self, action: str) -> StepResult:
        answer = await self._call("step", self.env.step, action)
        result = self._validated(step_result, answer)
        short = self._shorten(result.observation)
        return result if short is result.observation else replace(result, observation=short)

    def _shorten(self, observation: str) -> str:
        short = self._pool.shorten(observation)
        self._pool.cut += short is not observation
        return short

    def _validated(self, validate: Callable[[object, str], T], answer: object) -> T:
        try:
            return validate(answer, self.env.name)
        except EnvError:
            self.broken = True
            raise

    async def _call(self, method: str, function: Callable[..., T], *args: Any) -> T:
        began = time.perf_counter()
        try:
            if self.env.quick:
                return function(*args)
            return await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._pool.threads, function, *args),
                self._pool.timeout,
            )
        except SnapshotGone:
            raise
        except (UserError, EnvError):
            self.broken = True
            raise
        # an environment is foreign code: whatever it raises ends the episode, not the run
        except Exception as error:
            self.broken = True
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if isinstance(error, TimeoutError):
                self._pool.abandon_thread(self.env)
                why = f"no answer within {self._pool.timeout:g} s"
            raise EnvError(f"The environment {self.env.name} failed in {method}: {why}.") from error
        finally:
            self._pool.waits.envs += time.perf_counter() - began


class EnvPool:
    """Makes environments as they are needed, and hands them out again."""

    def __init__(
        self,
        make: Callable[[], Environment],
        size: int = 8,
        timeout: float = 120.0,
        threads: int | None = None,
        max_observation: int | None = None,
    ) -> None:
        """An empty pool.

        Args:
            make: Makes one environment; always of the same kind and options.
            size: Most environments at a time.
            timeout: Seconds for one call into an environment.
            threads: Most calls at a time into environments that are not quick. None: `size`.
            max_observation: Characters; from the middle of a longer observation text is cut out,
                and a note stands in its place. None: no limit.
        """
        self._make = make
        self.size = size
        self.timeout = timeout
        self.calls = min(size, threads) if threads is not None else size
        self.waits = Waits()
        self._free: list[Environment] = []
        self._first: Environment | None = None
        self._slots = asyncio.Semaphore(size)
        self._threads: ThreadPoolExecutor | None = None
        self.broken = 0
        """Environments discarded after a failure."""
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
        """A pool for so many tasks in flight.

        It holds an environment for each task, or at most `workers` where an environment is heavy.
        At most `workers` calls run at a time where calls block.
        """
        first = _made(make)
        size = min(tasks, workers) if first.heavy else tasks
        pool = EnvPool(make, size, timeout, None if first.quick else workers, max_observation)
        pool._first = first
        pool._free.append(first)
        return pool

    def shorten(self, observation: str) -> str:
        """The observation as the policy sees it: the same object where it is short enough."""
        if self.max_observation is None:
            return observation
        return cut_middle(observation, self.max_observation)

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where environments that are not quick are called."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.calls, thread_name_prefix="env")
        return self._threads

    @property
    def facts(self) -> Environment:
        """An environment to read class facts, horizon and tasks from; it is one of the pool's."""
        if self._first is None:
            self._first = _made(self._make)
            self._free.append(self._first)
        return self._first

    @contextlib.asynccontextmanager
    async def acquire(self, on_replay: Callable[[], None] = _ignore) -> AsyncIterator[EnvLease]:
        """An environment for the length of the block; waits while all are in use.

        Args:
            on_replay: Called after every replayed step.

        Raises:
            EnvError: No environment can be made.
        """
        with self.waits.on("slots"):
            await self._slots.acquire()
        try:
            quick = self.facts.quick  # makes the first environment, where there is none yet
            env = self._free.pop() if self._free else await self._fresh_retried()
            lease = EnvLease(env, self, on_replay)
            try:
                yield lease
            except asyncio.CancelledError:
                lease.broken = not quick  # its thread may still be inside the environment
                raise
            finally:
                lease.on_replay = _ignore  # a reference cycle would keep the episode in memory
                if lease.broken:
                    self.discard(lease.env)
                else:
                    self._free.append(lease.env)
        finally:
            self._slots.release()

    async def _fresh_retried(self) -> Environment:
        for _ in range(RETRIES):
            with contextlib.suppress(EnvError):
                return await self.fresh()
        return await self.fresh()

    async def fresh(self) -> Environment:
        """A new environment. Raises EnvError where none can be made."""
        if self.facts.quick:
            return self._make()
        # it may start a process
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._make)

    def discard(self, env: Environment) -> None:
        """Close an environment that failed."""
        self.broken += 1
        _close(env)

    def abandon_thread(self, env: Environment) -> None:
        """A call into this environment hangs. One that lives in a process of its own is killed,
        which frees the thread; else the thread is left behind."""
        if not env.process:
            self.threads.shutdown(wait=False)
            self._threads = None

    def release(self, snapshots: Iterable[SnapshotHandle]) -> None:
        """Free these snapshots: they will not be restored again."""
        if self._first is not None and type(self._first).release is not Environment.release:
            for snapshot in snapshots:
                with contextlib.suppress(Exception):  # a failure here harms nothing
                    self._first.release(snapshot.state)

    def close(self) -> None:
        """Close every free environment and let go of the threads."""
        for env in self._free:
            _close(env)
        self._free.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


def _made(make: Callable[[], Environment]) -> Environment:
    """A checked environment; one whose process dies at its start is made again."""
    for _ in range(RETRIES):
        with contextlib.suppress(EnvError):
            return check_facts(make())
    return check_facts(make())


def _close(env: Environment) -> None:
    with contextlib.suppress(Exception):  # it is discarded whatever happens
        env.close()
