"""One episode on each task, then the same again in every way in which leafe returns to a state;
whatever differs is a sentence."""

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
from leafe.testing._subprocess import Spec, fingerprint, play_elsewhere

T = TypeVar("T")
Actions = Sequence[str] | Callable[[Task, str, random.Random], str]
"""Actions to draw from, or a function from the task, the last observation and a random source to an
action. Some may be invalid."""

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
    """What was found. `problems` is empty where the environment kept its contract."""

    env: str
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the task and the step."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Checks that were not made, and why."""
    failed: Counter[str] = field(default_factory=Counter)
    """Problems by check."""
    episodes: int = 0
    steps: int = 0
    """Steps taken, repeated ones included."""
    replayed: int = 0
    """Episodes that were played again from the start, and came out alike or are among the
    problems."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Median of each operation: reset, step, and, where the environment has them, snapshot and
    restore."""
    rollback: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    """By tau: median milliseconds of a return to step tau by reset and replay, and by snapshot
    (None where there is none)."""
    memory: int | None = None
    """Bytes of one environment: of its own processes where it has some, else what it adds to this
    one. None: not measured."""
    longest_observation: int = 0
    """Characters."""
    way_back: str = "replay"
    """How rollback is done: replay, snapshot or fork."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value:.3g} ms" for name, value in self.milliseconds.items())
        head = f"{self.env}: {self.episodes} episodes, {self.steps} steps; {times}"
        left_out = [f"  not checked: {check} ({why})" for check, why in self.left_out.items()]
        return "\n".join([head, *(f"  {problem}" for problem in self.problems), *left_out])


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
    elsewhere: bool = True,
) -> Report:
    """Play one episode of at most `steps` actions on each task, then again, with invalid actions in
    between, from snapshots, and in other processes.

    `env`: an instance (which is not closed), a class, or a name of `leafe envs`, made with
    `options`. Other processes make it anew by its name or class; an
    instance cannot be made anew. `tasks`: by default the first `count` of the split 'train' or,
    where there is none, of the first split.
    `actions`: by default drawn from the environment's `valid_actions`. `invalid`: texts that are an
    action nowhere in this environment; an empty
    sequence leaves that check out. `elsewhere`: False leaves out the other processes.
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
        check = _Check(env, actions, invalid, steps, seed, spec if elsewhere else None)
        check.way_to_others = (
            "asked for"
            if not elsewhere
            else "this instance cannot be made anew: give the class or a name"
        )
        return check.run(check.own_tasks(count) if tasks is None else tasks)
    finally:
        if made is not None:
            made.close()


