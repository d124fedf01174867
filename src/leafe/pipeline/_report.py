"""A run's tables on the terminal, and its report and summary as files.

Reporting works at any time: what is not finished yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from leafe.core import UserError
from leafe.distill import PARTS
from leafe.evaluate import Over
from leafe.pipeline._plan import Stage, StageKind, plan
from leafe.pipeline._policy_ref import BASE
from leafe.pipeline._progress import went_wrong
from leafe.pipeline._result import StageResult, result_of
from leafe.pipeline._summarise import (
    compare_runs,
    recipe_of,
    short_names,
    summarise_run,
    summarise_runs,
)
from leafe.report import (
    Table,
    against_csv,
    against_markdown,
    against_table,
    print_tables,
    side_tables,
    tries_table,
    write_report,
)
from leafe.runs import RunFolder, StoredTrees, atomic_write


def report_run(path: Path, console: Console, *, tables: bool = False) -> None:
    """Write `summary.json` and `report.html` into the run folder.

    Args:
        path: The run folder.
        console: Where tables are printed.
        tables: Print the tables too.

    Raises:
        UserError: No stage is finished yet.
    """
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
    compare: bool = False,
) -> None:
    """Report several runs as one.

    Args:
        paths: The run folders.
        out: Where the summary and the report are written; None: nowhere.
        console: Where tables are printed.
        tables: Print the tables too.
        against: A row with which every other one is compared.
        over: Whether that comparison holds for other runs or for these alone.
        markdown: A file for that comparison, as a table.
        table_csv: A file for that comparison, for programs.
        compare: Put the runs side by side (`compare_runs`); else they are pooled as runs of one
            experiment (`summarise_runs`).

    Raises:
        UserError: No stage is finished yet, or the runs do not fit together.
    """
    runs = [RunFolder.read(path) for path in dict.fromkeys(paths)]
    if compare and len(runs) < 2:
        raise UserError("--compare puts runs side by side: name two run folders or more.")
    summary = (
        compare_runs(runs, against, "tasks") if compare else summarise_runs(runs, against, over)
    ).to_json()
    if not summary["explore"] and not summary["evaluate"]:
        raise UserError(
            f"No stage of {paths[0]} is finished yet: run `leafe run` to go on with it."
        )
    named = (
        dict(
            zip(
                runs, (f"{name}: " for name in short_names([run.path for run in runs])), strict=True
            )
        )
        if len(runs) > 1
        else {runs[0]: ""}
    )
    if out is not None:
        _write(summary, runs, named, out, compare)
    if tables:
        _print(summary, named, console, compare, against)
    for file, text in ((markdown, against_markdown), (table_csv, against_csv)):
        if file is not None:
            atomic_write(file, text(summary))


def _write(
    summary: Mapping[str, Any],
    runs: Sequence[RunFolder],
    named: Mapping[RunFolder, str],
    out: Path,
    compare: bool,
) -> None:
    recipe = recipe_of(runs[0])
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    # the base's own tree, or where it explores in rounds alone that of the first; of runs side by
    # side none, each has a report of its own
    first = next(
        (
            s
            for s in plan(recipe)
            if s.kind == "explore"
            and s.policy == BASE
            and s.strategy == "tree"
            and runs[0].done(s.name)
        ),
        None,
    )
    settings = [
        (run, (run.path / "config.toml").read_text(encoding="utf-8"))
        for run in (runs if compare else runs[:1])
    ]
    write_report(
        summary,
        out / "report.html",
        title=" | ".join(name.removesuffix(": ") for name in named.values())
        if compare
        else recipe.name,
        question="" if compare else recipe.about,
        trees=StoredTrees(runs[0].path / first.name).values() if first and not compare else (),
        datasets={
            name: counts
            for run, prefix in named.items()
            for name, counts in _datasets(run, prefix).items()
        },
        config="\n".join(
            f"# {named[run].removesuffix(': ')}\n{text}" if compare else text
            for run, text in settings
        ),
        notes=[note for run, prefix in named.items() for note in _notes(run, prefix)]
        + _truncated(summary),
        command="" if compare else f"leafe run {recipe.name}.toml",
    )


def _print(
    summary: Mapping[str, Any],
    named: Mapping[RunFolder, str],
    console: Console,
    compare: bool,
    against: str | None,
) -> None:
    if compare:
        for table in side_tables(summary):
            console.print(table)
            console.print()
        other = summary["details"]["compare"]["other_tasks"]
        if other:
            console.print(
                (
                    "Sampled on other tasks than in the first run, so that no difference is "
                    f"taken: {', '.join(other)}."
                ),
                markup=False,
                highlight=False,
            )
    else:
        print_tables(summary, console, ("explore",))
        for run, prefix in named.items():
            _print_training(run, console, prefix)
        _print_validation(summary, console)
        print_tables(summary, console, ("evaluate", "rounds", "differences"))
        if summary["details"]["tries"]:
            console.print(tries_table(summary))
    if against is not None:
        console.print(against_table(summary))


def print_kind(path: Path, kind: StageKind, console: Console) -> None:
    """Print the table of one kind of stage; nothing where a kind has none."""
    run = RunFolder.read(path)
    if kind == "distill":
        _print_training(run, console)
    elif kind == "choose":
        _print_validation(summarise_run(run).to_json(), console)
    elif kind in ("explore", "evaluate"):
        print_tables(
            summarise_run(run).to_json(),
            console,
            ("explore",) if kind == "explore" else ("evaluate", "rounds", "differences"),
        )
    elif kind == "tries":
        console.print(tries_table(summarise_run(run).to_json()))


def _distilled(run: RunFolder, name: str = "") -> list[tuple[str, StageResult]]:
    """(row, result) of every training; `name` stands before each row."""
    return [
        (name + stage.row + _seed(stage), result)
        for stage in plan(recipe_of(run))
        if stage.kind == "distill" and (result := result_of(run, stage.name)) is not None
    ]


def _seed(stage: Stage) -> str:
    return f" (seed {stage.variant.seed})" if stage.variant.many_seeds else ""


def _datasets(run: RunFolder, name: str = "") -> dict[str, dict[str, Any]]:
    """By arm: how many samples of how many tasks each part holds, and how the training went; every
    arm with the same columns in the same order."""
    out: dict[str, dict[str, Any]] = {}
    for row, result in _distilled(run, name):
        info = result.marker
        counts, trained = info.get("counts") or {}, info.get("train") or {}
        passes = _passes(trained)
        parts = {
            p: f"{c['samples']:,} ({c['tasks']:,} tasks{passes.get(p, '')})"
            for p, c in counts.items()
            if p in PARTS and c["samples"]
        }
        parts |= {
            what: f"{number:,}" for what, number in (info.get("samples") or {}).items() if number
        }
        steps = {
            name: f"{trained[key]:,}"
            for key, name in (("steps", "steps"), ("kept_step", "kept"))
            if key in trained
        }
        losses = {
            title: f"{trained[key]:.3f}"
            for key, title in _LAST.items()
            if trained.get(key) is not None
        }
        out[row] = parts | steps | losses | {"seconds": f"{info.get('seconds', 0.0):,.0f}"}
    last = ("steps", "kept", *_LAST.values(), "seconds")
    columns = sorted(
        dict.fromkeys(column for row in out.values() for column in row),
        key=lambda c: last.index(c) if c in last else -1,
    )
    return {row: {column: values.get(column) for column in columns} for row, values in out.items()}


def _passes(trained: Mapping[str, Any]) -> dict[str, str]:
    """By part how often the training passed over it, as a suffix."""
    return {
        part: f", {number:.1f} passes"
        for part, number in ((trained.get("counts") or {}).get("epochs") or {}).items()
    }


_LAST = {"loss": "last loss", "valid_loss": "validation loss", "reward": "last reward"}


def _notes(run: RunFolder, name: str = "") -> list[str]:
    notes = []
    recipe = recipe_of(run)
    if recipe.history != "full":
        notes.append(
            f"Prompts held a window of the history ({recipe.history}): branches share no "
            "prefix, and prompts were computed anew in every turn."
        )
    for row, result in _distilled(run, name):
        info = result.marker
        notes += [f"{row}: {result.reason}"] if result.reason else []
        notes += [f"{row}: {note}" for note in (info.get("train") or {}).get("notes") or ()]
        notes += [f"{row}: {words}" for words in _left_out(info)]
        for part, number in ((info.get("counts") or {}).get("mentions") or {}).items():
            words = (
                f"thoughts of {part} samples mention advice that is not in their prompt "
                '(mentioned_advice = "skip" leaves them out).'
            )
            notes.append(f"{row}: {number} {words}")
    for stage in plan(recipe):
        done = run.done(stage.name) or {}
        row = name + stage.row
        if stage.kind == "choose" and "chosen" in done:
            notes.append(f"{row}{_seed(stage)}: {_choice(done)}")
        if done.get("given_up"):
            why = (
                "because their episodes failed again and again while those of others did not, "
                "or could not begin"
            )
            notes.append(f"{row}: {done['given_up']} tasks were given up, {why}.")
            notes += [f"{row}: {sentence}" for sentence in done.get("given_up_because") or ()]
        if done.get("cut_short"):
            notes.append(
                f"{row}: the run's limit {done['cut_short']} ended the {stage.kind} stage "
                "before all tasks had their share."
            )
        if done.get("observations_cut"):
            notes.append(
                f"{stage.kind} {row}: {done['observations_cut']:,} observations were "
                "longer than env.max_observation and were cut."
            )
        for what, number in {
            **went_wrong(done.get("policy_failures") or {}),
            "environments that failed": done.get("env_failures", 0),
        }.items():
            if number:
                notes.append(f"{stage.kind} {row}: {what}: {number}")
    return notes


def _left_out(info: Mapping[str, Any]) -> list[str]:
    """What the selection and the encoding left out, with reasons; of each phase, where there are
    several."""
    selected = {**((info.get("counts") or {}).get("skipped") or {}), **(info.get("skipped") or {})}
    trained = (info.get("phases") or {"": info.get("train") or {}}).values()
    encoded = [
        pair for t in trained for pair in ((t.get("counts") or {}).get("skipped") or {}).items()
    ]
    return [f"{number} left out: {reason}" for reason, number in selected.items()] + [
        f"{number} when encoded: {reason}" for reason, number in encoded
    ]


def _truncated(summary: Mapping[str, Any]) -> list[str]:
    """Rows whose answers were cut at their limit of tokens, and how many."""
    return [
        f"{kind} {row[title]}: {row['truncated_answers']:,} answers were cut at their "
        "limit of tokens (the prompt set's max_tokens): none is trained on as if "
        "it had ended."
        for kind, title in (("explore", "strategy"), ("evaluate", "arm"))
        for row in summary["details"].get(kind, ())
        if row.get("truncated_answers")
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _choice(done: Mapping[str, Any]) -> str:
    """What validation chose, and from what."""
    k = str(done["k"])
    sampled = [row for row in done["candidates"] if "pass_at" in row]
    others = (
        ", ".join(
            f"{row['what']} {_percent(row['pass_at'][k]['value'])}"
            for row in sampled
            if not row.get("chosen")
        )
        or "no other"
    )
    best = next(row for row in sampled if row.get("chosen"))
    words = (
        f"by Pass@{k} on {best['tasks']} validation tasks it is {done['what']}: "
        f"{_percent(best['pass_at'][k]['value'])} % against {others}"
    )
    return words + (
        f"; the weights of {', '.join(done['deleted'])} were deleted" if done["deleted"] else ""
    )


def _print_validation(summary: Mapping[str, Any], console: Console) -> None:
    """The validation of rounds and sweeps; nothing where there was none."""
    rows = [row for row in summary["details"]["validation"] if "pass_at" in row]
    if not rows:
        return
    many_seeds = len({row["seed"] for row in rows}) > 1
    console.print(
        Table(
            "Validation: which round or setting is the arm (Pass@k in %, 95 % interval)",
            ("attempt", *(f"Pass@{k}" for k in rows[0]["pass_at"]), "chosen"),
            [
                (
                    row["what"] + (f" (seed {row['seed']})" if many_seeds else ""),
                    *map(_rate, row["pass_at"].values()),
                    "yes" if row["chosen"] else "",
                )
                for row in rows
            ],
            wrap=True,
        )
    )


def _rate(point: Mapping[str, Any]) -> str:
    """Pass@k with its interval, in per cent."""
    ends = point["ci95"]
    return _percent(point["value"]) + (
        f" [{_percent(ends[0])}, {_percent(ends[1])}]" if ends else ""
    )


def _print_training(run: RunFolder, console: Console, name: str = "") -> None:
    rows: list[tuple[str, ...]] = []
    for row, stage_result in _distilled(run, name):
        info = stage_result.marker
        if "train" not in info:
            rows.append((row, *["0"] * 2, *[""] * 7))
            continue
        # GRPO has no samples and no loss that says how far it is; Early Experience counts its own
        counts, result = (
            info.get("counts") or {"rehearsal": {"samples": info.get("samples", {}).get("expert")}},
            info["train"],
        )
        loss, valid = (
            "" if result.get(name) is None else f"{result[name]:.3f}"
            for name in ("loss", "valid_loss")
        )
        passes = (result.get("counts") or {}).get("epochs") or {}
        samples = {p: counts.get(p, {}).get("samples") for p in PARTS}
        parts = [
            (f"{number:,}" + (f" x {passes[p]:.1f}" if p in passes else "")) if number else ""
            for p, number in samples.items()
        ]
        early = " (early)" if result.get("stopped_early") else ""
        steps = f"{result['steps']}{early}"
        rows.append(
            (row, *parts, steps, str(result["kept_step"]), loss, valid, f"{info['seconds']:.1f}")
        )
    console.print(
        Table(
            "Stage 2: what each policy was trained on (samples x passes over them)",
            ("arm", *PARTS, "steps", "kept", "loss", "validation", "seconds"),
            rows,
            wrap=True,
        )
    )
