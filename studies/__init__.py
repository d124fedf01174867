"""The study of the paper's claims with leafe; it is not part of the package.

`studies.paper` holds the six tables, the figure and the claims; `studies.run` fills them cell by
cell; `studies.base` builds the embedded base policy; `studies.weak_programmer` is a scripted
policy for MBPP; `recipes/` holds the experiments. Modules import leafe, and leafe imports none of
them. Run everything from the root of the repository.
"""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def recipe_path(name: str) -> str:
    """What `load_recipe` takes for `name`: the file of a recipe of the study, else the name of a
    recipe in the package."""
    path = RECIPES / f"{name}.toml"
    return str(path) if path.is_file() else name
