"""Tasks dealt to actors that may be lost at any moment; what comes back is journaled here, and here
alone.

An actor holds at most `slots` tasks. Whenever it has something to tell it tells all of it, what it
told is made durable by one write of the journal,
and its free slots are dealt anew: nobody waits for a slow task. An actor that is lost gives back
what it held; another goes on with each of
these tasks from the episodes that are in the journal, so that none stands there twice and no
finished one is lost. Nothing here knows what an actor is.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from leafe.core import Episode, ForeignFailure, Task, Tree, UserError
from leafe.explore import EpisodeSink

TRIES = 5
"""Actors that a task may lose, or fail in, one after another with no episode in between, before it
is given up."""
QUARANTINE_AFTER = 2
"""From so many losses on a task is under suspicion: an actor holds no two of these, so that one
that kills its actor gives no other a bad name."""
MAX_WORKER_FAILURES = 10
"""Actors lost one after another, with nothing finished by any, after which the stage ends."""


class Lost(Exception):
    """An actor is gone: it died, its node did, or it never began. The message says what is
    known."""


class Actor(Protocol):
    """Somebody who does tasks, elsewhere, and has a place there."""

    async def start(self) -> None:
        """Make ready, which may take long. `Lost` where it is gone; UserError for what is the
        user's to mend there."""

    async def exchange(self, orders: str) -> str:
        """Take these tasks (JSON) on and wait until there is something to tell (JSON,
        `TaskDispatcher.book`). `Lost` where it is gone."""

    async def dismiss(self) -> None:
        """Let it go, whatever state it is in. Raises nothing."""


