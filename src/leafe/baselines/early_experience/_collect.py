"""What other actions would have led to: at the states of successful trajectories the policy
proposes alternatives, and the environment shows each one's next observation.

No reward is read. What is collected goes onto the task's tree. An alternative that was taken is an
episode of one turn that starts where the expert's action did. A proposal that was not taken (the
expert's own action, a repetition) and an explanation are asides of it. All of a state is one line
of the journal, so that a killed run asks again only at the states in flight, and the sums over the
journal are the budget's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, Field

from leafe.baselines._asides import AsideSampler, Unusable, aside_turn
from leafe.core import (
    Budget,
    Completion,
    ContextFull,
    EnvError,
    Episode,
    Kind,
    Policy,
    PolicyError,
    Request,
    Spent,
    StepResult,
    Stop,
    Tree,
    Turn,
    Usage,
    UserError,
    act_turn,
    derive_seed,
    turn_id,
)
from leafe.core.concurrency import FailureStreak, run_queue
from leafe.explore import (
    ActionTrace,
    EnvLease,
    EnvPool,
    EpisodeSink,
    ExploreConfig,
    Progress,
    ReplayDiverged,
    SnapshotHandle,
    charge_tokens,
    complete_all,
    cost_of,
)
from leafe.prompts import History, Prompts, PromptSet, fill

Snapshots = dict[str | None, SnapshotHandle]
"""Environment states by the turn after which they were taken; None: after reset."""


class EarlyConfig(BaseModel):
    """What is Early Experience's own; budget, temperatures and seed are in `ExploreConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alternatives: int = Field(4, ge=1)
    """K: actions sampled at a state."""
    explanations: int = Field(0, ge=0)
    """How many of the alternatives at a state the policy explains (self-reflection); 0: none
    (implicit world modelling)."""
    successes: int | None = Field(1, ge=1)
    """Successful trajectories of a task, the shortest first; None: all."""
    states: int | None = Field(None, ge=1)
    """States of a task, drawn at random; None: all."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The trees with what was collected, and what that cost."""

    trees: dict[str, Tree]
    """Of the tasks that had a success, in their order."""
    spent: Spent
    """Of the collection alone."""
    counts: Mapping[str, int]
    """States visited; alternatives taken; proposals that were the expert's own action or a
    repetition; explanations, the unusable ones by reason; failures."""
    cut_short: str | None
    """The limit that ended the collection early, if one did."""


async def collect(
    policy: Policy,
    pool: EnvPool,
    trees: Mapping[str, Tree],
    prompts: Prompts,
    config: ExploreConfig,
    own: EarlyConfig,
    *,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Sequence[Episode]] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Collected:
    """Sample alternatives at the states of the trees' successes (docs/method.md, Early Experience).

    Args:
        policy: Proposes and explains.
        pool: Where environments come from.
        trees: An exploration's, by task id; unchanged.
        prompts: The wording.
        config: `limits` a task and `run_limits` in all, for the collection alone; temperatures,
            `max_reflection_attempts`, concurrency; and the exploration's seed, since the
            environment has to return to its states.
        own: What is Early Experience's own.
        journal: Where finished states go.
        known: What an interrupted collection wrote, by task id (`by_task`).
        on_progress: Called after every state.

    Raises:
        UserError: No tree holds a success, or the prompt set has no words for explanations.
        ForeignFailure: Policy or environments fail again and again; finished states are in the
            journal.
    """
    if own.explanations:
        check_thoughts(prompts.set)
    solved = {task_id: tree for task_id, tree in trees.items() if tree.solved}
    if not solved:
        raise UserError(
            "No tree holds a success, so Early Experience has no expert trajectory to start from: "
            "explore more tasks or with a larger budget."
        )
    stage = _Stage(
        policy,
        pool,
        prompts,
        config,
        own,
        journal,
        on_progress,
        Budget(config.run_limits),
        Progress(len(solved)),
    )
    runs = [stage.begin(tree, (known or {}).get(task_id, ())) for task_id, tree in solved.items()]
    stage.counts["states"] = sum(len(run.visited) for run in runs)
    await run_queue(deque(runs), stage.run_task, config.concurrency)
    return Collected(
        {run.tree.task.id: run.tree for run in runs},
        stage.budget.snapshot(),
        dict(+stage.counts),
        stage.budget.reached(),
    )


