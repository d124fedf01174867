"""Give tasks to workers that may be lost at any moment, and journal what comes back: here alone.

One loop changes all state. It gives tasks to free workers, waits for replies, makes their episodes
durable by one append, and only then counts them. A worker runs at most `slots` tasks; each run is a
call that streams replies. Where a worker is lost, its calls are not read any more, and another
worker goes on with each task from the episodes that are in the journal: none stands there twice,
and no finished one is lost. Nothing here knows what a worker is.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from leafe.core import Episode, ForeignFailure, Task, Tree
from leafe.explore import EpisodeSink

MAX_TRIES = 5
"""Workers that a task may lose, or fail on, with no episode in between, before it is given up."""
QUARANTINE_AFTER = 2
"""A task that lost so many workers shares none with another such task: one that kills its worker
must not be blamed on others."""
MAX_WORKER_FAILURES = 10
"""Workers lost one after another, with nothing finished in between, after which the stage ends."""
BEAT = 0.5
"""Seconds after which the loop looks at the clock even where no reply came."""


class WorkerLost(Exception):
    """The worker is gone, or never came up; the message says what is known."""


class End(StrEnum):
    """How a run of a task ended."""

    done = "done"
    failed = "failed"  # it may go better on another worker
    all_samples_lost = "all_samples_lost"  # an evaluation got no sample: the next start tries again


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker reports of a task's run."""

    episodes: tuple[Episode, ...] = ()
    """Finished since the run's last reply, in order."""
    end: End | None = None
    """The last reply of the run."""
    reason: str = ""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Counts of the whole worker so far."""
    number: int = 0
    """Of the worker's replies: those of several runs may be read in another order."""


class Call(Protocol):
    """A call to a worker."""

    def next(self) -> Reply:
        """The next reply, once `wait` named the call. Raises WorkerLost, or what ends the stage."""


class Worker(Protocol):
    """A process elsewhere that runs tasks. No method waits; the calls are waited for."""

    def place(self) -> Call:
        """Replies when the worker has a place, at first and after it was lost."""

    def start(self) -> Call:
        """Replies when the worker is ready to run tasks, which may take long."""

    def run(self, task: Task, episodes: Sequence[Episode]) -> Call:
        """Go on with the task from these episodes."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker's state."""

    worker: Worker
    placed: bool = False
    ready: bool = False
    held: set[str] = field(default_factory=set)
    stats: list[Mapping[str, Any]] = field(default_factory=list)
    """The last of every life."""
    newest: int = 0

    def take_stats(self, reply: Reply) -> None:
        if reply.number > self.newest:
            self.newest, self.stats[-1] = reply.number, reply.stats


