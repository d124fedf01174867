"""Stage 1 over many tasks: each task's tree grows by itself, at most `concurrency` at a time.

There is no barrier between tasks. Within a task episodes follow one another, so that its tree
depends on the run's seed and the task alone; only the branches of one reflection run side by side,
where the budget covers the longest that they can get (then none of them can decide what another
gets). A finished episode is durable before the next one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from leafe.core import (
    FOREIGN,
    Budget,
    EnvError,
    Episode,
    Policy,
    PolicyError,
    Request,
    Spent,
    Task,
    Tree,
    UserError,
    derive_seed,
)
from leafe.core.concurrency import MAX_FAILURES_IN_A_ROW, outage, run_all, run_queue
from leafe.explore._accounting import cost_of, limited_quantities, stalled_in_a_row
from leafe.explore._config import ExploreConfig
from leafe.explore._env_pool import EnvPool, SnapshotHandle
from leafe.explore._episode import EpisodeRunner
from leafe.explore._journal_writer import EpisodeSink, JournalWriter
from leafe.explore._strategy import Plan, Strategy, make_strategy, plan_missing_reflection
from leafe.explore._waits import Waits
from leafe.prompts import History, Prompts

MAX_REASONS = 3
"""Of the tasks that were given up, how many have their reason kept."""


@dataclass(slots=True)
class Progress:
    """Where a stage stands; handed to the caller after every answer of the policy and every
    finished episode. Episodes and turns are those of finished episodes; `spent` is up to date."""

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
    """Episodes by how they ended."""
    unusable_reflections: int
    cut_short: str | None
    """The run-wide limit that ended the stage early, if one did."""
    waits: Waits = field(default_factory=Waits)
    """Where the time went."""
    given_up: int = 0
    """Tasks that were left because their episodes failed again and again while those of others did
    not, or got no closer to any limit."""
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
    """Grow a tree for every task (docs/method.md, Stage 1).

    Args:
        policy: Acts and reflects.
        pool: Where environments come from.
        tasks: Their ids have to be unique.
        prompts: The wording.
        config: Strategy, limits, sampling, seed.
        journal: Where finished episodes go.
        known: The trees of an interrupted run, or of imported episodes, by task id. They count
            against the budget and are continued; a failure among them that was never reflected on
            is reflected on first, by a strategy that reflects.
        on_progress: Called after every answer of the policy and every finished episode.
        keep: Return the trees. With False a tree is dropped when its task is done, so that memory
            depends on the tasks in flight alone.

    Raises:
        UserError: No tasks, two tasks of one id, or no limit at all.
        ForeignFailure: The policy or the environments fail again and again; what was finished is in
            the journal.
    """
    check_tasks(tasks, "explore")
    if not config.limits and not config.run_limits:
        raise UserError("Exploration has no end: set a limit, such as explore.limits.policy_calls.")
    if config.strategy == "reflexion":
        prompts = prompts.with_texts(preamble=prompts.set.advice)
    stage = _Stage(
        policy,
        pool,
        prompts,
        config,
        JournalWriter(journal),
        on_progress,
        Progress(len(tasks)),
        Budget(config.run_limits),
    )
    trees: dict[str, Tree] = {}
    with _rarer_garbage_collection():
        for task in tasks:
            if known and task.id in known and known[task.id].episodes:
                stage.resume(task, known[task.id])
        queue = deque(tasks)

        async def work(task: Task) -> None:
            run = stage.begun.pop(task.id, None) or stage.begin(task)
            if keep:
                trees[task.id] = run.tree
            with pool.waits.on("total"):
                done = await stage.run_task(run)
            if done:
                stage.progress.tasks_done += 1
                stage.report()
            else:
                stage.begun[task.id] = run
                queue.append(task)

        try:
            await run_queue(queue, work, config.concurrency)
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
        tuple(stage.reasons),
    )


def check_tasks(tasks: Sequence[Task], purpose: str) -> None:
    """UserError where there are no tasks, or two of one id."""
    if not tasks:
        raise UserError(f"There are no tasks to {purpose}: check the split and the count.")
    task_id, times = Counter(task.id for task in tasks).most_common(1)[0]
    if times > 1:
        raise UserError(f"Two tasks share the id {task_id!r}: task ids must be unique.")


@contextlib.contextmanager
def _rarer_garbage_collection() -> Iterator[None]:
    """Collect after every 50,000 new objects instead of 700: among many living records there are
    few cycles, and with 1024 tasks in flight the collector took a sixth of the processor time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@dataclass(slots=True)
class _TaskRun:
    """A task in progress."""

    tree: Tree
    budget: Budget
    postponed: bool = False
    """Its episodes failed while no other task's succeeded: it waits until all others are done."""


