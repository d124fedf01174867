"""Exploration and evaluation end, whatever environment and policy do; and what they write until
then is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leafe.baselines.ace import AceConfig, ace
from leafe.baselines.attempts import sample_attempts
from leafe.core import (
    Completion,
    ContextFull,
    EnvError,
    Episode,
    ForeignFailure,
    PolicyError,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    Usage,
    UserError,
)
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, PromptSet
from tests.explore.envs import Doors

PROMPTS = Prompts(PromptSet(name="ends"))
SECONDS = 60.0
"""Far more than any of these takes: what has no end is a failure, not a hang."""


@dataclass
class Faults:
    """Which calls fail: none, every one, or every `nth`."""

    kind: str = "none"
    nth: int = 0
    calls: int = 0

    def due(self) -> str:
        self.calls += 1
        return self.kind if self.nth and self.calls % self.nth == 0 else "none"


class Faulty(Doors):
    """Doors whose reset and step fail by a plan, in every way that an environment can."""

    def __init__(
        self, reset: Faults, step: Faults, horizon: int = 6, snapshots: bool = True
    ) -> None:
        super().__init__(snapshots=snapshots)
        self.on_reset, self.on_step, self.horizon, self.resets = reset, step, horizon, 0

    def reset(self, task: Task, seed: int) -> str:
        first = super().reset(task, seed)
        fault = self.on_reset.due()
        if fault == "raises":
            raise RuntimeError("no reset")
        if fault == "other":
            self.on_reset.calls += 1
            return f"{first} ({self.on_reset.calls})"
        return first

    def step(self, action: str) -> StepResult:
        fault = self.on_step.due()
        if fault == "raises":
            raise EnvError("no step")
        if fault == "other":
            return StepResult(f"another answer {self.on_step.calls}")
        if fault == "done":
            return StepResult("over", done=True)
        if fault == "invalid":
            return StepResult("no", valid=False)
        return super().step(action)


@dataclass
class FaultyPolicy:
    """Acts and reflects, or fails by a plan."""

    on_act: Faults
    on_reflect: Faults
    usage: Usage = Usage(5, 0, 2)
    name: str = "faulty"

    async def close(self) -> None:
        pass

    async def complete(self, request: Request) -> list[Completion]:
        reflecting = request.schema is not None
        fault = (self.on_reflect if reflecting else self.on_act).due()
        if fault == "full":
            raise ContextFull("the prompt is longer than the context")
        if fault == "error":
            raise PolicyError("no answer")
        if fault == "nothing":
            return []
        if fault == "empty":
            return [Completion("", request.n, usage=self.usage)]
        assert request.seed is not None
        text = (
            '{"step": 0, "experience": "say a"}'
            if reflecting
            else f"Action: {'abcx'[request.seed % 4]}"
        )
        return [Completion(text, request.n, usage=self.usage)]


@dataclass
class Sink:
    episodes: list[Episode] = field(default_factory=list)

    def append(self, episodes: Sequence[Episode]) -> None:
        self.episodes += episodes

    @property
    def size(self) -> int:
        return sum(len(json.dumps(e.to_json())) for e in self.episodes)


def faults(*kinds: str) -> st.SearchStrategy[Faults]:
    return st.builds(Faults, st.sampled_from(kinds), st.sampled_from([0, 1, 1, 2, 3, 7]))


ENVIRONMENTS = {
    "reset": faults("raises", "other"),
    "step": faults("raises", "other", "done", "invalid"),
    "horizon": st.sampled_from([1, 6]),
    "snapshots": st.booleans(),
}
POLICIES = {
    "act": faults("full", "error", "nothing", "empty"),
    "reflect": faults("full", "error", "nothing", "empty"),
    "usage": st.sampled_from([Usage(), Usage(5, 0, 2)]),
}
CALLS = 24
LIMITS: list[dict[str, float]] = [
    {"policy_calls": CALLS},
    {"env_steps": CALLS},
    {"generated_tokens": 2.0 * CALLS},
    {"episodes": 8, "policy_calls": CALLS},
    {"replayed_steps": 5},
    {"cached_tokens": 9},
]


def fresh(found: Faults) -> Faults:
    return Faults(found.kind, found.nth)


def pool_of(environment: dict[str, Any]) -> EnvPool:
    reset, step = fresh(environment["reset"]), fresh(environment["step"])
    return EnvPool(
        lambda: Faulty(reset, step, environment["horizon"], environment["snapshots"]), size=2
    )


def policy_of(policy: dict[str, Any]) -> FaultyPolicy:
    return FaultyPolicy(fresh(policy["act"]), fresh(policy["reflect"]), policy["usage"])


def run_to_the_end(work: Any) -> None:
    """A foreign failure is an end, too."""

    async def main() -> None:
        with contextlib.suppress(ForeignFailure):
            await asyncio.wait_for(work(), SECONDS)

    asyncio.run(main())


def most_episodes(limit: float) -> float:
    """Of one task: a call or step each of the budget, errors, what began in vain, and a look back
    on each."""
    return 2 * limit + 20


EXPLORING = {
    "strategy": st.sampled_from(["tree", "independent", "refine", "reflexion"]),
    "limits": st.sampled_from(LIMITS),
    "stop_when": st.sampled_from(["solved", "budget"]),
    "branches_per_reflection": st.sampled_from([1, 3]),
    "reflect_every": st.sampled_from([0, 1]),
    "max_depth": st.sampled_from([0, 2]),
    "scope": st.sampled_from(["action", "branch"]),
}


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(ENVIRONMENTS),
    st.fixed_dictionaries(POLICIES),
    st.fixed_dictionaries(EXPLORING),
)
@example(
    {"reset": Faults(), "step": Faults(), "horizon": 6, "snapshots": True},
    {"act": Faults("full", 1), "reflect": Faults(), "usage": Usage()},
    {
        "strategy": "tree",
        "limits": {"policy_calls": 24},
        "stop_when": "solved",
        "branches_per_reflection": 1,
        "reflect_every": 0,
        "max_depth": 2,
        "scope": "action",
    },
)
def test_exploration_ends_and_writes_little(
    environment: dict[str, Any], policy: dict[str, Any], settings_: dict[str, Any]
) -> None:
    sink = Sink()

    async def work() -> None:
        envs = pool_of(environment)
        try:
            found = await explore(
                policy_of(policy),
                envs,
                Doors().tasks("train", 3),
                PROMPTS,
                ExploreConfig(max_errors=3, **settings_),
                journal=sink,
            )
            assert len(found.given_up_because) == min(3, found.given_up)
            assert all(s.startswith("Task train-") for s in found.given_up_because)
        finally:
            envs.close()

    run_to_the_end(work)
    limit = max(settings_["limits"].values())
    assert len(sink.episodes) <= 3 * most_episodes(limit)
    turns = sum(len(e.turns) for e in sink.episodes)
    assert sink.size <= 1200 * (turns + len(sink.episodes)), (
        "what stands in a journal is the turns and little else"
    )
    assert turns <= 3 * (4 * limit + 80)


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(ENVIRONMENTS), st.fixed_dictionaries(POLICIES), st.integers(1, 6))
def test_evaluation_ends_and_writes_little(
    environment: dict[str, Any], policy: dict[str, Any], samples: int
) -> None:
    sink = Sink()

    async def work() -> None:
        envs = pool_of(environment)
        try:
            await evaluate(
                policy_of(policy),
                envs,
                Doors().tasks("test", 3),
                PROMPTS,
                samples=samples,
                journal=sink,
            )
        finally:
            envs.close()

    run_to_the_end(work)
    assert sum(e.count for e in sink.episodes) <= 3 * 10 * samples, (
        "lost samples are drawn again within bounds"
    )
    assert len(sink.episodes) <= 3 * 10 * samples
    assert sum(len(e.turns) for e in sink.episodes) <= len(sink.episodes) * 6


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(ENVIRONMENTS),
    st.fixed_dictionaries(POLICIES),
    st.sampled_from(["refine", "reflexion", "independent"]),
    st.integers(1, 4),
)
def test_attempts_at_test_time_end(
    environment: dict[str, Any], policy: dict[str, Any], method: Any, attempts: int
) -> None:
    sink = Sink()

    async def work() -> None:
        envs, tasks = pool_of(environment), Doors().tasks("test", 2)
        try:
            await sample_attempts(
                policy_of(policy),
                envs,
                tasks,
                PROMPTS,
                ExploreConfig(),
                method=method,
                attempts=attempts,
                samples=2,
                journal=sink,
            )
        finally:
            envs.close()

    run_to_the_end(work)
    assert len(sink.episodes) <= 2 * 2 * (attempts + 8)


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(ENVIRONMENTS), st.fixed_dictionaries(POLICIES), st.sampled_from(LIMITS)
)
def test_a_playbook_is_grown_to_an_end(
    environment: dict[str, Any], policy: dict[str, Any], limits: dict[str, float]
) -> None:
    sink = Sink()

    async def work() -> None:
        envs = pool_of(environment)
        config = ExploreConfig(limits=limits, stop_when="budget")
        try:
            await ace(
                policy_of(policy),
                envs,
                Doors().tasks("train", 2),
                PROMPTS,
                config,
                AceConfig(passes=None),
                journal=sink,
            )
        finally:
            envs.close()

    run_to_the_end(work)
    assert len(sink.episodes) <= 2 * most_episodes(max(limits.values()))


def test_a_task_whose_first_prompt_does_not_fit_is_given_up_and_the_others_go_on() -> None:
    def short(request: Request) -> list[Completion]:
        if request.cache_key == "train-1":
            raise ContextFull("9000 tokens do not fit into 8192")
        return [Completion("Action: a")]

    async def main(known: dict[str, Tree] | None = None) -> Any:
        envs = EnvPool(Doors, size=2)
        tasks = Doors().tasks("train", 3)
        try:
            return await explore(
                ScriptedPolicy(short),
                envs,
                tasks,
                PROMPTS,
                ExploreConfig(limits={"policy_calls": 12}),
                journal=Sink(),
                known=known,
            )
        finally:
            envs.close()

    found = asyncio.run(main())
    assert found.given_up == 1
    assert found.given_up_because == (
        "Task train-1 was given up: it cannot begin: 9000 tokens do not fit into 8192",
    )
    assert [e.stop for e in found.trees["train-1"].episodes] == [Stop.context_full] * 3
    assert all(len(tree) == 12 for tree in found.trees.values() if tree.task.id != "train-1")
    again = asyncio.run(main(found.trees))
    assert [len(t.episodes) for t in again.trees.values()] == [
        len(t.episodes) for t in found.trees.values()
    ], "a start adds nothing to it"


def test_episodes_that_charge_nothing_that_is_bounded_are_named() -> None:
    async def main() -> Any:
        envs = EnvPool(Doors, size=2)
        config = ExploreConfig(limits={"generated_tokens": 100}, stop_when="budget")
        found = await explore(
            ScriptedPolicy(lambda request: [Completion("Action: a")]),
            envs,
            Doors().tasks("train", 1),
            PROMPTS,
            config,
        )
        envs.close()
        return found

    found = asyncio.run(main())
    assert found.given_up == 1
    assert "use nothing that is limited (generated_tokens)" in found.given_up_because[0]


def test_no_limit_at_all_is_the_users_mistake() -> None:
    async def main() -> None:
        envs = EnvPool(Doors, size=1)
        await explore(
            ScriptedPolicy(lambda request: [Completion("")]),
            envs,
            Doors().tasks("train", 1),
            PROMPTS,
            ExploreConfig(limits={}),
        )

    with pytest.raises(UserError, match="no end"):
        asyncio.run(main())
