"""Run a recipe to a finished run folder: stages in order, resumable at any point.

With `jobs = 1` the stages run in this process; else in worker processes that are started once and
given one stage after another, each with one thread for its arithmetic. The run's lock and its
markers belong to this process alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leafe.core import ForeignFailure, UserError, ungrouped
from leafe.core.processes import with_default_signals
from leafe.pipeline._plan import KINDS, Stage, StageKind, kind_of, plan
from leafe.pipeline._preflight import check_ready
from leafe.pipeline._result import StageResult
from leafe.pipeline._shards import Shard
from leafe.policies.server import stop_all
from leafe.recipes import Recipe, parse_stored_recipe
from leafe.runs import RunFolder


class StageCrashed(RuntimeError):
    """A bug in leafe ended a stage in a worker process; the message holds its traceback."""


@dataclass(slots=True)
class Watcher:
    """Callbacks for what happens during a run; all calls come from one thread."""

    begins: Callable[[Stage], None] = lambda stage: None
    progress: Callable[[Stage, dict[str, Any]], None] = lambda stage, event: None
    ends: Callable[[Stage, StageResult], None] = lambda stage, result: None
    kind_done: Callable[[StageKind], None] = lambda kind: None
    """All stages of a kind are finished."""


def config_of(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same experiment.

    Args:
        recipe: The experiment.

    Returns:
        The recipe as plain values, without how it is spread over machines: that may change between
        two starts.
    """
    spread: Any = dict.fromkeys(("jobs", "engine", "ray", "train"), True)
    spread |= {
        "explore": {"concurrency"},
        "evaluate": {"concurrency"},
        "env": {"workers", "timeout"},
    }
    wire = {
        "base_url",
        "api_key_env",
        "timeout_s",
        "deadline_s",
        "retries",
        "backoff_s",
        "concurrency",
    }
    spread["policy"] = {"launch": True, "launch_timeout": True, "options": wire}
    return recipe.model_dump(mode="json", exclude=spread, exclude_none=True)


def _today(before: dict[str, Any]) -> dict[str, Any]:
    """An earlier run's settings under today's names, with today's defaults; unchanged where they
    are no valid recipe any more."""
    rest = {"shard": before["shard"]} if "shard" in before else {}
    try:
        return (
            config_of(
                parse_stored_recipe(
                    {key: value for key, value in before.items() if key != "shard"},
                    "The recipe of the run",
                )
            )
            | rest
        )
    except UserError:
        return before


_GROWING = ("strategies", "arms", "controls", "evaluate.extras", "evaluate.tries")
"""What a run may get more of: another arm, another row. What is there is not done again."""
_FREE = ("about", "evaluate.k", "evaluate.compare")
"""What only the report says."""


def run_recipe(
    recipe: Recipe,
    path: Path,
    *,
    fresh: bool = False,
    only: StageKind | None = None,
    watcher: Watcher | None = None,
    shard: Shard | None = None,
) -> RunFolder:
    """Run the stages of a recipe that are not finished yet.

    Args:
        recipe: The experiment.
        path: The run folder; made where it is not there.
        fresh: Delete an earlier run in it first.
        only: Run the stages of one kind (`explore`: also what baselines collect; `evaluate`: also
            validation and attempts at test time) that wait for no other kind. Arms and rounds that
            build on others are reached by running explore, distill and evaluate again, as long as
            `waiting_stages` names any.
        watcher: Is told what happens.
        shard: Explore this part of the tasks alone.

    Returns:
        The run, open for reading.

    Raises:
        UserError: The folder holds another experiment; something is missing that the stages need
            (all of it is named before the first one begins); or, with `only`, a stage needs one of
            another kind that has not run.
        ForeignFailure: Something outside failed for good; what was finished is kept.
    """
    watcher = watcher or Watcher()
    config = config_of(recipe) | ({"shard": shard.to_json()} if shard else {})
    seeds = {str(i): s for i, s in enumerate(recipe.seeds)}
    with RunFolder.open(
        path, config, seeds=seeds, fresh=fresh, growing=_GROWING, free=_FREE, upgrade=_today
    ) as folder:
        stages = plan(recipe) if only is None else _reachable(folder, recipe, only)
        state = _State(folder, recipe, stages, watcher)
        state.skip_finished()
        check_ready(recipe, folder, stages)
        try:
            if recipe.jobs == 1:
                _run_here(state)
            else:
                asyncio.run(_run_workers(state, recipe.jobs))
        finally:
            stop_all()
    return RunFolder.read(path)


def waiting_stages(run: RunFolder, recipe: Recipe, only: StageKind) -> list[str]:
    """The stages that `run_recipe(only=...)` left out: they need stages of another kind first."""
    return [
        stage.name
        for stage in plan(recipe)
        if stage.kind in _kinds(run, only) and run.done(stage.name) is None
    ]


_WITH: dict[StageKind, tuple[StageKind, ...]] = {
    "explore": ("explore", "collect"),
    "evaluate": ("validate", "choose", "evaluate", "tries"),
}


def _kinds(run: RunFolder, only: StageKind) -> tuple[StageKind, ...]:
    """The kinds that a command of this name runs. A shard only explores: baselines collect over
    all tasks."""
    return (only,) if "shard" in run.config else _WITH.get(only, (only,))


