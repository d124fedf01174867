"""The study's recipes are valid, and choose by other tasks than they test on."""

from __future__ import annotations

import pytest

from leafe.core import UserError
from leafe.envs import load_tasks, make_env
from leafe.pipeline import _preflight as preflight
from leafe.pipeline import env_options, plan, variants
from leafe.recipes import load_recipe
from studies import RECIPES, recipe_path
from tests.pipeline.test_preflight import FEW, said

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_can_be_planned(name: str) -> None:
    recipe = load_recipe(recipe_path(name))
    assert recipe.name == name
    seen: set[str] = set()
    for stage in plan(recipe):
        assert stage.name not in seen
        assert set(stage.needs) <= seen, "a stage comes after what it needs"
        seen.add(stage.name)


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_tests_on_what_it_chooses_or_trains_by(name: str) -> None:
    try:
        recipe = load_recipe(recipe_path(name), FEW)
        assert said(recipe) == []
        env = make_env(recipe.env.name, **env_options(recipe, variants(recipe)[0]))
    except UserError as error:
        pytest.skip(str(error))
    splits = {recipe.tasks.train_split, recipe.validation.split, recipe.tasks.test_split}
    if name != "gates-ablation":  # it tests on validation tasks, and has nothing that chooses
        assert len(splits) == 3
        ids = {s: {t.id for t in load_tasks(env, s, 60, 0)} for s in splits}
        assert sum(map(len, ids.values())) == len(set().union(*ids.values()))
    else:
        assert not any(preflight._chooses(stage) for stage in plan(recipe))
    env.close()
