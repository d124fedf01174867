"""Recipes: what is built in is valid, what is wrong is one sentence that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from leafe.baselines.grpo import GrpoConfig
from leafe.cli import app
from leafe.core import UserError
from leafe.distill import DistillConfig
from leafe.pipeline import plan, variants
from leafe.recipes import GrpoRecipe, Recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_is_valid_and_can_be_planned(name: str) -> None:
    recipe = load_recipe(name)
    stages = plan(recipe)
    names = [s.name for s in stages]
    assert len(set(names)) == len(names)
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.needs) <= seen, "a stage comes after what it needs"
        seen.add(stage.name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("explore.max_depht=3", r"unknown key 'explore.max_depht': did you mean 'max_depth'\?"),
        ("explore.max_depth=x", r"explore.max_depth: .*valid integer.*\(got \"x\"\)"),
        ("explore.limits.calls=3", "there is no limit 'calls'"),
        ("arms.leafe.preset=forest", "arms.leafe: there is no preset 'forest'"),
        ("arms.leafe.distill.step=3", "arms.leafe.distill.step"),
        ("arms.base.preset=paper", "'base' cannot name an arm"),
        ("evaluate.k=[1,256]", r"Pass@256 of 128 samples"),
        ("env.optoins.a=1", "did you mean 'options'"),
        ("strategies=['forest']", "no strategy 'forest'"),
        (
            "controls.random.strategies=['refine']",
            "controls.random: the arm 'leafe\\+' learns from 'tree'",
        ),
        ("evaluate.compare=[['leafe','x']]", "no row 'x'"),
        ("seeds", "write key=value"),
        ("name.x=1", "'name', which is a value"),
    ],
)
def test_mistakes_are_one_sentence(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_recipe("demo", [override])
    assert "\n" not in str(error.value)


def test_overrides_are_toml_values_or_words() -> None:
    recipe = load_recipe(
        "demo",
        [
            "explore.limits.policy_calls=7",
            "env.options.setting=easy",
            "seeds=[1, 2]",
            'arms."leafe+".distill.max_steps=9',
        ],
    )
    assert recipe.explore.limits == {"policy_calls": 7}
    assert recipe.env.options["setting"] == "easy"
    assert [variant.prefix for variant in variants(recipe)] == [
        "seed1.",
        "seed2.",
        "seed1.random.",
        "seed2.random.",
        "seed1.easy.",
        "seed2.easy.",
    ]
    assert recipe.arms["leafe+"].config().max_steps == 9
    assert recipe.arms["leafe+"].config().num_train_epochs is None


def test_steps_and_epochs_take_each_others_place(tmp_path: Path) -> None:
    def length(recipe: Recipe) -> tuple[int | None, float | None]:
        config = recipe.arms["leafe"].config()
        assert isinstance(config, DistillConfig)
        return config.max_steps, config.num_train_epochs

    assert length(load_recipe("demo", ["arms.leafe.distill.max_steps=4"])) == (4, None)
    assert length(
        load_recipe(
            "demo", ["arms.leafe.distill.max_steps=4", "arms.leafe.distill.num_train_epochs=1.5"]
        )
    ) == (None, 1.5)
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "demo"\nname = "mine"\n[arms.leafe.distill]\nmax_steps = 7\n')
    assert length(load_recipe(str(mine))) == (7, None)
    assert (
        load_recipe(str(mine)).arms["leafe"].config().learning_rate
        == load_recipe("demo").arms["leafe"].config().learning_rate
    )
    with pytest.raises(UserError, match="not both"):
        load_recipe("demo", ["arms.leafe.distill={max_steps=4, num_train_epochs=2}"])


def test_grpo_plays_as_long_as_every_method() -> None:
    def config(*overrides: str) -> GrpoConfig:
        recipe = load_recipe(
            "demo",
            [
                "arms.grpo.preset=grpo",
                "explore.horizon=7",
                "explore.max_invalid_actions=2",
                *overrides,
            ],
        )
        method = recipe.arms["grpo"].config()
        assert isinstance(method, GrpoRecipe)
        return method.config(recipe.explore, 10, 3)

    assert (config().horizon, config().max_invalid_actions, config().seed, config().limits) == (
        7,
        2,
        3,
        {"policy_calls": 200.0},
    )
    own = config(
        "arms.grpo.grpo.horizon=9",
        "arms.grpo.grpo.max_invalid_actions=4",
        "arms.grpo.grpo.max_steps=5",
    )
    assert (own.horizon, own.max_invalid_actions, own.max_steps, own.limits) == (9, 4, 5, {})


def test_a_recipe_can_extend_another(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "demo"\nname = "mine"\n[explore]\nmax_depth = 2\n')
    recipe, demo = load_recipe(str(mine)), load_recipe("demo")
    assert (recipe.name, recipe.explore.max_depth) == ("mine", 2)
    assert recipe.explore.limits == demo.explore.limits
    assert recipe.arms == demo.arms
    beside = tmp_path / "beside.toml"
    beside.write_text('extends = "mine.toml"\nname = "beside"\n')
    assert load_recipe(str(beside)).explore.max_depth == 2
    mine.write_text(f'extends = "{mine}"')
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(mine))


def test_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'nothing'"):
        load_recipe("nothing")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(UserError, match="not valid TOML"):
        load_recipe(str(broken))
    bare = tmp_path / "bare.toml"
    bare.write_text('name = "x"\n[env]\nname = "gates"\n')
    with pytest.raises(UserError, match="lacks 'policy'"):
        load_recipe(str(bare))


@pytest.mark.parametrize(
    "override",
    [
        "policy.options.api_key=sk-hush-0123456789",
        "policy.options.extra={headers={Authorization='Bearer sk-hush-0123456789'}}",
        "policy.options.token=sk-hush-0123456789",
        "env.options.password=sk-hush-0123456789",
        "env.options.kwargs=[{api_key='sk-hush-0123456789'}]",
        "controls.random.options={client_secret='sk-hush-0123456789'}",
    ],
)
def test_a_key_in_a_recipe_is_refused_before_anything_is_written(
    override: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds a secret in") as raised:
        load_recipe("demo", [override])
    assert "hush" not in str(raised.value)
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = runner.invoke(app, ["run", "demo", override, "--name", "r", "--runs", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert not list(tmp_path.rglob("config.toml"))


def test_names_of_variables_are_no_secrets() -> None:
    load_recipe("demo", ["policy.options.api_key_env=MY_KEY", "env.options.token_env=DOOR"])
