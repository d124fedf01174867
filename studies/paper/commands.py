"""What to type for what a table lacks: an arm more in a run, a run that is not finished, a seed
more. A run's own config.toml is the recipe to go on with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leafe.baselines.early_experience import check_thoughts
from leafe.core import UserError
from leafe.pipeline import Variant, env_options, recipe_of
from leafe.prompts import load_prompt_set
from leafe.recipes import ARM_PRESETS, Recipe, parse_recipe
from leafe.runs import RunFolder
from studies.paper.definitions import ARMS, STRATEGIES


def resume(run: RunFolder, *overrides: str, name: str | None = None) -> str:
    """Go on with the run, with these changes."""
    label = [
        "leafe",
        "run",
        str(run.path / "config.toml"),
        *overrides,
        "--runs",
        str(run.path.parent),
        "--name",
        name or run.path.name,
    ]
    return shlex.join(label)


def another_seed(run: RunFolder) -> str:
    """The same experiment with the next seed, in a folder of its own."""
    path, seed = seed_folder(run)
    return resume(run, f"seeds=[{seed}]", name=path.name)


def seed_folder(run: RunFolder) -> tuple[Path, int]:
    """Where `another_seed` goes, and the seed."""
    seed = max(recipe_of(run).seeds) + 1
    return run.path.with_name(f"{run.path.name}-seed{seed}"), seed


def test_weights(run: RunFolder, weights: str, row: str, seed: int) -> str:
    """The test of other weights in the environment of `run`, which tests one policy."""
    recipe = recipe_of(run)
    name = f"{run.path.name.partition('.')[0]}.{f'seed{seed}.' if seed != recipe.seeds[0] else ''}{row}".replace(
        " ", "-"
    )
    return resume(run, f"policy.model={weights}", f"seeds=[{seed}]", name=name)


def add_row(run: RunFolder, row: str, control: str = "") -> str:
    """The command that adds an arm (or a strategy) to a run, or a sentence that says why there is
    none."""
    recipe = recipe_of(run)
    if control:
        return _control_alone(run, recipe, row, control)
    if row in recipe.arms or row == "base" or row in recipe.strategies:
        return resume(run)
    if row in {s.key for s in STRATEGIES}:
        return resume(run, f"strategies={json.dumps([*recipe.strategies, row])}")
    try:
        return resume(run, *_arm_overrides(recipe, row))
    except UserError as error:
        return _no_command(row, error)


def _control_alone(run: RunFolder, recipe: Recipe, row: str, control: str) -> str:
    variant = recipe.controls[control]
    options = env_options(recipe, Variant(recipe.seeds[0], control))
    changes = [f"env.options.{name}={value}" for name, value in options.items()] + ["controls={}"]
    changes += [
        f"tasks.{name}={value}"
        for name, value in (("train", variant.train), ("test", variant.test))
        if value
    ]
    try:
        arm = [] if row in recipe.arms or row == "base" else _arm_overrides(recipe, row)
    except UserError as error:
        return _no_command(row, error)
    return resume(run, *changes, *arm, name=f"{run.path.name}-{control}")


def _no_command(row: str, error: UserError) -> str:
    missing = [arm["preset"] for name, arm in ARMS.items() if name == row or name in row.split()]
    new = [preset for preset in missing if preset not in ARM_PRESETS]
    return (
        f"no command yet: this leafe has no preset {new[0]!r}"
        if new
        else f"no command yet: {error}"
    )


def _arm_overrides(recipe: Recipe, row: str) -> list[str]:
    """The overrides that add an arm with all that it builds on; UserError where this leafe cannot
    make it."""
    arms, strategies = with_arms(recipe, [row])
    new = [name for name in arms if name not in recipe.arms]
    out = [text for name in new for text in _flat(f"arms.{name}", ARMS[name])]
    return out + (
        [f"strategies={json.dumps(strategies)}"] if tuple(strategies) != recipe.strategies else []
    )


def _flat(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for name, inner in value.items() for text in _flat(f"{key}.{name}", inner)]
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}"]


def with_arms(recipe: Recipe, rows: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(arms by name as plain data, strategies): the recipe's arms and these, each after what it
    builds on. UserError where an arm cannot be made."""
    arms: dict[str, Any] = {
        name: arm.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        for name, arm in recipe.arms.items()
    }
    strategies = list(recipe.strategies)
    waiting = list(rows)
    while waiting:
        row = waiting.pop(0)
        if row not in arms:
            if row not in ARMS:
                raise UserError(
                    f"There is no arm {row!r} in the recipe {recipe.name} or in the tables."
                )
            arms[row] = dict(ARMS[row])
        waiting += [
            other
            for role in ("start", "explorer")
            if (other := arms[row].get(role, "base")) not in ("base", *arms)
        ]
        explored = arms[row].get("explored", "tree")
        if arms[row].get("explorer", "base") == "base" and explored not in strategies:
            strategies.append(explored)
    data = recipe.model_dump(mode="json", exclude_none=True) | {
        "arms": arms,
        "strategies": strategies,
    }
    made = parse_recipe(data, f"The arm {rows[0]!r}" if len(rows) == 1 else "The arms")
    if any(made.arms[row].preset == "self-reflection" for row in rows):
        check_thoughts(load_prompt_set(recipe.prompts))
    return arms, strategies
