"""Attempts at test time: the samples are explore's, the price is what was spent, the rates are what
a hand count gives."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import numpy as np
import pytest

from leafe.baselines.attempts import (
    AttemptMethod,
    Attempts,
    attempt_tasks,
    read_attempts,
    sample_attempts,
)
from leafe.core import Kind, PolicyError, Request, Stop, Task, Tree, UserError
from leafe.evaluate import Counts
from leafe.explore import EnvPool, ExploreConfig
from leafe.policies.scripted import ScriptedPolicy
from tests.baselines.doors import (
    PROMPTS,
    Killed,
    Sink,
    asked_for,
    episodes,
    plain,
    seeded_key,
    total,
)
from tests.explore.envs import Doors, answer


def tasks(number: int) -> list[Task]:
    return list(Doors().tasks("test", number))


def attempt(
    policy: ScriptedPolicy,
    method: AttemptMethod,
    *,
    number: int = 4,
    attempts: int = 5,
    samples: int = 3,
    journal: Sink | None = None,
    known: Mapping[str, Tree] | None = None,
) -> Attempts:
    async def main() -> Attempts:
        envs = EnvPool(Doors, size=4)
        try:
            return await sample_attempts(
                policy,
                envs,
                tasks(number),
                PROMPTS,
                ExploreConfig(seed=1),
                method=method,
                attempts=attempts,
                samples=samples,
                journal=journal,
                known=known,
            )
        finally:
            envs.close()

    return asyncio.run(main())


@pytest.mark.parametrize("method", ["refine", "reflexion", "independent"])
def test_counts_and_costs_are_those_of_the_journal(method: AttemptMethod) -> None:
    policy, sink = ScriptedPolicy(answer), Sink()
    found = attempt(policy, method, journal=sink)
    by_sample: dict[str, list[object]] = {}
    for line in sink.lines:
        for episode in line:
            by_sample.setdefault(episode.task_id, []).append(episode)
    assert len(by_sample) == len(found.samples) == 12
    for sample in found.samples:
        mine: list = by_sample[f"{sample.task_id}~{sample.number}"]  # type: ignore[type-arg]
        wins = [i + 1 for i, e in enumerate(mine) if e.success]
        assert sample.solved_at == (wins[0] if wins else None)
        assert len(mine) == (wins[0] if wins else 5)
        last = sum(t.kind is not Kind.act for t in mine[-1].turns)
        assert sample.spent(5).policy_calls == total(mine).policy_calls - last
        if wins:
            assert sample.calls_to_success == sample.spent(5).policy_calls
    assert policy.calls == total(e for line in sink.lines for e in line).policy_calls
    rates = [found.rate(r) for r in range(1, 6)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(np.mean([s.solved_at is not None for s in found.samples]))
    assert [row["plain_k"] for row in found.rows(4.0)] == [
        int(np.ceil(row["policy_calls"] / 4)) for row in found.rows()
    ]
    assert Counts(*found.counts()).pass_at(1).mean() == pytest.approx(rates[-1])
    assert found.rate(calls=0) == 0.0
    assert found.rate(calls=10**6) == rates[-1]


def test_reflexion_carries_the_policys_own_words_and_refinement_what_was_done_and_said() -> None:
    shown = "An earlier attempt at this task failed. What was done, and what came of it:\nStep 0: "
    for method, words in (("reflexion", "you told yourself: say "), ("refine", shown)):
        seen: list[str] = []

        def watched(request: Request, seen: list[str] = seen) -> object:
            if asked_for(request) == "act":
                seen.append(request.messages[0].content)
            return answer(request)

        attempt(ScriptedPolicy(watched), method)  # type: ignore[arg-type]
        carried = [s for s in seen if s.count(words)]
        assert carried
        assert 2 <= max(s.count(words) for s in seen) <= 3  # memory
        assert not any("you told yourself" in s for s in seen) or method == "reflexion"
        if method == "refine":
            assert any(
                re.search(r"Step 0: [abc]\ndoor 1\nStep 1: .\ntrap: door 0 needed ", s)
                for s in seen
            )


def test_feedback_helps_at_equal_attempts_and_its_price_is_seen() -> None:
    def heeds(request: Request) -> str:
        if asked_for(request) == "reflect":
            last = request.messages[-1].content
            return (
                '{"step": 0, "experience": "' + last.split("trap: ")[1].split("\n")[0] + '"}'
                if "trap: " in last
                else "hm"
            )
        door = request.messages[-1].content.split("door ")[-1][0]
        told = request.messages[0].content.split(f"door {door} needed ")
        return f"Action: {told[1][0] if len(told) > 1 else seeded_key(request)}"

    by = {
        m: attempt(ScriptedPolicy(heeds), m, number=6, samples=4, attempts=4)
        for m in ("independent", "refine", "reflexion")
    }
    assert by["refine"].rate() > by["independent"].rate()
    assert by["reflexion"].rate() > by["independent"].rate()
    assert (
        by["reflexion"].rate(1) == by["refine"].rate(1) == by["independent"].rate(1)
    )  # the first attempt is the same for all
    assert by["reflexion"].mean_spent(1) == by["independent"].mean_spent(1)


def test_killed_and_gone_on_with() -> None:
    whole = Sink()
    expected = attempt(ScriptedPolicy(answer), "reflexion", journal=whole)
    sink = Sink(len(whole.lines) // 2)
    with pytest.raises(Killed):
        attempt(ScriptedPolicy(answer), "reflexion", journal=sink)
    known = {task.id: Tree(task) for task in attempt_tasks(tasks(4), 3)}
    for line in sink.lines:
        for episode in line:
            known[episode.task_id].add(episode)
    found = attempt(ScriptedPolicy(answer), "reflexion", known=known)
    assert found == expected
    again = read_attempts(
        {
            t.id: Tree(t, [e for line in whole.lines for e in line if e.task_id == t.id])
            for t in attempt_tasks(tasks(4), 3)
        },
        "reflexion",
        5,
    )
    assert again == expected
    assert plain(episodes(known.values()))


def test_a_lost_sample_is_neither_success_nor_failure() -> None:
    def all_samples_lost(request: Request) -> object:
        if request.cache_key.startswith("test-1~"):
            raise PolicyError("not this one")
        return answer(request)

    found = attempt(ScriptedPolicy(all_samples_lost), "refine")  # type: ignore[arg-type]
    tasks_, n, _, lost = found.counts()
    where = tasks_.index("test-1")
    assert (n[where], lost[where]) == (0, 3)
    assert np.isfinite(found.rate())


@pytest.mark.parametrize("method", ["refine", "reflexion", "independent"])
def test_a_lost_attempt_is_made_again(method: AttemptMethod) -> None:
    """Every second sample loses one attempt: none is lost for it, on resume neither, and each has
    as many sound attempts as it may."""
    failed: set[str] = set()

    def once(request: Request) -> object:
        if int(request.cache_key.rpartition("~")[2]) % 2 and request.cache_key not in failed:
            failed.add(request.cache_key)
            raise PolicyError("this once")
        return answer(request)

    sink = Sink()
    found = attempt(ScriptedPolicy(once), method, journal=sink)  # type: ignore[arg-type]
    assert len(failed) == 4
    assert not any(s.lost for s in found.samples)
    assert "lost" not in found.rows()[0]
    trees = {
        t.id: Tree(t, [e for line in sink.lines for e in line if e.task_id == t.id])
        for t in attempt_tasks(tasks(4), 3)
    }
    for sample in found.samples:
        ended = [e.stop for e in trees[f"{sample.task_id}~{sample.number}"].episodes]
        sound = [stop for stop in ended if stop is not Stop.policy_error]
        assert len(sound) == (sample.solved_at or 5) == len(sample.after)
        assert len(ended) - len(sound) == sample.number % 2
    cut = {name: Tree(tree.task, tree.episodes[:1]) for name, tree in trees.items()}
    assert attempt(ScriptedPolicy(answer), method, known=cut) == found


def test_bad_input() -> None:
    with pytest.raises(UserError, match="at least 1"):
        attempt(ScriptedPolicy(answer), "refine", attempts=0)
    with pytest.raises(UserError, match="rename"):
        attempt_tasks([Task("a~b", "doors", "test", "")], 2)
