"""Recipes: one experiment as typed TOML, checked before anything runs.

A recipe names what the stages need; it makes nothing. It may import the parts whose options it
holds (`explore`, `distill`, `evaluate`, `baselines`), and knows neither stages nor run folders.
"""

from leafe.recipes._arms import ArmRecipe, RoundsRecipe, Setting, ValidationRecipe
from leafe.recipes._methods import ARM_PRESETS, EXPLORES, Config, EarlyRecipe, GrpoRecipe, Method
from leafe.recipes._schema import (
    AttemptsRecipe,
    ControlRecipe,
    EvaluateRecipe,
    ExtraRecipe,
    Recipe,
    TrainRecipe,
    load_recipe,
    parse_options,
    parse_recipe,
    parse_stored_recipe,
    recipe_names,
)

__all__ = [
    "ARM_PRESETS",
    "EXPLORES",
    "ArmRecipe",
    "AttemptsRecipe",
    "Config",
    "EarlyRecipe",
    "EvaluateRecipe",
    "ExtraRecipe",
    "GrpoRecipe",
    "ControlRecipe",
    "Method",
    "Recipe",
    "RoundsRecipe",
    "Setting",
    "TrainRecipe",
    "ValidationRecipe",
    "load_recipe",
    "parse_options",
    "parse_recipe",
    "parse_stored_recipe",
    "recipe_names",
]
