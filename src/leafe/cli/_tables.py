"""`leafe table` and `leafe figure`: the paper's comparisons, run on a recipe set or read from run
folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leafe.cli._envs import console

if TYPE_CHECKING:
    from rich.console import Console

    from leafe.tables import Document, Job

On = Annotated[
    str,
    typer.Option(
        "--on", help="The recipe set: gates, sokoban, scienceworld, alfworld, webshop or code."
    ),
]
Folders = Annotated[Path, typer.Option("--runs", help="Where run folders lie.")]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        help=(
            "Run folders to read; or changes to the recipes (seeds=[0,1,2] policy.model=... ), "
            "which are then run, or gone on with."
        )
    ),
]
Csv = Annotated[Path | None, typer.Option("--csv", help="Every figure, one a line.")]


def table(
    what: Annotated[
        str, typer.Argument(help="1 to 6, or claims: every claim of what is there already.")
    ],
    arguments: Arguments = None,
    on: On = "gates",
    runs: Folders = Path("runs"),
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Stages at the same time; default: the recipe's."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown")] = None,
    csv: Csv = None,
    latex: Annotated[Path | None, typer.Option("--latex", help="Needs booktabs.")] = None,
) -> None:
    """One of the paper's tables with intervals, costs, claims and what is missing: of run folders,
    or of runs that this command makes."""
    from leafe.core import UserError
    from leafe.tables import TABLES, all_claims, build, gather, show, write

    folders, overrides = _parted(arguments or ())
    screen = console()
    document: Document
    if what == "claims":
        if overrides:
            raise UserError(
                "`leafe table claims` reads what is there and runs nothing: "
                f"{overrides[0]!r} would change nothing; run the tables with it first."
            )
        document = all_claims(folders or _by_table(on, runs))
    elif what in map(str, TABLES):
        number = int(what)
        said: list[str] = []
        if not folders:
            folders, said = _run(number, on, overrides, runs, jobs, screen)
        document = build(gather(folders, apart=TABLES[number].apart), number)
        document = document.saying(said)
    else:
        raise UserError(f"There is no table {what!r}: give a number from 1 to 6, or claims.")
    show(document, screen)
    for path in write(document, markdown, csv, latex):
        screen.print(f"written: {path}", highlight=False)


def figure(
    what: Annotated[str, typer.Argument(help="passk: Pass@k against k.")],
    arguments: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders; default: those of the recipe set that are there."),
    ] = None,
    on: On = "gates",
    runs: Folders = Path("runs"),
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
    from leafe.core import UserError
    from leafe.tables import passk_figure

    if what != "passk":
        raise UserError(f"There is no figure {what!r}: it is passk.")
    for path in passk_figure(arguments or _there(on, runs), out, row or (), csv):
        console().print(f"written: {path}", highlight=False)


def _parted(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(run folders, overrides)."""
    from leafe.core import UserError

    overrides = [a for a in arguments if "=" in a and not Path(a).exists()]
    folders = [Path(a) for a in arguments if a not in overrides]
    if folders and overrides:
        raise UserError(
            f"{folders[0]} is read as it is, and {overrides[0]!r} changes a recipe that is "
            "to be run: give one or the other."
        )
    return folders, overrides


def _there(on: str, runs: Path) -> list[Path]:
    """The folders that tables of this set have made."""
    found = dict.fromkeys(folder for folders in _by_table(on, runs).values() for folder in folders)
    return list(found)


def _by_table(on: str, runs: Path) -> dict[int, list[Path]]:
    """By table, the folders of those that tables of this set have made."""
    from leafe.core import UserError
    from leafe.tables import TABLES, folders_of, recipe_set

    known = recipe_set(on)
    found = {number: folders_of(table, known, runs) for number, table in TABLES.items()}
    if not any(found.values()):
        raise UserError(
            f"{runs} holds no run of {', '.join(known.recipes)}: make them with `leafe "
            f"table 1 --on {on}`, or name run folders."
        )
    return found


def _run(
    number: int, on: str, overrides: Sequence[str], runs: Path, jobs: int | None, screen: Console
) -> tuple[list[Path], list[str]]:
    """Run what the table lacks; the folders that hold it."""
    from leafe.tables import TABLES, jobs_of, recipe_set, transfer_jobs

    spread = [*overrides, *([f"jobs={jobs}"] if jobs else [])]
    work, said = jobs_of(TABLES[number], recipe_set(on), spread, runs)
    for sentence in said:
        screen.print(f"{sentence}", highlight=False)
    for job in work:
        _go_on(job, screen)
    folders = [job.folder for job in work]
    if TABLES[number].kind == "transfer":
        tests = transfer_jobs(TABLES[number], recipe_set(on), spread, work[0])
        for job in tests:
            _go_on(job, screen)
        folders += [job.folder for job in tests]
    return folders, said


def _go_on(job: Job, screen: Console) -> None:
    from leafe.cli._app import Stopped
    from leafe.cli._display import Display
    from leafe.pipeline import report_run, run_recipe

    screen.print(
        (
            f"{job.folder}: {', '.join(job.recipe.arms) or 'no arm'}; what is finished is not "
            "done again."
        ),
        highlight=False,
    )
    try:
        with Display(screen, lambda kind: None) as display:
            run_recipe(job.recipe, job.folder, only=job.only, watcher=display)
        report_run(job.folder, screen)
    except KeyboardInterrupt:
        raise Stopped from None