class _Check:
    def __init__(
        self,
        env: Environment,
        actions: Actions | None,
        invalid: Sequence[str],
        steps: int,
        seed: int,
        spec: Spec | None,
    ) -> None:
        self.env, self.actions, self.invalid, self.steps, self.seed, self.spec = (
            env,
            actions,
            list(invalid),
            steps,
            seed,
            spec,
        )
        self.report = Report(env.name)
        self.report.way_back = (
            ("fork" if env.process else "snapshot") if env.can_snapshot else "replay"
        )
        self.seconds: dict[str, list[float]] = {}
        self.returns: dict[int, tuple[list[float], list[float]]] = {tau: ([], []) for tau in TAUS}
        self.played: list[tuple[Task, int, list[str]]] = []
        self.seen: list[list[str]] = []
        self.has_progress = False
        self.way_to_others = ""

    def own_tasks(self, count: int) -> list[Task]:
        splits: Sequence[str] = getattr(self.env, "splits", ())
        split = "train" if not splits or "train" in splits else splits[0]
        tasks = load_tasks(self.env, split, count)
        if [t.id for t in load_tasks(self.env, split, count)] != [t.id for t in tasks]:
            self.problem(
                "tasks", f"tasks({split!r}, {count}) gives other tasks when it is asked again"
            )
        few = load_tasks(self.env, split, max(1, count // 3))
        if few != tasks[: len(few)]:
            self.problem(
                "tasks",
                f"tasks({split!r}, {len(few)}) is not the beginning of tasks({split!r}, {count})",
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
            report.left_out["invalid actions"] = "no text was given that is no action"
        if not self.env.can_snapshot:
            report.left_out["snapshots"] = "it takes none: replay is the way back"
        if not self.env.deterministic:
            report.left_out["replay"] = report.left_out["other processes"] = (
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
                    (
                        f"{task.id}: the global random source (random or numpy) was used: draw "
                        "from the seed given to reset"
                    ),
                )
        if not self.has_progress:
            report.left_out["progress"] = "it has no progress"
        if self.spec is None:
            report.left_out |= dict.fromkeys(
                ("other processes", "instances", "close"), self.way_to_others
            )
        elif self.played:
            if self.env.deterministic:
                with contextlib.suppress(_Raised):
                    self.check_instances(self.spec)
            self.check_elsewhere(self.spec)
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
        begun = time.perf_counter()
        value = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        return value

    def called(self, task: Task, what: str, call: Callable[[], T]) -> T:
        """The environment's answer; whatever it raises is a problem and ends the task's checks, but
        for what is the user's or the outside's."""
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
        first = observation = self.reset(task)
        played: list[str] = []
        seen: list[StepResult] = []
        snapshots: dict[int, object] = {}
        progress: float | None = None
        while len(played) < self.steps and not (seen and seen[-1].done):
            at = len(played)
            if self.env.can_snapshot and (self.env.quick or at in (0, *TAUS)):
                snapshots[at] = self.timed("snapshot", self.env.snapshot)
            action = self.draw(task, observation, chance)
            result = self.step(task, action)
            observation = result.observation
            if played and (result.progress is None) != (progress is None):
                self.problem(
                    "progress",
                    (
                        f"{task.id}, step {at}: progress is {result.progress} after "
                        f"{progress}: give one always or never"
                    ),
                )
            elif (
                progress is not None and result.progress is not None and result.progress < progress
            ):
                self.problem(
                    "progress",
                    f"{task.id}, step {at}: progress went from {progress} to {result.progress}",
                )
            progress = result.progress
            played.append(action)
            seen.append(result)
        if self.env.can_snapshot and len(played) in TAUS and not seen[-1].done:
            snapshots[len(played)] = self.timed(
                "snapshot", self.env.snapshot
            )  # nothing follows it here, but what a return to it costs is told
        self.has_progress = self.has_progress or progress is not None
        self.played.append((task, derive_seed(self.seed, task.id), played))
        self.seen.append([fingerprint(first), *map(fingerprint, seen)])
        if self.env.deterministic:
            self.compare(task, "replay", "a replay", first, played, seen, False)
            self.report.replayed += 1
            if self.invalid:
                self.compare(
                    task,
                    "invalid actions",
                    "a replay with invalid actions in between",
                    first,
                    played,
                    seen,
                    True,
                )
        for at, snapshot in snapshots.items():
            self.reset(other)  # another state, so that a restore that does nothing is seen
            begun = time.perf_counter()
            self.timed("restore", partial(self.env.restore, snapshot))
            if at in self.returns:
                self.returns[at][1].append(time.perf_counter() - begun)
            self.follow(task, "snapshots", f"the snapshot of step {at}", played, seen, at)
        if snapshots and not self.report.failed["snapshots"]:
            at = list(snapshots)[len(snapshots) // 2]
            self.reset(other)
            self.env.restore(snapshots[at])
            self.follow(
                task,
                "snapshots",
                f"the snapshot of step {at}, restored a second time,",
                played,
                seen,
                at,
            )
        for snapshot in snapshots.values():
            self.env.release(snapshot)

    def compare(
        self,
        task: Task,
        check: str,
        what: str,
        first: str,
        played: list[str],
        seen: list[StepResult],
        invalid: bool,
    ) -> None:
        begun = time.perf_counter()
        again = self.reset(task)
        if again != first:
            self.problem(check, f"{task.id}: {what} begins with {again!r}, not {first!r}")
        self.follow(task, check, what, played, seen, 0, invalid, begun)

    def follow(
        self,
        task: Task,
        check: str,
        what: str,
        played: list[str],
        seen: list[StepResult],
        start: int,
        invalid: bool = False,
        begun: float | None = None,
    ) -> None:
        """Take the played actions from `start` on, and say where the answers differ."""
        for at in range(start, len(played)):
            for wrong in [self.invalid[at % len(self.invalid)]] if invalid else ():
                answer = self.step(task, wrong)
                if answer.valid or answer.done:
                    self.problem(
                        check,
                        (
                            f"{task.id}, step {at}: the invalid action {wrong!r} was answered "
                            f"with valid={answer.valid}, done={answer.done}"
                        ),
                    )
                    return
                if answer.reward:
                    self.problem(
                        check,
                        (
                            f"{task.id}, step {at}: the invalid action {wrong!r} was given the "
                            f"reward {answer.reward}"
                        ),
                    )
                if (answer.progress is None) != (seen[at].progress is None):
                    what = f"progress is {answer.progress} after the invalid action {wrong!r}"
                    self.problem(
                        "progress", f"{task.id}, step {at}: {what}: give one always or never"
                    )
            now = self.step(task, played[at])
            if fingerprint(now) != fingerprint(seen[at]):
                self.problem(
                    check,
                    (
                        f"{task.id}, step {at}: {what} answers {played[at]!r} with "
                        f"{_shown(now)}, not {_shown(seen[at])}"
                    ),
                )
                return
            if begun is not None and not invalid and at + 1 in self.returns:
                self.returns[at + 1][0].append(time.perf_counter() - begun)

    def check_instances(self, spec: Spec) -> None:
        """Two instances side by side are two environments, and one restores what the other has
        seen."""
        task, _, played = self.played[0]
        with make_env(spec.env, **spec.options) as second:
            self.reset(self.played[-1][0])
            here = [fingerprint(self.reset(task, second))]
            held: object = None
            for at, action in enumerate(played):
                if self.env.can_snapshot and at == len(played) // 2:
                    held = second.snapshot()
                here.append(fingerprint(self.step(task, action, second)))
                if at < len(self.played[-1][2]):
                    self.step(self.played[-1][0], self.played[-1][2][at])
            if here != self.seen[0]:
                self.problem(
                    "instances",
                    (
                        f"{task.id}: a second instance that plays beside the first answers "
                        "otherwise: they share something"
                    ),
                )
            if held is not None:
                self.env.restore(held)
                after = [
                    fingerprint(self.step(task, action)) for action in played[len(played) // 2 :]
                ]
                if after != self.seen[0][len(played) // 2 + 1 :]:
                    self.problem(
                        "instances",
                        f"{task.id}: a snapshot of one instance is another state in a second one",
                    )
                self.env.release(held)

    def check_elsewhere(self, spec: Spec) -> None:
        for hash_seed in HASH_SEEDS:
            there = play_elsewhere(spec, self.played, hash_seed)
            if isinstance(there, str):
                self.problem(
                    "other processes",
                    f"in another process (PYTHONHASHSEED={hash_seed}) the environment {there}",
                )
                return
            self.report.memory = there.memory
            if there.left:
                self.problem("close", f"{there.left} processes were left after close")
            if not self.env.deterministic:
                continue
            self.report.replayed += len(self.played)
            for (task, _, actions), here, seen in zip(
                self.played, self.seen, there.episodes, strict=True
            ):
                at = next(
                    (i for i, (a, b) in enumerate(zip(here, seen, strict=True)) if a != b), None
                )
                if at is not None:
                    where = "reset" if at == 0 else f"step {at - 1} ({actions[at - 1]!r})"
                    self.problem(
                        "other processes",
                        (
                            f"{task.id}: in another process (PYTHONHASHSEED={hash_seed}) the "
                            f"answer to {where} is another one"
                        ),
                    )


def _shown(result: StepResult) -> tuple[Any, ...]:
    return (
        result.observation,
        result.reward,
        result.done,
        result.success,
        result.valid,
        result.progress,
    )


class _Raised(Exception):
    """The environment's answer cannot be gone on with; the problem is written down."""


def _random_state() -> dict[str, object]:
    """The state of the global random sources that are there; a source that is imported later is not
    touched by being imported."""
    numpy = sys.modules.get("numpy.random")
    state = numpy.get_state(legacy=True) if numpy is not None else None
    return {"random": random.getstate()} | (
        {"numpy": (state[0], state[1].tobytes(), *state[2:])} if state is not None else {}
    )
