"""Several servers of one model: which one a request goes to, retries, fail-over and health.

Requests of a task share a prefix, so they go to the same server: rendezvous hashing of the task's
id ranks the servers, and removing one moves only its own tasks. A request goes to its next choice
where its server is down, or holds more than its share (consistent hashing with bounded loads): at
most max(16, 1.5 times the mean) requests in flight.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from leafe.core import PolicyError, derive_seed
from leafe.policies.http._client import Failed
from leafe.policies.http._endpoint import Endpoint, Unreachable

T = TypeVar("T")
Work = Callable[[Endpoint], Awaitable[T]]
"""One attempt of a request on a server: raises Failed or Refused."""

_MAX_WAIT_S = 60.0
"""The longest wait between two attempts, whatever Retry-After says."""
_MAX_SHARE, _MIN_LOAD = 1.5, 16
_MAX_RANKS = 4096


class EndpointPool:
    """Routes requests to servers, and retries them.

    Args:
        endpoints: The servers.
        stats: Counts of all servers together.
        retries: Further attempts after the first.
        backoff_s: The wait before a server is tried again, doubled each time.
        concurrency: The most requests in flight.
        deadline_s: The most seconds that a request may take with all its attempts.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        stats: Counter[str],
        *,
        retries: int,
        backoff_s: float,
        concurrency: int,
        deadline_s: float | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.stats = stats
        self.retries = retries
        self.backoff_s = backoff_s
        self.deadline_s = deadline_s
        self._jitter = random.Random(derive_seed("jitter", *(e.base_url for e in endpoints)))
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ranks: dict[str, tuple[Endpoint, ...]] = {}
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}

    async def call(self, key: str, work: Work[T], path: str) -> T:
        """Run `work` on the server that `key` prefers, and on others where that fails.

        Args:
            key: The task's id; "" prefers the least loaded server.
            work: One attempt.
            path: Of the request, for messages.

        Raises:
            PolicyError: Every attempt failed, or the deadline passed.
            Unreachable: The last attempt got no answer at all.
        """
        self._begin()
        try:
            async with self._slots, asyncio.timeout(self.deadline_s) as deadline:
                return await self._attempts(key, work, path)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self.stats["deadline"] += 1
            self.stats["given_up"] += 1
            where = self._ranked(key)[0].url_of(path)
            raise PolicyError(
                f"{where} gave no answer within the deadline of {self.deadline_s:g} s, "
                "retries included."
            ) from error

    async def on(self, endpoint: Endpoint, work: Work[T], path: str, *, once: bool = False) -> T:
        """Run `work` on this server only; `once`: without retries."""
        self._begin()
        for attempt in range(1 if once else self.retries + 1):
            if endpoint.ready is not None:
                await endpoint.ready()
            try:
                return await work(endpoint)
            except Failed as failed:
                last = failed
                self.stats[failed.kind] += 1
            if attempt < self.retries and not once:
                self.stats["retries"] += 1
                await asyncio.sleep(self._wait(attempt, last.wait))
        raise self._exhausted(endpoint, path, attempt + 1, last)

    async def _attempts(self, key: str, work: Work[T], path: str) -> T:
        failed_on: set[Endpoint] = set()
        waits = 0
        for attempt in range(self.retries + 1):
            endpoint = self._pick(key, failed_on)
            try:
                return await self._attempt(endpoint, work)
            except Failed as failed:
                last = failed
            if attempt == self.retries:
                break
            self.stats["retries"] += 1
            failed_on.add(endpoint)
            if any(e.up and e not in failed_on for e in self.endpoints):
                self.stats["failed_over"] += 1
                continue
            failed_on.clear()
            await asyncio.sleep(self._wait(waits, last.wait))
            waits += 1
        raise self._exhausted(endpoint, path, attempt + 1, last)

    async def _attempt(self, endpoint: Endpoint, work: Work[T]) -> T:
        if endpoint.ready is not None:
            await endpoint.ready()
        endpoint.in_flight += 1
        try:
            result = await work(endpoint)
        except Failed as failed:
            self.stats[failed.kind] += 1
            if endpoint.failed(failed) and endpoint.up and len(self.endpoints) > 1:
                self.take_out(endpoint)
            raise
        finally:
            endpoint.in_flight -= 1
        endpoint.answered()
        return result

    def _exhausted(self, endpoint: Endpoint, path: str, attempts: int, last: Failed) -> PolicyError:
        self.stats["given_up"] += 1
        kind = Unreachable if last.kind in ("connection", "timeout") else PolicyError
        others = f" (of {len(self.endpoints)} servers)" if len(self.endpoints) > 1 else ""
        count = "1 try" if attempts == 1 else f"{attempts} tries"
        cause = last.cause.rstrip(".")
        return kind(f"{endpoint.url_of(path)}{others} gave no answer after {count}: {cause}.")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds until the next attempt: what the server asked for, else doubling, with jitter."""
        if asked is not None:
            return min(asked, _MAX_WAIT_S)
        return float(min(self.backoff_s * 2**attempt, _MAX_WAIT_S) * self._jitter.uniform(0.5, 1.0))

    def _ranked(self, key: str) -> tuple[Endpoint, ...]:
        """The servers in this key's order of preference, the same in every process."""
        if len(self.endpoints) == 1:
            return self.endpoints
        found = self._ranks.get(key)
        if found is None:
            if len(self._ranks) > _MAX_RANKS:
                self._ranks.clear()
            salt = key.encode("utf-8", "replace") + b"\0"
            found = tuple(
                sorted(
                    self.endpoints,
                    key=lambda e: blake2b(salt + e.base_url.encode(), digest_size=8).digest(),
                )
            )
            self._ranks[key] = found
        return found

    def _pick(self, key: str, failed_on: set[Endpoint]) -> Endpoint:
        if len(self.endpoints) == 1:
            return self.endpoints[0]
        ranked = self._ranked(key)
        candidates = (
            [e for e in ranked if e.up and e not in failed_on]
            or [e for e in ranked if e not in failed_on]
            or list(ranked)
        )
        if not key:  # no shared prefix: the least loaded
            return min(candidates, key=lambda e: e.in_flight)
        up = [e for e in ranked if e.up] or list(ranked)
        most = max(_MIN_LOAD, math.ceil(_MAX_SHARE * (sum(e.in_flight for e in up) + 1) / len(up)))
        for endpoint in candidates:
            if endpoint.in_flight < most:
                if endpoint is not candidates[0]:
                    self.stats["spilled"] += 1
                return endpoint
        return min(candidates, key=lambda e: e.in_flight)

    def take_out(self, endpoint: Endpoint) -> None:
        """Send the server nothing until it answers a probe."""
        endpoint.up = False
        endpoint.count("taken_out")
        self._probes[endpoint] = asyncio.ensure_future(self._probe(endpoint))

    async def _probe(self, endpoint: Endpoint) -> None:
        wait = 0.5
        while True:
            await asyncio.sleep(wait * self._jitter.uniform(0.75, 1.0))
            if await endpoint.healthy():
                break
            wait = min(2 * wait, 15.0)
        endpoint.up = True
        endpoint.answered()
        self.stats["brought_back"] += 1
        self._probes.pop(endpoint, None)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._slots = asyncio.Semaphore(self._concurrency)
            self._probes.clear()
            for endpoint in self.endpoints:
                endpoint.in_flight, endpoint.up = 0, True

    async def close(self) -> None:
        """Stop the probes; a later call starts with every server up."""
        if self._loop is not asyncio.get_running_loop():
            return
        probes = list(self._probes.values())
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        self._probes.clear()
        for endpoint in self.endpoints:
            endpoint.up = True
