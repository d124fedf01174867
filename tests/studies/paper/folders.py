"""Run folders as a real run leaves them, with made-up outcomes: every stage of the plan has tasks,
a journal and a marker, and no policy ever acted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import Episode, Kind, Spent, Stop, Task, Turn, turn_id
from leafe.pipeline import Stage, plan
from leafe.pipeline._run import config_of
from leafe.recipes import Recipe, parse_recipe
from leafe.runs import Journal, RunFolder, write_tasks

N = 128
RECIPE: dict[str, Any] = {
    "name": "made",
    "env": {"name": "gates", "options": {"setting": "hard"}},
    "tasks": {"train": 12, "test": 12},
    "policy": {"model": "embedded"},
    "strategies": ["independent", "refine", "tree"],
    "explore": {"limits": {"policy_calls": 8}},
    "arms": {
        "rft": {"preset": "rft", "explored": "independent"},
        "rehearsal": {"preset": "rehearsal"},
        "leafe": {"preset": "paper"},
        "leafe+": {"preset": "leafe+"},
    },
    "evaluate": {"samples": N, "k": [1, 128]},
}

Outcomes = Mapping[str, Sequence[int | None]]
"""By stage: of evaluations the successes of every task; of explorations the call at which a task
was solved, or None."""


def recipe(**changes: Any) -> Recipe:
    """RECIPE with other values, dotted keys as `tasks__test`."""
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in RECIPE.items()}
    for key, value in changes.items():
        *above, last = key.split("__")
        place = data
        for part in above:
            place[part] = dict(place.get(part, {}))
            place = place[part]
        place[last] = value
    return parse_recipe(data)


def make(
    path: Path,
    made: Recipe,
    outcomes: Outcomes,
    *,
    unfinished: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    salt: str = "",
    markers: Mapping[str, Any] | None = None,
) -> Path:
    """The folder. `outcomes` by stage name (`evaluate/leafe`); stages that it lacks are not begun.
    `unfinished`: stages with so many tasks in the journal
    and no marker. `env`: versions that the markers name. `salt`: other salts are other tasks.
    `markers`: what else stages say when they are done."""
    with RunFolder.open(
        path, config_of(made), seeds={str(i): s for i, s in enumerate(made.seeds)}
    ) as run:
        for stage in plan(made):
            marker = dict((markers or {}).get(stage.name, {}))
            if stage.kind == "distill":
                _folder(run, stage)
                run.finish(stage.name, {"seconds": 30.0, "train": {"tokens": 1000}} | marker)
            elif stage.name in outcomes:
                _played(
                    run,
                    stage,
                    outcomes[stage.name],
                    made.evaluate.samples,
                    (unfinished or {}).get(stage.name),
                    salt,
                )
                if stage.name not in (unfinished or {}):
                    spent = (
                        {
                            "spent": Spent(
                                policy_calls=90, env_steps=80, generated_tokens=300
                            ).to_json()
                        }
                        if stage.kind == "explore"
                        else {}
                    )
                    sampled = (
                        {"temperature": stage.temperature or 1.0, "samples": made.evaluate.samples}
                        if stage.kind == "evaluate"
                        else {}
                    )
                    run.finish(
                        stage.name,
                        {"seconds": 12.0, "env": dict(env or {})} | spent | sampled | marker,
                    )
            elif marker:
                _folder(run, stage)
                run.finish(stage.name, {"seconds": 0.0} | marker)
    return path


def _folder(run: RunFolder, stage: Stage) -> Path:
    folder = run.stage(stage.name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _played(
    run: RunFolder,
    stage: Stage,
    outcomes: Sequence[int | None],
    samples: int,
    kept: int | None,
    salt: str,
) -> None:
    folder = _folder(run, stage)
    split = "train" if stage.kind == "explore" else "test"
    tasks = [
        Task(f"{stage.variant.prefix}{split}{salt}-{i}", "gates", split, f"task {i}")
        for i in range(len(outcomes))
    ]
    write_tasks(folder, tasks)
    with Journal(folder, fsync=False) as journal:
        for task, outcome in list(zip(tasks, outcomes, strict=True))[:kept]:
            journal.append(
                _explored(task.id, outcome)
                if stage.kind == "explore"
                else _sampled(task.id, outcome or 0, samples)
            )


def _sampled(task: str, c: int, n: int) -> list[Episode]:
    """c successes and n - c failures, counted."""
    shares = [(count, won) for count, won in ((c, True), (n - c, False)) if count]
    return [_episode(task, index, count, [won]) for index, (count, won) in enumerate(shares)]


def _explored(task: str, solved_at: int | None) -> list[Episode]:
    """An episode of one call each, of which number `solved_at`, from 1, succeeds; 8 failures where
    none does."""
    return [_episode(task, index, 1, [solved_at == index + 1]) for index in range(solved_at or 8)]


def _episode(task: str, index: int, count: int, wins: list[bool]) -> Episode:
    turns = tuple(
        Turn(
            id=turn_id(task, index, step),
            parent=None,
            task_id=task,
            step=step,
            kind=Kind.act,
            action_text="go",
            action="go",
            observation="seen",
            done=True,
            success=won,
            count=count,
            tokens=(1, 2, 3),
            policy="made",
            env_steps=1,
        )
        for step, won in enumerate(wins)
    )
    return Episode(
        task_id=task,
        index=index,
        stop=Stop.success if wins[-1] else Stop.failure,
        turns=turns,
        first_observation="start",
        count=count,
    )
