"""A run's tables on the terminal, and its report and summary as files, at any time: what is not finished yet is left out."""

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
        # GRPO has no samples and no loss that says how far it is; Early Experience counts its own
        counts, result = info.get("counts") or {"rehearsal": {"samples": info.get("samples", {}).get("expert")}}, info["train"]
        loss, valid = ("" if result.get(name) is None else f"{result[name]:.3f}" for name in ("loss", "valid_loss"))
        parts = [str(counts.get(p, {}).get("samples") or "") for p in PARTS]
        early = " (early)" if result.get("stopped_early") else ""
        table.add_row(row, *parts, f"{result['steps']}{early}", str(result["kept_step"]), loss, valid, f"{info['seconds']:.1f}")
    console.print(table)
