"""Several servers of one model: which of them a request goes to, again where a try fails, twice
where it lags.

The requests of a task share a prefix, so they go to the same server: rendezvous hashing of the
task's id names every server's rank for it, and
taking one away moves only its own tasks. A request passes to its next choice where its server is
down, or holds more than its share
(consistent hashing with bounded loads): at most max(16, 1.5 times the mean) requests, as they stand
when the request comes.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from statistics import median
from typing import TypeVar

from leafe.core import PolicyError, derive_seed
from leafe.policies.http._endpoint import Endpoint, Failed, Unreachable

T = TypeVar("T")
Work = Callable[[Endpoint], Awaitable[T]]
"""One try of a request on a server: raises Failed or Refused."""

_LONGEST_WAIT_S = 60.0
"""No wait between two tries is longer, whatever Retry-After says."""
_SHARE, _FLOOR = 1.5, 16
_HEDGED_MOST = 0.1
"""Of all requests, so many at most are sent a second time because they lag."""
_LATENCIES = 256


class Fleet:
    """`hedge`: a request that has had no answer for so many times the median of late is sent to a
    second server too; None: never."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        stats: Counter[str],
        *,
        retries: int,
        backoff_s: float,
        concurrency: int,
        deadline_s: float | None = None,
        hedge: float | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.stats = stats
        self.retries = retries
        self.backoff_s = backoff_s
        self.deadline_s = deadline_s
        self.hedge = hedge
        self._jitter = random.Random(derive_seed("jitter", *(e.base_url for e in endpoints)))
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ranks: dict[str, tuple[Endpoint, ...]] = {}
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._median = math.inf
        self._answers = 0
        self._hedged = 0

    async def call(
        self, key: str, work: Work[T], path: str, twice: Callable[[T], T] | None = None
    ) -> T:
        """`work` on the server that suits `key`, on others where that fails, at most `retries`
        further times.

        `twice` gives the answer with what a second, cancelled request may have cost added; without
        it a lagging request is not sent again.
        Raises what `work` raises beside Failed, at once; PolicyError where every try failed,
        Unreachable where nobody answered the last.
        """
        self._begin()
        async with self._slots:
            if self.deadline_s is None:
                return await self._tries(key, work, path, twice)
            try:
                async with asyncio.timeout(self.deadline_s):
                    return await self._tries(key, work, path, twice)
            except TimeoutError as error:
                self.stats["deadline"] += 1
                self.stats["given_up"] += 1
                where = self._ranked(key)[0].at(path)
                raise PolicyError(
                    f"{where} gave no answer within the deadline of {self.deadline_s:g} s, "
                    "retries included."
                ) from error

    async def on(self, endpoint: Endpoint, work: Work[T], path: str, *, once: bool = False) -> T:
        """`work` on this very server, retried there (`once`: not at all)."""
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
        raise self._given_up(endpoint, path, attempt + 1, last)

    async def _tries(self, key: str, work: Work[T], path: str, twice: Callable[[T], T] | None) -> T:
        tried: set[Endpoint] = set()
        waits = 0
        for attempt in range(self.retries + 1):
            endpoint = self._pick(key, tried)
            try:
                return (
                    await self._lagging(endpoint, key, work, twice)
                    if self.hedge is not None and twice
                    else await self._try(endpoint, work)
                )
            except Failed as failed:
                last = failed
            if attempt == self.retries:
                break
            self.stats["retries"] += 1
            tried.add(endpoint)
            if any(e.up and e not in tried for e in self.endpoints):
                self.stats["failed_over"] += 1
                continue
            tried.clear()
            await asyncio.sleep(self._wait(waits, last.wait))
            waits += 1
        raise self._given_up(endpoint, path, attempt + 1, last)

    async def _try(self, endpoint: Endpoint, work: Work[T]) -> T:
        if endpoint.ready is not None:
            await endpoint.ready()
        endpoint.in_flight += 1
        try:
            got = await work(endpoint)
        except Failed as failed:
            self.stats[failed.kind] += 1
            if endpoint.failed(failed) and endpoint.up and len(self.endpoints) > 1:
                self.take_out(endpoint)
            raise
        finally:
            endpoint.in_flight -= 1
        endpoint.answered()
        return got

    def _given_up(self, endpoint: Endpoint, path: str, tries: int, last: Failed) -> PolicyError:
        self.stats["given_up"] += 1
        kind = Unreachable if last.kind in ("connection", "timeout") else PolicyError
        others = f" (of {len(self.endpoints)} servers)" if len(self.endpoints) > 1 else ""
        count = "1 try" if tries == 1 else f"{tries} tries"
        cause = last.cause.rstrip(".")
        return kind(f"{endpoint.at(path)}{others} gave no answer after {count}: {cause}.")

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds until the next try: what the server asked for, else a doubling wait, jittered so
        that clients do not come back together."""
        if asked is not None:
            return min(asked, _LONGEST_WAIT_S)
        return float(
            min(self.backoff_s * 2**attempt, _LONGEST_WAIT_S) * self._jitter.uniform(0.5, 1.0)
        )

    # --- which server
    # ---------------------------------------------------------------------------------------------

    def _ranked(self, key: str) -> tuple[Endpoint, ...]:
        """The servers in this key's order of preference, the same in every process."""
        if len(self.endpoints) == 1:
            return self.endpoints
        found = self._ranks.get(key)
        if found is None:
            if len(self._ranks) > 4096:
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

    def _pick(self, key: str, tried: set[Endpoint]) -> Endpoint:
        if len(self.endpoints) == 1:
            return self.endpoints[0]
        ranked = self._ranked(key)
        fit = (
            [e for e in ranked if e.up and e not in tried]
            or [e for e in ranked if e not in tried]
            or list(ranked)
        )
        if not key:  # nothing to share: the one with the least to do
            return min(fit, key=lambda e: e.in_flight)
        up = [e for e in ranked if e.up] or list(ranked)
        most = max(_FLOOR, math.ceil(_SHARE * (sum(e.in_flight for e in up) + 1) / len(up)))
        for endpoint in fit:
            if endpoint.in_flight < most:
                if endpoint is not fit[0]:
                    self.stats["spilled"] += 1
                return endpoint
        return min(fit, key=lambda e: e.in_flight)

    def take_out(self, endpoint: Endpoint) -> None:
        """Send it nothing until it answers a probe again."""
        endpoint.up = False
        endpoint.own["taken_out"] += 1
        self.stats["taken_out"] += 1
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

    # --- a second request for one that lags
    # -----------------------------------------------------------------------

    async def _lagging(
        self, endpoint: Endpoint, key: str, work: Work[T], twice: Callable[[T], T] | None
    ) -> T:
        """The first answer of at most two servers; the other request is cancelled, and its answer
        is read by nobody."""
        assert self.hedge is not None
        assert twice is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        first = asyncio.ensure_future(self._try(endpoint, work))
        asked = [first]
        try:
            if self._median < math.inf:
                await asyncio.wait(asked, timeout=self.hedge * self._median)
                spare = [e for e in self._ranked(key) if e.up and e is not endpoint]
                if not first.done() and spare and self._hedged < _HEDGED_MOST * self._answers:
                    self._hedged += 1
                    self.stats["hedged"] += 1
                    asked.append(
                        asyncio.ensure_future(
                            self._try(min(spare, key=lambda e: e.in_flight), work)
                        )
                    )
            waiting: set[asyncio.Future[T]] = set(asked)
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                good = next(
                    (task for task in asked if task in done and task.exception() is None), None
                )
                if good is not None:
                    break
                if not waiting:
                    return await asked[0]  # both failed: what the first one met counts
            self._note(loop.time() - began)
            if len(asked) == 1:
                return good.result()
            self.stats["hedge_won"] += good is not first
            return twice(good.result())
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(
                *asked, return_exceptions=True
            )  # their connections are closed before the slot is given away

    def _note(self, seconds: float) -> None:
        self._latencies.append(seconds)
        self._answers += 1
        if self._answers >= 32 and self._answers % 16 == 0:
            self._median = median(self._latencies)

    # --- life
    # -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._slots = asyncio.Semaphore(self._concurrency)
            self._probes.clear()
            for endpoint in self.endpoints:
                endpoint.in_flight, endpoint.up = 0, True

    async def close(self) -> None:
        """Close the connections and stop the probes; a later call opens new ones."""
        if self._loop is not asyncio.get_running_loop():
            return
        probes = list(self._probes.values())
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        self._probes.clear()
        for endpoint in self.endpoints:
            endpoint.up = True
            endpoint.close()
