"""ACE on an environment whose rules repeat: it learns them, spends what it says, is cut off and
goes on to the same playbook."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from leafe.baselines.ace import AceConfig, AceResult, Playbook, ace, with_playbook
from leafe.core import (
    ContextFull,
    Environment,
    ForeignFailure,
    Kind,
    Policy,
    PolicyError,
    Request,
    Task,
    Tree,
    UserError,
)
from leafe.evaluate import counts, evaluate
from leafe.explore import EnvPool, ExploreConfig
from tests.baselines.doors import (
    PROMPTS,
    Killed,
    Sink,
    asked_for,
    episodes,
    plain,
    pupil,
    scripted,
    seeded_key,
    total,
)
from tests.explore.envs import Doors, Raising


def tasks(number: int, word: str = "abcb") -> list[Task]:
    """The same doors under other names: what one teaches helps at all."""
    return [
        Task(f"t{i}", "doors", "train", "open all doors", {"word": word}) for i in range(number)
    ]


def grow(
    policy: Policy | None = None,
    number: int = 6,
    *,
    make: type[Environment] = Doors,
    limits: Mapping[str, float] | None = None,
    journal: Sink | None = None,
    known: Mapping[str, Tree] | None = None,
    own: AceConfig | None = None,
    **settings: object,
) -> AceResult:
    config = ExploreConfig(**({"limits": limits or {"policy_calls": 30}, "seed": 3} | settings))  # type: ignore[arg-type]

    async def main() -> AceResult:
        envs = EnvPool(make, size=4)
        try:
            return await ace(
                policy or scripted(pupil),
                envs,
                tasks(number),
                PROMPTS,
                config,
                own or AceConfig(batch=2),
                journal=journal,
                known=known,
            )
        finally:
            envs.close()

    return asyncio.run(main())


def test_the_playbook_comes_to_hold_the_rules_and_then_tasks_are_solved_at_once() -> None:
    found = grow()
    assert {i.text: i.section for i in found.playbook.items} == {
        f"at door {i} say {key}": f"door {i}" for i, key in enumerate("abcb")
    }
    assert all(i.helpful > 0 and i.harmful == 0 for i in found.playbook.items)
    assert [t.solved for t in found.trees.values()] == [True] * 6
    last = found.trees["t5"].episodes[-1]
    assert len(last.acts) == 4

    async def tested(playbook: Playbook) -> float:
        envs = EnvPool(Doors, size=2)
        policy = scripted(
            lambda r: pupil(r) if "Lessons" in r.messages[0].content else f"Action: {seeded_key(r)}"
        )
        trees = await evaluate(policy, envs, tasks(3), with_playbook(PROMPTS, playbook), samples=4)
        envs.close()
        return float(counts(trees).pass_at(1).mean())

    assert asyncio.run(tested(found.playbook)) == 1.0
    assert asyncio.run(tested(Playbook())) < 1.0


def test_prompts_begin_with_the_playbook_that_stood_at_the_batch_and_share_it() -> None:
    seen: list[Request] = []
    grow(scripted(lambda r: seen.append(r) or pupil(r)))  # type: ignore[func-returns-value]
    acts = [r.messages[0].content for r in seen if asked_for(r) == "act"]
    assert not acts[0].startswith("Lessons")
    assert acts[-1].startswith(
        "Lessons from earlier tasks of this kind. Use those that apply here:\n[1] door "
    )
    for r in seen:
        if asked_for(r) == "lesson":
            assert r.schema is not None
            assert "This attempt is over: the task was" in r.messages[-1].content


@pytest.mark.parametrize("calls", [1, 5, 6, 7, 20])
def test_every_call_is_within_the_budget_and_the_journal_sums_to_what_was_spent(calls: int) -> None:
    policy, sink = scripted(pupil), Sink()
    found = grow(policy, limits={"policy_calls": calls}, journal=sink, stop_when="budget")
    assert policy.calls == found.spent.policy_calls <= 6 * calls
    for tree in found.trees.values():
        spent = total(tree.episodes)
        assert (
            spent.policy_calls == calls
        )  # one more is always asked for: an action, a lesson or a delta
    assert replace(found.spent, seconds=0.0) == replace(
        total(e for line in sink.lines for e in line), seconds=0.0
    )
    asides = [t for e in episodes(found.trees.values()) for t in e.turns if t.kind is Kind.aside]
    assert policy.calls == len(asides) + sum(len(e.acts) for e in episodes(found.trees.values()))


def test_unusable_answers_are_asked_for_again_and_counted_by_reason() -> None:
    def clumsy(request: Request) -> str:
        what = asked_for(request)
        assert request.seed is not None
        if what == "lesson" and request.seed % 2:
            return "well, well"
        if what == "delta" and request.seed % 4:
            return '{"operation": "REWRITE", "text": "everything"}'
        return pupil(request)

    found = grow(scripted(clumsy), number=8)
    turns = [
        t
        for e in episodes(found.trees.values())
        for t in e.turns
        if t.kind is Kind.aside and not t.valid
    ]
    assert turns
    assert sum(found.unusable.values()) == len(turns)
    assert set(found.unusable) == {
        "lesson: the answer holds no JSON object",
        "delta: the operation is none of ADD, UPDATE, REMOVE, NONE",
    }
    assert found.playbook.items


@pytest.mark.parametrize("batch", [1, 3])
def test_killed_at_any_line_it_goes_on_to_the_same_playbook(batch: int) -> None:
    whole = Sink()
    own = AceConfig(batch=batch, max_items=3)
    expected = grow(journal=whole, own=own)
    assert len(whole.lines) == len(episodes(expected.trees.values()))
    for dies_at in range(0, len(whole.lines), 2):
        sink = Sink(dies_at)
        with pytest.raises(Killed):
            grow(journal=sink, own=own)
        known = {task.id: Tree(task) for task in tasks(6)}
        for line in sink.lines:
            for episode in line:
                known[episode.task_id].add(episode)
        policy, rest = scripted(pupil), Sink()
        found = grow(policy, journal=rest, known=known, own=own)
        assert found.playbook == expected.playbook
        assert (found.merges, found.unusable, found.passes) == (
            expected.merges,
            expected.unusable,
            expected.passes,
        )
        assert plain(episodes(found.trees.values())) == plain(episodes(expected.trees.values()))
        assert replace(found.spent, seconds=0.0) == replace(expected.spent, seconds=0.0)
        assert len(sink.lines) + len(rest.lines) == len(whole.lines)
        assert (
            policy.calls
            == expected.spent.policy_calls
            - total(e for line in sink.lines for e in line).policy_calls
        )


def test_a_dead_endpoint_ends_the_run_and_one_broken_task_does_not() -> None:
    def dead(request: Request) -> str:
        raise PolicyError("nobody is at home")

    with pytest.raises(ForeignFailure, match="nobody is at home"):
        grow(scripted(dead), number=12)
    with pytest.raises(ForeignFailure, match="the floor gave way"):
        grow(number=12, make=Raising)

    def all_samples_lost(request: Request) -> str:
        if request.cache_key == "t1":
            raise PolicyError("not this one")
        return pupil(request)

    found = grow(scripted(all_samples_lost))
    assert found.given_up == 1
    assert [t.solved for t in found.trees.values()] == [True, False, True, True, True, True]


def test_a_reflector_that_is_not_heard_costs_the_lesson_alone() -> None:
    def mute(request: Request) -> str:
        if asked_for(request) == "lesson":
            raise PolicyError("busy")
        return pupil(request)

    found = grow(scripted(mute))
    assert found.playbook == Playbook()
    assert set(found.unusable) == {"lesson: no answer: busy"}


def test_a_playbook_that_leaves_no_room_is_the_users_to_mend() -> None:
    def short(request: Request) -> str:
        if "[2] " in request.messages[0].content and asked_for(request) == "act":
            raise ContextFull("no room")
        return pupil(request)

    with pytest.raises(UserError, match="lower the number of items"):
        grow(scripted(short), stop_when="budget")


def test_passes_and_run_limits_and_bad_input() -> None:
    found = grow(own=AceConfig(batch=2, passes=1))
    assert all(len(t.episodes) <= 1 for t in found.trees.values())
    found = grow(run_limits={"policy_calls": 17})
    assert found.cut_short == "policy_calls"
    assert found.spent.policy_calls == 17
    with pytest.raises(UserError, match="no tasks"):
        grow(number=0)


def test_a_playbook_read_step_by_step() -> None:
    """A pupil that heeds advice and reads no list; lessons of a door stand before that door once
    another attempt has confirmed them."""
    seen: list[str] = []

    def heeds(request: Request) -> str:
        last = request.messages[-1].content
        if asked_for(request) != "act":
            return pupil(request).replace('"helpful": "none"', '"helpful": "1, 2, 3, 4"')
        seen.append(last)
        return f"Action: {last.split(' say ')[1][0] if 'Advice' in last else seeded_key(request)}"

    found = grow(scripted(heeds), own=AceConfig(batch=2, place="step"))
    assert found.playbook.by_section()
    advised = [text for text in seen if "Advice" in text]
    assert advised
    for text in advised:
        door = text.split("door ")[1][0]
        assert f"at door {door} say {'abcb'[int(door)]}\n" in text
    assert not any("Lessons" in text for text in seen)
