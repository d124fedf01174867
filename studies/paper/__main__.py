"""The paper's tables, claims and figure from the command line.

python -m studies.paper table 1 seeds=[0,1,2]    # run what the table needs, then print it
python -m studies.paper table 1 runs/a runs/b    # the same table of these run folders
python -m studies.paper claims                   # every claim of what has been run
python -m studies.paper figure passk             # Pass@k against k
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leafe import pipeline
from leafe.cli._display import Display
from leafe.core import UserError
from studies.command import Stopped, run_command
from studies.paper import (
    TABLES,
    Document,
    Job,
    all_claims,
    build,
    folders_of,
    gather,
    jobs_of,
    passk_figure,
    recipe_set,
    show,
    transfer_jobs,
    write,
)

app = typer.Typer(
    help="The paper's tables, claims and figure, run or read from run folders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeSetName = Annotated[
    str,
    typer.Option(
        "--on", help="The recipe set: gates, sokoban, scienceworld, alfworld, webshop or code."
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders lie.")]
Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Run folders; default: those of the recipe set that are there."),
]
Csv = Annotated[Path | None, typer.Option("--csv", help="Every figure, one a line.")]
Markdown = Annotated[Path | None, typer.Option("--markdown")]
Latex = Annotated[Path | None, typer.Option("--latex", help="Needs booktabs.")]


@app.command()
def table(
    number: Annotated[int, typer.Argument(min=1, max=6)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help=(
                "Run folders to read; or changes to the recipes (seeds=[0,1,2] "
                "policy.model=...), which are then run, or gone on with."
            )
        ),
    ] = None,
    on: RecipeSetName = "gates",
    runs: Runs = Path("runs"),
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Stages at the same time; default: the recipe's."),
    ] = None,
    markdown: Markdown = None,
    csv: Csv = None,
    latex: Latex = None,
) -> None:
    """One table with intervals, costs, claims and what is missing."""
    folders, overrides = _split(arguments or ())
    notes: list[str] = []
    screen = _console()
    if not folders:
        spread = [*overrides, *([f"jobs={jobs}"] if jobs else [])]
        folders, notes = _run_table(number, on, spread, runs, screen)
    document = build(gather(folders, by_base=TABLES[number].by_base), number).with_notes(notes)
    _publish(document, screen, markdown, csv, latex)


@app.command()
def claims(
    folders: Folders = None,
    on: RecipeSetName = "gates",
    runs: Runs = Path("runs"),
    markdown: Markdown = None,
    csv: Csv = None,
    latex: Latex = None,
) -> None:
    """Every claim of every table. Reads run folders and runs nothing."""
    _publish(all_claims(folders or _by_table(on, runs)), _console(), markdown, csv, latex)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="passk: Pass@k against k.")],
    folders: Folders = None,
    on: RecipeSetName = "gates",
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option("--out", help="A .png, .svg or .pdf file.")] = Path(
        "passk.png"
    ),
    row: Annotated[
        list[str] | None, typer.Option("--row", help="Draw only these rows; may be repeated.")
    ] = None,
    csv: Csv = None,
) -> None:
    """Pass@k curves with their 95 % bands, one panel an environment, to k = 1024 where there are so
    many samples (evaluate.samples=1024)."""
    if name != "passk":
        raise UserError(f"There is no figure {name!r}: it is passk.")
    if not folders:
        folders = list(dict.fromkeys(p for paths in _by_table(on, runs).values() for p in paths))
    for path in passk_figure(folders, out, row or (), csv):
        print(f"written: {path}")


def _console() -> Console:
    """Nothing wraps where there is no terminal: other programs read the tables."""
    return Console(width=None if sys.stdout.isatty() else 200)


def _publish(
    document: Document,
    screen: Console,
    markdown: Path | None,
    csv: Path | None,
    latex: Path | None,
) -> None:
    show(document, screen)
    for path in write(document, markdown, csv, latex):
        screen.print(f"written: {path}", highlight=False)


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(run folders, overrides)."""
    overrides = [a for a in arguments if "=" in a and not Path(a).exists()]
    folders = [Path(a) for a in arguments if a not in overrides]
    if folders and overrides:
        raise UserError(
            f"{folders[0]} is read as it is, and {overrides[0]!r} changes a recipe that is "
            "to be run: give one or the other."
        )
    return folders, overrides


def _by_table(on: str, runs: Path) -> dict[int, list[Path]]:
    """By table, the folders that tables of this set have made."""
    known = recipe_set(on)
    found = {number: folders_of(table, known, runs) for number, table in TABLES.items()}
    if not any(found.values()):
        raise UserError(
            f"{runs} holds no run of {', '.join(known.recipes)}: make them with `python -m "
            f"studies.paper table 1 --on {on}`, or name run folders."
        )
    return found


def _run_table(
    number: int, on: str, overrides: Sequence[str], runs: Path, screen: Console
) -> tuple[list[Path], list[str]]:
    """Run what the table lacks; (the folders that hold it, notes)."""
    recipes = recipe_set(on)
    work, notes = jobs_of(TABLES[number], recipes, overrides, runs)
    for note in notes:
        screen.print(note, highlight=False)
    for job in work:
        _run_job(job, screen)
    folders = [job.folder for job in work]
    if TABLES[number].kind == "transfer":
        tests = transfer_jobs(TABLES[number], recipes, overrides, work[0])
        for job in tests:
            _run_job(job, screen)
        folders += [job.folder for job in tests]
    return folders, notes


def _run_job(job: Job, screen: Console) -> None:
    screen.print(
        f"{job.folder}: {', '.join(job.recipe.arms) or 'no arm'}; finished stages are skipped.",
        highlight=False,
    )
    try:
        with Display(screen, lambda kind: None) as display:
            pipeline.run_recipe(job.recipe, job.folder, only=job.only, watcher=display)
        pipeline.report_run(job.folder, screen)
    except KeyboardInterrupt:
        raise Stopped from None  # typer would end on it without a word


if __name__ == "__main__":
    run_command(lambda: app(prog_name="python -m studies.paper"))
