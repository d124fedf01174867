"""Completion for shells: the script, and how a word may go on.

It runs at every press of the key, so that it imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib import resources
from pathlib import Path


class Shell(StrEnum):
    """Shells that the command line completes for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def script(shell: Shell) -> str:
    """The script that the shell evaluates: `eval "$(leafe --completion bash)"`."""
    from typer._completion_shared import get_completion_script

    return str(
        get_completion_script(prog_name="leafe", complete_var="_LEAFE_COMPLETE", shell=shell.value)
    )


def recipes(incomplete: str) -> list[str]:
    """Built-in recipes and TOML files that begin so; folders too, on the way to one."""
    names = sorted(
        file.name.removesuffix(".toml")
        for file in resources.files("leafe.recipes").iterdir()
        if file.name.endswith(".toml")
    )
    return [name for name in names if name.startswith(incomplete)] + _paths(
        incomplete, lambda p: p.suffix == ".toml"
    )


def run_folders(incomplete: str) -> list[str]:
    """Run folders that begin so; other folders too, on the way to one."""
    return _paths(incomplete, lambda path: (path / "manifest.json").is_file())


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    above = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        there = sorted(above.iterdir())
    except OSError:
        return []
    shown = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    hidden = Path(incomplete).name.startswith(".")
    named = [(shown + path.name, path) for path in there if hidden or not path.name.startswith(".")]
    return [
        name + ("/" if path.is_dir() and not wanted(path) else "")
        for name, path in named
        if name.startswith(incomplete) and (path.is_dir() or wanted(path))
    ]
