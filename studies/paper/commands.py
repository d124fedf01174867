"""The commands for what a table lacks: another arm in a run, the rest of an unfinished run, another
seed. A run's own config.toml is the recipe to go on with."""

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
    """The command that goes on with the run, with these changes."""
    config, runs = str(run.path / "config.toml"), str(run.path.parent)
    words = ["leafe", "run", config, *overrides, "--runs", runs, "--name", name or run.path.name]
    return shlex.join(words)


def another_seed(run: RunFolder) -> str:
    """The command for the same experiment with the next seed, in a folder of its own."""
    path, seed = seed_folder(run)
    return resume(run, f"seeds=[{seed}]", name=path.name)


def seed_folder(run: RunFolder) -> tuple[Path, int]:
    """The folder of `another_seed`, and the seed."""
    seed = max(recipe_of(run).seeds) + 1
    return run.path.with_name(f"{run.path.name}-seed{seed}"), seed


def test_weights(run: RunFolder, weights: str, row: str, seed: int) -> str:
    """The command that tests other weights in the environment of `run`, which tests one policy."""
    prefix = "" if seed == recipe_of(run).seeds[0] else f"seed{seed}."
    name = f"{run.path.name.partition('.')[0]}.{prefix}{row}".replace(" ", "-")
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
    changes = [*(f"env.options.{name}={value}" for name, value in options.items()), "controls={}"]
    counts = {"train": variant.train, "test": variant.test}
    changes += [f"tasks.{name}={value}" for name, value in counts.items() if value]
    try:
        arm = [] if row in recipe.arms or row == "base" else _arm_overrides(recipe, row)
    except UserError as error:
        return _no_command(row, error)
    return resume(run, *changes, *arm, name=f"{run.path.name}-{control}")


def _no_command(row: str, error: UserError) -> str:
    presets = [arm["preset"] for name, arm in ARMS.items() if name == row or name in row.split()]
    unknown = [preset for preset in presets if preset not in ARM_PRESETS]
    return f"no command yet: {f'this leafe has no preset {unknown[0]!r}' if unknown else error}"


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
