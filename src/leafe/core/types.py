"""What a turn, an episode and a branch are: the only records that leafe has.

A turn is one policy output and the environment's answer to it. Each is stored once and names its
parent, so that an episode
is a path from the root to a leaf, a rollback is a new child of an earlier turn, and an evaluation
of 128 samples is the same tree
with counts on its edges. All records are frozen and turn to plain JSON values and back without
loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal


class Stop(StrEnum):
    """Why an episode ended."""

    success = "success"  # the environment said done, with success
    failure = "failure"  # the environment said done, without success
    horizon = "horizon"  # the most steps of an episode were taken
    context_full = "context_full"  # the history no longer fits the policy's context
    invalid_limit = "invalid_limit"  # too many invalid actions in a row
    env_error = "env_error"  # the environment raised, died or hung
    policy_error = "policy_error"  # the policy gave no answer after the bounded retries
    diverged = "diverged"  # a replay did not reproduce the observations: never trained on
    budget = "budget"  # a limit of the interaction budget was reached in mid-episode


FAILED_BY_ENV = frozenset({Stop.failure, Stop.horizon, Stop.invalid_limit})
"""Stops by which the environment says that the policy failed; the whole history can be read
again."""

FAILED = FAILED_BY_ENV | {Stop.context_full}
"""Stops that count as a failure of the policy, as they do at test: the policy is asked to reflect
on them, and the history up to there is sound."""


class Kind(StrEnum):
    """What the policy did in a turn."""

    act = "act"  # took an action in the environment
    reflect = "reflect"  # read the history and named a rollback step and an experience
    # said something else about it that no environment hears: a lesson for a playbook, an
    # explanation, an action only proposed (baselines)
    aside = "aside"


Finish = Literal["stop", "length"]
"""How an answer ended. stop: the policy ended it. length: it was cut at its limit of tokens, so
that it has no end-of-turn token."""


class Scope(StrEnum):
    """Which actions of a branch are sampled with the experience in the context (METHOD.md, 'what
    the paper leaves open')."""

    action = "action"  # the revised action only
    branch = (
        "branch"  # the revised action and every later one: the experience stays where it was put
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one policy call. `cached` counts the part of `prompt` that needed no
    computation."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def to_json(self) -> dict[str, int]:
        return {"prompt": self.prompt, "cached": self.cached, "generated": self.generated}

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt, self.cached + other.cached, self.generated + other.generated
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One problem of an environment. `payload` holds what the environment needs to build it: plain
    JSON values only."""

    id: str
    env: str
    split: str
    instruction: str
    payload: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "payload": dict(self.payload)
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Task:
        return Task(**data)


@dataclass(frozen=True, slots=True)
class Turn:
    """One policy output and the environment's answer.

    Ids are made by `turn_id` from the task, the episode's index and the position: the same run
    gives the same ids whatever the
    concurrency was.
    """

    id: str
    parent: str | None
    """The act turn after which this one was taken; None at the root. A reflection's parent is the
    last turn that it read."""
    task_id: str
    step: int
    """Act: the index t of the action in its episode, from 0. Reflect, aside: how many actions the
    history it read holds (t + 1)."""
    kind: Kind
    action_text: str
    """The policy's output as it was written, thought included, without the end-of-turn token."""
    action: str = ""
    """What the environment was given: parsed out of `action_text`. Empty for a reflection; of an
    aside, what it was asked for: `lesson`, `delta`,
    `proposal` or `explanation`."""
    thought: str = ""
    observation: str = ""
    """The environment's answer o_{t+1}. For an unusable reflection or aside: why it could not be
    used."""
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    """Act: the environment accepted the action. Reflect: the reflection names a step in range and
    an experience."""
    progress: float | None = None
    """A number that grows only when the task really advances; None where the environment has
    none."""
    count: int = 1
    """How many samples took this turn (counted evaluation); 1 in exploration."""
    experience: str | None = None
    """The id of the reflection in whose light this turn was sampled: it stood in the prompt."""
    target: int | None = None
    """Reflect only: the rollback step tau, 0 <= tau < `step`. The action at tau is the one to
    revise."""
    note: str = ""
    """Reflect: the experience e, in words. Aside: what was read out of it."""
    left_out: int = 0
    """Reflect: how many of the oldest observations, and then actions, were left out of the prompt
    for it to fit (`leafe.prompts.shortened`)."""
    tried: int = 0
    """Reflect: how many pieces of advice that had been followed already stood in the prompt
    (`leafe.prompts.tried_advice`)."""
    policy: str = ""
    """Which weights answered."""
    usage: Usage = Usage()
    env_steps: int = 0
    """Environment steps charged for this turn (act: 1)."""
    tokens: tuple[int, ...] | None = None
    """The sampled token ids, end-of-turn token included where the model wrote one; None where the
    engine gives none."""
    logprob: float | None = None
    """Sum of the sampled tokens' log-probabilities at the sampling temperature, where the engine
    gives it."""
    seconds: float = 0.0
    finish: Finish = "stop"
    """How the policy's output ended (journals of 0.1.0 do not say)."""

    @property
    def cut(self) -> bool:
        """Whether the output was cut at its limit of tokens: it is not what the policy would have
        said."""
        return self.finish == "length"

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the fields that hold their default, or a number that JSON does not
        have."""
        out: dict[str, Any] = {}
        for name, default in _TURN_DEFAULTS:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                continue
            if value != default or name in _REQUIRED:
                out[name] = (
                    value.to_json()
                    if isinstance(value, Usage)
                    else list(value)
                    if isinstance(value, tuple)
                    else value
                )
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Turn:
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
"""leafe 0.1.0 wrote whatever an environment gave: what was no number is read as not given."""


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Episode:
    """One durable write of the journal: the turns that one rollout added to its task's tree, and
    why it ended.

    The full trajectory is the path of `start` (None: from the reset) followed by this record's act
    turns.
    """

    task_id: str
    index: int
    """0, 1, 2, ... within the task, in the order in which the strategy asked for them."""
    stop: Stop
    turns: tuple[Turn, ...]
    """Act turns in order, and the reflections on them, each after the last turn that it read. May
    be empty (the environment failed on reset)."""
    first_observation: str = ""
    """o_0, what reset said: the same for every episode of a deterministic task."""
    start: str | None = None
    """The turn after which this episode branched off; None: it began at the root."""
    experience: str | None = None
    """The reflection that asked for this branch."""
    scope: Scope = Scope.action
    depth: int = 0
    """0 from the root, else one more than the depth of the episode that was reflected on."""
    preamble: tuple[str, ...] = ()
    """Feedback of earlier attempts that stood in the first prompt (iterative refinement)."""
    count: int = 1
    """How many samples ended with this very path (counted evaluation); 1 in exploration."""
    replayed: int = 0
    """Environment steps spent on returning to `start` by replay."""
    seconds: float = 0.0
    error: str = ""
    """One line on what failed, for env_error, policy_error, diverged."""
    again: int | None = None
    """Index of an episode whose samples were lost, and which these samples make up for
    (evaluation)."""

    @property
    def acts(self) -> tuple[Turn, ...]:
        return tuple(t for t in self.turns if t.kind is Kind.act)

    @property
    def success(self) -> bool:
        return self.stop is Stop.success

    @property
    def looks_back(self) -> bool:
        """Whether this record is no rollout: it adds reflections to one that ended before (an
        imported episode)."""
        return (
            self.start is not None
            and self.experience is None
            and bool(self.turns)
            and all(turn.kind is Kind.reflect for turn in self.turns)
        )

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "turns":
                out["turns"] = [t.to_json() for t in self.turns]
            elif f.name in ("task_id", "index", "stop") or value != f.default:
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Episode:
        values = dict(data)
        values["stop"] = Stop(values["stop"])
        values["turns"] = tuple(Turn.from_json(t) for t in values["turns"])
        if "scope" in values:
            values["scope"] = Scope(values["scope"])
        if "preamble" in values:
            values["preamble"] = tuple(values["preamble"])
        return Episode(**values)


ImprovementRule = Literal["progress", "blame"]
"""What says that a branch improved on its parent, beside a win. progress: it got further by the
environment's own progress; where the environment reports none, as blame.
blame: its own next reflection blames a later step than its parent's did, whatever the environment
reports."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch event (h_tau, a_tau, e, a'_tau, outcomes), derived from a tree and never stored
    (METHOD.md, Stage 1)."""

    task_id: str
    turn_before: str | None
    """The last turn of h_tau; None: the branch is at the root."""
    original: Turn
    """a_tau: what the parent episode did at tau."""
    revised: Turn
    """a'_tau: what was sampled there with the experience in the context."""
    reflection: Turn
    outcome_before: Episode
    outcome_after: Episode
    improved: bool
    """The branch won, or is better than its parent by the rule that `Tree.branches` was given
    (`ImprovementRule`)."""
    on_success_path: bool
    """Some successful episode of the tree runs through `revised`."""


def token_ids(values: Iterable[int]) -> tuple[int, ...]:
    """These token ids with one object for each id: among a million turns that were read from a file
    they would weigh more than all texts."""
    return tuple([_IDS.setdefault(value, value) for value in values])


_IDS: dict[int, int] = {}


def turn_id(task_id: str, episode: int, step: int, kind: Kind = Kind.act, nth: int = 0) -> str:
    """`TASK/2.5` is action 5 of the task's episode 2; `TASK/2.6r0` is the first try at a reflection
    on its first six actions, `TASK/2.6a0` the
    first aside there."""
    return f"{task_id}/{episode}.{step}" + ("" if kind is Kind.act else f"{kind[0]}{nth}")