@dataclass(slots=True)
class _Stage:
    """What all tasks of one exploration share."""

    policy: Policy
    pool: EnvPool
    prompts: Prompts
    config: ExploreConfig
    writer: JournalWriter
    on_progress: Callable[[Progress], None] | None
    progress: Progress
    budget: Budget
    begun: dict[str, _TaskRun] = field(default_factory=dict)
    """Tasks that wait with a tree of their own: known or postponed ones."""
    errors_in_a_row: int = 0
    last_error: str = ""
    sound: int = 0
    """Episodes that no failure of policy or environment ended."""
    last_sound: tuple[Task, str] | None = None
    """Task and first observation of the last of them."""
    outage_check: asyncio.Lock = field(default_factory=asyncio.Lock)
    reasons: list[str] = field(default_factory=list)

    def begin(self, task: Task) -> _TaskRun:
        return _TaskRun(Tree(task), Budget(self.config.limits, self.budget))

    def resume(self, task: Task, known: Tree) -> None:
        """Continue the tree of an earlier run, which is charged."""
        run = self.begun[task.id] = self.begin(task)
        for episode in known.episodes:
            run.tree.add(episode)
            run.budget.charge(**cost_of(episode))
            self.count(run.tree, episode)
        self.errors_in_a_row = 0

    async def run_task(self, run: _TaskRun) -> bool:
        """Whether the task is done; else it is to be postponed."""
        snapshots: dict[str | None, SnapshotHandle] = {}
        try:
            return await self.run_episodes(run, snapshots)
        finally:
            self.pool.release(snapshots.values())

    async def run_episodes(
        self, run: _TaskRun, snapshots: dict[str | None, SnapshotHandle]
    ) -> bool:
        tree, budget = run.tree, run.budget
        strategy = make_strategy(self.config, self.prompts.set)
        limited = limited_quantities(budget)
        forgiven = sum(e.stop in FOREIGN for e in tree.episodes)
        sound_before = self.sound
        while True:
            if tree.solved and self.config.stop_when == "solved":
                return True
            failed = sum(e.stop in FOREIGN for e in tree.episodes) - forgiven
            if not failed:
                sound_before = self.sound
            if failed >= self.config.max_errors:
                error = tree.episodes[-1].error
                if self.sound > sound_before:  # other tasks worked: this one is at fault
                    return self.give_up(
                        tree,
                        f"{failed} of its episodes failed while those of other tasks did not, "
                        f"the last with: {error}",
                    )
                if not run.postponed:
                    run.postponed = True
                    return False
                if not await self.services_respond():
                    raise outage(failed, "episodes in a row failed", error)
                self.sound += 1
                forgiven += 1  # the outage may just have ended: one more episode
            stalled, why = stalled_in_a_row(tree.episodes, limited)
            if stalled >= self.config.max_errors:
                return self.give_up(tree, why)
            plan = plan_missing_reflection(strategy, tree, self.config) or strategy.next(tree)
            if plan is None or not budget.admits(
                episodes=int(not plan.look_back), policy_calls=1, env_steps=1, replayed_steps=1
            ):
                return True

            async def episode(index: int, plan: Plan = plan) -> Episode:
                runner = EpisodeRunner(
                    tree,
                    self.policy,
                    self.prompts,
                    strategy,
                    self.config,
                    budget,
                    self.pool,
                    index,
                    snapshots,
                    self.report,
                )
                return await runner.run(plan)

            together = 1 if plan.look_back else strategy.siblings(tree)
            first = len(tree.episodes)
            if together > 1 and self.budget_covers(budget, together, strategy, plan):
                finished = await run_all(range(first, first + together), episode)
            else:
                finished = [await episode(first)]
            with self.pool.waits.on("journal"):
                await self.writer.write(finished)
            for one in finished:
                tree.add(one)
                self.count(tree, one)
                self.report()
            await self.end_on_outage()

    def give_up(self, tree: Tree, why: str) -> bool:
        self.progress.given_up += 1
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(f"Task {tree.task.id} was given up: {why}")
        return True

    async def end_on_outage(self) -> None:
        """End the stage where the endpoint or the environment is down, instead of filling the
        journal with failed episodes."""
        async with self.outage_check:
            if self.errors_in_a_row >= max(MAX_FAILURES_IN_A_ROW, self.config.max_errors):
                if not await self.services_respond():
                    raise outage(self.errors_in_a_row, "episodes in a row failed", self.last_error)
                self.errors_in_a_row = 0

    async def services_respond(self) -> bool:
        """Whether the last sound episode could begin again: its environment resets, the policy
        answers its first prompt. Charged to nobody."""
        if self.last_sound is None:
            return False
        task, first = self.last_sound
        request = Request(
            self.prompts.act(History(task, first)),
            max_tokens=16,  # some servers refuse less
            seed=0,
            cache_key=task.id,
        )
        try:
            async with self.pool.acquire() as env:
                await env.reset(task, derive_seed(self.config.seed, task.id, "world"))
                await self.policy.complete(request)
        except (PolicyError, EnvError):
            return False
        return True

    def budget_covers(self, budget: Budget, episodes: int, strategy: Strategy, plan: Plan) -> bool:
        """Whether the budget covers so many episodes of this plan, were each as long as it can
        get."""
        if (
            any(n.endswith("_tokens") or n in ("seconds", "replayed_steps") for n in budget.limits)
            or budget.parent is None
            or budget.parent.limits
        ):
            # these costs are known only afterwards, and a run's limit is shared with other tasks
            return False
        horizon = self.config.horizon or self.pool.facts.horizon
        reflections = 0
        if strategy.reflects_at(plan.depth):
            every = self.config.reflect_every
            reflections = horizon // every if every else 0
            reflections += self.config.max_reflection_attempts
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
        if episode.stop in FOREIGN:
            self.errors_in_a_row += 1
            self.last_error = episode.error
        else:
            self.errors_in_a_row = 0
            self.sound += 1
            self.last_sound = (tree.task, episode.first_observation)
        if episode.success and len(tree.successes()) == 1:
            p.solved += 1
            p.solved_by_rollback += episode.depth > 0

    def report(self) -> None:
        self.progress.spent = self.budget.snapshot()
        if self.on_progress is not None:
            self.on_progress(self.progress)
