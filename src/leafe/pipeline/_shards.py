"""Stage 1 in shards, for many machines without a common scheduler, merged into one run.

    leafe explore RECIPE --shard 0/4        # on one machine; 1/4, 2/4, 3/4 on others
    leafe merge runs/NAME.shard-*-of-4      # once their folders lie side by side
    leafe run RECIPE                        # goes on with Stage 2

Shard i of n takes every n-th task. It is an ordinary run folder and resumes like any other. A
task's tree depends on the run's seed and the task alone, so that the merged run holds the trees
that one machine would have found. Merging reads the shards and never writes them, checks that all
of them are there, finished and of one experiment, and marks a stage as finished last, so that a
merge that was cut off is done again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.pipeline._plan import plan
from leafe.recipes import Recipe
from leafe.runs import Journal, RunFolder, read_journal, read_tasks, write_tasks


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` (from 0) of `of`: every `of`-th task, beginning with number `index`."""

    index: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Read `2/8`; UserError for anything that is no shard."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 0 <= int(match[1]) < int(match[2]):
            raise UserError(
                f"{text!r} is no shard: write I/N with I from 0 to N - 1, for example 0/4."
            )
        return Shard(int(match[1]), int(match[2]))

    def name(self, run: str) -> str:
        """The name of the run folder of this shard."""
        return f"{run}.shard-{self.index}-of-{self.of}"

    def to_json(self) -> dict[str, int]:
        return {"index": self.index, "of": self.of}


def shard_of(config: Mapping[str, Any]) -> Shard | None:
    """The shard that a run folder holds, by its settings; None: a whole run."""
    found = config.get("shard")
    return Shard(found["index"], found["of"]) if found else None


def merge(
    pieces: Sequence[Path], out: Path, recipe_of: Callable[[RunFolder], Recipe]
) -> tuple[Recipe, int]:
    """Merge the explorations of all shards into one run folder.

    Args:
        pieces: The run folders of all shards.
        out: The whole run's folder; a stage that it has finished is left as it is.
        recipe_of: Reads a run's recipe.

    Returns:
        The recipe, and how many stages were merged now.

    Raises:
        UserError: A shard is missing, given twice, unfinished or of another experiment, or a folder
            is no shard.
    """
    runs = _in_order(pieces)
    recipe = recipe_of(runs[0])
    stages = [
        stage.name for stage in plan(recipe) if stage.kind == "explore" and not stage.needs
    ]  # what an arm explores waits for its weights
    for name in stages:
        for run in runs:
            if run.done(name) is None:
                raise UserError(
                    f"{run.path} has not finished {name}: give `leafe explore` with its "
                    "shard again, then merge."
                )
    with RunFolder.open(out, _whole(runs[0].config), seeds=runs[0].seeds) as folder:
        due = [name for name in stages if folder.done(name) is None]
        for name in due:
            _merge_stage(name, runs, folder)
        for run in runs:
            for env, versions in run.manifest.get("envs", {}).items():
                folder.record_env(env, versions)
    return recipe, len(due)


def _in_order(pieces: Sequence[Path]) -> list[RunFolder]:
    """The shards by number; UserError where they are not all the shards of one experiment."""
    found: dict[int, RunFolder] = {}
    first: tuple[Shard, RunFolder] | None = None
    for path in pieces:
        run = RunFolder.read(path)
        shard = shard_of(run.config)
        if shard is None:
            raise UserError(
                f"{path} is a whole run and no shard: give the folders that `leafe explore "
                "RECIPE --shard I/N` made."
            )
        first = first or (shard, run)
        if shard.of != first[0].of:
            raise UserError(
                f"{path} is one of {shard.of} shards and {first[1].path} one of "
                f"{first[0].of}: merge the shards of one split."
            )
        here, there = _whole(run.config), _whole(first[1].config)
        different = next(
            (key for key in {**there, **here} if there.get(key) != here.get(key)), None
        )
        if different is not None:
            raise UserError(
                f"{path} is a shard of another experiment than {first[1].path}: they "
                f"differ in {different}."
            )
        if shard.index in found:
            raise UserError(
                f"Shard {shard.index}/{shard.of} was given twice "
                f"({found[shard.index].path}, {path}): give each once."
            )
        found[shard.index] = run
    if first is None:
        raise UserError(
            "There is nothing to merge: give the folders that `leafe explore RECIPE "
            "--shard I/N` made."
        )
    of = first[0].of
    missing = next((index for index in range(of) if index not in found), None)
    if missing is not None:
        raise UserError(
            f"Shard {missing}/{of} is missing (there are {len(found)} of {of}): run it, or "
            "bring its folder here."
        )
    return [found[index] for index in range(of)]


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "shard"}


def _merge_stage(name: str, runs: Sequence[RunFolder], folder: RunFolder) -> None:
    target = folder.stage(name)
    for old in target.glob("journal-*.jsonl"):
        old.unlink()  # of a merge that was cut off
    parts = [read_tasks(run.path / name) for run in runs]
    # shard i has every n-th task: taken in turn, they stand in the order of the whole
    write_tasks(
        target, (tasks[i] for i in range(max(map(len, parts))) for tasks in parts if i < len(tasks))
    )
    with Journal(target, fsync=False) as journal:  # `finish` syncs the files
        for run in runs:
            for episodes in read_journal(run.path / name):
                journal.append(episodes)
    folder.finish(name, _summed([run.done(name) or {} for run in runs]))


def _summed(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up counts and seconds (machine time now); of other values keep the first."""
    out: dict[str, Any] = {}
    for info in infos:
        for key, value in info.items():
            known = out.get(key)
            if isinstance(value, Mapping):
                out[key] = _summed([known or {}, value]) if key != "env" else dict(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                out[key] = (known or 0) + value
            else:
                out[key] = known or value
    return out
