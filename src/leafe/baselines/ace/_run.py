"""Grow a playbook over the training tasks: attempts by the policy as generator, lessons by it as
reflector, deltas by it as curator, merged by code.

The tasks are gone through in passes, one attempt a task and pass while it is unsolved and its
budget lasts; `batch` tasks at a time act with the same playbook,
and what they teach is merged in the tasks' order before the next begin. So the playbook is a
function of the episodes, whose asides hold every lesson and
delta: the journal is all that a killed run needs, and loses the attempts in flight. Every lesson
and delta is a policy call within the task's budget.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leafe.baselines._asides import Asker
from leafe.baselines.ace._playbook import Delta, Playbook
from leafe.baselines.ace._read import DELTA_SCHEMA, LESSON_SCHEMA, Lesson, read_delta, read_lesson
from leafe.core import (
    FAILED,
    Budget,
    EnvError,
    Episode,
    ForeignFailure,
    Message,
    Policy,
    Spent,
    Stop,
    Task,
    Tree,
    Turn,
    UserError,
)
from leafe.explore import (
    EnvPool,
    EpisodeRunner,
    EpisodeSink,
    ExploreConfig,
    Progress,
    SnapshotHandle,
    bounding,
    cost_of,
    idle_in_a_row,
    make_strategy,
)
from leafe.prompts import History, Prompts, fill

_ERRORS = frozenset({Stop.policy_error, Stop.env_error})
HOPELESS = 10
"""Attempts in a row lost to the policy's or the environment's failures, after which the run ends:
the outside is down."""


Place = Literal["first", "step"]


class AceConfig(BaseModel):
    """What is ACE's own; budget, temperatures, horizon and seed are in `ExploreConfig`, as for
    every strategy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(8, ge=1)
    """Tasks that act with the same playbook. 1 learns from every attempt before the next, one after
    another."""
    passes: int | None = Field(None, ge=1)
    """Most attempts at a task; None: as many as its budget holds."""
    most: int = Field(40, ge=1)
    """Items of the playbook."""
    place: Place = "first"
    """Where the policy reads it: `first`, whole and before everything, as the paper has it; `step`,
    item by item, each at the steps whose observation names its
    section (and only what was confirmed more often than contradicted): for a policy that cannot
    find one line among many."""
    similarity: float = Field(0.8, gt=0, le=1)
    """Jaccard index of their words from which on two texts say the same."""


@dataclass(frozen=True, slots=True)
class Ace:
    """The playbook, and what it took."""

    playbook: Playbook
    trees: dict[str, Tree]
    """Every attempt, with the lessons and deltas as asides."""
    spent: Spent
    merges: Mapping[str, int]
    """What became of the deltas."""
    unusable: Mapping[str, int]
    """Lessons and deltas that could not be read, by reason; marks of items that are not there."""
    passes: int
    given_up: int
    """Tasks left because their attempts failed for reasons outside again and again."""
    cut_short: str | None
    """The run-wide limit that ended it early, if one did."""


def with_playbook(prompts: Prompts, playbook: Playbook, place: Place = "first") -> Prompts:
    """Prompts that hold the playbook: what the frozen one is evaluated with."""
    if place == "step":
        return prompts.with_playbook(lessons=playbook.by_section())
    return prompts.with_playbook(playbook.render(prompts.set))


async def ace(
    policy: Policy,
    pool: EnvPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    config: ExploreConfig,
    own: AceConfig,
    *,
    start: Playbook | None = None,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_playbook: Callable[[Playbook], None] | None = None,
) -> Ace:
    """Grow the playbook offline (METHOD.md, ACE).

    config: `limits` a task, `run_limits` in all (those cut short what timing decides), `until`,
    temperatures, `max_reflection_attempts`, horizon, limits on invalid
    actions and errors, seed; its strategy is not used. `known`: the trees of an interrupted run.
    `on_playbook` is told of the playbook after every batch.
    Raises UserError for an empty task list, ForeignFailure where policy or environments fail again
    and again (finished attempts are in the journal).
    """
    if not tasks:
        raise UserError(
            "There are no tasks to learn a playbook from: check the split and the count."
        )
    doubled, times = Counter(task.id for task in tasks).most_common(1)[0]
    if times > 1:
        raise UserError(f"Two tasks share an id: {doubled!r}; ids must be unique.")
    stage = _Stage(
        policy,
        pool,
        prompts,
        config.model_copy(update={"strategy": "independent"}),
        own,
        journal,
        known or {},
        on_progress,
        start or Playbook(),
    )
    stage.budget, stage.progress = Budget(config.run_limits), Progress(len(tasks))
    for task in tasks:
        stage.trees[task.id], stage.budgets[task.id] = (
            Tree(task),
            Budget(config.limits, stage.budget),
        )
    passes = 0
    while own.passes is None or passes < own.passes:
        going = [task for task in tasks if stage.goes_on(task)]
        stage.progress.tasks_done = len(tasks) - len(going)
        if not going:
            break
        for batch in _batched(going, own.batch):
            await stage.learn(batch, passes)
            if on_playbook is not None:
                on_playbook(stage.playbook)
        passes += 1
    given_up = sum(stage.lost(tree) for tree in stage.trees.values())
    stage.progress.tasks_done = len(tasks)
    stage.report()
    return Ace(
        stage.playbook,
        stage.trees,
        stage.budget.snapshot(),
        dict(+stage.merges),
        dict(+stage.unusable),
        passes,
        given_up,
        stage.budget.reached(),
    )


