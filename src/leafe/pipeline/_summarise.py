"""Summarise run folders at any time: what is not finished yet is left out.

Several runs are combined in one of two ways. Pooled (`summarise_runs`): one experiment with other
seeds or base policies, every run a draw of the same rows. Side by side (`compare_runs`): any
experiments, each with rows of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafe.core import Tree, UserError
from leafe.evaluate import Evaluated, Explored, Over, Summary, summarise
from leafe.pipeline._account import arm_rows, stage_rows, start_rows
from leafe.pipeline._plan import HELD_OUT, Stage, plan
from leafe.pipeline._result import result_of
from leafe.pipeline._rounds import rounds_rows
from leafe.recipes import Recipe, parse_stored_recipe
from leafe.runs import RunFolder, load_trees, read_tasks


def recipe_of(run: RunFolder) -> Recipe:
    """The recipe that a run was made with."""
    return parse_stored_recipe(
        {key: value for key, value in run.config.items() if key != "shard"},
        f"The recipe of {run.path}",
    )


def summarise_run(run: RunFolder) -> Summary:
    """All figures of a run's finished stages; rows of several seeds are one row."""
    return summarise_runs([run])


def summarise_runs(
    runs: Sequence[RunFolder], against: str | None = None, over: Over = "runs"
) -> Summary:
    """Pool runs of one experiment with other base policies or other seeds.

    Every seed of every run counts as a run of its rows, and intervals are over these runs and their
    tasks. Runs that share a base policy or a seed are taken for independent draws although they are
    alike in that, so that with few of either the intervals are rather too narrow.

    Args:
        runs: The runs.
        against: A row with which every other one is compared.
        over: Whether that comparison is to hold for other runs or for these alone.

    Raises:
        UserError: The runs are not of one experiment.
    """
    recipe = recipe_of(runs[0])
    _same_experiment(runs)
    explored, evaluated = _finished(runs)
    variants = {
        row: [(str(place.run.path), place.stage.variant) for place in places]
        for row, places in evaluated.items()
    }
    compare = [
        (a, b)
        for a, b in [*recipe.evaluate.compare, *_control_pairs(recipe)]
        if variants.get(a) == variants.get(b)
    ]
    summary = summarise(
        [Explored(row, _trees(places), _seconds(places)) for row, places in explored.items()],
        [_evaluated(row, places) for row, places in evaluated.items()],
        ks=recipe.evaluate.k,
        compare=compare,
        against=against,
        over=over,
        seeds=[seed for run in runs for seed in recipe_of(run).seeds],
        versions=runs[0].versions,
    )
    summary.details["validation"] = [
        row for run in runs for row in _validation_rows(run, len(runs) > 1)
    ]
    summary.details["rounds"] = rounds_rows(
        [(run, recipe_of(run)) for run in runs], summary.to_json()
    )
    several = len(runs) > 1
    _account(
        summary,
        [("", run) for run in runs],
        explored,
        [(run.path.name if several else "", run) for run in runs],
    )
    summary.details["arms"] = arm_rows(recipe)
    return summary


