"""Does a world keep its contract? Played, replayed and returned to, and compared: for the tests of a world of one's own.

What leafe builds on is checked as `leafe.core.Environment` states it: the same task, seed and actions give the same observations; a snapshot
brings back exactly the state that it was taken in; an invalid action is named by a sentence and changes nothing; progress never shrinks.

    report = check_environment(MyWorld(), tasks, actions=["go north", "take lamp"])
    assert not report.problems, report
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import TypeVar

from leafe.core import Environment, StepResult, Task, derive_seed

T = TypeVar("T")
Actions = Sequence[str] | Callable[[Task, str, random.Random], str]
"""Actions to draw from, or a function from the task, the last observation and a random source to an action. Some may be invalid."""


@dataclass(slots=True)
class Report:
    """What was found. `problems` is empty where the world kept its contract."""

    world: str
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the task and the step."""
    episodes: int = 0
    steps: int = 0
    """Steps taken, repeated ones included."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Median of each operation: reset, step, and, where the world has them, snapshot and restore."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value:.3g} ms" for name, value in self.milliseconds.items())
        head = f"{self.world}: {self.episodes} episodes, {self.steps} steps; {times}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def check_environment(
    world: Environment, tasks: Sequence[Task], actions: Actions, *, invalid: Sequence[str] = ("", "no such action at all"), steps: int = 20, seed: int = 0
) -> Report:
    """Play one episode of at most `steps` actions on each task, then again, with invalid actions in between, and from every snapshot.

    `invalid`: texts that are an action nowhere in this world; an empty sequence leaves that check out. The world is not closed.
    """
    return _Check(world, tasks, actions, invalid, steps, seed).run()


Seen = tuple[str, float, bool, bool, bool, float | None]


class _Check:
    def __init__(self, world: Environment, tasks: Sequence[Task], actions: Actions, invalid: Sequence[str], steps: int, seed: int) -> None:
        self.world, self.tasks, self.actions, self.invalid, self.steps, self.seed = world, tasks, actions, invalid, steps, seed
        self.report = Report(world.name)
        self.seconds: dict[str, list[float]] = {}

    def run(self) -> Report:
        if not self.tasks:
            self.problem("there is no task to check")
        if len({task.id for task in self.tasks}) < len(self.tasks):
            self.problem("two tasks have the same id")
        for task in self.tasks:
            self.check_task(task)
            self.report.episodes += 1
        self.report.milliseconds = {name: 1000 * statistics.median(values) for name, values in self.seconds.items()}
        return self.report

    def problem(self, sentence: str) -> None:
        self.report.problems.append(sentence)

    def timed(self, name: str, call: Callable[[], T]) -> T:
        begun = time.perf_counter()
        value = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        return value

    def reset(self, task: Task) -> str:
        observation = self.timed("reset", lambda: self.world.reset(task, derive_seed(self.seed, task.id)))
        if not isinstance(observation, str) or not observation.strip():
            self.problem(f"{task.id}: reset gave {observation!r}, not a text")
        return observation

    def step(self, task: Task, action: str) -> StepResult:
        result = self.timed("step", lambda: self.world.step(action))
        self.report.steps += 1
        flags = (result.done, result.success, result.valid)
        if not isinstance(result.observation, str) or not result.observation.strip():
            self.problem(f"{task.id}: the answer to {action!r} is {result.observation!r}, not a text")
        if not all(isinstance(flag, bool) for flag in flags) or not isinstance(result.reward, Real):
            self.problem(f"{task.id}: the answer to {action!r} has a done, success or valid that is no bool, or a reward that is no number")
        if result.success and not result.done:
            self.problem(f"{task.id}: the answer to {action!r} is a success, but not done")
        return result

    def check_task(self, task: Task) -> None:
        try:
            if Task.from_json(json.loads(json.dumps(task.to_json()))) != task:
                self.problem(f"{task.id}: the task is not the same after a turn through JSON")
        except TypeError as error:
            self.problem(f"{task.id}: the task's payload holds what JSON cannot: {error}")
        draw = random.Random(derive_seed(self.seed, "actions", task.id))
        first = observation = self.reset(task)
        played: list[str] = []
        seen: list[Seen] = []
        snapshots: list[object] = []
        progress: float | None = None
        while len(played) < self.steps and not (seen and seen[-1][2]):
            if self.world.can_snapshot:
                snapshots.append(self.timed("snapshot", self.world.snapshot))
            action = self.actions(task, observation, draw) if callable(self.actions) else draw.choice(list(self.actions))
            result = self.step(task, action)
            observation = result.observation
            if progress is not None and (result.progress is None or result.progress < progress):
                self.problem(f"{task.id}, step {len(played)}: progress went from {progress} to {result.progress}")
            progress = result.progress
            played.append(action)
            seen.append(_seen(result))
        if self.world.deterministic:
            self.compare(task, "a replay", first, played, seen, ())
            if self.invalid:
                self.compare(task, "a replay with invalid actions in between", first, played, seen, self.invalid)
        for at, snapshot in enumerate(snapshots):
            self.reset(self.tasks[0])  # another state, so that a restore that does nothing is seen
            self.timed("restore", partial(self.world.restore, snapshot))
            self.follow(task, f"the snapshot of step {at}", played, seen, at)

    def compare(self, task: Task, what: str, first: str, played: list[str], seen: list[Seen], invalid: Sequence[str]) -> None:
        again = self.reset(task)
        if again != first:
            self.problem(f"{task.id}: {what} begins with {again!r}, not {first!r}")
        self.follow(task, what, played, seen, 0, invalid)

    def follow(self, task: Task, what: str, played: list[str], seen: list[Seen], start: int, invalid: Sequence[str] = ()) -> None:
        """Take the played actions from `start` on, and say where the answers differ."""
        for at in range(start, len(played)):
            for wrong in invalid:
                answer = self.step(task, wrong)
                if answer.valid or answer.done:
                    self.problem(f"{task.id}, step {at}: the invalid action {wrong!r} was answered with valid={answer.valid}, done={answer.done}")
                    return
            now = _seen(self.step(task, played[at]))
            if now != seen[at]:
                self.problem(f"{task.id}, step {at}: {what} answers {played[at]!r} with {now}, not {seen[at]}")
                return


def _seen(result: StepResult) -> Seen:
    return (result.observation, result.reward, result.done, result.success, result.valid, result.progress)
