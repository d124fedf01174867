"""A bounded set of worlds that coroutines borrow: blocking worlds run in threads, quick ones in the event loop.

What a world raises becomes a `WorldError` with one line, and that instance is thrown away: its state can't be trusted. A call that
outlasts `timeout` seconds counts as the same failure; its thread is left to end by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from leafe.core import Environment, StepResult, Task, UserError, WorldError

T = TypeVar("T")


class BorrowedWorld:
    """One world, awaited. Borrowed from a `WorldPool` by one coroutine at a time."""

    def __init__(self, world: Environment, pool: WorldPool) -> None:
        self.world = world
        self.broken = False
        self._pool = pool

    async def reset(self, task: Task, seed: int) -> str:
        observation = await self._call("reset", self.world.reset, task, seed)
        if not isinstance(observation, str):
            raise self._fail("reset", f"returned {type(observation).__name__}, not a string")
        return observation

    async def step(self, action: str) -> StepResult:
        result = await self._call("step", self.world.step, action)
        if not isinstance(result, StepResult):
            raise self._fail("step", f"returned {type(result).__name__}, not a StepResult")
        return result

    async def snapshot(self) -> object:
        return await self._call("snapshot", self.world.snapshot)

    async def restore(self, snapshot: object) -> None:
        await self._call("restore", self.world.restore, snapshot)

    def _fail(self, what: str, why: str) -> WorldError:
        self.broken = True
        return WorldError(f"The world {self.world.name} failed in {what}: {why}.")

    async def _call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        try:
            if self.world.quick:
                return function(*args)
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._pool.threads, function, *args), self._pool.timeout)
        except TimeoutError as error:
            raise self._fail(what, f"no answer within {self._pool.timeout:g} s") from error
        except UserError:
            self.broken = True
            raise
        except Exception as error:  # a world is foreign code: whatever it raises ends the episode, not the run
            raise self._fail(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


class WorldPool:
    """Makes worlds as they are needed, at most `size`, and hands them out again. `timeout` is in seconds a call."""

    def __init__(self, make: Callable[[], Environment], size: int = 8, timeout: float = 120.0) -> None:
        self._make = make
        self.size = size
        self.timeout = timeout
        self._idle: list[Environment] = []
        self._first: Environment | None = None
        self._slots = asyncio.Semaphore(size)
        self._threads: ThreadPoolExecutor | None = None
        self.broken = 0
        """Worlds thrown away after a failure."""

    @property
    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="world")
        return self._threads

    @property
    def facts(self) -> Environment:
        """A world to read class facts and horizon from; it is one of the pool's."""
        if self._first is None:
            self._first = self._make()
            self._idle.append(self._first)
        return self._first

    @contextlib.asynccontextmanager
    async def borrow(self) -> AsyncIterator[BorrowedWorld]:
        """A world for the length of the block; waits while all are lent."""
        async with self._slots:
            world = self._idle.pop() if self._idle else self._make()
            borrowed = BorrowedWorld(world, self)
            try:
                yield borrowed
            except asyncio.CancelledError:
                borrowed.broken = not world.quick  # its thread may still be inside the world
                raise
            finally:
                if borrowed.broken:
                    self.broken += 1
                    if world is not self._first:  # facts stay readable
                        _close(world)
                else:
                    self._idle.append(world)

    def close(self) -> None:
        """Close every idle world and let go of the threads."""
        for world in self._idle:
            _close(world)
        self._idle.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


def _close(world: Environment) -> None:
    with contextlib.suppress(Exception):  # it is thrown away whatever it says
        world.close()
