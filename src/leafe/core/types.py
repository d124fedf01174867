"""The records of leafe: task, turn, episode, branch. There is no second data model.

A turn is one policy output and the environment's answer to it. It is stored once and names its
parent. So an episode is a path from the root to a leaf, a rollback is a new child of an earlier
turn, and an evaluation of 128 samples is the same tree with counts on its edges. All records are
frozen and convert to plain JSON values and back without loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal


class Stop(StrEnum):
    """Why an episode ended."""

    success = "success"  # the environment returned done, with success
    failure = "failure"  # the environment returned done, without success
    horizon = "horizon"  # the episode took the most steps that it may
    context_full = "context_full"  # the history no longer fits the policy's context
    invalid_limit = "invalid_limit"  # too many invalid actions in a row
    env_error = "env_error"  # the environment raised, died or hung
    policy_error = "policy_error"  # the policy gave no answer after the bounded retries
    diverged = "diverged"  # a replay did not reproduce the observations: never trained on
    budget = "budget"  # a limit of the interaction budget was reached during the episode


FAILED_BY_ENV = frozenset({Stop.failure, Stop.horizon, Stop.invalid_limit})
"""Stops with which the environment ends a failed episode; the history still fits a prompt."""

FAILED = FAILED_BY_ENV | {Stop.context_full}
"""Stops that count as a failure of the policy, at test too. The history up to there is sound, so
Stage 1 reflects on these episodes."""

FOREIGN = frozenset({Stop.policy_error, Stop.env_error})
"""Stops by a failure of the endpoint or the environment: they may pass, so the work is retried."""

LOST = FOREIGN | {Stop.diverged, Stop.budget}
"""Stops that say nothing about the policy: such a sample is neither a success nor a failure. It is
left out of the n of Pass@k and reported as lost."""


class Kind(StrEnum):
    """What the policy did in a turn."""

    act = "act"  # took an action in the environment
    reflect = "reflect"  # read the history and named a rollback step and an experience
    aside = "aside"  # anything else: a lesson, an explanation, a proposed action (baselines)


Finish = Literal["stop", "length"]
"""How an answer ended. stop: the policy ended it. length: it was cut at its token limit, so it has
no end-of-turn token."""


class Scope(StrEnum):
    """Which actions of a branch are sampled with the experience in the context (docs/method.md,
    Stage 1; the paper leaves this open)."""

    action = "action"  # the revised action only
    branch = "branch"  # the revised action and every later one: the experience stays in place


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one policy call.

    Attributes:
        prompt: Tokens of the prompt.
        cached: How many of `prompt` the engine took from its cache.
        generated: Tokens of the answer, over all samples of the request.
    """

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def to_json(self) -> dict[str, int]:
        """A JSON object with every field."""
        return {"prompt": self.prompt, "cached": self.cached, "generated": self.generated}

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt, self.cached + other.cached, self.generated + other.generated
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One problem of an environment.

    Attributes:
        id: Unique within a run.
        env: The environment's name.
        split: `train`, `valid`, `test`, or a split of the environment's own.
        instruction: The goal, as the prompt shows it.
        payload: What the environment needs to build the problem. Plain JSON values only.
    """

    id: str
    env: str
    split: str
    instruction: str
    payload: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "payload": dict(self.payload)
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Task:
        """The task that `to_json` wrote. TypeError for anything else."""
        return Task(**data)


@dataclass(frozen=True, slots=True)
class Turn:
    """One policy output and the environment's answer: a node of a task's tree.

    Ids come from `turn_id`, so the same run gives the same ids at any concurrency.

    Attributes:
        id: Unique in the run.
        parent: The act turn after which this one was taken; None at the root. A reflection's
            parent is the last turn that it read.
        task_id: The task whose tree the turn belongs to.
        step: act: the index t of the action in its episode, from 0. reflect, aside: how many
            actions the history that was read holds, t + 1.
        kind: What the policy did.
        action_text: The policy's whole output, thought included, without the end-of-turn token.
        action: What the environment was given, parsed out of `action_text`. Empty for a
            reflection. For an aside its kind: `lesson`, `delta`, `proposal` or `explanation`.
        thought: The thought, parsed out of `action_text`.
        observation: The environment's answer o_{t+1}. For an unusable reflection or aside: why it
            cannot be used.
        reward: The environment's reward for the action.
        done: The environment ended the episode.
        success: The environment reported success.
        valid: act: the environment accepted the action. reflect: the reflection names a step in
            range and an experience.
        progress: A number that grows only when the task advances; None where the environment has
            none.
        count: How many samples took this turn (counted evaluation); 1 in exploration.
        experience: The id of the reflection that stood in the prompt.
        target: reflect: the rollback step tau, 0 <= tau < `step`; the action at tau is revised.
        note: reflect: the experience e. aside: what was parsed out of it.
        left_out: reflect: how many of the oldest observations, and then actions, were left out
            so that the prompt fits (`leafe.prompts.shortened`).
        tried: reflect: how many experiences that were followed already stood in the prompt
            (`leafe.prompts.tried_advice`).
        policy: The weights that answered.
        usage: Tokens of the call.
        env_steps: Environment steps charged for this turn (act: 1).
        tokens: The sampled token ids, end-of-turn token included where the model wrote one; None
            where the engine returns none.
        logprob: Sum of the sampled tokens' log-probabilities at the sampling temperature, in nats;
            None where the engine returns none.
        seconds: Wall time of the call and the step.
        finish: How the output ended (journals of 0.1.0 hold no such field).
    """

    id: str
    parent: str | None
    task_id: str
    step: int
    kind: Kind
    action_text: str
    action: str = ""
    thought: str = ""
    observation: str = ""
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    progress: float | None = None
    count: int = 1
    experience: str | None = None
    target: int | None = None
    note: str = ""
    left_out: int = 0
    tried: int = 0
    policy: str = ""
    usage: Usage = Usage()
    env_steps: int = 0
    tokens: tuple[int, ...] | None = None
    logprob: float | None = None
    seconds: float = 0.0
    finish: Finish = "stop"

    @property
    def cut(self) -> bool:
        """Whether the output was cut at its token limit."""
        return self.finish == "length"

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without fields that hold their default or a number that is not finite."""
        out: dict[str, Any] = {}
        for name, default in _TURN_DEFAULTS:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                continue
            if value != default or name in _REQUIRED:
                out[name] = _json(value)
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Turn:
        """The turn that `to_json` wrote, of this leafe or of 0.1.0."""
        values = dict(data)
        values["kind"] = Kind(values["kind"])
        if "usage" in values:
            values["usage"] = Usage(**values["usage"])
        if values.get("tokens") is not None:
            values["tokens"] = token_ids(values["tokens"])
        for name, instead in _NUMBERS:
            if name in values and not _finite(values[name]):
                values[name] = instead
        return Turn(**values)


