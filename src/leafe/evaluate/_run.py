"""Plain sampling of a policy on tasks: no reflection, no rollback, no search.

Many tasks are in flight, without a barrier between them or between the histories of one
(`_sampler`). Tasks that lack samples are sampled again when all others are done.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from leafe.core import LOST, ForeignFailure, Policy, Spent, Task, Tree, UserError
from leafe.core.concurrency import FailureStreak, run_queue
from leafe.evaluate._passk import counts
from leafe.evaluate._sampler import Sampling, TaskSampler
from leafe.explore import EnvPool, EpisodeSink, add_cost, check_tasks
from leafe.prompts import Prompts


@dataclass(slots=True)
class EvaluateProgress:
    """Where an evaluation stands; handed to the caller after every finished task. Samples,
    successes and stops go by counts."""

    tasks: int
    tasks_done: int = 0
    samples: int = 0
    successes: int = 0
    solved: int = 0
    """Tasks with a success."""
    stops: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)
    """What was really computed, the seconds aside."""


async def evaluate(
    policy: Policy,
    pool: EnvPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    *,
    samples: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    horizon: int | None = None,
    max_invalid_actions: int = 5,
    concurrency: int = 128,
    on_progress: Callable[[EvaluateProgress], None] | None = None,
) -> list[Tree]:
    """Sample independent episodes of every task (docs/method.md, Evaluation).

    Samples lost to the policy's endpoint or to the environment are resampled, within bounds, when
    the rest of the task is done and again when all other tasks are; until then the task is not
    written. A sample that is lost for good is an episode with `Stop.policy_error`, `env_error` or
    `diverged` and is missing from the n of Pass@k. A task whose samples were all lost is not
    written, so that the next run tries it again.

    Args:
        policy: What is evaluated.
        pool: Where environments come from.
        tasks: Their ids have to be unique.
        prompts: The wording.
        samples: n, episodes of each task.
        temperature: Of the sampling.
        top_p: Nucleus sampling; 1: off.
        seed: All random draws derive from it.
        journal: Where finished tasks go, one write for each.
        known: The trees of an interrupted run by task id: their lost samples alone are sampled.
        horizon: Most steps of an episode; None: the environment's own.
        max_invalid_actions: Invalid actions in a row that end an episode.
        concurrency: Tasks in flight.
        on_progress: Called after every finished task.

    Returns:
        One tree a task, in the tasks' order, with counts on its turns and episodes.

    Raises:
        UserError: No tasks, two tasks of one id, no samples, or known trees of another number of
            samples.
        ForeignFailure: Everything is lost again and again; finished tasks are in the journal.
    """
    check_tasks(tasks, "evaluate on")
    if samples < 1:
        raise UserError(f"samples = {samples}: an evaluation needs at least one sample a task.")
    stage = _Stage(
        Sampling(
            policy,
            pool,
            prompts,
            samples,
            temperature,
            top_p,
            seed,
            horizon or pool.facts.horizon,
            max_invalid_actions,
        ),
        journal,
        on_progress,
        EvaluateProgress(len(tasks)),
    )
    for task in tasks:
        before = (known or {}).get(task.id)
        if before is not None and before.episodes:
            stage.resume(task, before)
        else:
            stage.fresh.append(task)
    try:
        await run_queue(stage.fresh, stage.sample, concurrency)
        await run_queue(stage.incomplete, stage.complete, concurrency)
    finally:
        stage.writer.shutdown(wait=True)
    if all(e.stop in LOST for tree in stage.trees.values() for e in tree.episodes):
        raise ForeignFailure(
            "Every sample of every task was lost, the last with: "
            f"{stage.last_error} Fix the cause, then run the same command again."
        )
    return [stage.trees[task.id] for task in tasks]


@dataclass(slots=True)
class _Stage:
    """What all tasks of one evaluation share."""

    sampling: Sampling
    journal: EpisodeSink | None
    on_progress: Callable[[EvaluateProgress], None] | None
    progress: EvaluateProgress
    writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="journal")
    )
    failures: FailureStreak = field(
        default_factory=lambda: FailureStreak("tasks in a row lost all their samples")
    )
    last_error: str = ""
    trees: dict[str, Tree] = field(default_factory=dict)
    """Of the tasks that are done."""
    fresh: deque[Task] = field(default_factory=deque)
    incomplete: deque[TaskSampler] = field(default_factory=deque)
    """Tasks that lack samples, for when all others are done."""

    def resume(self, task: Task, known: Tree) -> None:
        """Take over what an interrupted run sampled."""
        held = sum(e.count for e in known.episodes if e.again is None)
        if held != self.sampling.samples:
            raise UserError(
                f"The journal holds {held} samples of task {task.id!r} where "
                f"{self.sampling.samples} are asked for: evaluate into another folder."
            )
        if counts([known]).lost[0]:
            self.incomplete.append(TaskSampler(self.sampling, task, known))
        else:
            self.trees[task.id] = known
            self.count(known)

    async def sample(self, task: Task) -> None:
        """Sample a task; it is done, or `incomplete`."""
        sampler = TaskSampler(self.sampling, task)
        try:
            await sampler.sample()
            if not sampler.all_lost:
                await sampler.resample_lost()
        finally:
            sampler.release()
        if sampler.all_lost:
            self.last_error = sampler.last_error
            self.failures.add(self.last_error)
        else:
            self.failures.reset()
        if sampler.lost:
            self.incomplete.append(sampler)
        else:
            await self.keep(sampler)

    async def complete(self, sampler: TaskSampler) -> None:
        """Sample what the task still lacks, for the last time."""
        try:
            await sampler.resample_lost()
        finally:
            sampler.release()
        await self.keep(sampler)

    async def keep(self, sampler: TaskSampler) -> None:
        """Write what is new, unless all of it is lost, and count the task as done."""
        new = sampler.episodes()
        sound = not all(e.stop in LOST for e in new)
        if sound and self.journal is not None:
            await asyncio.get_running_loop().run_in_executor(self.writer, self.journal.append, new)
        before = [] if sampler.known is None else sampler.known.episodes
        tree = Tree(sampler.task, [*before, *(new if sound or not before else ())])
        self.trees[sampler.task.id] = tree
        self.count(tree)

    def count(self, tree: Tree) -> None:
        p = self.progress
        p.tasks_done += 1
        p.solved += tree.solved
        for episode in tree.episodes:
            p.samples += episode.count if episode.again is None else 0
            p.successes += episode.count * episode.success
            p.stops[episode.stop.value] += episode.count
            add_cost(p.spent, episode)
        if self.on_progress is not None:
            self.on_progress(p)
