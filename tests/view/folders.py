"""Run folders for the viewer's tests: trees written by hand, as a run would have left them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leafe.core import Tree
from leafe.recipes import load_recipe
from leafe.runs import Journal, RunFolder, write_tasks

STAGE = "explore/tree"


def new_run(path: Path, *overrides: str) -> Path:
    """A run of the demo's recipe in which nothing has begun."""
    path.mkdir(parents=True)
    for name, content in _begun(overrides).items():
        (path / name).write_bytes(content)
    return path


@functools.cache
def _begun(overrides: tuple[str, ...]) -> dict[str, bytes]:
    recipe = load_recipe("demo", overrides)
    with tempfile.TemporaryDirectory() as where:
        with RunFolder.open(
            where, recipe.model_dump(mode="json", exclude_none=True), seeds={"0": 0}
        ):
            pass
        return {path.name: path.read_bytes() for path in Path(where).iterdir()}


def write_stage(
    run: Path,
    trees: Iterable[Tree],
    stage: str = STAGE,
    *,
    together: bool = False,
    done: Mapping[str, Any] | None = None,
) -> None:
    """The stage with these trees; `together`: all episodes of a task in one line, as evaluation
    writes them."""
    trees = list(trees)
    write_tasks(run / stage, (tree.task for tree in trees))
    with Journal(run / stage, fsync=False) as journal:
        for tree in trees:
            for episodes in (
                [tree.episodes] if together else [[episode] for episode in tree.episodes]
            ):
                if episodes:
                    journal.append(episodes)
    if done is not None:
        config = RunFolder.read(run).config
        with RunFolder.open(run, config) as folder:
            folder.finish(stage, done)


def make_run(path: Path, trees: Iterable[Tree], **more: Any) -> Path:
    write_stage(new_run(path), trees, **more)
    return path
