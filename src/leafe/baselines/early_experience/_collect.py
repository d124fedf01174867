"""What would have come of other actions: at the states of successful trajectories the policy
proposes some, and the environment shows each one's next observation.

No reward is read. What is collected goes onto the task's tree: an action that was carried out is an
episode of one turn that starts where the expert's action
did; a proposal that was not (the expert's own action, one proposed twice) and an explanation are
asides of it. All of a state is one line of the journal, so
that a killed run asks again only at the states in flight, and the sums over the journal are the
budget's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, Field

from leafe.baselines._asides import Asker, Unusable, aside
from leafe.core import (
    Budget,
    Completion,
    ContextFull,
    EnvError,
    Episode,
    ForeignFailure,
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
from leafe.explore import (
    ActionTrace,
    Diverged,
    EnvLease,
    EnvPool,
    EpisodeSink,
    ExploreConfig,
    Progress,
    SnapshotHandle,
    cost_of,
)
from leafe.prompts import History, Prompts, PromptSet, fill

HOPELESS = 10
"""States in a row at which policy or environment failed, after which the collection ends: the
outside is down."""


class EarlyConfig(BaseModel):
    """What is Early Experience's own; budget, temperatures and seed are in `ExploreConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alternatives: int = Field(4, ge=1)
    """K: actions asked for at a state."""
    explanations: int = Field(0, ge=0)
    """Of the alternatives at a state, how many the policy is asked to explain (self-reflection); 0:
    none (implicit environment modelling)."""
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
    """States asked at; alternatives carried out; proposals that were the expert's own or a
    repetition; explanations, the unusable by reason; failures."""
    cut_short: str | None


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
    """Alternatives at the states of the trees' successes (METHOD.md, Early Experience). The trees
    handed in are not changed.

    config: `limits` a task and `run_limits` in all for the collection alone, temperatures,
    `max_reflection_attempts`, concurrency, and the seed of the exploration, since
    the environment has to be brought back to its states. `known`: what an interrupted collection
    journalled, by task. UserError where no tree holds a success, or
    where explanations are wanted of a prompt set that has no words for them; ForeignFailure where
    policy or environments fail again and again.
    """
    if own.explanations:
        check_thoughts(prompts.set)
    solved = {task_id: tree for task_id, tree in trees.items() if tree.solved}
    if not solved:
        raise UserError(
            "No tree holds a success: Early Experience has no expert trajectory to start "
            "from; explore more tasks or with a larger budget."
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
    out: dict[str, Tree] = {}
    begun: dict[str, tuple[Tree, int, Budget, set[str | None]]] = {}
    for task_id, tree in solved.items():
        out[task_id] = Tree(tree.task, tree.episodes)
        budget, done = Budget(config.limits, stage.budget), set[str | None]()
        for episode in (known or {}).get(task_id, ()):
            out[task_id].add(episode)
            budget.charge(**cost_of(episode))
            stage.count([episode])
            done.add(episode.start)
        begun[task_id] = (out[task_id], len(tree.episodes), budget, done)
    stage.counts["states"] = sum(len(done) for *_, done in begun.values())
    waiting = iter(begun.values())

    async def work() -> None:
        for grown, first, budget, done in waiting:
            await stage.task(grown, first, budget, done)
            stage.progress.tasks_done += 1
            stage.report()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(config.concurrency, len(solved))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__
    return Collected(out, stage.budget.snapshot(), dict(+stage.counts), stage.budget.reached())


def check_thoughts(words: PromptSet) -> None:
    """UserError where self-reflection cannot be trained: an answer of this prompt set has no room
    for the explanation."""
    if not words.explain or words.action in ("plain", "line"):
        raise UserError(
            f"The prompt set {words.name} has no room for thoughts before an action: "
            "self-reflection cannot be trained on it; use the variant without "
            "explanations (explanations = 0) or a set whose action is react or code."
        )


def by_task(lines: Iterable[Sequence[Episode]]) -> dict[str, list[Episode]]:
    """The lines of a collection's journal (`leafe.runs.read_journal`) as `known` takes them."""
    out: dict[str, list[Episode]] = {}
    for line in lines:
        for episode in line:
            out.setdefault(episode.task_id, []).append(episode)
    return out


def experts(tree: Tree, successes: int | None, before: int | None = None) -> list[Episode]:
    """The successful episodes that stand for the expert: the shortest first, then the oldest;
    `before`: of the first so many episodes alone."""
    found = [e for e in tree.episodes[:before] if e.success]
    return sorted(found, key=lambda e: (len(tree.trajectory(e)), e.index))[:successes]


def expert_turns(tree: Tree, successes: int | None, before: int | None = None) -> list[Turn]:
    """The valid actions along the expert's ways, each once, in order."""
    turns = {
        turn.id: turn
        for episode in experts(tree, successes, before)
        for turn in tree.trajectory(episode)
        if turn.valid
    }
    return list(turns.values())


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
    lost_in_a_row: int = 0

    async def task(self, tree: Tree, first: int, budget: Budget, done: set[str | None]) -> None:
        turns = expert_turns(tree, self.own.successes, first)
        if self.own.states is not None and len(turns) > self.own.states:
            chosen = random.Random(derive_seed(self.config.seed, tree.task.id, "states")).sample(
                range(len(turns)), self.own.states
            )
            turns = [turns[i] for i in sorted(chosen)]
        held: dict[str | None, SnapshotHandle] = {}
        try:
            for expert in turns:
                if (
                    expert.parent in done
                ):  # asked at already, on another success's way or in an earlier run
                    continue
                done.add(expert.parent)
                if not budget.take(policy_calls=self.own.alternatives):
                    return
                await self.state(tree, expert, budget, held)
        finally:
            self.pool.release(held.values())

    async def state(
        self, tree: Tree, expert: Turn, budget: Budget, held: dict[str | None, SnapshotHandle]
    ) -> None:
        """Ask, carry out, explain; the proposals are charged already."""
        path = tree.path(expert.parent)
        origin = tree.episode_of(path[0].id if path else expert.id)
        history = History(tree.task, origin.first_observation, tuple(path))
        index = len(tree.episodes)
        number = self.own.alternatives
        words, config = self.prompts.set, self.config
        request = Request(
            messages=self.prompts.act(history),
            n=number,
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=words.max_tokens,
            stop=words.stop,
            seed=derive_seed(config.seed, tree.task.id, expert.id, "alternatives"),
            cache_key=tree.task.id,
        )
        began = time.monotonic()
        asker = Asker(self.policy, config, budget)
        try:
            answers = await self.policy.complete(request)
            if sum(a.count for a in answers) != number:
                raise PolicyError(
                    f"The policy {self.policy.name} gave {sum(a.count for a in answers)} "
                    f"samples where {number} were asked for."
                )
        except PolicyError as error:
            budget.charge(policy_calls=-number)  # nothing came of it: the journal will not hold it
            self.counts[
                "failed: the context was full"
                if isinstance(error, ContextFull)
                else "failed: the policy gave no answer"
            ] += 1
            if not isinstance(error, ContextFull):
                self.lose(str(error))
            return
        for answer in answers:
            asker.charge(answer.usage)
        seconds = time.monotonic() - began
        fresh, idle = self.sorted(answers, expert)
        finished: list[Episode] = []
        replays = 0

        def count() -> None:
            nonlocal replays
            replays += 1
            budget.charge(replayed_steps=1)

        why = "the budget was used up"
        try:
            async with self.pool.acquire() as env:
                env.on_replay = count
                for answer, thought, action in fresh:
                    if not budget.take(env_steps=1):
                        break
                    try:
                        result = await self.carry_out(env, history, action, held)
                    except BaseException:
                        budget.charge(env_steps=-1)  # no turn came of it
                        raise
                    one = self.episode(
                        history, answer, thought, action, result, index + len(finished), seconds
                    )
                    finished.append(replace(one, replayed=replays))
                    replays = 0
            self.lost_in_a_row = 0
        except Diverged as error:
            why = str(error)
            self.counts["failed: the state could not be brought back"] += 1
        except EnvError as error:
            why = str(error)
            self.counts["failed: the environment"] += 1
            self.lose(why)
        idle += [(answer, f"not carried out: {why}") for answer, _, _ in fresh[len(finished) :]]
        if not finished:
            finished = [
                Episode(
                    tree.task.id,
                    index,
                    Stop.budget,
                    (),
                    history.first_observation,
                    start=expert.parent,
                )
            ]
        budget.charge(episodes=len(finished))
        turns = [
            aside(
                "proposal",
                history,
                answer,
                episode=index,
                nth=i,
                why=why,
                policy=self.policy.name,
                seconds=seconds,
            )
            for i, (answer, why) in enumerate(idle)
        ]
        finished[0] = replace(
            finished[0], turns=(*turns, *finished[0].turns), replayed=finished[0].replayed + replays
        )
        for nth, episode in enumerate(finished[: self.own.explanations]):
            if episode.acts:
                finished[nth] = replace(
                    episode,
                    turns=(*episode.turns, *await self.explain(asker, history, expert, episode)),
                )
        if self.journal is not None:
            await asyncio.to_thread(self.journal.append, finished)
        for episode in finished:
            tree.add(episode)
        self.counts["states"] += 1
        self.count(finished)
        self.report()

    def sorted(
        self, answers: Sequence[Completion], expert: Turn
    ) -> tuple[list[tuple[Completion, str, str]], list[tuple[Completion, str]]]:
        """(the distinct other actions as answer, thought, action, in the order of their first
        proposal; the other proposals with why they are none)."""
        fresh: list[tuple[Completion, str, str]] = []
        idle: list[tuple[Completion, str]] = []
        seen = {expert.action.strip()}
        for answer in answers:
            for nth in range(answer.count):
                one = replace(answer, count=1, usage=answer.usage if nth == 0 else Usage())
                thought, action = self.prompts.parse_action(one.text, one.finish == "length")
                if action.strip() in seen:
                    idle.append(
                        (
                            one,
                            "the expert's own action"
                            if action.strip() == expert.action.strip()
                            else "proposed already",
                        )
                    )
                else:
                    seen.add(action.strip())
                    fresh.append((one, thought, action))
        return fresh, idle

    async def carry_out(
        self, env: EnvLease, history: History, action: str, held: dict[str | None, SnapshotHandle]
    ) -> StepResult:
        """One action from the state after the history."""
        await self.bring(env, history, held)
        return await env.step(action)

    def episode(
        self,
        history: History,
        answer: Completion,
        thought: str,
        action: str,
        result: StepResult,
        index: int,
        seconds: float,
    ) -> Episode:
        start = history.turns[-1].id if history.turns else None
        turn = act_turn(
            answer,
            thought,
            action,
            result,
            id=turn_id(history.task.id, index, history.step),
            parent=start,
            task_id=history.task.id,
            step=history.step,
            policy=self.policy.name,
            seconds=seconds,
        )
        stop = (
            (Stop.success if result.success else Stop.failure) if result.done else Stop.horizon
        )  # its horizon is this one step
        return Episode(
            history.task.id, index, stop, (turn,), history.first_observation, start=start
        )

    async def bring(
        self, env: EnvLease, history: History, held: dict[str | None, SnapshotHandle]
    ) -> None:
        """The environment to the state after the history: by a snapshot of it, from one of an
        earlier state on, or from the reset on."""
        ids = [None, *(t.id for t in history.turns)]
        seed = derive_seed(self.config.seed, history.task.id, "world")
        if not env.env.can_snapshot:
            await env.follow(
                ActionTrace.along(history.task, seed, history.first_observation, history.turns)
            )
            return
        near = max((n for n, name in enumerate(ids) if name in held), default=None)
        if near is None:
            await env.follow(
                ActionTrace.along(history.task, seed, history.first_observation, history.turns)
            )
        else:
            await env.restore(held[ids[near]])
            for turn in history.turns[near:]:
                said = (await env.step(turn.action)).observation
                env.on_replay()
                if said != turn.observation:
                    raise Diverged(
                        f"at step {turn.step} the environment said {said[:120]!r}, not "
                        f"{turn.observation[:120]!r}"
                    )
        if ids[-1] not in held:
            held[ids[-1]] = await env.snapshot()

    async def explain(
        self, asker: Asker, history: History, expert: Turn, episode: Episode
    ) -> list[Turn]:
        """Why the expert's action is better than the one that the episode holds; asked with both
        outcomes, to be read without them."""
        other = episode.acts[0]
        values = {
            "action": expert.action,
            "outcome": expert.observation,
            "other": other.action,
            "observation": other.observation,
        }
        read = History(
            history.task, history.first_observation, (*history.turns, other)
        )  # where its turns stand: after the alternative
        asked = self.prompts.with_request(history, fill(self.prompts.set.explain, values))
        return await asker.ask(
            "explanation",
            read,
            asked,
            explanation,
            episode=episode.index,
            first=0,
            max_tokens=self.prompts.set.reflect_max_tokens,
        )

    def lose(self, error: str) -> None:
        self.lost_in_a_row += 1
        if self.lost_in_a_row >= HOPELESS:
            raise ForeignFailure(
                f"At {self.lost_in_a_row} states in a row the policy or the environment "
                f"failed, the last with: {error} "
                "What was finished is kept: mend it and run again."
            )

    def count(self, episodes: Sequence[Episode]) -> None:
        for turn in (t for e in episodes for t in e.turns):
            self.progress.turns += 1
            if turn.kind is Kind.act:
                self.counts["alternatives"] += 1
                self.counts["alternatives that the environment refused"] += not turn.valid
            elif turn.action == "proposal":
                self.counts[f"proposal: {turn.observation.split(':')[0]}"] += 1
            else:
                self.counts[
                    "explanations" if turn.valid else f"explanation: {turn.observation}"
                ] += 1

    def report(self) -> None:
        self.progress.spent = self.budget.snapshot()
        if self.on_progress is not None:
            self.on_progress(self.progress)


def explanation(text: str) -> str:
    """The sentences, on one line, without an action that the policy went on to; Unusable where
    there are none."""
    kept = []
    for line in text.strip().splitlines():
        if line.strip().lower().startswith(("action:", "```")):
            break
        kept.append(line.strip().removeprefix("Thought:").strip())
    out = " ".join(" ".join(kept).split())
    if not out:
        raise Unusable("the explanation is empty")
    return out