class TaskDispatcher:
    """One stage's tasks on their way to actors and back.

    `known` holds the trees of tasks that were begun. `whole`: a task's episodes come all at once,
    so that a task with episodes is done (its actor may die
    before it says so). `hire` finds a place for an actor, or raises `Lost`. `booked` is told of
    every episode that became durable, and `news` that anything
    changed. `wait`: seconds without any actor after which it ends, in the words of `short`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        known: Mapping[str, Tree],
        hire: Callable[[], Awaitable[Actor]],
        journal: EpisodeSink,
        *,
        actors: int,
        slots: int,
        whole: bool = False,
        booked: Callable[[Tree, Episode], None] = lambda tree, episode: None,
        news: Callable[[], None] = lambda: None,
        wait: float = 300.0,
        short: Callable[[], str] = lambda: "No actor could be started.",
    ) -> None:
        self.trees = {task.id: known.get(task.id) or Tree(task) for task in tasks}
        """Of tasks that are not done."""
        self.due = deque(self.trees)
        self.actors, self.slots, self.whole = actors, slots, whole
        self.done = 0
        self.at_work = 0
        self.lost = 0
        """Actors that were lost."""
        self.given_again = 0
        """Tasks that a lost actor held."""
        self.given_up: dict[str, str] = {}
        self.all_samples_lost: dict[str, str] = {}
        """Tasks of an evaluation all of whose samples were lost: not journaled, tried again by the
        next run."""
        self.journal_seconds = 0.0
        self._hire, self._journal, self._booked, self._news, self._wait, self._short = (
            hire,
            journal,
            booked,
            news,
            wait,
            short,
        )
        self._facts: dict[int, Mapping[str, Any]] = {}
        self._losses: Counter[str] = Counter()
        self._barren = 0
        self._unheard_in_a_row = 0
        self._idle_since = time.monotonic()
        self._returned = asyncio.Event()
        self._over = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    @property
    def facts(self) -> list[Mapping[str, Any]]:
        """What each actor said last of how it fared, lost ones included."""
        return list(self._facts.values())

    async def run(self) -> None:
        """Returns when all is done. UserError for what an actor says is the user's to mend;
        ForeignFailure where actors, environments or the policy fail again and
        again, and where tasks were given up; whatever was finished is in the journal then."""
        self._check_over()
        running = {
            asyncio.ensure_future(self._serve(number))
            for number in range(min(self.actors, len(self.trees)))
        }
        over = asyncio.ensure_future(self._over.wait())
        try:
            while not self._over.is_set():
                ended, _ = await asyncio.wait(
                    {over, *running}, return_when=asyncio.FIRST_COMPLETED, timeout=0.5
                )
                for each in ended & running:
                    running.discard(each)
                    each.result()  # what ended it ends the stage
                if (
                    not self.at_work
                    and time.monotonic() - self._idle_since > self._wait
                    and not self._over.is_set()
                ):
                    raise ForeignFailure(self._short())
        finally:
            for each in (over, *running):
                each.cancel()
            await asyncio.gather(over, *running, return_exceptions=True)
            self._writer.shutdown(wait=True)
        if self.given_up:
            some = ", ".join(list(self.given_up)[:3]) + (", ..." if len(self.given_up) > 3 else "")
            why = list(self.given_up.values())[-1]
            raise ForeignFailure(
                f"{len(self.given_up)} tasks were given up after {TRIES} actors each "
                f"({some}), the last with: {why} All others are done and kept: mend it and "
                "run again to go on with these."
            )

    async def _serve(self, number: int) -> None:
        """One place for an actor: whoever holds it is dealt tasks, and is replaced when it is
        lost."""
        hired, pause = 0, 0.0
        while True:
            await asyncio.sleep(pause)
            pause = min(
                30.0, 2 * pause + 0.25
            )  # where one after another is lost before it answered: a node that is going down, say
            mine: set[str] = set()
            actor: Actor | None = None
            try:
                actor = await self._hire()
                self.at_work += 1
                self._news()
                await actor.start()
                while True:
                    orders = self._take(mine)
                    if not mine:
                        self._returned.clear()
                        await self._returned.wait()
                        continue
                    reply = json.loads(await actor.exchange(json.dumps(orders)))
                    self._facts[number + hired * self.actors] = reply["facts"]
                    pause = 0.0
                    await self.book(reply, mine)
            except Lost as lost:
                self._one_lost(str(lost), mine)
            finally:
                if actor is not None:
                    self.at_work -= 1
                    self._idle_since = time.monotonic()
                    await actor.dismiss()
            hired += 1

    def _take(self, mine: set[str]) -> list[dict[str, Any]]:
        """Tasks for an actor that holds `mine`; they are its own now."""
        orders: list[dict[str, Any]] = []
        passed: list[str] = []
        suspect = any(self._losses[task_id] >= QUARANTINE_AFTER for task_id in mine)
        while self.due and len(mine) < self.slots:
            task_id = self.due.popleft()
            if self._losses[task_id] >= QUARANTINE_AFTER:
                if suspect:
                    passed.append(task_id)
                    continue
                suspect = True
            mine.add(task_id)
            tree = self.trees[task_id]
            orders.append(
                {"task": tree.task.to_json(), "episodes": [e.to_json() for e in tree.episodes]}
            )
        self.due.extendleft(reversed(passed))
        return orders

    async def book(self, reply: Mapping[str, Any], mine: set[str]) -> None:
        """What an actor tells: `episodes` that were finished, in order; tasks that are `done`;
        those that `failed` there, and those whose samples were all
        lost (`all_samples_lost`), with the reason; an `error` that ends the stage (kind, message).
        Durable before it counts."""
        episodes = [Episode.from_json(e) for e in reply["episodes"]]
        strange = next((e.task_id for e in episodes if e.task_id not in mine), None)
        if strange is not None:
            raise RuntimeError(
                f"an actor sent an episode of the task {strange!r}, which it does not hold"
            )
        if episodes:
            began = time.perf_counter()
            await asyncio.get_running_loop().run_in_executor(
                self._writer, self._journal.append, episodes
            )
            self.journal_seconds += time.perf_counter() - began
            for episode in episodes:
                tree = self.trees[episode.task_id]
                tree.add(episode)
                self._booked(tree, episode)
                self._losses.pop(episode.task_id, None)
            self._barren = self._unheard_in_a_row = 0
        ended = reply["done"] + [e.task_id for e in episodes if self.whole]
        for task_id in mine.intersection(ended):
            self._finish(task_id, mine)
        for task_id, why in reply["failed"].items():
            mine.remove(task_id)
            self._give_back((task_id,), why)
        for task_id, why in reply["unheard"].items():
            self.all_samples_lost[task_id] = why
            self._unheard_in_a_row += 1
            self._finish(task_id, mine)
        if reply["error"] is not None:
            raise_said(reply["error"])
        if self._unheard_in_a_row >= MAX_WORKER_FAILURES:
            raise ForeignFailure(
                f"{self._unheard_in_a_row} tasks in a row were lost, the last with: "
                f"{list(self.all_samples_lost.values())[-1]}"
            )
        self._news()

    def _finish(self, task_id: str, mine: set[str]) -> None:
        mine.discard(task_id)
        self._losses.pop(task_id, None)
        del self.trees[task_id]
        self.done += 1
        self._check_over()

    def _one_lost(self, why: str, held: Iterable[str]) -> None:
        held = tuple(held)
        self.lost += 1
        self.given_again += len(held)
        self._barren += 1
        if self._barren >= max(MAX_WORKER_FAILURES, 2 * self.actors):
            raise ForeignFailure(
                f"{self._barren} actors were lost one after another and nothing was "
                f"finished in between, the last with: {why} "
                "What was finished is kept: mend it and run again."
            )
        self._give_back(held, why)
        self._news()

    def _give_back(self, task_ids: Iterable[str], why: str) -> None:
        for task_id in task_ids:
            self._losses[task_id] += 1
            if self._losses[task_id] < TRIES:
                self.due.appendleft(task_id)
            else:
                self.given_up[task_id] = why
                del self.trees[task_id]
        self._returned.set()
        self._check_over()

    def _check_over(self) -> None:
        if not self.trees:
            self._over.set()


def raise_said(error: Mapping[str, str]) -> None:
    """What an actor said ended it, as the exception that it was there; RuntimeError with its
    traceback for a bug of ours."""
    if error["kind"] == "user":
        raise UserError(error["message"])
    if error["kind"] == "foreign":
        raise ForeignFailure(error["message"])
    raise RuntimeError(error["message"])
