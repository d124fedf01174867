"""Many tasks in flight: at most so many at a time, and the first failure cancels the others.

Knows nothing of tasks, trees or environments. Exploration, evaluation and the baselines run on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from leafe.core.errors import ForeignFailure, ungrouped

T = TypeVar("T")
R = TypeVar("R")

MAX_FAILURES_IN_A_ROW = 10
"""Failures in a row over all tasks after which a stage ends: the endpoint or the environment is
down."""


async def run_queue(queue: deque[T], work: Callable[[T], Awaitable[None]], limit: int) -> None:
    """Take items from the front of `queue` until it is empty, at most `limit` at a time.

    A worker takes its next item when its last one is done, so there is no barrier. `work` may
    append items to the queue, for later.

    Raises:
        Exception: The first failure of `work`, without an exception group around it and with its
            own cause. The work in flight is cancelled and awaited first.
    """

    async def worker() -> None:
        while queue:
            await work(queue.popleft())

    with ungrouped():
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(queue))):
                group.create_task(worker())


async def run_all(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int | None = None
) -> list[R]:
    """The results of `work`, in the order of `items`; `limit`, failures: as `run_queue`.

    Args:
        items: What is worked on.
        work: Called with each item.
        limit: Most items in flight. None: all of them.
    """
    queue = deque(enumerate(items))
    results: dict[int, R] = {}

    async def one(numbered: tuple[int, T]) -> None:
        results[numbered[0]] = await work(numbered[1])

    await run_queue(queue, one, limit or len(queue))
    return [results[i] for i in range(len(results))]


class FailureStreak:
    """Counts failures in a row over all tasks of a stage; too many of them end the stage."""

    def __init__(self, what: str, limit: int = MAX_FAILURES_IN_A_ROW) -> None:
        """An empty streak; `what` and `limit` as in `outage` and `MAX_FAILURES_IN_A_ROW`."""
        self.what, self.limit, self.count = what, limit, 0

    def reset(self) -> None:
        """Something succeeded."""
        self.count = 0

    def add(self, error: str) -> None:
        """Count one failure. Raises ForeignFailure where it is the `limit`-th in a row."""
        self.count += 1
        if self.count >= self.limit:
            raise outage(self.count, self.what, error)


def outage(count: int, what: str, error: str) -> ForeignFailure:
    """The error that ends a stage whose endpoint or environment is down.

    Args:
        count: How many failures in a row there were.
        what: What happened so often, such as `episodes in a row failed`.
        error: The last failure, a sentence.
    """
    return ForeignFailure(
        f"{count} {what}, the last with: {error} "
        "Finished work is kept: fix the cause, then run the same command again."
    )