def _reachable(folder: RunFolder, recipe: Recipe, only: StageKind) -> list[Stage]:
    """The stages of this kind whose needs are finished, or are among these stages; UserError where
    there are only others."""
    every = [s for s in plan(recipe) if s.kind in _kinds(folder, only)]
    reached: dict[str, Stage] = {}
    due = 0
    lacking: tuple[str, str] | None = None
    for stage in every:
        missing = next(
            (need for need in stage.needs if need not in reached and folder.done(need) is None),
            None,
        )
        if missing is None:
            reached[stage.name] = stage
            due += folder.done(stage.name) is None
        elif folder.done(stage.name) is None:
            lacking = lacking or (stage.name, missing)
    if lacking and not due:
        kind = kind_of(lacking[1])
        command = next((c for c, kinds in _WITH.items() if kind in kinds), kind)
        raise UserError(
            f"{lacking[0]} needs {lacking[1]}, which is not finished in {folder.path}: run "
            f"`leafe {command}` with this recipe first."
        )
    return list(reached.values())


@dataclass(slots=True)
class _State:
    """Which stages are taken and finished; writes the markers."""

    folder: RunFolder
    recipe: Recipe
    stages: list[Stage]
    watcher: Watcher
    finished: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    announced: set[str] = field(default_factory=set)

    def skip_finished(self) -> None:
        for stage in self.stages:
            if self.folder.done(stage.name) is not None:
                self.finished.add(stage.name)
                self.taken.add(stage.name)
        self.announce_kinds()

    def take(self) -> Stage | None:
        """The next stage all of whose needs are finished; None where there is none now."""
        for stage in self.stages:
            if stage.name not in self.taken and all(
                n in self.finished or self.folder.done(n) is not None for n in stage.needs
            ):
                self.taken.add(stage.name)
                self.folder.stage(stage.name)
                self.watcher.begins(stage)
                return stage
        return None

    @property
    def all_taken(self) -> bool:
        return len(self.taken) == len(self.stages)

    def finish(self, stage: Stage, result: StageResult) -> None:
        info = result.marker
        self.folder.finish(stage.name, info)
        if "env" in info:
            self.folder.record_env(stage.variant.control or "env", info["env"])
        self.folder.metric(
            stage=stage.name, **{k: v for k, v in info.items() if isinstance(v, int | float | str)}
        )
        self.finished.add(stage.name)
        self.watcher.ends(stage, result)
        self.announce_kinds()

    def announce_kinds(self) -> None:
        for kind in KINDS:
            names = [s.name for s in self.stages if s.kind == kind]
            if names and kind not in self.announced and all(n in self.finished for n in names):
                self.announced.add(kind)
                self.watcher.kind_done(kind)


def _run_here(state: _State) -> None:
    from leafe.pipeline._stages import run_stage

    while (stage := state.take()) is not None:
        state.finish(
            stage,
            run_stage(
                state.recipe, state.folder.path, stage, partial(state.watcher.progress, stage)
            ),
        )


async def _run_workers(state: _State, jobs: int) -> None:
    if state.all_taken:
        return
    changed = asyncio.Condition()

    async def serve(number: int) -> None:
        worker: asyncio.subprocess.Process | None = None
        try:
            while True:
                async with changed:
                    while (stage := state.take()) is None:
                        if state.all_taken:
                            return
                        await changed.wait()
                    changed.notify_all()
                worker = worker or await _start(state.folder.path, number)
                state.finish(stage, await _ask(worker, state, stage))
                async with changed:
                    changed.notify_all()
        finally:
            if worker is not None and worker.returncode is None:
                # all that counts is journalled; the stage goes on from there next time
                worker.kill()
                await worker.wait()

    with ungrouped():
        async with asyncio.TaskGroup() as group:
            for number in range(min(jobs, len(state.stages))):
                group.create_task(serve(number))


async def _start(folder: Path, number: int) -> asyncio.subprocess.Process:
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / f"worker-{number}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *with_default_signals([sys.executable, "-m", "leafe.pipeline"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=1 << 26,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            # Ctrl-C is this process's to handle; it ends its workers itself
            start_new_session=True,
        )


async def _ask(worker: asyncio.subprocess.Process, state: _State, stage: Stage) -> StageResult:
    assert worker.stdin is not None
    assert worker.stdout is not None
    command = {
        "recipe": state.recipe.model_dump(mode="json"),
        "folder": str(state.folder.path),
        "stage": stage.name,
    }
    try:
        worker.stdin.write(json.dumps(command).encode() + b"\n")
        await worker.stdin.drain()
        async for line in worker.stdout:
            event = json.loads(line)
            kind = event.pop("kind")
            if kind == "progress":
                state.watcher.progress(stage, event)
            elif kind == "finished":
                return StageResult.parse(event["info"])
            elif event["error"] == "user":
                raise UserError(event["message"])
            elif event["error"] == "foreign":
                raise ForeignFailure(event["message"])
            else:
                raise StageCrashed(
                    f"{stage.name}: {event['message']}\n{event.get('traceback', '')}"
                )
    except (BrokenPipeError, ConnectionResetError):
        pass
    await worker.wait()
    raise ForeignFailure(
        f"The process that ran {stage.name} ended with code {worker.returncode} (killed, "
        "or out of memory?); "
        f"its log is {state.folder.path / 'logs'}. What it journalled is kept: run again to go on."
    )
