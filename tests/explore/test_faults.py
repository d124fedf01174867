"""What fails outside costs what it costs, is counted, and loses no task."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from leafe.core import (
    Completion,
    EnvError,
    Environment,
    Episode,
    ForeignFailure,
    PolicyError,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    Usage,
)
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, Exploration, ExploreConfig, cost_of, explore
from leafe.prompts import Prompts, PromptSet
from tests.explore.envs import Doors, answer
from tests.explore.test_explore import ListSink, Script, plain

PROMPTS = Prompts(PromptSet(name="doors"))


def run(
    make: Callable[[], Environment],
    policy: Script,
    sink: ListSink | None = None,
    known: dict[str, Tree] | None = None,
    count: int = 8,
    **settings: object,
) -> Exploration:
    config = ExploreConfig(
        **({"limits": {"policy_calls": 40}, "horizon": 12, "stop_when": "budget"} | settings)
    )  # type: ignore[arg-type]

    async def main() -> Exploration:
        pool = EnvPool(make, size=4)
        try:
            return await explore(
                policy,
                pool,
                Doors().tasks("train", count),
                PROMPTS,
                config,
                journal=sink,
                known=known,
            )
        finally:
            pool.close()

    return asyncio.run(main())


def paid(request: Request) -> list[Completion]:
    return [replace(answer(request)[0], usage=Usage(len(request.messages), 1, 3))]


def trees_of(episodes: Sequence[Episode], count: int = 8) -> dict[str, Tree]:
    trees = {t.id: Tree(t) for t in Doors().tasks("train", count)}
    for episode in episodes:
        trees[episode.task_id].add(episode)
    return trees


class Crumbling(Doors):
    """Every seventh step of all fails, in whichever environment it is."""

    steps = 0

    def __init__(self) -> None:
        super().__init__(snapshots=False)

    def step(self, action: str) -> StepResult:
        Crumbling.steps += 1
        if Crumbling.steps % 5 < 3:
            raise RuntimeError("the floor gave way")
        return super().step(action)


class Shifting(Doors):
    """Fails once in a while, and the next environment of this kind says something else."""

    made = 0

    def __init__(self) -> None:
        super().__init__(snapshots=False)
        Shifting.made += 1
        self.steps, self.number = 0, Shifting.made

    def step(self, action: str) -> StepResult:
        self.steps += 1
        if self.steps == 9:
            raise RuntimeError("the floor gave way")
        result = super().step(action)
        return replace(result, observation=f"{result.observation} in environment {self.number}")


@pytest.mark.parametrize(("env", "stop"), [(Crumbling, Stop.env_error), (Shifting, Stop.diverged)])
def test_an_answer_that_no_turn_came_of_is_in_neither_sum(
    env: Callable[[], Environment], stop: Stop
) -> None:
    sink = ListSink()
    try:
        spent = run(env, Script(paid), sink, max_errors=100).spent
    except ForeignFailure:  # a row of failures; what was spent is not told then
        pytest.fail("choose another environment")
    assert sum(e.stop is stop for e in sink.episodes) >= 3
    for name in cost_of(sink.episodes[0]):
        assert getattr(spent, name) == sum(cost_of(e)[name] for e in sink.episodes), name


def test_a_run_limit_on_episodes_holds_while_envs_are_scarce() -> None:
    """All tasks ask before any of them has an environment."""
    sink = ListSink()
    found = run(lambda: Doors(), Script(delays=1), sink, run_limits={"episodes": 6}, concurrency=8)
    assert len(sink.episodes) == 6
    assert found.cut_short == "episodes"


class Unborn(Doors):
    """Cannot be made for a while, once the first one is there."""

    quick = False
    born = 0
    fails = range(0)

    def __init__(self) -> None:
        super().__init__(snapshots=False)
        Unborn.born += 1
        if Unborn.born in self.fails:
            raise EnvError("The process of the environment doors died at its start.")


@pytest.mark.parametrize("fails", [range(2, 4), range(2, 12)])
def test_an_env_that_cannot_be_made_now_can_be_made_later(
    fails: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unborn, "born", 0)
    monkeypatch.setattr(Unborn, "fails", fails)
    sink = ListSink()
    found = run(Unborn, Script(delays=1), sink)
    lost = [e for e in sink.episodes if e.stop is Stop.env_error]
    assert all("died at its start" in e.error and not e.turns for e in lost)
    assert len(lost) <= len(fails) / 3, "one that fails is tried again"
    assert all(sum(len(e.turns) for e in t.episodes) == 40 for t in found.trees.values())
    for name in cost_of(sink.episodes[0]):
        assert getattr(found.spent, name) == sum(cost_of(e)[name] for e in sink.episodes), name


def test_evaluation_outlives_an_env_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unborn, "born", 0)
    monkeypatch.setattr(Unborn, "fails", range(2, 9))

    async def main() -> list[Tree]:
        pool = EnvPool(Unborn, size=4)
        try:
            return await evaluate(
                Script(delays=1), pool, Doors().tasks("train", 6), PROMPTS, samples=1, horizon=6
            )
        finally:
            pool.close()

    trees = asyncio.run(main())
    assert Unborn.born > 6
    assert [sum(e.count for e in t.episodes) for t in trees] == [1] * 6
    lost = [e for t in trees for e in t.episodes if e.stop is Stop.env_error]
    assert lost == []  # they were sampled again


class Outage:
    """The endpoint is there for so many calls, and then for so many not."""

    def __init__(self, there: int, away: int) -> None:
        self.there, self.away, self.calls = there, away, 0

    def __call__(self, request: Request) -> list[Completion]:
        self.calls += 1
        if self.there < self.calls <= self.there + self.away:
            raise PolicyError("http://127.0.0.1:9 refuses connections")
        return answer(request)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("there", [0, 30, 60])
def test_no_task_is_lost_to_an_outage(count: int, there: int) -> None:
    """The run ends with a failure, is given again, and every task gets what it is due."""
    sink, starts, policy = ListSink(), 0, Script(Outage(there, 24))
    while True:
        starts += 1
        assert starts < 9
        try:
            found = run(Doors, policy, sink, trees_of(sink.episodes, count), count)
        except ForeignFailure:
            continue
        break
    assert starts > 1
    for tree in found.trees.values():
        assert sum(len(e.turns) for e in tree.episodes) == 40, f"{tree.task.id} was given up"


def test_a_task_that_always_fails_does_not_keep_the_run_from_its_end() -> None:
    """The last of all tasks, so that nothing succeeds after it."""
    poison = Doors().tasks("train", 3)[2]

    class Poisoned(Doors):
        def reset(self, task: Task, seed: int) -> str:
            if task.id == poison.id:
                raise RuntimeError("no such door")
            return super().reset(task, seed)

    sink = ListSink()
    found = run(Poisoned, Script(), sink, count=3, concurrency=1)
    again = run(Poisoned, Script(), ListSink(), trees_of(sink.episodes, 3), 3, concurrency=1)
    assert again.given_up == 1, "every start tries it anew, within bounds"
    assert len(again.trees[poison.id].episodes) == 14
    assert [e.stop for e in found.trees[poison.id].episodes] == [Stop.env_error] * 7, (
        "put off, tried again, and once more when the others were seen to work"
    )
    assert found.given_up == 1
    assert plain({k: t for k, t in found.trees.items() if k != poison.id}) == plain(
        run(Doors, Script(), count=2).trees
    )


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back and forth by centuries, at every look: limits in seconds, waits and records of durations
    go by another clock."""
    limits = {"policy_calls": 40, "seconds": 3600}
    whole = run(Doors, Script(), limits=limits, run_limits={"seconds": 3600})
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e10, 1e10))
    jumped = run(Doors, Script(delays=1), limits=limits, run_limits={"seconds": 3600})
    assert plain(jumped.trees) == plain(whole.trees)
    assert jumped.cut_short is None
    assert 0 <= jumped.spent.seconds < 3600
    assert all(
        0 <= e.seconds < 3600 and all(0 <= t.seconds < 3600 for t in e.turns)
        for tree in jumped.trees.values()
        for e in tree.episodes
    )
