"""The packages of the extra `webshop`, imported on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from leafe.core import UserError


def package(module: str, name: str) -> Any:
    """A module of the package `name`; UserError with the install command if it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"The environment 'webshop' needs the package {name!r}: run pip install "
            "'leafe[webshop]'."
        ) from error
