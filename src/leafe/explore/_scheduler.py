"""Stage 1 over many tasks: each task's tree grows by itself, as many at a time as `concurrency`
allows.

There is no barrier between tasks: a task takes its next turn when its own last one is done. Within
a task episodes follow one another, so that the
tree of a task depends on the run's seed and the task alone; only the branches of one reflection run
side by side, where the budget holds the longest that
they can get (then none of them can decide what another gets). A finished episode is durable before
the next one begins: whatever is finished
by then goes into one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from leafe.core import (
    Budget,
    EnvError,
    Episode,
    ForeignFailure,
    Policy,
    PolicyError,
    Request,
    Spent,
    Task,
    Tree,
    UserError,
    derive_seed,
)
from leafe.explore._config import ExploreConfig
from leafe.explore._cost import cost_of
from leafe.explore._env_pool import EnvPool, SnapshotHandle
from leafe.explore._episode import EpisodeRunner, unbegun
from leafe.explore._idle import ERRORS, bounding, idle_in_a_row
from leafe.explore._strategy import Plan, Strategy, look_back, make_strategy, siblings
from leafe.explore._waits import Waits
from leafe.prompts import History, Prompts

SENTENCES = 3
"""Of the tasks that were given up, those whose reason is kept."""


class EpisodeSink(Protocol):
    """Where finished episodes go: `leafe.runs.Journal`, or anything with a blocking, durable
    `append`."""

    def append(self, episodes: Sequence[Episode]) -> None: ...


@dataclass(slots=True)
class Progress:
    """Where a stage stands; handed to the caller after every answer of the policy and every
    finished episode (what is counted in episodes and
    turns counts finished episodes; `spent` is up to date)."""

    tasks: int
    tasks_done: int = 0
    solved: int = 0
    solved_by_rollback: int = 0
    turns: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    unusable_reflections: int = 0
    given_up: int = 0
    """Tasks that were left before their end, as in `Exploration.given_up`."""
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Exploration:
    """What Stage 1 found, and what it cost."""

    trees: dict[str, Tree]
    """A tree for each task, in the tasks' order; none with `keep=False`."""
    spent: Spent
    stops: Mapping[str, int]
    unusable_reflections: int
    cut_short: str | None
    """The run-wide limit that ended the stage early, if one did."""
    waits: Waits = field(default_factory=Waits)
    """Where the time went."""
    given_up: int = 0
    """Tasks that were left because their episodes failed again and again while others did not, or
    did nothing that would ever end."""
    given_up_because: tuple[str, ...] = ()
    """A sentence for each of the first of them."""


async def explore(
    policy: Policy,
    pool: EnvPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    config: ExploreConfig,
    *,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    keep: bool = True,
) -> Exploration:
    """Grow a tree for every task.

    `known` holds the trees of an earlier, interrupted run, or of imported episodes: they count
    against the budget and are gone on with; a failure among them
    that nobody has reflected on is reflected on first, by a strategy that reflects. `keep=False`
    lets go of a tree when its task is
    done, so that memory depends on the tasks in flight: what was found is in the journal.
    Raises UserError for an empty task list, ForeignFailure where the policy or the environments
    fail again and again (what was finished is in the journal).
    """
    if not tasks:
        raise UserError("There are no tasks to explore: check the split and the count.")
    if not config.limits and not config.run_limits:
        raise UserError("Exploration has no end: set a limit, such as explore.limits.policy_calls.")
    if config.strategy == "reflexion":
        prompts = prompts.with_texts(preamble=prompts.set.advice)
    stage = _Stage(
        policy,
        pool,
        prompts,
        config,
        journal,
        on_progress,
        Progress(len(tasks)),
        Budget(config.run_limits),
    )
    doubled = Counter(task.id for task in tasks).most_common(1)[0]
    if doubled[1] > 1:
        raise UserError(f"Two tasks share an id: {doubled[0]!r}; ids must be unique.")
    with _seldom_collected():
        begun: dict[str, tuple[Tree, Budget]] = {}
        for task in tasks:
            if known and task.id in known and known[task.id].episodes:
                begun[task.id] = stage.resume(task, known[task.id])
        trees: dict[str, Tree] = {}

        def each() -> Iterator[_Begun]:
            for task in tasks:
                tree, budget = (
                    begun.pop(task.id)
                    if task.id in begun
                    else (Tree(task), Budget(config.limits, stage.budget))
                )
                if keep:
                    trees[task.id] = tree
                yield _Begun(tree, budget)

        waiting = each()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(config.concurrency, len(tasks))):
                    group.create_task(stage.work(waiting))
        except BaseExceptionGroup as errors:
            first = _first(errors)
            raise first from first.__cause__
        finally:
            stage.writer.close()
        p = stage.progress
        return Exploration(
            trees,
            stage.budget.snapshot(),
            dict(p.stops),
            p.unusable_reflections,
            stage.budget.reached(),
            pool.waits,
            p.given_up,
            tuple(stage.because),
        )


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Python's collector looks through every living record again and again for the few cycles there
    are: a sixth of the processor time with 1024 tasks in
    flight. Here it looks after every 50,000 new objects instead of 700, which are a few MB."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Writer:
    """Makes episodes durable in a thread: all that wait when the thread is free go into one write,
    so that many tasks share one sync of the disk."""

    def __init__(self, sink: EpisodeSink | None) -> None:
        self.sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: list[tuple[Sequence[Episode], asyncio.Future[None]]] = []
        self._busy = False
        self._running: asyncio.Task[None] | None = None

    async def write(self, episodes: Sequence[Episode]) -> None:
        """Returns when they are on disk; raises what the sink raised."""
        if self.sink is None:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((episodes, done))
        if not self._busy:
            self._busy = True
            self._running = asyncio.get_running_loop().create_task(
                self._run()
            )  # held: the loop itself holds tasks weakly
        await done

    async def _run(self) -> None:
        assert self.sink is not None
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                together = [episode for episodes, _ in batch for episode in episodes]
                await asyncio.get_running_loop().run_in_executor(
                    self._thread, self.sink.append, together
                )
                error: BaseException | None = None
            except BaseException as caught:
                error = caught
            for _, done in batch:
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)
        self._busy = False

    def close(self) -> None:
        self._thread.shutdown(wait=True)


