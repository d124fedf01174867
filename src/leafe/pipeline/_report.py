"""From a run folder to its summary, its tables and its report, at any time: what is not finished yet is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leafe.core import Tree, UserError
from leafe.distill import PARTS
from leafe.evaluate import Evaluated, Explored, Over, Summary, summarise
from leafe.pipeline._plan import Stage, StageKind, plan
from leafe.pipeline._rounds import rounds_rows
from leafe.recipes import Recipe, parse_recipe
from leafe.report import against_csv, against_markdown, against_table, print_tables, write_report
from leafe.runs import RunFolder, atomic_write, load_trees


def recipe_of(run: RunFolder) -> Recipe:
    """The recipe that a run was made with."""
    return parse_recipe({key: value for key, value in run.config.items() if key != "shard"}, f"The recipe of {run.path}")


def summarise_run(run: RunFolder) -> Summary:
    """All figures of the finished stages; rows of several seeds are one row."""
    return summarise_runs([run])


def summarise_runs(runs: Sequence[RunFolder], against: str | None = None, over: Over = "runs") -> Summary:
    """The same of several runs of one experiment with other base policies or other seeds: every seed of every run counts as a run of its rows.

    Intervals draw these runs first and tasks within them. Runs that share a base policy or a seed are alike in that; the bootstrap takes them for
    independent draws, so that with few of either the intervals are rather too narrow. UserError where the runs are not one experiment.
    `against`: a row with which every other one is compared; `over`: whether that is to hold for other runs or for these alone.
    """
    recipe = recipe_of(runs[0])
    _same_experiment(runs)
    explored: dict[str, list[_Place]] = {}
    evaluated: dict[str, list[_Place]] = {}
    for run in runs:
        for stage in plan(recipe_of(run)):
            done = run.done(stage.name)
            if done is not None and "empty" not in done and "stopped" not in done and stage.kind in ("explore", "evaluate"):
                (explored if stage.kind == "explore" else evaluated).setdefault(stage.row, []).append(_Place(run, stage, done))
    legs = {row: [(str(place.run.path), place.stage.leg) for place in places] for row, places in evaluated.items()}
    compare = [(a, b) for a, b in [*recipe.evaluate.compare, *_control_pairs(recipe)] if legs.get(a) == legs.get(b)]
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
    summary.details["validation"] = [row for run in runs for row in _validation_rows(run, len(runs) > 1)]
    summary.details["rounds"] = rounds_rows([(run, recipe_of(run)) for run in runs], summary.to_json())
    return summary


@dataclass(frozen=True, slots=True)
class _Place:
    """A finished stage."""

    run: RunFolder
    stage: Stage
    done: dict[str, Any]


def _evaluated(row: str, places: Sequence[_Place]) -> Evaluated:
    first = places[0]
    return Evaluated(
        row,
        _trees(places),
        first.done["temperature"],
        _seconds(places),
        _role(first.stage),
        probes=[place.done["probe"] for place in places if "probe" in place.done],
        labels=[f"{place.run.path}: {place.stage.leg.control} {place.stage.leg.seed}" for place in places],
    )


def _same_experiment(runs: Sequence[RunFolder]) -> None:
    """UserError where the runs differ in more than the base policy, the seeds, the name and what only the report says."""

    def compared(run: RunFolder) -> dict[str, Any]:
        config = {k: v for k, v in run.config.items() if k not in ("name", "about", "seeds")}
        config["policy"] = {k: v for k, v in config["policy"].items() if k != "model"}
        config["evaluate"] = {k: v for k, v in config["evaluate"].items() if k not in ("k", "compare", "probe")}
        return config

    first = compared(runs[0])
    for run in runs[1:]:
        other = compared(run)
        different = next((key for key in {**first, **other} if first.get(key) != other.get(key)), None)
        if different is not None:
            raise UserError(
                f"{run.path} is another experiment than {runs[0].path}: they differ in {different}. One table pools runs that differ in policy.model and seeds."
            )


def _validation_rows(run: RunFolder, several: bool) -> list[dict[str, Any]]:
    """What was sampled on validation tasks, and what was chosen by it: one row an attempt."""
    out = []
    for stage in plan(recipe_of(run)):
        done = run.done(stage.name) if stage.kind == "choose" else None
        for row in (done or {}).get("candidates", []):
            where = {"run": str(run.path)} if several else {}
            out.append({"arm": stage.row, "seed": stage.leg.seed, "chosen": False} | where | row)
    return out


def report_run(path: Path, console: Console, *, tables: bool = False) -> None:
    """Write `summary.json` and `report.html` into the run folder; with `tables` print them too. UserError where nothing is finished."""
    report_runs([path], path, console, tables=tables)


def report_runs(
    paths: Sequence[Path],
    out: Path | None,
    console: Console,
    *,
    tables: bool = False,
    against: str | None = None,
    over: Over = "runs",
    markdown: Path | None = None,
    table_csv: Path | None = None,
) -> None:
    """The same for several runs of one experiment (`summarise_runs`), as one summary and one report in the folder `out`; None: they are only printed.

    `against`: a row with which every other one is compared, in the report and, where they are named, in the files `markdown` and `table_csv`.
    """
    runs = [RunFolder.read(path) for path in dict.fromkeys(paths)]
    recipe = recipe_of(runs[0])
    summary = summarise_runs(runs, against, over).to_json()
    if not summary["explore"] and not summary["evaluate"]:
        raise UserError(f"No stage of {paths[0]} is finished yet: run `leafe run` to go on with it.")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "summary.json", json.dumps(summary, indent=1) + "\n")
        # the base's own tree, or where it explores in rounds alone that of the first
        first = next((s for s in plan(recipe) if s.kind == "explore" and s.policy == "base" and s.what.endswith("tree") and runs[0].done(s.name)), None)
        write_report(
            summary,
            out / "report.html",
            title=recipe.name,
            question=recipe.about,
            trees=list(load_trees(runs[0].path / first.name).values()) if first else (),
            datasets={name: counts for run in runs for name, counts in _datasets(run, _named(run, runs)).items()},
            config=(runs[0].path / "config.toml").read_text(encoding="utf-8"),
            notes=[note for run in runs for note in _notes(run, _named(run, runs))],
        )
    if tables:
        print_tables(summary, console, ("explore",))
        for run in runs:
            _print_training(run, console, _named(run, runs))
        _print_validation(summary, console)
        print_tables(summary, console, ("evaluate", "rounds", "differences"))
        if against is not None:
            console.print(against_table(summary))
    for file, text in ((markdown, against_markdown), (table_csv, against_csv)):
        if file is not None:
            atomic_write(file, text(summary))


def _named(run: RunFolder, runs: Sequence[RunFolder]) -> str:
    """What stands before a run's own rows where there are several."""
    return f"{run.path.name}: " if len(runs) > 1 else ""


