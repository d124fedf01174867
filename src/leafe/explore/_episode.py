"""One episode: return to the plan's start, act until something ends it, reflect where it failed.

Every way in which an episode can end is a typed `Stop`; only our own bugs raise. Budget is reserved
before each call.
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
    Tree,
    Turn,
    act_turn,
    derive_seed,
    turn_id,
)
from leafe.explore._accounting import charge_tokens, invalid_in_a_row
from leafe.explore._config import ExploreConfig
from leafe.explore._env_pool import (
    ActionTrace,
    EnvLease,
    EnvPool,
    ReplayDiverged,
    SnapshotHandle,
)
from leafe.explore._requests import complete_one
from leafe.explore._strategy import Plan, Strategy
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
    """Runs one episode of a task."""

    tree: Tree
    policy: Policy
    prompts: Prompts
    strategy: Strategy
    config: ExploreConfig
    budget: Budget
    pool: EnvPool
    index: int
    """The episode's number in its task."""
    snapshots: dict[str | None, SnapshotHandle] = field(default_factory=dict)
    """Environment states by the turn after which they were taken; None: after reset. What is not
    here is replayed."""
    on_turn: Callable[[], None] = lambda: None
    """Called after every answer of the policy: with a slow model an episode takes minutes."""
    _env: EnvLease = field(init=False)
    _turns: list[Turn] = field(default_factory=list)
    _prompt_cache: PromptCache = field(default_factory=PromptCache)
    _replayed: int = 0
    _preamble: tuple[str, ...] = ()

    async def run(self, plan: Plan) -> Episode:
        """The episode that the plan asks for, reflections included. It is charged to the budget,
        and not added to the tree."""
        self.budget.charge(episodes=int(not plan.look_back))
        self._preamble = plan.preamble
        try:
            async with self.pool.acquire(self._count_replay) as self._env:
                return await self._run(plan)
        except EnvError as error:  # no environment could be made
            return self._episode(plan, Stop.env_error, error=str(error))

    async def _run(self, plan: Plan) -> Episode:
        began = time.monotonic()
        history = History(self.tree.task, "")
        error = ""
        try:
            if plan.look_back:
                history, stop = await self._reflect_on_ended(plan)
            else:
                history = await self._return_to_start(plan)
                stop, error = await self._act(plan, history)
        except ReplayDiverged as e:
            stop, error = Stop.diverged, str(e)
        except EnvError as e:
            stop, error = Stop.env_error, str(e)
        except PolicyError as e:
            stop, error = Stop.policy_error, str(e)
        return self._episode(
            plan,
            stop,
            error=error,
            turns=tuple(self._turns),
            first_observation=history.first_observation,
            replayed=self._replayed,
            seconds=round(time.monotonic() - began, 3),
        )

    def _episode(
        self, plan: Plan, stop: Stop, *, turns: tuple[Turn, ...] = (), **fields: Any
    ) -> Episode:
        return Episode(
            self.tree.task.id,
            self.index,
            stop,
            turns,
            start=plan.start,
            experience=plan.experience,
            scope=self.config.scope,
            depth=plan.depth,
            preamble=self._preamble,
            **fields,
        )

    async def _return_to_start(self, plan: Plan) -> History:
        """Return the environment to the state after `plan.start`; a replay is compared."""
        task, path = self.tree.task, self.tree.path(plan.start)
        notes = notes_on(self.tree, path)
        if plan.experience is not None:
            notes[len(path)] = self.tree[plan.experience].note
        seen = path or (self.tree.path(plan.experience) if plan.experience is not None else [])
        first = self.tree.episode_of(seen[0].id).first_observation if seen else None
        if first is not None and plan.start in self.snapshots:
            await self._env.restore(self.snapshots[plan.start])
        else:
            seed = derive_seed(self.config.seed, task.id, "world")
            first = await self._env.replay(ActionTrace.of(task, seed, first, path))
            if self._env.env.can_snapshot and not path:
                self.snapshots[None] = await self._env.snapshot()
        return History(task, first, tuple(path), notes, plan.preamble)

    async def _reflect_on_ended(self, plan: Plan) -> tuple[History, Stop]:
        """Reflect on an episode that ended without a reflection. This record adds the reflections
        and no action, and has that episode's stop. No environment is used."""
        path = self.tree.path(plan.start)
        ended = self.tree.episode_of(path[-1].id)
        first = self.tree.episode_of(path[0].id).first_observation
        history = History(
            self.tree.task, first, tuple(path), notes_on(self.tree, path), plan.preamble
        )
        await self._reflect(plan, history, attempts=self.config.max_reflection_attempts)
        return history, ended.stop

    def _count_replay(self) -> None:
        self._replayed += 1
        self.budget.charge(replayed_steps=1)

    async def _act(self, plan: Plan, history: History) -> tuple[Stop, str]:
        """Why the episode ended, and what the policy said where its context was full."""
        config = self.config
        horizon = config.horizon or self._env.env.horizon
        reflects = self.strategy.reflects_at(plan.depth)
        invalid, error = invalid_in_a_row(history.turns), ""
        while True:
            if history.step >= horizon:
                stop = Stop.horizon
                break
            if not self.budget.take(policy_calls=1, env_steps=1):
                return Stop.budget, ""
            experience = plan.experience if self._has_experience(plan, history) else None
            try:
                turn = await self._turn(history, experience)
            except ContextFull as full:
                if not history.turns and self._preamble:  # begin with fewer earlier attempts
                    self._preamble = self._preamble[1:]
                    history = replace(history, preamble=self._preamble)
                    continue
                stop, error = Stop.context_full, str(full)
                break
            self._turns.append(turn)
            history = replace(
                history, turns=(*history.turns, turn), notes=self._notes_after(plan, history)
            )
            invalid = 0 if turn.valid else invalid + 1
            if turn.done:
                stop = Stop.success if turn.success else Stop.failure
                break
            if self._env.env.can_snapshot:
                self.snapshots[turn.id] = await self._env.snapshot()
            if invalid >= config.max_invalid_actions:
                stop = Stop.invalid_limit
                break
            if (
                config.reflect_every
                and history.step % config.reflect_every == 0
                and history.step < horizon
                and reflects
            ):
                await self._reflect(plan, history, attempts=1)
        if self._turns and stop in FAILED and config.reflect_on_failure and reflects:
            await self._reflect(plan, history, attempts=config.max_reflection_attempts)
        return stop, error

    def _has_experience(self, plan: Plan, history: History) -> bool:
        """Whether the next action's prompt holds the plan's experience."""
        step = len(self.tree.path(plan.start))
        return history.step == step or (
            self.config.scope == "branch" and self.prompts.shows_experience(history, step)
        )

    def _notes_after(self, plan: Plan, history: History) -> dict[int, str]:
        """The experiences that later turns still see: under scope `action` the plan's own is gone
        after the revised action."""
        notes = dict(history.notes)
        if self.config.scope == "action" and plan.experience is not None:
            notes.pop(len(self.tree.path(plan.start)), None)
        return notes

    async def _turn(self, history: History, experience: str | None) -> Turn:
        began = time.monotonic()
        words = self.prompts.set
        try:
            answer = await self._complete(
                self.prompts.act(history, self._prompt_cache),
                history.step,
                max_tokens=words.max_tokens,
                temperature=self.config.temperature,
            )
            thought, action = self.prompts.parse_action(answer.text, answer.finish == "length")
            result = await self._env.step(action)
        except (PolicyError, EnvError, ReplayDiverged):
            # there is no turn: the journal will not hold it
            self.budget.charge(policy_calls=-1, env_steps=-1)
            raise
        charge_tokens(self.budget, answer.usage)
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

    async def _reflect(self, plan: Plan, history: History, attempts: int) -> None:
        """Sample (tau, e) until it is usable, at most `attempts` times. Every attempt is a turn,
        and is charged.

        A history that does not fit the policy's context is shortened until it does
        (`leafe.prompts.shortenings`); a refused request is not charged.
        """
        if self.prompts.set.tried:
            history = replace(
                history, tried=tried_advice(self.tree, history.turns, self.index, plan.experience)
            )
        shorter = iter(shortenings(history.step))
        for _ in range(attempts):
            nth = sum(t.kind is Kind.reflect and t.step == history.step for t in self._turns)
            if not self.budget.take(policy_calls=1):
                return
            began = time.monotonic()
            target, note, why = None, "", ""
            answer, no_answer = Completion(""), False
            try:
                while True:
                    try:
                        answer = await self._ask_reflection(history, nth)
                        break
                    except ContextFull:
                        left_out = next(shorter, None)
                        if left_out is None:
                            raise
                        history = replace(history, left_out=left_out)
                charge_tokens(self.budget, answer.usage)
                target, note = self.prompts.parse_reflection(answer.text, history.step)
            except UnusableReflection as error:
                why = str(error)
            except PolicyError as error:  # the episode is complete without it and keeps its stop
                why, no_answer = str(error), True
            turn = unplayed_turn(
                Kind.reflect,
                history,
                answer,
                episode=self.index,
                nth=nth,
                policy=self.policy.name,
                seconds=time.monotonic() - began,
                observation=why,
                valid=target is not None,
                target=target,
                note=note,
                left_out=history.left_out,
                tried=len(history.tried),
            )
            self._turns.append(turn)
            if turn.valid or no_answer:
                return

    async def _ask_reflection(self, history: History, nth: int) -> Completion:
        config = self.config
        return await self._complete(
            self.prompts.reflect(history, self._prompt_cache),
            history.step,
            "reflect",
            nth,
            max_tokens=self.prompts.set.reflect_max_tokens,
            temperature=config.temperature
            if config.reflection_temperature is None
            else config.reflection_temperature,
            schema=self.prompts.reflection_schema(history.step),
        )

    async def _complete(
        self, messages: tuple[Message, ...], step: int, *names: str | int, **options: Any
    ) -> Completion:
        """One answer; `names`: what the seed derives from, besides the step."""
        request = Request(
            messages=messages,
            top_p=self.config.top_p,
            stop=self.prompts.set.stop,
            seed=derive_seed(self.config.seed, self.tree.task.id, self.index, step, *names),
            cache_key=self.tree.task.id,
            **options,
        )
        with self.pool.waits.on("engine"):
            answer = await complete_one(self.policy, request)
        self.on_turn()
        return answer


def unplayed_turn(
    kind: Kind,
    history: History,
    answer: Completion,
    *,
    episode: int,
    nth: int,
    policy: str,
    seconds: float,
    **fields: Any,
) -> Turn:
    """The record of a policy call that no environment sees: a reflection or an aside.

    Args:
        kind: `Kind.reflect` or `Kind.aside`.
        history: The history that the policy read; the turn stands after its last action.
        answer: What the policy said; empty where there was no answer.
        episode: The episode's number in its task.
        nth: How many turns of this kind the episode has at this history already.
        policy: The policy's name.
        seconds: Duration of the call.
        **fields: Further fields of the `Turn`.
    """
    return Turn(
        id=turn_id(history.task.id, episode, history.step, kind, nth),
        parent=history.turns[-1].id if history.turns else None,
        task_id=history.task.id,
        step=history.step,
        kind=kind,
        action_text=answer.text,
        policy=policy,
        usage=answer.usage,
        tokens=answer.tokens,
        logprob=answer.logprob,
        seconds=round(seconds, 4),
        finish=answer.finish,
        **fields,
    )