def check_thoughts(words: PromptSet) -> None:
    """UserError where self-reflection cannot be trained: an answer of this prompt set has no room
    for the explanation."""
    if not words.explain or words.action in ("plain", "line"):
        raise UserError(
            f"The prompt set {words.name} has no room for thoughts before an action, so "
            "self-reflection cannot be trained on it: use the variant without explanations "
            "(explanations = 0) or a set whose action is react or code."
        )


def by_task(lines: Iterable[Sequence[Episode]]) -> dict[str, list[Episode]]:
    """The lines of a collection's journal (`leafe.runs.read_journal`) as `known` takes them."""
    out: dict[str, list[Episode]] = {}
    for line in lines:
        for episode in line:
            out.setdefault(episode.task_id, []).append(episode)
    return out


def experts(tree: Tree, successes: int | None, before: int | None = None) -> list[Episode]:
    """The successful episodes that stand for the expert, the shortest first, then the oldest.

    Args:
        tree: A task's tree.
        successes: How many; None: all.
        before: Only the first so many episodes of the tree count; None: all.
    """
    found = [e for e in tree.episodes[:before] if e.success]
    return sorted(found, key=lambda e: (len(tree.trajectory(e)), e.index))[:successes]


def expert_turns(tree: Tree, successes: int | None, before: int | None = None) -> list[Turn]:
    """The valid actions of the expert's trajectories, each once, in order. Arguments as
    `experts`."""
    turns = {
        turn.id: turn
        for episode in experts(tree, successes, before)
        for turn in tree.trajectory(episode)
        if turn.valid
    }
    return list(turns.values())


@dataclass(slots=True)
class _TaskRun:
    """A task in progress."""

    tree: Tree
    """With what was collected."""
    explored: int
    """Episodes of the exploration: the tree's first."""
    budget: Budget
    visited: set[str | None]
    """States by the turn before them."""


@dataclass(slots=True)
class _Proposal:
    """A distinct action other than the expert's."""

    answer: Completion
    thought: str
    action: str


