"""What an import path names: classes and functions of the user's own, wherever the recipe or the
command line says so."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any


def find_named(target: str) -> Any:
    """The object that `package.module:Name` (or `:Outer.Name`) names; modules of the working folder
    are found too, last, so that they shadow nothing.

    ImportError or AttributeError where there is none.
    """
    module, _, name = target.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
