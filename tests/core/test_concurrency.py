"""Many tasks in flight: bounded, in order, and the first failure ends them all."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from leafe.core import ForeignFailure
from leafe.core.concurrency import FailureStreak, run_all, run_queue


@pytest.mark.parametrize(("items", "limit"), [(0, 3), (2, 5), (9, 3), (9, 1)])
def test_every_item_once_and_never_more_than_the_limit(items: int, limit: int) -> None:
    now = most = 0
    seen: list[int] = []

    async def work(item: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001 * (item % 3))
        now -= 1
        seen.append(item)

    asyncio.run(run_queue(deque(range(items)), work, limit))
    assert sorted(seen) == list(range(items))
    assert most == min(items, limit)


def test_items_are_taken_in_order_and_what_is_put_back_comes_last() -> None:
    queue = deque(range(5))
    taken: list[int] = []

    async def work(item: int) -> None:
        taken.append(item)
        if item == 1:
            queue.append(10)
        await asyncio.sleep(0)

    asyncio.run(run_queue(queue, work, 2))
    assert taken == [0, 1, 2, 3, 4, 10]


def test_results_stand_in_the_order_of_the_items() -> None:
    async def work(item: int) -> int:
        await asyncio.sleep(0.001 * (5 - item))
        return item * item

    assert asyncio.run(run_all(range(5), work)) == [0, 1, 4, 9, 16]
    assert asyncio.run(run_all(range(5), work, limit=2)) == [0, 1, 4, 9, 16]
    assert asyncio.run(run_all([], work)) == []


@pytest.mark.parametrize("nested", [False, True])
def test_the_first_failure_is_raised_bare_with_its_cause_and_cancels_the_others(
    nested: bool,
) -> None:
    ended: list[str] = []

    async def fail() -> None:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise ZeroDivisionError("a bug") from cause

    async def work(item: int) -> None:
        if item == 1:
            await asyncio.sleep(0.001)
            if nested:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
            await fail()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        asyncio.run(run_queue(deque(range(4)), work, 3))
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__suppress_context__
    assert ended == ["cancelled"] * 2


def test_a_cancelled_run_cancels_its_work() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    async def main() -> None:
        running = asyncio.create_task(run_queue(deque(range(3)), work, 2))
        await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert sorted(ended) == [0, 1]


def test_failures_in_a_row_end_a_stage_and_others_do_not() -> None:
    streak = FailureStreak("attempts in a row failed", limit=3)
    for _ in range(5):
        streak.add("no answer.")
        streak.add("no answer.")
        streak.reset()
    streak.add("no answer.")
    streak.add("no answer.")
    with pytest.raises(ForeignFailure, match="3 attempts in a row failed, the last with: gone"):
        streak.add("gone.")
