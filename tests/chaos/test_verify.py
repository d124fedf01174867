"""The chaos test would notice: journals that are doctored in one place are found out, and those
that an outage shaped are not."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from leafe.core import Completion, Episode, PolicyError, Request, Stop, Task, Tree
from leafe.explore import EnvPool, ExploreConfig, cost_of, explore
from leafe.prompts import Prompts, PromptSet
from tests.chaos.envs import Oracle, Quick
from tests.chaos.run import digest
from tests.chaos.storm import fault_free
from tests.chaos.verify import Verdict, tasks_of, verify

CONFIG = ExploreConfig(
    limits={"policy_calls": 40},
    stop_when="budget",
    branches_per_reflection=2,
    horizon=12,
    seed=5,
    concurrency=3,
)
PROMPTS = Prompts(PromptSet(name="doors"), Quick.actions_help)
TASKS = 6
TRUTH = fault_free(CONFIG, PROMPTS, TASKS)


class Flaky(Oracle):
    """Away now and then, for one request; for reflections too."""

    calls = 0

    async def complete(self, request: Request) -> list[Completion]:
        self.calls += 1
        if self.calls % 19 == 0:
            raise PolicyError(
                "http://127.0.0.1:9/v1/chat/completions gave no answer after 61 tries: "
                "status 500: internal error."
            )
        return await super().complete(request)


def explored() -> dict[str, Tree]:
    async def main() -> dict[str, Tree]:
        return (
            await explore(Flaky(), EnvPool(Quick, size=3), tasks_of(TASKS), PROMPTS, CONFIG)
        ).trees

    return asyncio.run(main())


Journal = dict[Task, list[Episode]]


class Loose(Tree):
    """A tree that takes what it is given."""

    def add(self, episode: Episode) -> None:
        self._turns |= {t.id: t for t in episode.turns}
        self._episode_of |= dict.fromkeys((t.id for t in episode.turns), len(self.episodes))
        self.episodes.append(episode)


def judged(
    trees: dict[str, Tree],
    doctor: Callable[[dict[str, list[Episode]]], None] = lambda _: None,
    done: Callable[[dict[str, Any]], None] = lambda _: None,
    notes: Callable[[list[str]], None] = lambda _: None,
    follow: bool = False,
) -> Verdict:
    """`doctor` changes the journal; what the run said of it stays as it was, unless `follow`."""
    held = {name: list(tree.episodes) for name, tree in trees.items()}
    if follow:
        doctor(held)
    every = [e for episodes in held.values() for e in episodes]
    sums: Counter[str] = Counter()
    for episode in every:
        sums.update({k: int(v) for k, v in cost_of(episode).items()})
    said = {"spent": dict(sums), "stops": dict(Counter(e.stop.value for e in every))}
    lines = [json.dumps([e.task_id, e.index, digest(e), True]) for e in every]
    if not follow:
        doctor(held)
    done(said)
    notes(lines)
    return verify(
        {name: Loose(trees[name].task, episodes) for name, episodes in held.items()},
        TRUTH,
        said,
        lines,
        CONFIG,
        PROMPTS,
    )


def first(held: dict[str, list[Episode]]) -> list[Episode]:
    return held["train-1"]


def test_the_truth_passes_and_so_does_what_an_outage_made_of_it() -> None:
    whole = judged(TRUTH)
    assert (whole.problems, whole.same, sum(whole.errors.values())) == ([], whole.episodes, 0)
    shaped = judged(explored())
    assert shaped.problems == []
    assert shaped.errors["policy_error"] >= 3
    assert shaped.errors["reflection without an answer"] >= 1
    assert shaped.after > 10
    assert shaped.same > 10


def lost(held: dict[str, list[Episode]]) -> None:
    first(held).pop()


def twice(held: dict[str, list[Episode]]) -> None:
    first(held).append(replace(first(held)[-1], index=len(first(held))))


def invented(held: dict[str, list[Episode]]) -> None:
    first(held)[-1] = replace(first(held)[-1], turns=first(held)[-1].turns[:-1])


def other_words(held: dict[str, list[Episode]]) -> None:
    episode = first(held)[-1]
    first(held)[-1] = replace(
        episode,
        turns=(*episode.turns[:-1], replace(episode.turns[-1], observation="The walls are blue.")),
    )


def other_action(held: dict[str, list[Episode]]) -> None:
    episode = first(held)[-1]
    first(held)[-1] = replace(
        episode, turns=(*episode.turns[:-1], replace(episode.turns[-1], action_text="Action: q"))
    )


def excused(held: dict[str, list[Episode]]) -> None:
    """A failure is no excuse for what came before it."""
    episode = first(held)[-1]
    first(held)[-1] = replace(
        episode,
        stop=Stop.policy_error,
        error="down",
        turns=(replace(episode.turns[0], action_text="Action: q"),),
    )


def silent(held: dict[str, list[Episode]]) -> None:
    first(held)[-1] = replace(first(held)[-1], stop=Stop.env_error, turns=())


def diverged(held: dict[str, list[Episode]]) -> None:
    first(held)[-1] = replace(first(held)[-1], stop=Stop.diverged, error="at step 3", turns=())


DOCTORS = [lost, twice, invented, other_words, other_action, excused, silent, diverged]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("doctor", DOCTORS)
def test_a_doctored_journal_is_found_out(
    doctor: Callable[[dict[str, list[Episode]]], None], follow: bool
) -> None:
    """Also where all that the run said of itself agrees with it."""
    assert judged(TRUTH, doctor, follow=follow).problems


@pytest.mark.parametrize("doctor", [lost, invented, other_words, other_action])
def test_also_after_an_error(doctor: Callable[[dict[str, list[Episode]]], None]) -> None:
    trees = explored()
    name = next(
        n for n, t in trees.items() if any(e.stop is Stop.policy_error for e in t.episodes[:-1])
    )
    found = judged(trees, lambda held: doctor({"train-1": held[name]}), follow=True)
    assert found.problems


def test_sums_and_notes_are_held_to_the_journal() -> None:
    for name in cost_of(TRUTH["train-0"].episodes[0]):

        def more(said: dict[str, Any], name: str = name) -> None:
            said["spent"][name] += 1

        assert judged(TRUTH, done=more).problems
    assert judged(TRUTH, done=lambda said: said["stops"].update(policy_error=1)).problems
    assert "written twice" in judged(TRUTH, notes=lambda lines: lines.append(lines[0])).problems[0]
    assert (
        "is gone"
        in judged(TRUTH, notes=lambda lines: lines.append('["train-0", 99, "x", true]')).problems[0]
    )
    assert (
        "not synced"
        in judged(
            TRUTH, notes=lambda lines: lines.append(lines.pop().replace("true", "false"))
        ).problems[0]
    )
    assert not judged(TRUTH, notes=list.clear).problems, (
        "it may be killed between a write and its note"
    )