class TaskDispatcher:
    """One stage's tasks on their way to workers and back.

    Args:
        tasks: The tasks to run.
        known: By id, the trees of tasks that were begun.
        workers: Whoever runs them.
        wait_for: `(calls, seconds)` to the calls that have a reply, after that time none.
        journal: Where episodes are made durable.
        slots: Tasks in flight on one worker.
        whole: A task's episodes come all at once, so that a task with episodes is done.
        on_episode: Called for every episode that became durable, with its tree.
        on_change: Called when anything changed.
        patience: Seconds without any worker after which the stage ends.
        no_worker: Says why there may be none.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        known: Mapping[str, Tree],
        workers: Sequence[Worker],
        wait_for: Callable[[Sequence[Any], float], Iterable[Any]],
        journal: EpisodeSink,
        *,
        slots: int,
        whole: bool = False,
        on_episode: Callable[[Tree, Episode], None] = lambda tree, episode: None,
        on_change: Callable[[], None] = lambda: None,
        patience: float = 300.0,
        no_worker: Callable[[], str] = lambda: "No worker could be started.",
    ) -> None:
        self.trees = {task.id: known.get(task.id) or Tree(task) for task in tasks}
        """Of tasks that are not done."""
        self.waiting = deque(self.trees)
        self.done = 0
        self.lost = 0
        """Workers that were lost."""
        self.given_again = 0
        """Tasks that a lost worker held."""
        self.given_up: dict[str, str] = {}
        self.all_samples_lost: dict[str, str] = {}
        self.journal_seconds = 0.0
        self._slots = slots
        self._whole = whole
        self._workers = [_Slot(worker) for worker in workers]
        self._calls: dict[Call, tuple[_Slot, str | None]] = {}
        """By call: its worker and its task; None while the worker starts."""
        self._wait_for, self._journal = wait_for, journal
        self._on_episode, self._on_change = on_episode, on_change
        self._patience, self._no_worker = patience, no_worker
        self._losses: Counter[str] = Counter()
        self._lost_in_a_row = 0
        self._unsampled_in_a_row = 0
        self._seen_worker = time.monotonic()

    @property
    def at_work(self) -> int:
        """Workers that have a place."""
        return sum(slot.placed for slot in self._workers)

    @property
    def stats(self) -> list[Mapping[str, Any]]:
        """The last counts of each worker, lost ones included."""
        return [stats for slot in self._workers for stats in slot.stats if stats]

    def run(self) -> None:
        """Run all tasks. Whatever was finished is in the journal, however it ends.

        Raises:
            UserError: A worker found a mistake of the user's.
            ForeignFailure: Workers, environments or the policy fail again and again, or tasks were
                given up.
        """
        for slot in self._workers if self.trees else ():
            self._calls[slot.worker.place()] = slot, None
        while self.trees:
            self._assign()
            self._receive(self._wait_for(list(self._calls), BEAT))
            if self.at_work:
                self._seen_worker = time.monotonic()
            elif time.monotonic() - self._seen_worker > self._patience:
                raise ForeignFailure(self._no_worker())
        if self.given_up:
            some = ", ".join(list(self.given_up)[:3]) + (", ..." if len(self.given_up) > 3 else "")
            raise ForeignFailure(
                f"{len(self.given_up)} tasks were given up after {MAX_TRIES} workers each "
                f"({some}), the last with: {list(self.given_up.values())[-1]} All others are done "
                "and kept: fix the cause and run again to go on with these."
            )

    def _assign(self) -> None:
        """Give waiting tasks to workers with free slots."""
        for slot in self._workers:
            suspect = any(self._losses[task] >= QUARANTINE_AFTER for task in slot.held)
            passed: list[str] = []
            while slot.ready and self.waiting and len(slot.held) < self._slots:
                task_id = self.waiting.popleft()
                if self._losses[task_id] >= QUARANTINE_AFTER:
                    if suspect:
                        passed.append(task_id)
                        continue
                    suspect = True
                slot.held.add(task_id)
                tree = self.trees[task_id]
                self._calls[slot.worker.run(tree.task, tree.episodes)] = slot, task_id
            self.waiting.extendleft(reversed(passed))

    def _receive(self, calls: Iterable[Call]) -> None:
        """Read one reply of each call: journal their episodes first, then count."""
        replies: list[tuple[Call, Reply]] = []
        lost: dict[_Slot, str] = {}
        failed: Exception | None = None
        for call in calls:
            try:
                replies.append((call, call.next()))
            except WorkerLost as error:
                lost.setdefault(self._calls[call][0], str(error))
            except Exception as error:
                failed = failed or error
        self._record(replies)
        for call, reply in replies:
            slot, task_id = self._calls[call]
            if task_id is None:
                self._advance(call, slot)
            else:
                self._count(call, slot, task_id, reply)
        if failed is not None:
            raise failed
        for slot, why in lost.items():
            self._lose(slot, why)
        if replies or lost:
            self._on_change()

    def _record(self, replies: Sequence[tuple[Call, Reply]]) -> None:
        """Make the episodes durable."""
        for call, reply in replies:
            for episode in reply.episodes:
                if episode.task_id != self._calls[call][1]:
                    raise RuntimeError(
                        f"a worker sent an episode of {episode.task_id!r}, which it does not hold"
                    )
        episodes = [episode for _, reply in replies for episode in reply.episodes]
        if episodes:
            began = time.perf_counter()
            self._journal.append(episodes)
            self.journal_seconds += time.perf_counter() - began

    def _advance(self, call: Call, slot: _Slot) -> None:
        """A worker that got a place is started; one that has started is ready."""
        del self._calls[call]
        if slot.placed:
            slot.ready = True
        else:
            slot.placed = True
            slot.stats.append({})
            slot.newest = 0
            self._calls[slot.worker.start()] = slot, None

    def _count(self, call: Call, slot: _Slot, task_id: str, reply: Reply) -> None:
        slot.take_stats(reply)
        for episode in reply.episodes:
            tree = self.trees[task_id]
            tree.add(episode)
            self._on_episode(tree, episode)
            self._losses.pop(task_id, None)
            self._lost_in_a_row = self._unsampled_in_a_row = 0
        if reply.end is None and not (self._whole and reply.episodes):
            return
        del self._calls[call]
        slot.held.remove(task_id)
        if reply.end is End.failed:
            self._give_back(task_id, reply.reason)
            return
        if reply.end is End.all_samples_lost:
            self.all_samples_lost[task_id] = reply.reason
            self._unsampled_in_a_row += 1
        self._losses.pop(task_id, None)
        del self.trees[task_id]
        self.done += 1
        if self._unsampled_in_a_row >= MAX_WORKER_FAILURES:
            raise ForeignFailure(
                f"{self._unsampled_in_a_row} tasks in a row were lost, the last with: "
                f"{reply.reason}"
            )

    def _lose(self, slot: _Slot, why: str) -> None:
        """Forget the worker's calls, give its tasks to others, and wait for its next place."""
        self._calls = {c: of for c, of in self._calls.items() if of[0] is not slot}
        self.lost += 1
        self.given_again += len(slot.held)
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= max(MAX_WORKER_FAILURES, 2 * len(self._workers)):
            raise ForeignFailure(
                f"{self._lost_in_a_row} workers were lost one after another and nothing was "
                f"finished in between, the last with: {why} What was finished is kept: fix the "
                "cause and run again."
            )
        for task_id in slot.held:
            self._give_back(task_id, why)
        slot.held.clear()
        slot.placed = slot.ready = False
        self._calls[slot.worker.place()] = slot, None

    def _give_back(self, task_id: str, why: str) -> None:
        self._losses[task_id] += 1
        if self._losses[task_id] < MAX_TRIES:
            self.waiting.appendleft(task_id)
        else:
            self.given_up[task_id] = why
            del self.trees[task_id]
