"""Import paths: how a recipe or the command line names a class or function of the user's own."""

from __future__ import annotations

import os
import sys
from functools import reduce
from importlib import import_module
from typing import Any


def find_named(target: str) -> Any:
    """Import the object that a path names.

    Modules of the working folder are found too, last, so that they shadow nothing.

    Args:
        target: `package.module:Name` or `package.module:Outer.Name`.

    Returns:
        The object.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such name.
    """
    module, _, name = target.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    return reduce(getattr, name.split("."), import_module(module))