def print_kind(path: Path, kind: StageKind, console: Console) -> None:
    """The table of one kind of stage."""
    run = RunFolder.read(path)
    if kind == "distill":
        _print_training(run, console)
    elif kind == "choose":
        _print_validation(summarise_run(run).to_json(), console)
    elif kind != "validate":
        print_tables(summarise_run(run).to_json(), console, ("explore",) if kind == "explore" else ("evaluate", "rounds", "differences"))


def _trees(places: Sequence[_Place]) -> list[list[Tree]]:
    """The trees of one row, run by run and seed by seed."""
    return [list(load_trees(place.run.path / place.stage.name).values()) for place in places]


def _seconds(places: Sequence[_Place]) -> float:
    return sum(float(place.done.get("seconds", 0.0)) for place in places)


def _role(stage: Stage) -> Any:
    return "control" if stage.leg.control else stage.role


def _control_pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """Every control's arms against its own base."""
    return [(f"{name}: {arm}", f"{name}: base") for name, control in recipe.controls.items() for arm in control.arms]


def _distilled(run: RunFolder, name: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(row, marker) of every training; `name` stands before each row."""
    out = []
    for stage in plan(recipe_of(run)):
        info = run.done(stage.name) if stage.kind == "distill" else None
        if info is not None:
            out.append((name + stage.row + _seed(stage), info))
    return out


def _seed(stage: Stage) -> str:
    return f" (seed {stage.leg.seed})" if stage.leg.many_seeds else ""


def _datasets(run: RunFolder, name: str = "") -> dict[str, dict[str, Any]]:
    """By arm: how many samples, of how many tasks, each part holds."""
    out: dict[str, dict[str, Any]] = {}
    for row, info in _distilled(run, name):
        parts = {p: c for p, c in info.get("counts", {}).items() if p in PARTS and c["samples"]}
        out[row] = {f"{part}: {what}": number for part, c in parts.items() for what, number in c.items()}
    return out


def _notes(run: RunFolder, name: str = "") -> list[str]:
    notes = []
    recipe = recipe_of(run)
    if recipe.history != "full":
        notes.append(f"Prompts held a window of the history ({recipe.history}): branches share no prefix, and prompts were computed anew in every turn.")
    for row, info in _distilled(run, name):
        notes += [f"{row}: {info[why]}" for why in ("empty", "stopped") if why in info] or [f"{row}: {note}" for note in info["train"]["notes"]]
        notes += [f"{row}: {number} left out: {reason}" for reason, number in info.get("counts", {}).get("skipped", {}).items()]
    for stage in plan(recipe):
        done = run.done(stage.name) or {}
        row = name + stage.row
        if stage.kind == "choose" and "chosen" in done:
            notes.append(f"{row}{_seed(stage)}: {_choice(done)}")
        if done.get("given_up"):
            notes.append(f"{row}: {done['given_up']} tasks were given up, because their episodes failed again and again while those of others did not.")
        if done.get("cut_short"):
            notes.append(f"{row}: the run's limit {done['cut_short']} ended the exploration before all tasks had their share.")
        for what, number in {**done.get("policy_failures", {}), "worlds that failed": done.get("world_failures", 0)}.items():
            if number:
                notes.append(f"{stage.kind} {row}: {what}: {number}")
    return notes


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _choice(done: Mapping[str, Any]) -> str:
    """What validation chose, and from what, in words."""
    k = str(done["k"])
    sampled = [row for row in done["candidates"] if "pass_at" in row]
    others = ", ".join(f"{row['what']} {_percent(row['pass_at'][k]['value'])}" for row in sampled if not row.get("chosen")) or "no other"
    best = next(row for row in sampled if row.get("chosen"))
    words = f"by Pass@{k} on {best['tasks']} validation tasks it is {done['what']}: {_percent(best['pass_at'][k]['value'])} % against {others}"
    return words + (f"; the weights of {', '.join(done['deleted'])} were deleted" if done["deleted"] else "")


def _print_validation(summary: Mapping[str, Any], console: Console) -> None:
    """What rounds and sweeps came to on validation tasks; nothing where there were none."""
    rows = [row for row in summary["details"]["validation"] if "pass_at" in row]
    if not rows:
        return
    table = Table(title="Validation: which round or setting is the arm (Pass@k in %, 95 % interval)", title_justify="left")
    table.add_column("attempt")
    for k in rows[0]["pass_at"]:
        table.add_column(f"Pass@{k}", justify="right")
    table.add_column("chosen")
    for row in rows:
        cells = [_percent(p["value"]) + (f" [{_percent(p['ci95'][0])}, {_percent(p['ci95'][1])}]" if p["ci95"] else "") for p in row["pass_at"].values()]
        seed = f" (seed {row['seed']})" if len({r["seed"] for r in rows}) > 1 else ""
        table.add_row(row["what"] + seed, *cells, "yes" if row["chosen"] else "")
    console.print(table)


def _print_training(run: RunFolder, console: Console, name: str = "") -> None:
    table = Table(title="Stage 2: what each policy was trained on", title_justify="left")
    columns = ("arm", *PARTS, "steps", "kept", "loss", "validation", "seconds")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row, info in _distilled(run, name):
        if "train" not in info:
            table.add_row(row, *["0"] * 2, *[""] * 7)
            continue
        counts, result = info["counts"], info["train"]
        valid = "" if result["valid_loss"] is None else f"{result['valid_loss']:.3f}"
        parts = [str(counts[p]["samples"] or "") for p in PARTS]
        early = " (early)" if result["stopped_early"] else ""
        table.add_row(row, *parts, f"{result['steps']}{early}", str(result["kept_step"]), f"{result['loss']:.3f}", valid, f"{info['seconds']:.1f}")
    console.print(table)
