"""Plays one episode on each task, then again in each way in which leafe returns to a state."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from leafe.core import EnvError, Environment, StepResult, Task, UserError, derive_seed
from leafe.core.answers import observation_text, step_result
from leafe.envs import ProcessEnv, load_tasks, make_env
from leafe.testing._subprocess import Spec, compared_fields, fingerprint, play_in_subprocess

T = TypeVar("T")
Actions = Sequence[str] | Callable[[Task, str, random.Random], str]
"""Actions to draw from, or a function that maps the task, the last observation and a random source
to an action. Some may be invalid."""

TAUS = (5, 10, 25)
"""Rollback steps whose cost is reported."""
HASH_SEEDS = (1, 2)
CHECKS = (
    "tasks",
    "types",
    "replay",
    "other processes",
    "snapshots",
    "instances",
    "invalid actions",
    "progress",
    "end",
    "random state",
    "close",
    "protocol",
)


@dataclass(slots=True)
class Report:
    """The result of a check. `problems` is empty if the environment kept its contract."""

    env: str
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the task and the step."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Checks that were not made, and why."""
    failed: Counter[str] = field(default_factory=Counter)
    """Problems by check."""
    episodes: int = 0
    steps: int = 0
    """Steps taken, repeated ones included."""
    replayed: int = 0
    """Episodes that were played again from the start, with or without a difference."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Medians of reset, step and, if the environment has them, snapshot and restore."""
    rollback: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    """By tau: median milliseconds of a return to step tau, by reset and replay, and by snapshot
    (None if the environment has none)."""
    memory: int | None = None
    """Bytes of the environment's own processes, else what it adds to its process. None: not
    measured."""
    longest_observation: int = 0
    """Characters."""
    rollback_method: str = "replay"
    """How leafe returns to an earlier step: replay, snapshot or fork."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value:.3g} ms" for name, value in self.milliseconds.items())
        head = f"{self.env}: {self.episodes} episodes, {self.steps} steps; {times}"
        skipped = [f"  not checked: {check} ({why})" for check, why in self.skipped.items()]
        return "\n".join([head, *(f"  {problem}" for problem in self.problems), *skipped])


def check_environment(
    env: Environment | type[Environment] | str,
    tasks: Sequence[Task] | None = None,
    actions: Actions | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    invalid: Sequence[str] = ("", "no such action at all"),
    count: int = 10,
    steps: int = 25,
    seed: int = 0,
    subprocesses: bool = True,
) -> Report:
    """Check that an environment keeps the contract of `leafe.core.Environment`.

    Plays one episode on each task, then again from the start, with invalid actions in between, from
    snapshots, and in other processes.

    Args:
        env: An instance (which is not closed), a class, or a name of `leafe envs`. Other processes
            make it again by its class or name; they cannot make an instance again.
        tasks: By default the first `count` of the split 'train', or of the first split.
        actions: By default drawn from the environment's `valid_actions`.
        options: The environment's options, where `env` is a class or a name.
        invalid: Texts that are never an action of this environment; empty skips that check.
        count: How many tasks, where `tasks` is None.
        steps: The most actions of an episode.
        seed: Decides the actions, and the seed of each `reset`.
        subprocesses: False skips the checks in other processes.

    Returns:
        The problems found, and the measured times and sizes.

    Raises:
        UserError: The environment cannot be made, or has no `valid_actions` and none were given.
    """
    spec: Spec | None = None
    if isinstance(env, Environment):
        made = None
        if isinstance(env, ProcessEnv):
            spec = Spec(env.target, env.options)
    else:
        name = env if isinstance(env, str) else f"{env.__module__}:{env.__qualname__}"
        importable = isinstance(env, str) or (
            env.__module__ != "__main__" and "<locals>" not in env.__qualname__
        )
        if importable:
            spec = Spec(name, dict(options or {}))
        own = dict(options or {})
        env = made = make_env(name, **own) if importable else env(**own)  # type: ignore[operator]
    try:
        check = _Check(env, actions, invalid, steps, seed, spec if subprocesses else None)
        check.no_spec = (
            "this instance cannot be made anew: give the class or a name"
            if subprocesses
            else "asked for"
        )
        return check.run(check.own_tasks(count) if tasks is None else tasks)
    finally:
        if made is not None:
            made.close()


@dataclass(slots=True)
class _Episode:
    """One played episode, to which others are compared."""

    task: Task
    seed: int
    first: str
    actions: list[str] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)

    def fingerprints(self) -> list[str]:
        return [fingerprint(self.first), *map(fingerprint, self.results)]


class _Check:
    """One check of one environment."""

    def __init__(
        self,
        env: Environment,
        actions: Actions | None,
        invalid: Sequence[str],
        steps: int,
        seed: int,
        spec: Spec | None,
    ) -> None:
        self.env, self.actions, self.invalid = env, actions, list(invalid)
        self.steps, self.seed, self.spec = steps, seed, spec
        self.report = Report(env.name)
        if env.can_snapshot:
            self.report.rollback_method = "fork" if env.process else "snapshot"
        self.seconds: dict[str, list[float]] = {}
        self.returns: dict[int, tuple[list[float], list[float]]] = {tau: ([], []) for tau in TAUS}
        """By tau: seconds of returns by replay, and by snapshot."""
        self.episodes: list[_Episode] = []
        self.has_progress = False
        self.no_spec = ""
        """Why there is no `spec`."""

    def own_tasks(self, count: int) -> list[Task]:
        splits: Sequence[str] = getattr(self.env, "splits", ())
        split = "train" if not splits or "train" in splits else splits[0]
        tasks = load_tasks(self.env, split, count)
        if [t.id for t in load_tasks(self.env, split, count)] != [t.id for t in tasks]:
            self.problem(
                "tasks", f"tasks({split!r}, {count}) gives other tasks when it is asked again"
            )
        fewer = load_tasks(self.env, split, max(1, count // 3))
        if fewer != tasks[: len(fewer)]:
            self.problem(
                "tasks",
                f"tasks({split!r}, {len(fewer)}) is not the beginning of tasks({split!r}, {count})",
            )
        return tasks

    def run(self, tasks: Sequence[Task]) -> Report:
        report = self.report
        if not tasks:
            self.problem("tasks", "there is no task to check")
            return report
        if len({task.id for task in tasks}) < len(tasks):
            self.problem("tasks", "two tasks have the same id")
        if (
            isinstance(self.env.horizon, bool)
            or not isinstance(self.env.horizon, int)
            or self.env.horizon < 1
        ):
            self.problem(
                "end", f"the horizon is {self.env.horizon!r}, not a number of steps from 1"
            )
        if not self.invalid:
            report.skipped["invalid actions"] = "no text was given that is no action"
        if not self.env.can_snapshot:
            report.skipped["snapshots"] = "it takes none: replay is the way back"
        if not self.env.deterministic:
            report.skipped["replay"] = report.skipped["other processes"] = (
                "it says that it is not deterministic"
            )
        for task in tasks:
            state = _random_state()
            with contextlib.suppress(_Raised):
                self.check_task(task, tasks[0])
            report.episodes += 1
            now = _random_state()
            if any(now[name] != before for name, before in state.items()):
                self.problem(
                    "random state",
                    f"{task.id}: the global random source (random or numpy) was used: draw "
                    "from the seed given to reset",
                )
        if not self.has_progress:
            report.skipped["progress"] = "it has no progress"
        if self.spec is None:
            report.skipped |= dict.fromkeys(("other processes", "instances", "close"), self.no_spec)
        elif self.episodes:
            if self.env.deterministic:
                with contextlib.suppress(_Raised):
                    self.check_instances(self.spec)
            self.check_subprocesses(self.spec)
        report.milliseconds = {
            name: 1000 * statistics.median(values) for name, values in self.seconds.items()
        }
        for tau, (replays, restores) in self.returns.items():
            if replays:
                report.rollback[tau] = (
                    1000 * statistics.median(replays),
                    1000 * statistics.median(restores) if restores else None,
                )
        return report

    def problem(self, check: str, sentence: str) -> None:
        self.report.problems.append(sentence)
        self.report.failed[check] += 1

    def timed(self, name: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return value

    def called(self, task: Task, what: str, call: Callable[[], T]) -> T:
        """The environment's answer. An exception other than UserError and EnvError is a problem and
        ends the checks of the task."""
        try:
            return call()
        except (UserError, EnvError):
            raise
        except Exception as error:
            self.problem("types", f"{task.id}: {what} raised {type(error).__name__}: {error}")
            raise _Raised from error

    def reset(self, task: Task, env: Environment | None = None) -> str:
        env = env or self.env
        observation = self.called(
            task,
            "reset",
            lambda: self.timed("reset", lambda: env.reset(task, derive_seed(self.seed, task.id))),
        )
        if not isinstance(observation, str) or not observation.strip():
            self.problem("types", f"{task.id}: reset gave {observation!r}, not a text")
        try:
            observation = observation_text(observation, env.name)
        except EnvError as error:
            raise _Raised from error
        self.report.longest_observation = max(self.report.longest_observation, len(observation))
        return observation

    def step(self, task: Task, action: str, env: Environment | None = None) -> StepResult:
        env = env or self.env
        result = self.called(
            task, f"step({action!r})", lambda: self.timed("step", lambda: env.step(action))
        )
        self.report.steps += 1
        try:
            result = step_result(result, env.name)
        except EnvError as error:
            self.problem("types", f"{task.id}: step({action!r}): {error}")
            raise _Raised from error
        if not result.observation.strip():
            self.problem(
                "types",
                f"{task.id}: the answer to {action!r} is {result.observation!r}, not a text",
            )
        if result.success and not result.done:
            self.problem("end", f"{task.id}: the answer to {action!r} is a success, but not done")
        self.report.longest_observation = max(
            self.report.longest_observation, len(result.observation)
        )
        return result

    def draw(self, task: Task, observation: str, chance: random.Random) -> str:
        if callable(self.actions):
            return self.actions(task, observation, chance)
        if self.actions is not None:
            return chance.choice(list(self.actions))
        try:
            return chance.choice(list(self.env.valid_actions()))
        except NotImplementedError as error:
            raise UserError(
                f"The environment {self.env.name!r} does not say which actions can be "
                "taken: give its class a method valid_actions, or name some here "
                "(on the command line --actions 'open red' --actions wait, in Python "
                "actions=['open red', 'wait'])."
            ) from error

    def check_task(self, task: Task, other: Task) -> None:
        try:
            if Task.from_json(json.loads(json.dumps(task.to_json()))) != task:
                self.problem(
                    "tasks", f"{task.id}: the task is not the same after a turn through JSON"
                )
            if pickle.loads(pickle.dumps(task)) != task:
                self.problem("tasks", f"{task.id}: the task is not the same after pickling")
        except TypeError as error:
            self.problem("tasks", f"{task.id}: the task's payload holds what JSON cannot: {error}")
            return
        chance = random.Random(derive_seed(self.seed, "actions", task.id))
        episode = _Episode(task, derive_seed(self.seed, task.id), self.reset(task))
        actions, results = episode.actions, episode.results
        snapshots: dict[int, object] = {}
        while len(actions) < self.steps and not (results and results[-1].done):
            at = len(actions)
            if self.env.can_snapshot and (self.env.quick or at in (0, *TAUS)):
                snapshots[at] = self.timed("snapshot", self.env.snapshot)
            last = results[-1] if results else None
            action = self.draw(task, last.observation if last else episode.first, chance)
            result = self.step(task, action)
            if last is not None:
                self.check_progress(task, at, last.progress, result.progress)
            actions.append(action)
            results.append(result)
        if self.env.can_snapshot and len(actions) in TAUS and not results[-1].done:
            # nothing follows it here, but the cost of a return to it is reported
            snapshots[len(actions)] = self.timed("snapshot", self.env.snapshot)
        if results and results[-1].progress is not None:
            self.has_progress = True
        self.episodes.append(episode)
        if self.env.deterministic:
            self.replay(episode, "replay", "a replay", False)
            self.report.replayed += 1
            if self.invalid:
                what = "a replay with invalid actions in between"
                self.replay(episode, "invalid actions", what, True)
        for at, snapshot in snapshots.items():
            self.reset(other)  # another state, so that a restore that does nothing is noticed
            start = time.perf_counter()
            self.timed("restore", partial(self.env.restore, snapshot))
            if at in self.returns:
                self.returns[at][1].append(time.perf_counter() - start)
            self.follow(episode, "snapshots", f"the snapshot of step {at}", at)
        if snapshots and not self.report.failed["snapshots"]:
            at = list(snapshots)[len(snapshots) // 2]
            self.reset(other)
            self.env.restore(snapshots[at])
            what = f"the snapshot of step {at}, restored a second time,"
            self.follow(episode, "snapshots", what, at)
        for snapshot in snapshots.values():
            self.env.release(snapshot)

    def check_progress(self, task: Task, at: int, before: float | None, now: float | None) -> None:
        if (now is None) != (before is None):
            sentence = f"progress is {now} after {before}: give one always or never"
        elif before is not None and now is not None and now < before:
            sentence = f"progress went from {before} to {now}"
        else:
            return
        self.problem("progress", f"{task.id}, step {at}: {sentence}")

    def replay(self, episode: _Episode, check: str, what: str, invalid: bool) -> None:
        """Play the episode again from the start."""
        start = time.perf_counter()
        again = self.reset(episode.task)
        if again != episode.first:
            self.problem(
                check, f"{episode.task.id}: {what} begins with {again!r}, not {episode.first!r}"
            )
        self.follow(episode, check, what, 0, invalid, None if invalid else start)

    def follow(
        self,
        episode: _Episode,
        check: str,
        what: str,
        first: int,
        invalid: bool = False,
        start: float | None = None,
    ) -> None:
        """Take the episode's actions from step `first` on, and report the first difference."""
        task = episode.task
        for at in range(first, len(episode.actions)):
            action, before = episode.actions[at], episode.results[at]
            if invalid and not self.refuses(task, check, at, before.progress):
                return
            now = self.step(task, action)
            if fingerprint(now) != fingerprint(before):
                self.problem(
                    check,
                    f"{task.id}, step {at}: {what} answers {action!r} with "
                    f"{compared_fields(now)}, not {compared_fields(before)}",
                )
                return
            if start is not None and at + 1 in self.returns:
                self.returns[at + 1][0].append(time.perf_counter() - start)

    def refuses(self, task: Task, check: str, at: int, progress: float | None) -> bool:
        """Take an invalid action; False if the environment accepts it."""
        wrong = self.invalid[at % len(self.invalid)]
        answer = self.step(task, wrong)
        where = f"{task.id}, step {at}: the invalid action {wrong!r}"
        if answer.valid or answer.done:
            self.problem(
                check, f"{where} was answered with valid={answer.valid}, done={answer.done}"
            )
            return False
        if answer.reward:
            self.problem(check, f"{where} was given the reward {answer.reward}")
        if (answer.progress is None) != (progress is None):
            what = f"progress is {answer.progress} after the invalid action {wrong!r}"
            self.problem("progress", f"{task.id}, step {at}: {what}: give one always or never")
        return True

    def check_instances(self, spec: Spec) -> None:
        """Play two instances in turns, and restore in one what the other has snapshotted."""
        episode, beside = self.episodes[0], self.episodes[-1]
        task, middle = episode.task, len(episode.actions) // 2
        with make_env(spec.env, **spec.options) as second:
            self.reset(beside.task)
            seen = [fingerprint(self.reset(task, second))]
            snapshot: object = None
            for at, action in enumerate(episode.actions):
                if self.env.can_snapshot and at == middle:
                    snapshot = second.snapshot()
                seen.append(fingerprint(self.step(task, action, second)))
                if at < len(beside.actions):
                    self.step(beside.task, beside.actions[at])
            if seen != episode.fingerprints():
                self.problem(
                    "instances",
                    f"{task.id}: a second instance that plays beside the first answers "
                    "otherwise: they share something",
                )
            if snapshot is not None:
                self.env.restore(snapshot)
                after = [fingerprint(self.step(task, a)) for a in episode.actions[middle:]]
                if after != episode.fingerprints()[middle + 1 :]:
                    self.problem(
                        "instances",
                        f"{task.id}: a snapshot of one instance is another state in a second one",
                    )
                self.env.release(snapshot)

    def check_subprocesses(self, spec: Spec) -> None:
        """Play all episodes again in other processes."""
        jobs = [(e.task, e.seed, e.actions) for e in self.episodes]
        for hash_seed in HASH_SEEDS:
            there = play_in_subprocess(spec, jobs, hash_seed)
            where = f"in another process (PYTHONHASHSEED={hash_seed}) the"
            if isinstance(there, str):
                self.problem("other processes", f"{where} environment {there}")
                return
            self.report.memory = there.memory
            if there.left:
                self.problem("close", f"{there.left} processes were left after close")
            if not self.env.deterministic:
                continue
            self.report.replayed += len(self.episodes)
            for episode, seen in zip(self.episodes, there.episodes, strict=True):
                pairs = zip(episode.fingerprints(), seen, strict=True)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
                if at is not None:
                    call = f"step {at - 1} ({episode.actions[at - 1]!r})" if at else "reset"
                    self.problem(
                        "other processes",
                        f"{episode.task.id}: {where} answer to {call} is another one",
                    )


class _Raised(Exception):
    """The environment gave no usable answer; the problem is recorded."""


def _random_state() -> dict[str, object]:
    """The state of the global random sources. numpy's counts only once it is imported."""
    numpy = sys.modules.get("numpy.random")
    state = numpy.get_state(legacy=True) if numpy is not None else None
    return {"random": random.getstate()} | (
        {"numpy": (state[0], state[1].tobytes(), *state[2:])} if state is not None else {}
    )
