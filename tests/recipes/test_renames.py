"""A recipe with an old key is told the new one, wherever it stands; stored runs of 0.1 open."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.recipes import load_recipe, parse_recipe, parse_stored_recipe
from leafe.recipes._renames import RENAMED, modernise, refuse_old_names

BARE: dict[str, Any] = {
    "name": "mine",
    "env": {"name": "gates"},
    "policy": {"model": "embedded"},
    "arms": {"a": {"preset": "leafe+"}},
}
IN_GRPO = {
    old.replace("arms.*.grpo", "arms.*.sweep"): new.replace("arms.*.grpo", "arms.*.sweep")
    for old, new in RENAMED.items()
    if old.startswith("arms.*.grpo.") and ".lora" not in old
}
"""The sweep of a GRPO arm."""


def here(path: str) -> str:
    return path.replace("*", "a")


def nested(path: str, value: Any = 1) -> dict[str, Any]:
    for part in reversed(here(path).split(".")):
        value = {part: value}
    return dict(value)


def merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: merged(below.get(key, {}), value) for key, value in above.items()}


def told(raised: pytest.ExceptionInfo[UserError], old: str, new: str) -> None:
    assert f"{here(old)} is called {here(new)} since leafe 0.2" in str(raised.value)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_a_recipe_is_told_the_new_one(old: str, tmp_path: Path) -> None:
    table, _, name = here(old).rpartition(".")
    head = 'name = "mine"\nenv = { name = "gates" }\npolicy = { model = "embedded" }\n'
    file = tmp_path / "mine.toml"
    file.write_text(f"{head}[{table}]\n{name} = 1\n" if table else f"{head}{name} = 1\n")
    with pytest.raises(UserError) as raised:
        load_recipe(str(file))
    told(raised, old, RENAMED[old])
    file.write_text(f'extends = "demo"\n[{table}]\n{name} = 1\n' if table else f"{name} = 1\n")
    with pytest.raises(UserError) as raised:
        load_recipe(str(file))
    told(raised, old, RENAMED[old])


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_an_override_is_told_the_new_one(old: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe("demo", [f"{here(old)}=1"])
    told(raised, old, RENAMED[old])


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_without_is_told_the_new_one(old: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'extends = "demo"\nwithout = ["{here(old)}"]\nname = "mine"\n')
    with pytest.raises(UserError) as raised:
        load_recipe(str(file))
    told(raised, old, RENAMED[old])


@pytest.mark.parametrize("old", IN_GRPO)
def test_the_sweep_of_a_grpo_arm_has_names_of_its_own(old: str) -> None:
    data = merged(BARE, {"arms": {"a": {"preset": "grpo", "sweep": {old.rpartition(".")[2]: [1]}}}})
    with pytest.raises(UserError) as raised:
        parse_recipe(data)
    told(raised, old, IN_GRPO[old])


def test_a_name_that_one_method_gave_up_is_another_ones() -> None:
    """`beta` is GRPO's still."""
    grpo = {"preset": "grpo", "grpo": {"max_steps": 3}, "sweep": {"beta": [0.0, 0.1]}}
    recipe = parse_recipe(merged(BARE, {"arms": {"a": grpo}}))
    assert [s.changes["beta"] for s in recipe.arms["a"].settings()] == [0.0, 0.1]
    assert modernise({"arms": {"a": grpo}}) == {"arms": {"a": grpo}}


@pytest.mark.parametrize(
    ("arm", "where"),
    [({"grpo": {"reward": "world"}}, "grpo"), ({"sweep": {"reward": ["world"]}}, "sweep")],
)
def test_the_reward_of_the_environment(arm: dict[str, Any], where: str) -> None:
    data = {"arms": {"a": {"preset": "grpo"} | arm}}
    with pytest.raises(UserError, match=f'a.{where}.reward = "world" is called "env"'):
        refuse_old_names(data, "The recipe")
    reward = modernise(data)["arms"]["a"][where]["reward"]
    assert reward == ("env" if where == "grpo" else ["env"])


def test_adapters_in_a_sweep() -> None:
    data = {"arms": {"a": {"preset": "rft", "sweep": {"lora": [{"rank": 4}, {"rank": 8}]}}}}
    with pytest.raises(UserError, match=r"arms\.a\.sweep\.lora\.rank is called .*\.lora\.r since"):
        refuse_old_names(data, "The recipe")
    assert modernise(data)["arms"]["a"]["sweep"]["lora"] == [{"r": 4}, {"r": 8}]


@given(
    chosen=st.lists(st.sampled_from(sorted(RENAMED)), max_size=6, unique=True),
    values=st.lists(st.integers(), min_size=6, max_size=6),
)
def test_modernised_settings_are_the_new_ones(chosen: list[str], values: list[int]) -> None:
    # a key under a table that has another name is not reached by its old one
    chosen = [c for c in chosen if c not in ("world", "arms.*.early.world")]
    before: dict[str, Any] = {"env": {"name": "gates"}, "arms": {"a": {"preset": "leafe+"}}}
    after = copy.deepcopy(before)
    for old, value in zip(chosen, values, strict=False):
        before = merged(before, nested(old, value))
        after = merged(after, nested(RENAMED[old], value))
    kept = copy.deepcopy(before)
    assert modernise(before) == after
    assert before == kept, "the given settings stay as they are"
    assert modernise(after) == after
    refuse_old_names(after, "The recipe")


def test_settings_of_a_run_of_0_1_are_read() -> None:
    old = {
        "name": "mine",
        "world": {"name": "gates", "options": {"setting": "hard"}, "max_observation": 500},
        "policy": {"model": "embedded"},
        "explore": {"depth": 3, "width": 2, "every": 4, "until": "budget", "invalid_limit": 7},
        "strategies": ["tree", "independent"],
        "arms": {
            "a": {
                "preset": "leafe+",
                "distill": {"steps": 5, "warmup": 0.1, "beta": 0.3, "lora": {"rank": 4}},
            },
            "g": {"preset": "grpo", "grpo": {"group": 4, "reward": "world", "steps": 2}},
            "e": {"preset": "early-experience", "early": {"world": {"steps": 3}}},
            "s": {"preset": "rft", "sweep": {"epochs": [1.0, 2.0]}},
        },
    }
    with pytest.raises(UserError):
        parse_recipe(old)
    recipe = parse_stored_recipe(old, "The recipe of a run")
    assert recipe.env.max_observation == 500
    assert (recipe.explore.max_depth, recipe.explore.branches_per_reflection) == (3, 2)
    assert (recipe.explore.reflect_every, recipe.explore.stop_when) == (4, "budget")
    distill = recipe.arms["a"].distill
    assert (distill["max_steps"], distill["rehearsal_weight"]) == (5, 0.3)
    assert distill["lora"] == {"r": 4}
    assert recipe.arms["g"].grpo == {"num_generations": 4, "reward": "env", "max_steps": 2}
    assert recipe.arms["e"].early == {"world_model": {"max_steps": 3}}
    assert recipe.arms["s"].sweep == {"num_train_epochs": [1.0, 2.0]}