def compare_runs(
    runs: Sequence[RunFolder], against: str | None = None, over: Over = "tasks"
) -> Summary:
    """Put any runs side by side.

    Rows are named `RUN: ROW`. Every row has its difference to the row of that name in the first
    run, where both were sampled on the same tasks.

    Args:
        runs: The runs.
        against: A row of the first run, or `RUN: ROW`, with which all rows on the same tasks are
            compared.
        over: Whether that comparison is to hold for other runs or for these alone.

    Returns:
        The summary; its `details.compare` has which row belongs to which run, and in which settings
        the runs differ.
    """
    names = short_names([run.path for run in runs])
    explored: dict[str, list[_Place]] = {}
    evaluated: dict[str, list[_Place]] = {}
    mine: dict[str, dict[str, str]] = {}
    """By row's whole name: its run and its own name."""
    for name, run in zip(names, runs, strict=True):
        for found, into in zip(_finished([run]), (explored, evaluated), strict=True):
            for row, places in found.items():
                into[f"{name}: {row}"] = places
                mine[f"{name}: {row}"] = {"run": name, "row": row}
    marks = {row: [_mark(place) for place in places] for row, places in evaluated.items()}
    firsts = {mine[row]["row"]: row for row in evaluated if mine[row]["run"] == names[0]}
    twins = [
        (row, firsts[mine[row]["row"]])
        for row in evaluated
        if mine[row]["run"] != names[0] and mine[row]["row"] in firsts
    ]
    if against is not None and against not in evaluated:
        against = firsts.get(against, against)
    summary = summarise(
        [Explored(row, _trees(places), _seconds(places)) for row, places in explored.items()],
        [_evaluated(row, places, marks[row]) for row, places in evaluated.items()],
        ks=sorted({k for run in runs for k in recipe_of(run).evaluate.k}),
        compare=[(a, b) for a, b in twins if marks[a] == marks[b]],
        against=against,
        over=over,
        seeds=sorted({seed for run in runs for seed in recipe_of(run).seeds}),
        versions=runs[0].versions,
    )
    _account(
        summary,
        [(f"{name}: ", run) for name, run in zip(names, runs, strict=True)],
        explored,
        list(zip(names, runs, strict=True)),
    )
    summary.details["arms"] = [
        row | {"arm": f"{name}: {row['arm']}"}
        for name, run in zip(names, runs, strict=True)
        for row in arm_rows(recipe_of(run))
    ]
    summary.details["compare"] = {
        "runs": [
            {"name": name, "path": str(run.path), "about": recipe_of(run).about}
            for name, run in zip(names, runs, strict=True)
        ],
        "rows": mine,
        "other_tasks": [a for a, b in twins if marks[a] != marks[b]],
        "settings": _settings_that_differ([run.config for run in runs]),
    }
    return summary


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them all apart."""
    whole = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError("The same run is named twice: name every run once.")


def _finished(runs: Sequence[RunFolder]) -> tuple[dict[str, list[_Place]], dict[str, list[_Place]]]:
    """The finished explorations and evaluations, by row."""
    explored: dict[str, list[_Place]] = {}
    evaluated: dict[str, list[_Place]] = {}
    for run in runs:
        for stage in plan(recipe_of(run)):
            if stage.kind not in ("explore", "evaluate"):
                continue
            result = result_of(run, stage.name)
            if result is not None and result.has_row:
                rows = explored if stage.kind == "explore" else evaluated
                rows.setdefault(stage.row, []).append(_Place(run, stage, result.marker))
    return explored, evaluated


def _account(
    summary: Summary,
    named: Sequence[tuple[str, RunFolder]],
    explored: Mapping[str, Sequence[_Place]],
    runs: Sequence[tuple[str, RunFolder]],
) -> None:
    """Add what the report shows beside the rates. `named`: (prefix of its rows, run); `runs`:
    (name, run)."""
    stages = [(prefix, run, stage) for prefix, run in named for stage in plan(recipe_of(run))]
    summary.details["stages"] = stage_rows(
        stages, {row["arm"]: row["computed"] for row in summary.details["evaluate"]}
    )
    summary.details["tries"] = [
        {"row": prefix + stage.row, "policy": str(stage.policy)} | row
        for prefix, run, stage in stages
        for row in (run.done(stage.name) or {}).get("rows", ())
    ]
    summary.details["starts"] = start_rows(runs)
    aside = {
        row
        for row, places in explored.items()
        if places[0].stage.variant.control or places[0].stage.what == HELD_OUT
    }
    for row in summary.details["explore"]:
        row["role"] = "control" if row["strategy"] in aside else "strategy"


def _mark(place: _Place) -> str:
    """Rows with the same mark were sampled on the same tasks with the same seed."""
    tasks = json.dumps(
        [task.to_json() for task in read_tasks(place.run.path / place.stage.name)], sort_keys=True
    )
    return (
        f"{place.stage.variant.control} {place.stage.variant.seed} "
        f"{hashlib.sha256(tasks.encode()).hexdigest()[:16]}"
    )


def _settings_that_differ(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting that is not the same in all runs, with its value in each; None where a run
    has none."""
    flat = [_flat(config) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one if key not in ("name", "about")))
    return [
        {"key": key, "values": [one.get(key) for one in flat]}
        for key in keys
        if len({one.get(key) for one in flat}) > 1
    ]


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in values.items():
        out |= (
            _flat(value, f"{above}{key}.")
            if isinstance(value, Mapping)
            else {above + key: json.dumps(value, ensure_ascii=False)}
        )
    return out


@dataclass(frozen=True, slots=True)
class _Place:
    """A finished stage."""

    run: RunFolder
    stage: Stage
    done: dict[str, Any]


def _evaluated(row: str, places: Sequence[_Place], labels: Sequence[str] = ()) -> Evaluated:
    first = places[0]
    return Evaluated(
        row,
        _trees(places),
        first.done["temperature"],
        _seconds(places),
        _role(first.stage),
        probes=[place.done["probe"] for place in places if "probe" in place.done],
        labels=labels
        or [
            f"{place.run.path}: {place.stage.variant.control} {place.stage.variant.seed}"
            for place in places
        ],
    )


def _same_experiment(runs: Sequence[RunFolder]) -> None:
    """UserError where the runs differ in more than the base policy, the seeds, the name and
    settings of the report."""

    def compared(run: RunFolder) -> dict[str, Any]:
        config = {k: v for k, v in run.config.items() if k not in ("name", "about", "seeds")}
        config["policy"] = {k: v for k, v in config["policy"].items() if k != "model"}
        config["evaluate"] = {
            k: v for k, v in config["evaluate"].items() if k not in ("k", "compare", "probe")
        }
        return config

    first = compared(runs[0])
    for run in runs[1:]:
        other = compared(run)
        different = next(
            (key for key in {**first, **other} if first.get(key) != other.get(key)), None
        )
        if different is not None:
            raise UserError(
                f"{run.path} is another experiment than {runs[0].path}: they differ in "
                f"{different}. One table pools runs that differ in policy.model "
                "and seeds; put others side by side with --compare."
            )


def _validation_rows(run: RunFolder, several: bool) -> list[dict[str, Any]]:
    """The attempts that were validated, and which was chosen: one row each."""
    out = []
    for stage in plan(recipe_of(run)):
        done = run.done(stage.name) if stage.kind == "choose" else None
        for row in (done or {}).get("candidates", []):
            where = {"run": str(run.path)} if several else {}
            out.append(
                {"arm": stage.row, "seed": stage.variant.seed, "chosen": False} | where | row
            )
    return out


def _trees(places: Sequence[_Place]) -> list[list[Tree]]:
    """The trees of one row, run by run and seed by seed."""
    return [list(load_trees(place.run.path / place.stage.name).values()) for place in places]


def _seconds(places: Sequence[_Place]) -> float:
    return sum(float(place.done.get("seconds", 0.0)) for place in places)


def _role(stage: Stage) -> Any:
    return "control" if stage.variant.control else stage.role


def _control_pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """Every control's arms against its own base."""
    return [
        (f"{name}: {arm}", f"{name}: base")
        for name, control in recipe.controls.items()
        for arm in control.arms
    ]