_REQUIRED = frozenset({"id", "parent", "task_id", "step", "kind", "action_text"})
_TURN_DEFAULTS = tuple((f.name, f.default) for f in fields(Turn))
_NUMBERS = (("reward", 0.0), ("progress", None), ("logprob", None))
"""0.1.0 wrote whatever an environment returned; what is no finite number is read as not given."""


def _json(value: Any) -> Any:
    if isinstance(value, Usage):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Episode:
    """The turns that one rollout added to its task's tree, and why it ended: one durable write of
    the journal.

    The whole trajectory is the path to `start` (None: the reset) followed by this record's act
    turns (`Tree.trajectory`).

    Attributes:
        task_id: The task.
        index: 0, 1, 2, ... within the task, in the order in which the strategy planned them.
        stop: Why the episode ended.
        turns: Act turns in order, and the reflections on them, each after the last turn that it
            read. Empty where the environment failed on reset.
        first_observation: o_0, what reset returned: the same for every episode of a deterministic
            task.
        start: The turn after which this episode branched off; None: it began at the root.
        experience: The reflection that this branch follows.
        scope: Which actions of the branch had the experience in the context.
        depth: 0 from the root, else one more than the depth of the episode reflected on.
        preamble: Feedback on earlier attempts that stood in the first prompt (iterative
            refinement).
        count: How many samples ended with this very path (counted evaluation); 1 in exploration.
        replayed: Environment steps that the replay to `start` took.
        seconds: Wall time.
        error: One line on what failed, for env_error, policy_error, diverged.
        again: Index of the episode whose lost samples these make up for (evaluation).
    """

    task_id: str
    index: int
    stop: Stop
    turns: tuple[Turn, ...]
    first_observation: str = ""
    start: str | None = None
    experience: str | None = None
    scope: Scope = Scope.action
    depth: int = 0
    preamble: tuple[str, ...] = ()
    count: int = 1
    replayed: int = 0
    seconds: float = 0.0
    error: str = ""
    again: int | None = None

    @property
    def acts(self) -> tuple[Turn, ...]:
        """The act turns of this record, in order."""
        return tuple(t for t in self.turns if t.kind is Kind.act)

    @property
    def success(self) -> bool:
        return self.stop is Stop.success

    @property
    def looks_back(self) -> bool:
        """Whether this record is no rollout but adds reflections to an earlier one (imports)."""
        return (
            self.start is not None
            and self.experience is None
            and bool(self.turns)
            and all(turn.kind is Kind.reflect for turn in self.turns)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without fields that hold their default."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "turns":
                out["turns"] = [t.to_json() for t in self.turns]
            elif f.name in ("task_id", "index", "stop") or value != f.default:
                out[f.name] = _json(value)
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Episode:
        """The episode that `to_json` wrote. KeyError, TypeError or ValueError for anything else."""
        values = dict(data)
        values["stop"] = Stop(values["stop"])
        values["turns"] = tuple(Turn.from_json(t) for t in values["turns"])
        if "scope" in values:
            values["scope"] = Scope(values["scope"])
        if "preamble" in values:
            values["preamble"] = tuple(values["preamble"])
        return Episode(**values)


ImprovementRule = Literal["progress", "blame"]
"""When a branch that did not win counts as better than its parent. progress: it got further by the
environment's own progress; where the environment reports none, as blame. blame: its next reflection
blames a later step than its parent's did."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch event (h_tau, a_tau, e, a'_tau, outcomes), derived from a tree and stored nowhere
    (docs/method.md, Stage 1).

    Attributes:
        task_id: The task.
        turn_before: The last turn of h_tau; None where the branch is at the root.
        original: a_tau, what the parent episode did at tau.
        revised: a'_tau, what was sampled there with the experience in the context.
        reflection: The turn that names tau and the experience e.
        outcome_before: The parent episode.
        outcome_after: The branch.
        improved: The branch won, or is better than its parent by the `ImprovementRule` in use.
        on_success_path: Some successful episode of the tree runs through `revised`.
    """

    task_id: str
    turn_before: str | None
    original: Turn
    revised: Turn
    reflection: Turn
    outcome_before: Episode
    outcome_after: Episode
    improved: bool
    on_success_path: bool


def token_ids(values: Iterable[int]) -> tuple[int, ...]:
    """These token ids, with one int object for each id in the process: of a million turns read from
    a file, separate objects would take more memory than all texts."""
    return tuple([_IDS.setdefault(value, value) for value in values])


_IDS: dict[int, int] = {}


def turn_id(task_id: str, episode: int, step: int, kind: Kind = Kind.act, nth: int = 0) -> str:
    """The id of a turn.

    `TASK/2.5` is action 5 of the task's episode 2; `TASK/2.6r0` is the first attempt at a
    reflection on its first six actions, `TASK/2.6a0` the first aside there.

    Args:
        task_id: The task.
        episode: The episode's index in the task.
        step: The turn's step, as `Turn.step`.
        kind: What the turn is.
        nth: Which of several reflections or asides at this step, from 0.
    """
    return f"{task_id}/{episode}.{step}" + ("" if kind is Kind.act else f"{kind[0]}{nth}")
