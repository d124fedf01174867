"""Builds a playbook over the training tasks: attempts by the policy as generator, insights by it as
reflector, deltas by it as curator, merged by code.

The tasks are gone through in passes, one attempt a task and pass while it is unsolved and its
budget lasts. `batch` tasks at a time act with the same playbook; what they teach is merged in the
tasks' order before the next batch begins. So the playbook is a function of the episodes, whose
asides hold every insight and delta: a killed run continues from the journal, and loses the attempts
in flight. Every insight and delta is a policy call within the task's budget.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leafe.baselines._asides import AsideSampler
from leafe.baselines.ace._playbook import Delta, Playbook
from leafe.baselines.ace._read import (
    DELTA_SCHEMA,
    INSIGHT_SCHEMA,
    Insight,
    parse_delta,
    parse_insight,
)
from leafe.core import (
    FAILED,
    FOREIGN,
    Budget,
    Episode,
    Message,
    Policy,
    Spent,
    Stop,
    Task,
    Tree,
    Turn,
    UserError,
)
from leafe.core.concurrency import FailureStreak, run_all
from leafe.explore import (
    EnvPool,
    EpisodeRunner,
    EpisodeSink,
    ExploreConfig,
    Plan,
    Progress,
    SnapshotHandle,
    check_tasks,
    cost_of,
    limited_quantities,
    make_strategy,
    stalled_in_a_row,
)
from leafe.prompts import History, Prompts, fill

Place = Literal["first", "step"]
"""Where the policy reads the playbook: `AceConfig.place`."""


class AceConfig(BaseModel):
    """What is ACE's own; budget, temperatures, horizon and seed are in `ExploreConfig`, as for
    every strategy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(8, ge=1)
    """Tasks that act with the same playbook. 1: learn from every attempt before the next."""
    passes: int | None = Field(None, ge=1)
    """Most attempts at a task; None: as many as its budget holds."""
    max_items: int = Field(40, ge=1)
    """Most items of the playbook."""
    place: Place = "first"
    """Where the policy reads the playbook. first: whole and before everything, as in the paper.
    step: item by item, each at the steps whose observation names its section (only items that
    helped more often than they misled): for a policy that cannot find one line among many."""
    similarity: float = Field(0.8, gt=0, le=1)
    """Jaccard index of their words from which on two texts say the same."""


@dataclass(frozen=True, slots=True)
class AceResult:
    """The playbook, and what it took."""

    playbook: Playbook
    trees: dict[str, Tree]
    """Every attempt, with the insights and deltas as asides."""
    spent: Spent
    merges: Mapping[str, int]
    """What became of the deltas."""
    unusable: Mapping[str, int]
    """Answers that could not be parsed, by reason; marks of unknown items."""
    passes: int
    given_up: int
    """Tasks left because their attempts failed for outside reasons again and again."""
    cut_short: str | None
    """The run-wide limit that ended it early, if one did."""


