"""The probe finds what a policy does with an experience, whatever the environment: policies that
are known to follow, to know by heart, to reflect or not."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Completion, Message, Policy, PolicyError, Request, Stop, Tree
from leafe.evaluate import Probe, probe
from leafe.prompts import Prompts, PromptSet
from tests.trees import Ep, make_tree, trees

PROMPTS = Prompts(
    PromptSet(
        name="toy",
        first="[{step}] {observation}",
        turn="[{step}] {observation}",
        experience=" note: {experience}",
        reflect=" reflect",
        action="plain",
        reflection="pattern",
        reflection_pattern=r"^s(?P<step>-?\d+) : (?P<experience>.+)$",
    )
)


class Toy:
    """Puts the probability `heed` on the action that a note names, and `knows` on any without one;
    reflects with the words `says`."""

    name = "toy"

    def __init__(
        self,
        heed: float = 0.9,
        knows: float = 0.1,
        says: str = "s0 : take care",
        fails: bool = False,
    ) -> None:
        self.heed, self.knows, self.says, self.fails = heed, knows, says, fails
        self.asked: list[Request] = []
        self.scored: list[tuple[tuple[Message, ...], Message]] = []

    async def complete(self, request: Request) -> list[Completion]:
        self.asked.append(request)
        if self.fails:
            raise PolicyError("nobody is at home")
        return [Completion(self.says)]

    async def score(self, asked: Sequence[tuple[Sequence[Message], Message]]) -> list[float | None]:
        self.scored += [(tuple(prompt), answer) for prompt, answer in asked]
        return [
            math.log(self._chance(prompt[-1].content, answer.content)) for prompt, answer in asked
        ]

    def _chance(self, last: str, answer: str) -> float:
        if last.endswith(" reflect"):
            return 0.5
        _, sign, note = last.partition(" note: ")
        return (self.heed if note == answer else 0.001) if sign else self.knows

    async def close(self) -> None:
        pass


class Unscored:
    """A policy that cannot score, as behind an endpoint."""

    name = "far"

    def __init__(self) -> None:
        self.toy = Toy()

    async def complete(self, request: Request) -> list[Completion]:
        return await self.toy.complete(request)

    async def close(self) -> None:
        pass


def forest(number: int = 24) -> list[Tree]:
    """Tasks that come to the same place ("seen home"), each with a way of its own that its
    reflection names and its branch improves by."""
    out = []
    for i in range(number):
        good = f"way{i % 4}"
        failed = Ep("home", "wait", stop=Stop.failure, progress=(0, 0), blame=1, note=good)
        out.append(make_tree(failed, Ep(good, branch_of=0, progress=(1,)), task_id=f"t{i}"))
    return out


def run(policy: Policy, grown: Sequence[Tree], seed: int = 0, most: int = 128) -> Probe:
    return asyncio.run(probe(policy, grown, PROMPTS, seed=seed, pairs=most, reflections=most))


def test_following_and_knowing_are_told_apart() -> None:
    got = run(Toy(heed=0.8, knows=0.05), forest())
    assert got.kind == "swapped"
    assert [got.following, got.unaided] == pytest.approx([0.8, 0.05])
    by_heart = run(Toy(heed=0.05, knows=0.05), forest())
    assert by_heart.following == pytest.approx(0.05)


def test_a_pair_is_one_history_with_the_experience_of_another_branch_that_fits_it() -> None:
    toy = Toy()
    got = run(toy, forest())
    told = [
        (prompt[-1].content, answer.content)
        for prompt, answer in toy.scored
        if " note: " in prompt[-1].content
    ]
    assert len(told) == got.pairs == 24
    for last, answer in told:
        assert last == f"[1] seen home note: {answer}"
    assert {answer for _, answer in told} == {f"way{i}" for i in range(4)}
    own = [
        prompt[0].content.split()[-1] for prompt, _ in toy.scored if " note: " in prompt[-1].content
    ]
    assert all(
        int(task[1:]) % 4 != int(answer[3:]) for task, (_, answer) in zip(own, told, strict=True)
    ), "never the host's own way"
    assert run(Toy(), forest(), most=5).pairs == 5


def test_where_no_observation_recurs_a_branch_has_its_own_experience() -> None:
    grown = [
        make_tree(
            Ep("home", stop=Stop.failure, blame=0, note=f"way{i}"),
            Ep(f"way{i}", branch_of=0),
            task_id=f"t{i}",
        )
        for i in range(30)
    ]
    got = run(Toy(heed=0.7, knows=0.2), grown)
    assert (got.kind, got.pairs) == ("own", 30)
    assert [got.following, got.unaided] == pytest.approx([0.7, 0.2])


def test_reflections_are_usable_and_name_the_step_or_not() -> None:
    good, other, broken = (
        run(Toy(says="s1 : x"), forest()),
        run(Toy(says="s0 : x"), forest()),
        run(Toy(says="no idea"), forest()),
    )
    out_of_range = run(Toy(says="s2 : x"), forest())
    assert (good.reflection, good.same_step) == (1.0, 1.0)
    assert (other.reflection, other.same_step) == (1.0, 0.0)
    assert (broken.reflection, broken.same_step) == (0.0, 0.0)
    assert out_of_range.reflection == 0.0
    assert good.reflection_logprob == pytest.approx(math.log(0.5))
    assert (good.reflections, good.improved) == (24, 24)
    alike = forest(1) * 3
    assert (run(Toy(), alike).reflections, run(Toy(), alike).improved) == (1, 1), (
        "asked once where the words are the same"
    )


def test_a_policy_that_cannot_score_has_a_reflection_rate_all_the_same() -> None:
    got = run(Unscored(), forest())
    assert (got.following, got.unaided, got.kind, got.pairs, got.reflection_logprob) == (
        None,
        None,
        None,
        0,
        None,
    )
    assert got.reflection == 1.0


def test_failed_requests_are_counted_and_bugs_are_not() -> None:
    got = run(Toy(fails=True), forest())
    assert (got.reflection, got.reflections, got.left_out) == (None, 0, 24)

    class Broken(Toy):
        async def complete(self, request: Request) -> list[Completion]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Broken(), forest())


@given(st.lists(trees(), min_size=0, max_size=5), st.integers(0, 9))
def test_any_trees_give_plain_values_and_the_same_questions_to_every_policy(
    grown: list[Tree], seed: int
) -> None:
    one, two = Toy(), Toy(heed=0.2, says="none")
    first, second = run(one, grown, seed), run(two, grown, seed)
    assert one.scored == two.scored
    assert [r.messages for r in one.asked] == [r.messages for r in two.asked]
    assert len({r.messages for r in one.asked}) == len(one.asked)
    for got in (first, second):
        data = json.loads(json.dumps(got.to_json(), allow_nan=False))
        assert Probe(**data) == got or got.following is not None
        for rate in (got.following, got.unaided, got.reflection, got.same_step):
            assert rate is None or 0 <= rate <= 1
    diverged = {e.stop for tree in grown for e in tree.episodes} == {Stop.diverged}
    assert not (diverged and (one.scored or one.asked)), "a branch that diverged says nothing"
