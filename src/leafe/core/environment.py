"""The contract of an environment: text in, text out, and a way back to an earlier state.

The smallest environment has `reset` and `step`; everything else has a default:

    class Coin(Environment):
        name = "coin"
        def reset(self, task, seed): return "A coin lies face down."
        def step(self, action):
            if action not in ("flip", "wait"):
                return StepResult(f"There is no {action!r}: say flip or wait.", valid=False)
            return StepResult("Heads.", reward=1.0, done=True, success=True)

`leafe.testing.check_environment` plays an environment and reports where it breaks this contract.
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
    """The environment's answer to one action.

    Attributes:
        observation: o_{t+1}, as text.
        reward: Any finite number; recorded in the turn.
        done: The episode is over.
        success: The task is solved; only with `done`.
        valid: False where the action was refused: it changed nothing, and `observation` says why.
        progress: A number that grows only when the task advances (stages passed, boxes on goals,
            tests passed); None where there is none. Stage 2 finds the branches that helped by it.
        info: For people and logs; nothing in leafe reads it.
    """

    observation: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    progress: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


class Environment(ABC):
    """A task's world as the policy meets it: `reset` starts a task, `step` takes one action.

    An environment is one synchronous object that plays one episode at a time, many one after
    another. One thread uses it at a time. It knows nothing of policies, prompts or training.

    What an implementation promises:

    - All randomness comes from the `seed` of `reset`.
    - An invalid action is answered, never raised: `valid=False`, a sentence that says why, and the
      state unchanged. The policy learns from these sentences.
    - Where `deterministic` is True, the same task, seed and actions give the same observations.
      Rollback by replay and counted evaluation rest on that; leafe compares every replayed answer.
    - After an exception leafe brings a fresh instance to the same point and tries again; where
      that fails too the episode ends as `Stop.env_error`.

    The attributes are facts about the environment. They stand on the class, or on the instance
    where an option decides them.
    """

    name: str = "env"
    """Under which the environment is listed and recorded."""
    deterministic: bool = True
    """The same task, seed and actions give the same observations."""
    splits: tuple[str, ...] = ()
    """Names of its task splits; empty where it does not say."""
    horizon: int = 30
    """T: the most steps of an episode."""
    actions_help: str = ""
    """What actions there are and how they are written: one short text for the prompt."""
    quick: bool = False
    """Steps take microseconds, so they run in the event loop and not in a worker thread."""
    heavy: bool = False
    """An instance holds something scarce (a process, a session on a server): a run makes at most
    `workers` of them. Of other environments each task in flight may have one, and `workers` bounds
    the calls into them at a time."""
    process: ClassVar[bool] = False
    """The environment can hang, die or take the process with it (a JVM, native code, a planner):
    `leafe.envs.make_env` runs it in a process of its own, kills that where it does not answer, and
    starts another."""
    forkable: ClassVar[bool] = False
    """With `process`: all state is the memory of one process with one thread, so a copy of that
    process (os.fork) is a snapshot. Not for an environment that holds a child process, a connection
    or a JVM."""
    can_snapshot: bool = False
    """`snapshot` and `restore` work; else rollback is reset and replay. A `forkable` environment
    need not set it."""

    @abstractmethod
    def reset(self, task: Task, seed: int) -> str:
        """Start a task.

        Args:
            task: One of `tasks`, or a task of the user's own for this environment.
            seed: All the randomness that the episode may use.

        Returns:
            The first observation, o_0.
        """

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Take one action.

        Args:
            action: What the policy wrote, stripped of its thought. Any text.

        Returns:
            The answer; for an invalid action one with `valid=False`.
        """

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The tasks of a split, the same for the same arguments.

        Args:
            split: `train`, `valid`, `test`, or another of the environment's own.
            count: How many; None: all there are.
            seed: Which ones, where the environment generates tasks.

        Raises:
            NotImplementedError: The environment has no task list; the caller brings tasks.
        """
        raise NotImplementedError(
            f"the environment {self.name!r} has no task list of its own: hand it tasks"
        )

    def valid_actions(self) -> Sequence[str]:
        """Actions that can be taken now, for checks and random play. Never shown to a policy, so it
        may be slow. Not empty before the episode is over."""
        raise NotImplementedError

    def snapshot(self) -> object:
        """The present state, as a value that later steps do not change."""
        raise NotImplementedError

    def restore(self, snapshot: object) -> None:
        """Return to a state.

        Args:
            snapshot: What `snapshot` returned, on this or another instance with the same options in
                the same process.

        Raises:
            SnapshotGone: It is no longer held; the caller resets and replays.
        """
        raise NotImplementedError

    def release(self, snapshot: object) -> None:  # noqa: B027 (most snapshots are plain values)
        """Free what a snapshot holds: it will not be restored again."""

    def versions(self) -> Mapping[str, str]:
        """What the observations depend on beside the options: versions of packages and data. A run
        records them and goes on with the same ones only."""
        return {}

    def close(self) -> None:  # noqa: B027 (most environments hold nothing)
        """Free what the environment holds (processes, files). May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def observation_hash(observation: str) -> str:
    """Twelve hex digits that stand for an observation: what a replay is compared with."""
    return blake2b(clean_text(observation).encode(), digest_size=6).hexdigest()