@dataclass(slots=True)
class _Stage:
    policy: Policy
    pool: EnvPool
    prompts: Prompts
    config: ExploreConfig
    own: AceConfig
    journal: EpisodeSink | None
    known: Mapping[str, Tree]
    on_progress: Callable[[Progress], None] | None
    playbook: Playbook
    budget: Budget = field(default_factory=Budget)
    progress: Progress = field(default_factory=lambda: Progress(0))
    trees: dict[str, Tree] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    merges: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    lost_in_a_row: int = 0

    def errors(self, tree: Tree) -> int:
        return sum(e.stop in _ERRORS for e in tree.episodes)

    def lost(self, tree: Tree) -> bool:
        """Whether the task is to be given up: its attempts failed, or did nothing that would ever
        end."""
        idle, _ = idle_in_a_row(tree.episodes, bounding(self.budgets[tree.task.id]))
        return self.errors(tree) >= self.config.max_errors or idle >= self.config.max_errors

    def goes_on(self, task: Task) -> bool:
        """Whether the task gets an attempt in this pass."""
        tree = self.trees[task.id]
        if tree.solved and self.config.stop_when == "solved":
            return False
        if task.id in self.known and len(self.known[task.id].episodes) > len(tree.episodes):
            return True  # it did
        return not self.lost(tree) and self.budgets[task.id].admits(
            episodes=1, policy_calls=1, env_steps=1, replayed_steps=1
        )

    async def learn(self, batch: Sequence[Task], number: int) -> None:
        """One attempt at each task, all with the same playbook; then merge what they teach, in
        their order."""
        prompts = with_playbook(self.prompts, self.playbook, self.own.place)
        found = await asyncio.gather(
            *(self.attempt(task, number, prompts) for task in batch), return_exceptions=True
        )
        wrong = next((e for e in found if isinstance(e, BaseException)), None)
        if wrong is not None:  # the others have come to their end: what they did is in the journal
            raise wrong
        before = self.playbook
        finished = [episode for episode in found if isinstance(episode, Episode)]
        if before.items and all(e.stop is Stop.context_full and not e.acts for e in finished):
            raise UserError(
                f"A playbook of {len(before.items)} items leaves no room for a task in the "
                f"policy's context ({finished[0].error}): lower the number of items "
                f"(most = {self.own.most}) or give the policy a longer context."
            )
        for task, episode in zip(batch, finished, strict=True):
            self.trees[task.id].add(episode)
            self.count(task, episode)
            self.merge(episode, before)
            self.report()

    async def attempt(self, task: Task, number: int, prompts: Prompts) -> Episode:
        """The attempt with its lesson and delta, in the journal; or the one that an earlier run
        made."""
        budget, tree = self.budgets[task.id], self.trees[task.id]
        if task.id in self.known and len(self.known[task.id].episodes) > number:
            episode = self.known[task.id].episodes[number]
            budget.charge(**cost_of(episode))
            return episode
        budget.charge(episodes=1)
        snapshots: dict[str | None, SnapshotHandle] = {}
        try:
            async with self.pool.acquire() as env:
                strategy = make_strategy(self.config, prompts.set)
                runner = EpisodeRunner(
                    tree,
                    self.policy,
                    prompts,
                    strategy,
                    self.config,
                    budget,
                    env,
                    number,
                    self.pool.waits,
                    snapshots,
                    self.report,
                )
                plan = strategy.next(tree)
                assert plan is not None
                episode = await runner.run(plan)
        except EnvError as error:  # none could be made
            episode = Episode(task.id, number, Stop.env_error, (), error=str(error))
        finally:
            self.pool.release(snapshots.values())
        if episode.stop in _ERRORS:
            self.lost_in_a_row += 1
            if self.lost_in_a_row >= HOPELESS:
                raise ForeignFailure(
                    f"{self.lost_in_a_row} attempts in a row failed, the last with: "
                    f"{episode.error} What was finished is kept: mend it and run again."
                )
        else:
            self.lost_in_a_row = 0
            episode = replace(
                episode, turns=(*episode.turns, *await self.reflect(task, episode, prompts, budget))
            )
        if self.journal is not None:
            await asyncio.to_thread(self.journal.append, [episode])
        return episode

    async def reflect(
        self, task: Task, episode: Episode, prompts: Prompts, budget: Budget
    ) -> list[Turn]:
        """The reflector's turns, then the curator's."""
        words, playbook = prompts.set, self.playbook
        outcome = words.won if episode.success else words.lost
        if not episode.acts or not outcome or not (episode.success or episode.stop in FAILED):
            return []
        history = History(task, episode.first_observation, episode.acts)
        asker = Asker(self.policy, self.config, budget)
        lesson: Lesson | None = None

        def lesson_of(text: str) -> str:
            nonlocal lesson
            lesson = read_lesson(text, words, playbook, self.own.similarity)
            return lesson.text

        # marks by number need the list before the reflector; by section they do not, and it only
        # stands in a small model's way
        shown = prompts if words.lesson_form == "json" else self.prompts
        turns = await asker.ask(
            "lesson",
            history,
            shown.with_request(history, fill(words.lesson, {"outcome": outcome})),
            lesson_of,
            episode=episode.index,
            first=0,
            max_tokens=words.reflect_max_tokens,
            schema=LESSON_SCHEMA if words.lesson_form == "json" else None,
        )
        if lesson is None or not lesson.text or words.lesson_form == "pattern":
            return turns
        values = {
            "items": playbook.listed(words),
            "instruction": task.instruction,
            "section": lesson.section,
            "lesson": lesson.text,
        }
        return turns + await asker.ask(
            "delta",
            history,
            (Message("user", fill(words.curate, values)),),
            _delta_note,
            episode=episode.index,
            first=len(turns),
            max_tokens=words.reflect_max_tokens,
            schema=DELTA_SCHEMA,
        )

    def merge(self, episode: Episode, before: Playbook) -> None:
        """What the attempt's asides do to the playbook. `before`: the one that it acted with and
        that its marks speak of."""
        words, own = self.prompts.set, self.own
        for turn in episode.turns:
            if turn.action not in ("lesson", "delta") or turn.kind != "aside":
                continue
            if not turn.valid:
                self.unusable[f"{turn.action}: {turn.observation}"] += 1
                continue
            if turn.action == "lesson":
                lesson = read_lesson(turn.action_text, words, before, own.similarity)
                unknown = {i for i in lesson.helpful | lesson.harmful if i not in before}
                self.unusable["mark: the item is not there"] += len(unknown)
                self.playbook = self.playbook.mark(lesson.helpful, lesson.harmful)
                if words.lesson_form == "json":
                    self.merges["nothing to teach"] += not lesson.text
                    continue
                delta = Delta("ADD", section=lesson.section, text=lesson.text)
            else:
                found = read_delta(turn.action_text)
                if found is None:
                    self.merges["left as it is"] += 1
                    continue
                delta = found
            self.playbook, became = self.playbook.merge(
                delta, most=own.most, similarity=own.similarity
            )
            self.merges[became] += 1

    def count(self, task: Task, episode: Episode) -> None:
        p = self.progress
        p.stops[episode.stop.value] += 1
        p.turns += len(episode.turns)
        p.unusable_reflections += sum(not t.valid for t in episode.turns if t.kind == "aside")
        p.solved += episode.success and len(self.trees[task.id].successes()) == 1

    def report(self) -> None:
        self.progress.spent = self.budget.snapshot()
        if self.on_progress is not None:
            self.on_progress(self.progress)


def _delta_note(text: str) -> str:
    delta = read_delta(text)
    return (
        "NONE"
        if delta is None
        else " ".join(filter(None, (delta.operation, str(delta.item or ""), delta.text)))
    )


def _batched(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]
