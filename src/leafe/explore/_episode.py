"""One episode: return to where the plan says, act until something ends it, reflect where it failed.

Every way in which an episode can end is a typed `Stop`; only our own bugs raise. Whatever is
charged was asked for first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core import (
    FAILED,
    Budget,
    Completion,
    ContextFull,
    EnvError,
    Episode,
    Kind,
    Message,
    Policy,
    PolicyError,
    Request,
    Stop,
    Task,
    Tree,
    Turn,
    act_turn,
    derive_seed,
    turn_id,
)
from leafe.explore._config import ExploreConfig
from leafe.explore._env_pool import ActionTrace, Diverged, EnvLease, SnapshotHandle
from leafe.explore._strategy import Plan, Strategy
from leafe.explore._waits import Waits
from leafe.prompts import (
    History,
    PromptCache,
    Prompts,
    UnusableReflection,
    notes_on,
    shortenings,
    tried_advice,
)


@dataclass(slots=True)
class EpisodeRunner:
    """Runs one episode of a task in one borrowed environment."""

    tree: Tree
    policy: Policy
    prompts: Prompts
    strategy: Strategy
    config: ExploreConfig
    budget: Budget
    env: EnvLease
    index: int
    """The episode's number in its task."""
    waits: Waits
    snapshots: dict[str | None, SnapshotHandle] = field(default_factory=dict)
    """Environment states by the turn after which they were taken; None: after reset. Empty after a
    resume: then replay serves."""
    on_turn: Callable[[], None] = lambda: None
    """Told after every policy call that was answered: with a slow model an episode takes
    minutes."""
    _turns: list[Turn] = field(default_factory=list)
    _said: PromptCache = field(default_factory=PromptCache)
    _replayed: int = 0
    _preamble: tuple[str, ...] = ()
    _experience: str | None = None

    async def run(self, plan: Plan) -> Episode:
        """The episode that the plan asks for, reflections included. Does not add it to the tree."""
        began = time.monotonic()
        self._turns, self._replayed = [], 0
        self._preamble, self._experience = plan.preamble, plan.experience
        self.env.on_replay = self._count_replay
        history = History(self.tree.task, "")
        error = ""
        try:
            if plan.look_back:
                history, stop = await self._look_back(plan)
            else:
                history = await self._begin(plan, history)
                stop, error = await self._act(plan, history)
        except Diverged as e:
            stop, error = Stop.diverged, str(e)
        except EnvError as e:
            stop, error = Stop.env_error, str(e)
        except PolicyError as e:
            stop, error = Stop.policy_error, str(e)
        return Episode(
            task_id=self.tree.task.id,
            index=self.index,
            stop=stop,
            turns=tuple(self._turns),
            first_observation=history.first_observation,
            start=plan.start,
            experience=plan.experience,
            scope=self.config.scope,
            depth=plan.depth,
            preamble=self._preamble,
            replayed=self._replayed,
            seconds=round(time.monotonic() - began, 3),
            error=error,
        )

    async def _begin(self, plan: Plan, empty: History) -> History:
        """Return the environment to the state after `plan.start` and check that it is that
        state."""
        path = self.tree.path(plan.start)
        notes = notes_on(self.tree, path)
        if plan.experience is not None:
            notes[len(path)] = self.tree[plan.experience].note
        read = path or (self.tree.path(plan.experience) if plan.experience is not None else [])
        known = self.tree.episode_of(read[0].id).first_observation if read else None
        if known is not None and plan.start in self.snapshots:
            await self.env.restore(self.snapshots[plan.start])
            return History(empty.task, known, tuple(path), notes, plan.preamble)
        seed = derive_seed(self.config.seed, empty.task.id, "world")
        first = await self.env.follow(ActionTrace.along(empty.task, seed, known, path))
        if self.env.env.can_snapshot and not path:
            self.snapshots[None] = await self.env.snapshot()
        return History(empty.task, first, tuple(path), notes, plan.preamble)

    async def _look_back(self, plan: Plan) -> tuple[History, Stop]:
        """Reflect on an episode that ended without: this record adds its reflections and no action,
        and ends as that one did. The environment is not asked."""
        path = self.tree.path(plan.start)
        ended = self.tree.episode_of(path[-1].id)
        first = self.tree.episode_of(path[0].id).first_observation
        history = History(
            self.tree.task, first, tuple(path), notes_on(self.tree, path), plan.preamble
        )
        await self._reflect(history, tries=self.config.max_reflection_attempts)
        return history, ended.stop

    def _count_replay(self) -> None:
        self._replayed += 1
        self.budget.charge(replayed_steps=1)

    async def _act(self, plan: Plan, history: History) -> tuple[Stop, str]:
        """Why the episode ended, and what the policy said where its context was full."""
        horizon = self.config.horizon or self.env.env.horizon
        invalid, error = 0, ""
        for turn in reversed(history.turns):
            if turn.valid:
                break
            invalid += 1
        while True:
            if history.step >= horizon:
                stop = Stop.horizon
                break
            if not self.budget.take(policy_calls=1, env_steps=1):
                return Stop.budget, ""
            with_experience = plan.experience if self._sees(plan, history) else None
            try:
                turn = await self._turn(history, with_experience)
            except ContextFull as full:
                if not history.turns and self._preamble:  # begin with fewer earlier attempts
                    self._preamble = self._preamble[1:]
                    history = replace(history, preamble=self._preamble)
                    continue
                stop, error = Stop.context_full, str(full)
                break
            self._turns.append(turn)
            history = History(
                history.task,
                history.first_observation,
                (*history.turns, turn),
                self._kept(plan, history),
                history.preamble,
            )
            invalid = 0 if turn.valid else invalid + 1
            if turn.done:
                stop = Stop.success if turn.success else Stop.failure
                break
            if self.env.env.can_snapshot:
                self.snapshots[turn.id] = await self.env.snapshot()
            if invalid >= self.config.max_invalid_actions:
                stop = Stop.invalid_limit
                break
            if (
                self.config.reflect_every
                and (history.step % self.config.reflect_every == 0)
                and history.step < horizon
                and self.strategy.reflects_at(plan.depth)
            ):
                await self._reflect(history, tries=1)
        if (
            self._turns
            and stop in FAILED
            and self.config.reflect_on_failure
            and self.strategy.reflects_at(plan.depth)
        ):
            await self._reflect(history, tries=self.config.max_reflection_attempts)
        return stop, error

    def _sees(self, plan: Plan, history: History) -> bool:
        """Whether the next action's prompt holds the plan's experience."""
        put = len(self.tree.path(plan.start))
        return history.step == put or (
            self.config.scope == "branch" and self.prompts.shows_experience(history, put)
        )

    def _kept(self, plan: Plan, history: History) -> dict[int, str]:
        """The experiences that later turns still see: under scope `action` the plan's own is gone
        after the revised action."""
        notes = dict(history.notes)
        if self.config.scope == "action" and plan.experience is not None:
            notes.pop(len(self.tree.path(plan.start)), None)
        return notes

    async def _turn(self, history: History, experience: str | None) -> Turn:
        began = time.monotonic()
        try:
            answer = await self._complete(
                self.prompts.act(history, self._said), history.step, None, 0
            )
            thought, action = self.prompts.parse_action(answer.text, answer.finish == "length")
            result = await self.env.step(action)
        except (PolicyError, EnvError, Diverged):
            self.budget.charge(
                policy_calls=-1, env_steps=-1
            )  # no turn came of it: the journal will not hold it
            raise
        self._charge(answer)
        return act_turn(
            answer,
            thought,
            action,
            result,
            id=turn_id(history.task.id, self.index, history.step),
            parent=history.turns[-1].id if history.turns else None,
            task_id=history.task.id,
            step=history.step,
            policy=self.policy.name,
            seconds=time.monotonic() - began,
            experience=experience,
        )

    async def _reflect(self, history: History, tries: int) -> None:
        """Ask for (tau, e) until one is usable, at most `tries` times; every try is a turn, and is
        charged.

        A history that does not fit the policy's context is shortened until it does
        (`leafe.prompts.shortenings`); what was refused is not charged.
        """
        if self.prompts.set.tried:
            history = replace(
                history, tried=tried_advice(self.tree, history.turns, self.index, self._experience)
            )
        shorter = iter(shortenings(history.step))
        for _ in range(tries):
            nth = sum(t.kind is Kind.reflect and t.step == history.step for t in self._turns)
            if not self.budget.take(policy_calls=1):
                return
            began = time.monotonic()
            target, note, why = None, "", ""
            answer, hopeless = Completion(""), False
            try:
                while True:
                    try:
                        answer = await self._complete(
                            self.prompts.reflect(history, self._said), history.step, "reflect", nth
                        )
                        break
                    except ContextFull:
                        left_out = next(shorter, None)
                        if left_out is None:
                            raise
                        history = replace(history, left_out=left_out)
                self._charge(answer)
                target, note = self.prompts.parse_reflection(answer.text, history.step)
            except UnusableReflection as error:
                why = str(error)
            except PolicyError as error:  # the episode is whole without it: it keeps its stop
                why, hopeless = str(error), True
            self._turns.append(
                Turn(
                    id=turn_id(history.task.id, self.index, history.step, Kind.reflect, nth),
                    parent=history.turns[-1].id,
                    task_id=history.task.id,
                    step=history.step,
                    kind=Kind.reflect,
                    action_text=answer.text,
                    observation=why,
                    valid=target is not None,
                    target=target,
                    note=note,
                    left_out=history.left_out,
                    tried=len(history.tried),
                    policy=self.policy.name,
                    usage=answer.usage,
                    tokens=answer.tokens,
                    logprob=answer.logprob,
                    seconds=round(time.monotonic() - began, 4),
                    finish=answer.finish,
                )
            )
            if target is not None or hopeless:
                return

    async def _complete(
        self, messages: tuple[Message, ...], step: int, what: str | None, nth: int
    ) -> Completion:
        config, words = self.config, self.prompts.set
        extra: dict[str, Any] = {"max_tokens": words.max_tokens, "temperature": config.temperature}
        if what is not None:
            cooler = config.reflection_temperature
            extra = {
                "max_tokens": words.reflect_max_tokens,
                "temperature": config.temperature if cooler is None else cooler,
                "schema": self.prompts.reflection_schema(step),
            }
        names = (
            (config.seed, self.tree.task.id, self.index, step)
            if what is None
            else (config.seed, self.tree.task.id, self.index, step, what, nth)
        )
        request = Request(
            messages=messages,
            top_p=config.top_p,
            stop=words.stop,
            seed=derive_seed(*names),
            cache_key=self.tree.task.id,
            **extra,
        )
        with self.waits.on("engine"):
            answers = await self.policy.complete(request)
        if not answers:
            raise PolicyError(f"The policy {self.policy.name} returned no completion.")
        self.on_turn()
        return answers[0]

    def _charge(self, answer: Completion) -> None:
        """The tokens of a turn."""
        usage = answer.usage
        self.budget.charge(
            prompt_tokens=usage.prompt, cached_tokens=usage.cached, generated_tokens=usage.generated
        )


def unbegun(plan: Plan, task: Task, index: int, config: ExploreConfig, error: EnvError) -> Episode:
    """The episode of this plan for which no environment could be had."""
    return Episode(
        task.id,
        index,
        Stop.env_error,
        (),
        start=plan.start,
        experience=plan.experience,
        scope=config.scope,
        depth=plan.depth,
        preamble=plan.preamble,
        error=str(error),
    )