def with_playbook(prompts: Prompts, playbook: Playbook, place: Place = "first") -> Prompts:
    """Prompts that hold the playbook: what the frozen one is evaluated with.

    Args:
        prompts: The wording; unchanged.
        playbook: What the policy reads.
        place: As `AceConfig.place`.
    """
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
) -> AceResult:
    """Build the playbook offline (docs/method.md, ACE).

    Args:
        policy: Generator, reflector and curator.
        pool: Where environments come from.
        tasks: The training tasks; their ids have to be unique.
        prompts: The wording.
        config: `limits` a task, `run_limits` in all (timing decides what these cut short),
            `stop_when`, temperatures, `max_reflection_attempts`, horizon, limits on invalid actions
            and errors, seed. Its strategy is not used.
        own: What is ACE's own.
        start: The playbook to begin with; None: an empty one.
        journal: Where finished attempts go.
        known: The trees of an interrupted run, by task id.
        on_progress: Called after every answer of the policy and every finished attempt.
        on_playbook: Called with the playbook after every batch.

    Raises:
        UserError: No tasks, two tasks of one id, or a playbook that fills the policy's context.
        ForeignFailure: Policy or environments fail again and again; finished attempts are in the
            journal.
    """
    check_tasks(tasks, "learn a playbook from")
    run_budget = Budget(config.run_limits)
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
        run_budget,
        Progress(len(tasks)),
        {task.id: Tree(task) for task in tasks},
        {task.id: Budget(config.limits, run_budget) for task in tasks},
    )
    passes = 0
    while own.passes is None or passes < own.passes:
        going = [task for task in tasks if stage.continues(task)]
        stage.progress.tasks_done = len(tasks) - len(going)
        if not going:
            break
        for first in range(0, len(going), own.batch):
            await stage.learn(going[first : first + own.batch], passes)
            if on_playbook is not None:
                on_playbook(stage.playbook)
        passes += 1
    stage.progress.tasks_done = len(tasks)
    stage.report()
    return AceResult(
        stage.playbook,
        stage.trees,
        run_budget.snapshot(),
        dict(+stage.merges),
        dict(+stage.unusable),
        passes,
        sum(stage.given_up(tree) for tree in stage.trees.values()),
        run_budget.reached(),
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
    budget: Budget
    progress: Progress
    trees: dict[str, Tree]
    budgets: dict[str, Budget]
    merges: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    failures: FailureStreak = field(
        default_factory=lambda: FailureStreak("attempts in a row failed")
    )

    def given_up(self, tree: Tree) -> bool:
        """Whether the task's attempts failed, or got no closer to a limit, again and again."""
        errors = sum(e.stop in FOREIGN for e in tree.episodes)
        limited = limited_quantities(self.budgets[tree.task.id])
        stalled, _ = stalled_in_a_row(tree.episodes, limited)
        return max(errors, stalled) >= self.config.max_errors

    def continues(self, task: Task) -> bool:
        """Whether the task gets an attempt in this pass."""
        tree = self.trees[task.id]
        if tree.solved and self.config.stop_when == "solved":
            return False
        if task.id in self.known and len(self.known[task.id].episodes) > len(tree.episodes):
            return True  # an earlier run made it
        return not self.given_up(tree) and self.budgets[task.id].admits(
            episodes=1, policy_calls=1, env_steps=1, replayed_steps=1
        )

    async def learn(self, batch: Sequence[Task], number: int) -> None:
        """One attempt at each task, all with the same playbook; then merge what they teach, in
        their order. `number`: of the attempt at each task."""
        prompts, before = with_playbook(self.prompts, self.playbook, self.own.place), self.playbook
        finished = await run_all(batch, lambda task: self.attempt(task, number, prompts))
        if before.items and all(e.stop is Stop.context_full and not e.acts for e in finished):
            raise UserError(
                f"A playbook of {len(before.items)} items leaves no room for a task in the "
                f"policy's context ({finished[0].error}): lower the number of items "
                f"(max_items = {self.own.max_items}) or give the policy a longer context."
            )
        for task, episode in zip(batch, finished, strict=True):
            self.trees[task.id].add(episode)
            self.count(task, episode)
            self.merge(episode, before)
            self.report()

    async def attempt(self, task: Task, number: int, prompts: Prompts) -> Episode:
        """The attempt with its insight and delta, in the journal; or the one that an earlier run
        made."""
        budget, tree = self.budgets[task.id], self.trees[task.id]
        if task.id in self.known and len(self.known[task.id].episodes) > number:
            episode = self.known[task.id].episodes[number]
            budget.charge(**cost_of(episode))
            return episode
        snapshots: dict[str | None, SnapshotHandle] = {}
        runner = EpisodeRunner(
            tree,
            self.policy,
            prompts,
            make_strategy(self.config, prompts.set),
            self.config,
            budget,
            self.pool,
            number,
            snapshots,
            self.report,
        )
        try:
            episode = await runner.run(Plan())
        finally:
            self.pool.release(snapshots.values())
        if episode.stop in FOREIGN:
            self.failures.add(episode.error)
        else:
            self.failures.reset()
            asides = await self.reflect(task, episode, prompts, budget)
            episode = replace(episode, turns=(*episode.turns, *asides))
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
        sampler = AsideSampler(self.policy, self.config, budget)
        insight: Insight | None = None

        def parse(text: str) -> str:
            nonlocal insight
            insight = parse_insight(text, words, playbook, self.own.similarity)
            return insight.text

        as_json = words.lesson_form == "json"
        # marks by number need the list in the reflector's prompt; marks by section do not, and the
        # list only distracts a small model
        shown = prompts if as_json else self.prompts
        turns = await sampler.sample(
            "lesson",
            history,
            shown.with_request(history, fill(words.lesson, {"outcome": outcome})),
            parse,
            episode=episode.index,
            first=0,
            max_tokens=words.reflect_max_tokens,
            schema=INSIGHT_SCHEMA if as_json else None,
        )
        if insight is None or not insight.text or not as_json:
            return turns
        values = {
            "items": playbook.list_items(words),
            "instruction": task.instruction,
            "section": insight.section,
            "lesson": insight.text,
        }
        return turns + await sampler.sample(
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
        """Apply the attempt's asides to the playbook. `before`: the one that it acted with, whose
        items its marks name."""
        words, own = self.prompts.set, self.own
        for turn in episode.turns:
            if turn.action not in ("lesson", "delta") or turn.kind != "aside":
                continue
            if not turn.valid:
                self.unusable[f"{turn.action}: {turn.observation}"] += 1
                continue
            if turn.action == "lesson":
                insight = parse_insight(turn.action_text, words, before, own.similarity)
                unknown = {i for i in insight.helpful | insight.harmful if i not in before}
                self.unusable["mark: the item is not there"] += len(unknown)
                self.playbook = self.playbook.mark(insight.helpful, insight.harmful)
                if words.lesson_form == "json":
                    self.merges["nothing to teach"] += not insight.text
                    continue
                delta: Delta | None = Delta("ADD", section=insight.section, text=insight.text)
            else:
                delta = parse_delta(turn.action_text)
            if delta is None:
                self.merges["left as it is"] += 1
                continue
            self.playbook, outcome = self.playbook.merge(
                delta, max_items=own.max_items, similarity=own.similarity
            )
            self.merges[outcome] += 1

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
    delta = parse_delta(text)
    if delta is None:
        return "NONE"
    return " ".join(filter(None, (delta.operation, str(delta.item or ""), delta.text)))