@dataclass(slots=True)
class _Begun:
    """A task on its way."""

    tree: Tree
    budget: Budget
    put_off: bool = False
    """Its episodes failed, and so did those of all others: it was put off until these are done."""


@dataclass(slots=True)
class _Stage:
    policy: Policy
    pool: EnvPool
    prompts: Prompts
    config: ExploreConfig
    journal: EpisodeSink | None
    on_progress: Callable[[Progress], None] | None
    progress: Progress
    budget: Budget
    writer: _Writer = field(init=False)
    errors_in_a_row: int = 0
    last_error: str = ""
    sound: int = 0
    """Episodes that no failure ended."""
    witness: tuple[Task, str] | None = None
    """Task and first observation of the last of them."""
    doubting: asyncio.Lock = field(default_factory=asyncio.Lock)
    put_off: list[_Begun] = field(default_factory=list)
    because: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = _Writer(self.journal)

    def resume(self, task: Task, known: Tree) -> tuple[Tree, Budget]:
        """What an earlier run made of the task, charged."""
        tree, budget = Tree(task), Budget(self.config.limits, self.budget)
        for episode in known.episodes:
            tree.add(episode)
            budget.charge(**cost_of(episode))
            self.count(tree, episode)
        self.errors_in_a_row = 0
        return tree, budget

    async def work(self, waiting: Iterator[_Begun]) -> None:
        while (
            task := next(waiting, None) or (self.put_off.pop(0) if self.put_off else None)
        ) is not None:
            with self.pool.waits.on("total"):
                left = await self.grow(task)
            if left:
                self.progress.tasks_done += 1
                self.report()
            else:
                self.put_off.append(task)

    async def grow(self, task: _Begun) -> bool:
        """Whether the task is done; else it is to be put off."""
        snapshots: dict[str | None, SnapshotHandle] = {}
        try:
            return await self.episodes(task, snapshots)
        finally:
            self.pool.release(snapshots.values())

    async def episodes(self, task: _Begun, snapshots: dict[str | None, SnapshotHandle]) -> bool:
        tree, budget = task.tree, task.budget
        strategy = make_strategy(self.config, self.prompts.set)
        names = bounding(budget)
        forgiven = sum(e.stop in ERRORS for e in tree.episodes)
        sound = self.sound
        while True:
            if tree.solved and self.config.stop_when == "solved":
                return True
            failed = sum(e.stop in ERRORS for e in tree.episodes) - forgiven
            if not failed:
                sound = self.sound
            if failed >= self.config.max_errors:
                if (
                    self.sound > sound
                ):  # others came to a sound end meanwhile: the failures are this task's own
                    return self.give_up(
                        tree,
                        (
                            f"{failed} episodes failed while those of others did not, the last "
                            f"with: {tree.episodes[-1].error}"
                        ),
                    )
                if not task.put_off:
                    task.put_off = True
                    return False
                if not await self.outside_works():
                    raise self.end(failed, tree.episodes[-1].error)
                self.sound += 1
                forgiven += 1  # it may have come back this very moment: one more
            idle, why = idle_in_a_row(tree.episodes, names)
            if idle >= self.config.max_errors:
                return self.give_up(tree, why)
            plan = look_back(strategy, tree, self.config) or strategy.next(tree)
            if plan is None or not budget.admits(
                episodes=int(not plan.look_back), policy_calls=1, env_steps=1, replayed_steps=1
            ):
                return True

            async def run(index: int, plan: Plan = plan) -> Episode:
                budget.charge(episodes=int(not plan.look_back))
                try:
                    async with self.pool.acquire() as env:
                        runner = EpisodeRunner(
                            tree,
                            self.policy,
                            self.prompts,
                            strategy,
                            self.config,
                            budget,
                            env,
                            index,
                            self.pool.waits,
                            snapshots,
                            self.report,
                        )
                        return await runner.run(plan)
                except EnvError as error:  # none could be made
                    return unbegun(plan, tree.task, index, self.config, error)

            together = 1 if plan.look_back else siblings(strategy, tree)
            if together > 1 and self.holds(budget, together, strategy, plan):
                async with asyncio.TaskGroup() as group:
                    running = [
                        group.create_task(run(len(tree.episodes) + i)) for i in range(together)
                    ]
                finished = [task.result() for task in running]
            else:
                finished = [await run(len(tree.episodes))]
            with self.pool.waits.on("journal"):
                await self.writer.write(finished)
            for episode in finished:
                tree.add(episode)
                self.count(tree, episode)
                self.report()
            await self.give_up_if_hopeless()

    def give_up(self, tree: Tree, why: str) -> bool:
        self.progress.given_up += 1
        if len(self.because) < SENTENCES:
            self.because.append(f"Task {tree.task.id} was given up: {why}")
        return True

    async def outside_works(self) -> bool:
        """Whether an episode that came to a sound end could still begin: its environment resets,
        the policy answers its first prompt. Charged to nobody."""
        if self.witness is None:
            return False
        task, first = self.witness
        request = Request(
            self.prompts.act(History(task, first)), max_tokens=16, seed=0, cache_key=task.id
        )  # some servers refuse less
        try:
            async with self.pool.acquire() as env:
                await env.reset(task, derive_seed(self.config.seed, task.id, "world"))
                await self.policy.complete(request)
        except (PolicyError, EnvError):
            return False
        return True

    def end(self, failed: int, error: str) -> ForeignFailure:
        return ForeignFailure(
            f"{failed} episodes in a row failed, the last with: {error} What was finished "
            "is kept: mend it and run again."
        )

    def holds(self, budget: Budget, episodes: int, strategy: Strategy, plan: Plan) -> bool:
        """Whether the budget holds so many episodes of this plan, were each as long as it can
        get."""
        horizon = self.config.horizon or self.pool.facts.horizon
        reflections = 0
        if strategy.reflects_at(plan.depth):
            reflections = (
                horizon // self.config.reflect_every if self.config.reflect_every else 0
            ) + self.config.max_reflection_attempts
        if (
            any(
                name.endswith("_tokens") or name in ("seconds", "replayed_steps")
                for name in budget.limits
            )
            or budget.parent is None
            or budget.parent.limits
        ):
            # what these cost is known afterwards only, and a run's limit is shared with other tasks
            return False
        return budget.admits(
            episodes=episodes,
            policy_calls=episodes * (horizon + reflections),
            env_steps=episodes * horizon,
        )

    def count(self, tree: Tree, episode: Episode) -> None:
        p = self.progress
        p.stops[episode.stop.value] += not episode.looks_back
        p.turns += len(episode.turns)
        p.unusable_reflections += sum(t.kind == "reflect" and not t.valid for t in episode.turns)
        if episode.stop in ERRORS:
            self.errors_in_a_row, self.last_error = self.errors_in_a_row + 1, episode.error
        else:
            self.errors_in_a_row, self.sound, self.witness = (
                0,
                self.sound + 1,
                (tree.task, episode.first_observation),
            )
        if episode.success and len(tree.successes()) == 1:
            p.solved += 1
            p.solved_by_rollback += episode.depth > 0

    def report(self) -> None:
        self.progress.spent = self.budget.snapshot()
        if self.on_progress is not None:
            self.on_progress(self.progress)

    async def give_up_if_hopeless(self) -> None:
        """A dead endpoint fails every episode: end the stage after a row of failures instead of
        filling the journal with them."""
        async with self.doubting:
            if self.errors_in_a_row >= max(10, self.config.max_errors):
                if not await self.outside_works():
                    raise self.end(self.errors_in_a_row, self.last_error)
                self.errors_in_a_row = 0


def _first(group: BaseExceptionGroup) -> BaseException:
    """The failure that the group stands for: the first one that is not itself a group."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
