"""Typed TOML recipes, one an experiment."""

from leafe.recipes._arms import ArmRecipe, RoundsRecipe, Setting, ValidationRecipe
from leafe.recipes._schema import EvaluateRecipe, ExtraRecipe, LegRecipe, Recipe, TrainRecipe, load_recipe, parse_options, parse_recipe, recipe_names

__all__ = [
    "ArmRecipe", "EvaluateRecipe", "ExtraRecipe", "LegRecipe", "Recipe", "RoundsRecipe", "Setting", "TrainRecipe", "ValidationRecipe", "load_recipe",
    "parse_options", "parse_recipe", "recipe_names",
]  # fmt: skip
