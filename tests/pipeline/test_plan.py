"""What a recipe unrolls into: every stage after what it needs, arms on arms, rounds that share the
tasks, what is refused and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.pipeline import KINDS, Stage, plan
from leafe.pipeline._policy_ref import BASE as BASE_POLICY
from leafe.recipes import Recipe, load_recipe, parse_recipe

SMALL = str(Path(__file__).with_name("small.toml"))
BASE: dict[str, Any] = {
    "name": "r",
    "env": {"name": "gates"},
    "policy": {"model": "embedded"},
    "strategies": ["tree", "independent"],
}


def small(*more: str) -> Recipe:
    return load_recipe(SMALL, more)


def names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in plan(recipe)]


def by_name(recipe: Recipe) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan(recipe)}


@st.composite
def arms(draw: st.DrawFn) -> dict[str, Any]:
    """Arms that may name each other in any way, circles included."""
    number = draw(st.integers(1, 5))
    known = ["base", *(f"a{i}" for i in range(number))]
    out: dict[str, Any] = {}
    for i in range(number):
        arm: dict[str, Any] = {
            "preset": "leafe+",
            "start": draw(st.sampled_from(known)),
            "explorer": draw(st.sampled_from(known)),
        }
        arm["explored"] = draw(st.sampled_from(["tree", "independent"]))
        kind = draw(st.sampled_from(["once", "rounds", "sweep"]))
        if kind == "rounds":
            arm["rounds"] = {
                "number": draw(st.integers(2, 4)),
                "tasks": draw(st.sampled_from(["parted", "same"])),
                "data": draw(st.sampled_from(["all", "newest"])),
                "start": draw(st.sampled_from(["newest", "first"])),
            }
        elif kind == "sweep":
            arm["sweep"] = {"rehearsal_weight": [0.5, 1.0], "temperature": [0.7, 1.0]}
        out[f"a{i}"] = arm
    return out


def solvable(given_arms: dict[str, Any]) -> bool:
    """Whether the arms can be trained one after another: those that need nothing which is not there
    are taken away until none is left."""
    left = dict(given_arms)
    while left:
        free = [
            name
            for name, arm in left.items()
            if arm["start"] not in left and arm["explorer"] not in left
        ]
        if not free:
            return False
        for name in free:
            del left[name]
    return True


@given(given_arms=arms(), seeds=st.sampled_from([[0], [0, 3]]))
def test_any_arms_are_planned_or_refused(given_arms: dict[str, Any], seeds: list[int]) -> None:
    data = BASE | {"arms": given_arms, "seeds": seeds}
    if not solvable(given_arms):
        with pytest.raises(UserError, match="builds on itself"):
            parse_recipe(data)
        return
    recipe = parse_recipe(data)
    stages = plan(recipe)
    found = [s.name for s in stages]
    assert len(set(found)) == len(found)
    place = {name: i for i, name in enumerate(found)}
    for stage in stages:
        assert all(place[need] < place[stage.name] for need in stage.needs)
        if stage.kind == "distill":
            assert stage.attempt is not None
            assert set(stage.attempt.explored) <= set(stage.needs)
        if stage.kind in ("explore", "validate", "evaluate") and stage.policy != BASE_POLICY:
            assert stage.needs, "weights that nothing makes"
    assert {s.kind for s in stages} <= set(KINDS)
    prefixes = ["seed0.", "seed3."] if len(seeds) > 1 else [""]
    for prefix in prefixes:
        assert {f"evaluate/{prefix}{row}" for row in ("base", *given_arms)} <= set(found)
        for name, arm in given_arms.items():
            rounds = arm.get("rounds", {}).get("number", 0)
            trained = [
                n
                for n in found
                if n == f"distill/{prefix}{name}" or n.startswith(f"distill/{prefix}{name}.")
            ]
            assert len(trained) == (rounds or (2 if "sweep" in arm else 1)), (
                "settings that differ in temperature alone are one training"
            )
            validated = [n for n in found if n.startswith(f"validate/{prefix}{name}.")]
            assert len(validated) == (rounds or (4 if "sweep" in arm else 0))
            assert (f"choose/{prefix}{name}" in found) == bool(validated)


def test_an_arm_after_another() -> None:
    more = (
        "arms.after.preset=rft",
        "arms.after.start=leafe+",
        "arms.after.explorer=leafe+",
        "arms.after.explored=independent",
    )
    stages = by_name(small(*more))
    explored = stages["explore/leafe+.independent"]
    assert (str(explored.policy), explored.needs) == ("leafe+", ("distill/leafe+",))
    assert explored.row == "independent by leafe+"
    trained = stages["distill/after"]
    assert trained.attempt is not None
    assert str(trained.attempt.start) == "leafe+"
    assert set(trained.needs) == {"explore/leafe+.independent", "distill/leafe+"}
    assert "explore/independent" not in stages, "the base need not explore what nobody learns from"


def test_two_arms_share_an_exploration() -> None:
    more = [
        f"arms.{n}.{what}"
        for n in ("b", "c")
        for what in ("preset=rft", "explorer=leafe+", "explored=independent")
    ]
    assert sum(name.startswith("explore/") for name in names(small(*more))) == 2


@pytest.mark.parametrize("data", ["all", "newest"])
@pytest.mark.parametrize("start", ["newest", "first"])
def test_rounds(data: str, start: str) -> None:
    stages = by_name(small(f"arms.leafe+.rounds={{number=3, data='{data}', start='{start}'}}"))
    assert "explore/tree" not in stages, "the rounds explore, and nobody else learns"
    explored = [
        stages[n]
        for n in (
            "explore/round1of3.tree",
            "explore/leafe+.round2.tree",
            "explore/leafe+.round3.tree",
        )
    ]
    assert [(str(s.policy), s.round, s.parted) for s in explored] == [
        ("base", (1, 3), True),
        ("leafe+.round1", (2, 3), True),
        ("leafe+.round2", (3, 3), True),
    ]
    assert "validate/leafe+.round1" in explored[1].needs, (
        "the stop rule has its say before the next round"
    )
    for number in (1, 2, 3):
        attempt = stages[f"distill/leafe+.round{number}"].attempt
        assert attempt is not None
        assert attempt.explored == tuple(
            s.name for s in (explored[:number] if data == "all" else explored[number - 1 : number])
        )
        assert str(attempt.start) == (
            "base" if number == 1 or start == "first" else f"leafe+.round{number - 1}"
        )
        assert stages[f"evaluate/leafe+.round{number}"].row == f"leafe+ (round {number})"
    assert stages["evaluate/leafe+"].needs[0] == "choose/leafe+"


def test_rounds_of_the_recipe_are_those_of_every_arm_without_its_own() -> None:
    recipe = small("rounds=2", "arms.one.preset=cf", "arms.one.rounds=1")
    assert [recipe.rounds_of(arm).number for arm in ("leafe+", "one")] == [2, 1]
    assert {
        "explore/tree",
        "explore/round1of2.tree",
        "distill/one",
        "distill/leafe+.round2",
    } <= set(names(recipe))


def test_all_tasks_in_every_round() -> None:
    stages = by_name(small("rounds={number=2, tasks='same'}"))
    assert not stages["explore/leafe+.round2.tree"].parted
    first = stages["distill/leafe+.round1"].attempt
    assert first is not None
    assert first.explored == ("explore/tree",)


def test_a_sweep_is_every_combination() -> None:
    stages = by_name(
        small("arms.leafe+.sweep={learning_rate=[1e-3, 1e-4], rehearsal_weight=[0.5, 1, 2]}")
    )
    tried = [s.attempt.config for s in stages.values() if s.kind == "distill" and s.attempt]
    assert {(c.learning_rate, c.rehearsal_weight) for c in tried} == {
        (r, b) for r in (1e-3, 1e-4) for b in (0.5, 1.0, 2.0)
    }
    assert (
        stages["validate/leafe+.try2"].row == "leafe+ (learning_rate = 0.001, rehearsal_weight = 1)"
    )
    assert stages["evaluate/leafe+"].needs == ("choose/leafe+",)
    assert not any(n.startswith("evaluate/leafe+.") for n in stages), (
        "test tasks see the chosen one alone"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("arms.leafe+.start=nobody", "arms.leafe+.start: there is no arm 'nobody'; there are base"),
        ("arms.leafe+.explorer=leaf", "arms.leafe+.explorer: there is no arm 'leaf'"),
        ("arms.leafe+.start=leafe+", "arms.leafe+ builds on itself (leafe+ -> leafe+)"),
        ("arms.leafe+.explored=forest", "there is no strategy 'forest'"),
        (
            "arms.leafe+.sweep={learning_rat=[1]}",
            (
                "arms.leafe+.sweep: 'learning_rat' is no option of distillation: did you mean "
                "'learning_rate'?"
            ),
        ),
        ("arms.leafe+.sweep={horizon=[1]}", "'horizon' is no option of distillation"),
        (
            "arms.leafe+.sweep={rehearsal_weight=[]}",
            "arms.leafe+.sweep.rehearsal_weight is an empty list",
        ),
        (
            "arms.leafe+.sweep={rehearsal_weight=[1, 1]}",
            "arms.leafe+.sweep.rehearsal_weight = [1, 1] names a value twice",
        ),
        (
            "arms.leafe+.sweep={rehearsal_weight=[-1]}",
            "arms.leafe+.sweep.rehearsal_weight: Input should be greater than or equal to 0",
        ),
        (
            "arms.leafe+.sweep={rehearsal_weight=1}",
            "arms.leafe+.sweep.rehearsal_weight: Input should be a valid list",
        ),
        ("arms.leafe+.sweep={temperature=['hot']}", "temperatures are numbers"),
        (
            "arms.leafe+.sweep={seed=[1, 2]}",
            "arms.leafe+.sweep.seed: a training takes the run's seed",
        ),
        ("arms.leafe+.distill.seed=1", "arms.leafe+.distill.seed: a training takes the run's seed"),
        ("arms.leafe+.distill.bta=1", "arms.leafe+.distill.bta"),
        (
            "rounds=9",
            "arms.leafe+ has 9 rounds for 8 training tasks: every round needs one of its own",
        ),
        ("rounds=0", "rounds.number"),
        ("rounds=true", "rounds"),
        ("rounds={number=2, taks='same'}", "unknown key 'rounds.taks': did you mean 'tasks'?"),
        ("validation.k=64", "validation.k asks for Pass@64 of 32 samples"),
        ("controls.leafe+.train=1", "'leafe+' cannot name a control"),
    ],
)
def test_mistakes_are_one_sentence(change: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        small(change)
    assert "\n" not in str(error.value)


def test_more_mistakes() -> None:
    arm = ("arms.b.preset=rft", "arms.b.start=leafe+")
    with pytest.raises(UserError, match=re.escape("builds on itself (leafe+ -> b -> leafe+)")):
        small(*arm, "arms.leafe+.explorer=b")
    with pytest.raises(
        UserError,
        match=re.escape(
            "controls.x: the arm 'b' builds on 'leafe+', which is not among its arms b: add it"
        ),
    ):
        small(*arm, "controls.x.arms=['b']")
    with pytest.raises(
        UserError,
        match=re.escape(
            "arms.b starts from 'leafe+', which is an adapter alone: set "
            "arms.leafe+.distill.lora.merge = true"
        ),
    ):
        small(*arm, "arms.leafe+.distill.lora={merge=false}")
    with pytest.raises(UserError, match="has a sweep and several rounds"):
        small("rounds=2", "arms.leafe+.sweep={rehearsal_weight=[1]}")


def test_without(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "demo"\nwithout = ["controls", "evaluate.extras"]\nname = "mine"\n')
    recipe = load_recipe(str(mine))
    assert not recipe.controls
    assert not recipe.evaluate.extras
    assert recipe.arms == load_recipe("demo").arms
    mine.write_text('extends = "demo"\nwithout = ["control"]\n')
    with pytest.raises(
        UserError, match=r"without names 'control', which demo does not have: take it out"
    ):
        load_recipe(str(mine))