@dataclass(slots=True)
class _Stage:
    policy: Policy
    pool: EnvPool
    prompts: Prompts
    config: ExploreConfig
    own: EarlyConfig
    journal: EpisodeSink | None
    on_progress: Callable[[Progress], None] | None
    budget: Budget
    progress: Progress
    counts: Counter[str] = field(default_factory=Counter)
    failures: FailureStreak = field(default_factory=lambda: FailureStreak("states in a row failed"))

    def begin(self, tree: Tree, known: Sequence[Episode]) -> _TaskRun:
        """A copy of the explored tree with what an earlier run collected, which is charged."""
        run = _TaskRun(
            Tree(tree.task, tree.episodes),
            len(tree.episodes),
            Budget(self.config.limits, self.budget),
            set(),
        )
        for episode in known:
            run.tree.add(episode)
            run.budget.charge(**cost_of(episode))
            self.count([episode])
            run.visited.add(episode.start)
        return run

    async def run_task(self, run: _TaskRun) -> None:
        snapshots: Snapshots = {}
        try:
            for expert in self.chosen_turns(run):
                if expert.parent in run.visited:  # on another success's way, or in an earlier run
                    continue
                run.visited.add(expert.parent)
                if not run.budget.take(policy_calls=self.own.alternatives):
                    break
                await self.visit(run, expert, snapshots)
        finally:
            self.pool.release(snapshots.values())
        self.progress.tasks_done += 1
        self.report()

    def chosen_turns(self, run: _TaskRun) -> list[Turn]:
        """The expert's actions whose states are visited."""
        turns = expert_turns(run.tree, self.own.successes, run.explored)
        if self.own.states is None or len(turns) <= self.own.states:
            return turns
        draw = random.Random(derive_seed(self.config.seed, run.tree.task.id, "states"))
        return [turns[i] for i in sorted(draw.sample(range(len(turns)), self.own.states))]

    async def visit(self, run: _TaskRun, expert: Turn, snapshots: Snapshots) -> None:
        """Sample alternatives to an expert's action, take them, explain them. The policy calls are
        charged already."""
        tree, budget = run.tree, run.budget
        path = tree.path(expert.parent)
        origin = tree.episode_of(path[0].id if path else expert.id)
        history = History(tree.task, origin.first_observation, tuple(path))
        began = time.monotonic()
        answers = await self.propose(history, expert, budget)
        if answers is None:
            return
        seconds = time.monotonic() - began
        proposals, others = self.sort_proposals(answers, expert)
        taken, replayed, why = await self.take(run, history, proposals, snapshots, seconds)
        others += [(p.answer, f"not carried out: {why}") for p in proposals[len(taken) :]]
        index = len(tree.episodes)
        if not taken:  # an episode without an action, for the asides
            taken = [
                Episode(
                    tree.task.id,
                    index,
                    Stop.budget,
                    (),
                    history.first_observation,
                    start=expert.parent,
                )
            ]
        budget.charge(episodes=len(taken))
        asides = [
            aside_turn(
                "proposal",
                history,
                answer,
                episode=index,
                nth=nth,
                why=reason,
                policy=self.policy.name,
                seconds=seconds,
            )
            for nth, (answer, reason) in enumerate(others)
        ]
        taken[0] = replace(
            taken[0], turns=(*asides, *taken[0].turns), replayed=taken[0].replayed + replayed
        )
        for nth, episode in enumerate(taken[: self.own.explanations]):
            if episode.acts:
                explained = await self.explain(history, expert, episode, budget)
                taken[nth] = replace(episode, turns=(*episode.turns, *explained))
        if self.journal is not None:
            await asyncio.to_thread(self.journal.append, taken)
        for episode in taken:
            tree.add(episode)
        self.counts["states"] += 1
        self.count(taken)
        self.report()

    async def propose(
        self, history: History, expert: Turn, budget: Budget
    ) -> list[Completion] | None:
        """The policy's answers at the state of the expert's action; None where it fails."""
        config, words, number = self.config, self.prompts.set, self.own.alternatives
        request = Request(
            messages=self.prompts.act(history),
            n=number,
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=words.max_tokens,
            stop=words.stop,
            seed=derive_seed(config.seed, history.task.id, expert.id, "alternatives"),
            cache_key=history.task.id,
        )
        try:
            answers = await complete_all(self.policy, request)
        except PolicyError as error:
            budget.charge(policy_calls=-number)  # the journal will not hold these calls
            if isinstance(error, ContextFull):
                self.counts["failed: the context was full"] += 1
            else:
                self.counts["failed: the policy gave no answer"] += 1
                self.failures.add(str(error))
            return None
        for answer in answers:
            charge_tokens(budget, answer.usage)
        return answers

    def sort_proposals(
        self, answers: Sequence[Completion], expert: Turn
    ) -> tuple[list[_Proposal], list[tuple[Completion, str]]]:
        """The distinct other actions in the order of their first proposal; the other answers, each
        with the reason that it is none."""
        proposals: list[_Proposal] = []
        others: list[tuple[Completion, str]] = []
        own = expert.action.strip()
        seen = {own}
        for answer in answers:
            for nth in range(answer.count):
                one = replace(answer, count=1, usage=answer.usage if nth == 0 else Usage())
                thought, action = self.prompts.parse_action(one.text, one.finish == "length")
                stripped = action.strip()
                if stripped not in seen:
                    seen.add(stripped)
                    proposals.append(_Proposal(one, thought, action))
                else:
                    same = stripped == own
                    others.append((one, "the expert's own action" if same else "proposed already"))
        return proposals, others

    async def take(
        self,
        run: _TaskRun,
        history: History,
        proposals: Sequence[_Proposal],
        snapshots: Snapshots,
        seconds: float,
    ) -> tuple[list[Episode], int, str]:
        """Take every proposed action from the state after the history.

        Returns:
            An episode for each that was taken, the replayed steps that none of them holds, and why
            the rest was not taken.
        """
        budget, first = run.budget, len(run.tree.episodes)
        taken: list[Episode] = []
        replayed = 0

        def count_replay() -> None:
            nonlocal replayed
            replayed += 1
            budget.charge(replayed_steps=1)

        why = "the budget was used up"
        try:
            async with self.pool.acquire(count_replay) as env:
                for proposal in proposals:
                    if not budget.take(env_steps=1):
                        break
                    try:
                        await self.return_to(env, history, snapshots)
                        result = await env.step(proposal.action)
                    except BaseException:
                        budget.charge(env_steps=-1)  # there is no turn
                        raise
                    episode = self.episode(
                        history, proposal, result, first + len(taken), seconds, replayed
                    )
                    taken.append(episode)
                    replayed = 0
            self.failures.reset()
        except ReplayDiverged as error:
            why = str(error)
            self.counts["failed: the state could not be brought back"] += 1
        except EnvError as error:
            why = str(error)
            self.counts["failed: the environment"] += 1
            self.failures.add(why)
        return taken, replayed, why

    def episode(
        self,
        history: History,
        proposal: _Proposal,
        result: StepResult,
        index: int,
        seconds: float,
        replayed: int,
    ) -> Episode:
        start = history.turns[-1].id if history.turns else None
        turn = act_turn(
            proposal.answer,
            proposal.thought,
            proposal.action,
            result,
            id=turn_id(history.task.id, index, history.step),
            parent=start,
            task_id=history.task.id,
            step=history.step,
            policy=self.policy.name,
            seconds=seconds,
        )
        stop = Stop.horizon  # of one step
        if result.done:
            stop = Stop.success if result.success else Stop.failure
        return Episode(
            history.task.id,
            index,
            stop,
            (turn,),
            history.first_observation,
            start=start,
            replayed=replayed,
        )

    async def return_to(self, env: EnvLease, history: History, snapshots: Snapshots) -> None:
        """Bring the environment to the state after the history: by a snapshot of it, from one of an
        earlier state, or from the reset."""
        names = [None, *(t.id for t in history.turns)]
        near = max((n for n, name in enumerate(names) if name in snapshots), default=None)
        if near is None:
            seed = derive_seed(self.config.seed, history.task.id, "world")
            await env.replay(
                ActionTrace.of(history.task, seed, history.first_observation, history.turns)
            )
        else:
            await env.restore(snapshots[names[near]])
            for turn in history.turns[near:]:
                seen = (await env.step(turn.action)).observation
                env.on_replay()
                if seen != turn.observation:
                    raise ReplayDiverged(
                        f"at step {turn.step} the environment said {seen[:120]!r}, not "
                        f"{turn.observation[:120]!r}"
                    )
        if env.env.can_snapshot and names[-1] not in snapshots:
            snapshots[names[-1]] = await env.snapshot()

    async def explain(
        self, history: History, expert: Turn, episode: Episode, budget: Budget
    ) -> list[Turn]:
        """Why the expert's action is better than the episode's. The prompt holds both outcomes; the
        explanation is read without them."""
        other = episode.acts[0]
        values = {
            "action": expert.action,
            "outcome": expert.observation,
            "other": other.action,
            "observation": other.observation,
        }
        sampler = AsideSampler(self.policy, self.config, budget)
        return await sampler.sample(
            "explanation",
            history.then(other),  # the turns stand after the alternative
            self.prompts.with_request(history, fill(self.prompts.set.explain, values)),
            parse_explanation,
            episode=episode.index,
            first=0,
            max_tokens=self.prompts.set.reflect_max_tokens,
        )

    def count(self, episodes: Sequence[Episode]) -> None:
        for turn in (t for e in episodes for t in e.turns):
            self.progress.turns += 1
            if turn.kind is Kind.act:
                self.counts["alternatives"] += 1
                self.counts["alternatives that the environment refused"] += not turn.valid
            elif turn.action == "proposal":
                self.counts[f"proposal: {turn.observation.split(':')[0]}"] += 1
            elif turn.valid:
                self.counts["explanations"] += 1
            else:
                self.counts[f"explanation: {turn.observation}"] += 1

    def report(self) -> None:
        self.progress.spent = self.budget.snapshot()
        if self.on_progress is not None:
            self.on_progress(self.progress)


def parse_explanation(text: str) -> str:
    """The sentences on one line, without an action that follows them. Raises Unusable where there
    are none."""
    kept = []
    for line in text.strip().splitlines():
        if line.strip().lower().startswith(("action:", "```")):
            break
        kept.append(line.strip().removeprefix("Thought:").strip())
    out = " ".join(" ".join(kept).split())
    if not out:
        raise Unusable("the explanation is empty")
    return out
