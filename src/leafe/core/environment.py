"""The contract of an environment: text in, text out, and a way back.

An environment is one synchronous object that plays one task at a time. It knows nothing of
policies, prompts or training.
The smallest environment has `reset` and `step`; everything else has a default:

    class Coin(Environment):
        name = "coin"
        def reset(self, task, seed): return "A coin lies face down."
        def step(self, action):
            if action not in ("flip", "wait"):
                return StepResult(f"There is no {action!r}: say flip or wait.", valid=False)
            return StepResult("Heads.", reward=1.0, done=True, success=True)

Feedback is text, and an invalid action gets a sentence that says why, changes nothing, and has
`valid=False`.

What an environment says about itself (`name`, `horizon`, ...) stands on its class, or on the
instance where an option decides it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Self

from leafe.core.text import clean_text
from leafe.core.types import Task


@dataclass(frozen=True, slots=True)
class StepResult:
    """The environment's answer to one action."""

    observation: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    progress: float | None = None
    """Grows only when the task really advances (stages passed, boxes on goals, tests passed); None
    where there is no such number."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """For people and logs; nothing in leafe reads it."""


class Environment(ABC):
    """One environment. An instance is used by one thread at a time and for many episodes, one after
    another."""

    name: str = "env"
    deterministic: bool = True
    """The same task, seed and actions give the same observations. Counted evaluation and rollback
    by replay rest on it."""
    splits: tuple[str, ...] = ()
    """Names of its task splits; empty where it does not say."""
    horizon: int = 30
    """T: the most steps of an episode."""
    actions_help: str = ""
    """What actions there are and how they are written: one short text for the prompt."""
    quick: bool = False
    """Steps take microseconds: they run in the event loop and not in a worker thread."""
    heavy: bool = False
    """An instance holds something scarce (a process, a session on a server): a run has at most
    `workers` of them. Of other environments each task in flight
    may have one, and `workers` bounds the calls into them at a time."""
    process: ClassVar[bool] = False
    """The environment can hang, die or take the process with it (a JVM, native code, a planner):
    `leafe.envs.make_env` gives it a process of its own,
    which is killed when it does not answer, and made anew."""
    forkable: ClassVar[bool] = False
    """With `process`: all of its state is the memory of one process with one thread, so that a copy
    of that process (os.fork) is a snapshot.
    Not for an environment that holds a child process, a connection or a JVM."""
    can_snapshot: bool = False
    """`snapshot` and `restore` work; else rollback is reset and replay. A `forkable` environment
    need not say it."""

    @abstractmethod
    def reset(self, task: Task, seed: int) -> str:
        """Start the task; returns o_0. `seed` is all the randomness that the environment may
        use."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Take one action. Never raises for a bad action: that is `valid=False` and a sentence."""

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The tasks of a split ('train', 'valid', 'test'), the same for the same arguments; None:
        all there are."""
        raise NotImplementedError(
            f"the environment {self.name!r} has no task list of its own: hand it tasks"
        )

    def valid_actions(self) -> Sequence[str]:
        """Actions that can be taken now, for checks and random play: never shown to a policy, so it
        may be slow. Not empty before the episode is over."""
        raise NotImplementedError

    def snapshot(self) -> object:
        """The present state as a value that later steps do not change."""
        raise NotImplementedError

    def restore(self, snapshot: object) -> None:
        """Return to a state that `snapshot` gave, on this or another instance of the same options
        in the same process. `SnapshotGone` where it is no longer
        held: the caller resets and replays."""
        raise NotImplementedError

    def release(self, snapshot: object) -> None:  # noqa: B027 (most snapshots are plain values)
        """This snapshot will not be restored again: free what it holds."""

    def versions(self) -> Mapping[str, str]:
        """What decides this environment's words beside its options (package versions, data files):
        recorded with every run."""
        return {}

    def close(self) -> None:  # noqa: B027 (most environments hold nothing)
        """Free what the environment holds (processes, files). May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def observation_hash(observation: str) -> str:
    """Twelve hex digits that stand for an observation: what a replay is checked against."""
    return blake2b(clean_text(observation).encode(), digest_size=6).hexdigest()
