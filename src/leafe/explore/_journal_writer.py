"""Makes episodes durable in a thread, many tasks' episodes in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from leafe.core import Episode


class EpisodeSink(Protocol):
    """Where finished episodes go: `leafe.runs.Journal`, or anything with a blocking, durable
    `append`."""

    def append(self, episodes: Sequence[Episode]) -> None:
        """Write the episodes; returns when they are durable."""


class JournalWriter:
    """All episodes that wait when the thread is free go into one write, so that many tasks share
    one sync of the disk."""

    def __init__(self, sink: EpisodeSink | None) -> None:
        self.sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: list[tuple[Sequence[Episode], asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def write(self, episodes: Sequence[Episode]) -> None:
        """Returns when they are on disk; raises what the sink raised."""
        if self.sink is None:
            return
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._waiting.append((episodes, done))
        if self._running is None:  # kept: the loop itself holds tasks weakly
            self._running = loop.create_task(self._run(self.sink))
        await done

    async def _run(self, sink: EpisodeSink) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: BaseException | None = None
            try:
                together = [episode for episodes, _ in batch for episode in episodes]
                await asyncio.get_running_loop().run_in_executor(
                    self._thread, sink.append, together
                )
            except BaseException as caught:
                error = caught
            for _, done in batch:
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
        self._running = None

    def close(self) -> None:
        """Wait for the write in progress."""
        self._thread.shutdown(wait=True)
