"""The commands. Each imports what it needs when it runs: `leafe --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leafe.cli import _data, _envs, _view
from leafe.cli._completion import Shell, recipes, run_folders, script
from leafe.cli._envs import console as _console

if TYPE_CHECKING:
    from rich.console import Console

    from leafe.evaluate import Over
    from leafe.pipeline import Stage, StageKind
    from leafe.recipes import Recipe

app = typer.Typer(
    name="leafe",
    help=(
        "Post-train LLM agents from what their environment tells them (LEAFE): explore with "
        "rollback, distill the corrections, evaluate by Pass@k."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(_envs.app, name="envs")
app.command()(_view.view)
app.command()(_data.export)
app.command(name="import")(_data.import_)

RecipeArg = Annotated[
    str, typer.Argument(help="A built-in recipe or a TOML file.", autocompletion=recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe: explore.limits.policy_calls=32 tasks.train=10 ..."),
]
Name = Annotated[
    str | None, typer.Option("--name", help="The run's name under --runs; default: the recipe's.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders lie.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Delete an earlier run of this name and start over.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Stages at the same time; default: the recipe's."),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help=(
            "For programs: what happens as one JSON object a line, and nothing else "
            "(docs/terminal.md)."
        ),
    ),
]


def _version(value: bool) -> None:
    if value:
        from leafe import __version__

        print(f"leafe {__version__}")
        raise typer.Exit


def _completion(value: Shell | None) -> None:
    if value is not None:
        print(script(value))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    completion: Annotated[
        Shell | None,
        typer.Option(
            "--completion",
            callback=_completion,
            is_eager=True,
            help='Print the completion for a shell: eval "$(leafe --completion bash)".',
        ),
    ] = None,
) -> None:
    pass


@app.command()
def demo(
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    fresh: Fresh = False,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """The whole experiment on the embedded environment and model, on a CPU, in minutes."""
    _run("demo", overrides, None, runs, fresh, jobs, None, as_json)


@app.command()
def run(
    recipe: RecipeArg,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    fresh: Fresh = False,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Explore, distill, evaluate and report, in order; what is finished is not done again."""
    _run(recipe, overrides, name, runs, fresh, jobs, None, as_json)


@app.command()
def explore(
    recipe: RecipeArg,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    fresh: Fresh = False,
    jobs: Jobs = None,
    as_json: Json = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="I/N: every N-th task from number I on, in a folder of its own; see merge.",
        ),
    ] = None,
) -> None:
    """Stage 1 alone: grow the trees."""
    _run(recipe, overrides, name, runs, fresh, jobs, "explore", as_json, shard)


@app.command()
def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(
            help="The folders that `leafe explore RECIPE --shard I/N` made, all N of them."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The whole run's folder; default: the shards' name without its end."
        ),
    ] = None,
) -> None:
    """Put the shards of one exploration together, as one machine would have made it."""
    from leafe.core import UserError
    from leafe.pipeline import merge as put_together
    from leafe.pipeline import recipe_of

    whole, sign, _ = shards[0].name.rpartition(".shard-")
    if out is None and not sign:
        raise UserError(
            f"{shards[0]} has no name that --shard gives: name the whole run's folder with --out."
        )
    target = out or shards[0].parent / whole
    recipe, merged = put_together(shards, target, recipe_of)
    _console().print(
        f"{target}: {merged} stages merged from {len(shards)} shards."
        if merged
        else f"{target} holds them already: nothing was done.",
        highlight=False,
    )
    if len(recipe.arms) or recipe.evaluate.samples:
        _console().print(
            "Go on with Stage 2: leafe run with the same recipe, and --name if it was given.",
            highlight=False,
        )


@app.command()
def distill(
    recipe: RecipeArg,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Stage 2 alone: train on the trees of a run that has explored."""
    _run(recipe, overrides, name, runs, False, jobs, "distill", as_json)


@app.command()
def evaluate(
    recipe: RecipeArg,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Evaluation alone: sample the base and the trained policies of a run."""
    _run(recipe, overrides, name, runs, False, jobs, "evaluate", as_json)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help=(
                "A run folder; or several of one experiment, with other seeds or base "
                "policies, as one table."
            ),
            autocompletion=run_folders,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=(
                "Where the report goes; default: the run's folder, or for several runs the "
                "screen alone."
            ),
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Put several runs of any experiments side by side, instead of pooling them.",
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Compare every row with this one: intervals over runs and tasks, claims by Holm.",
        ),
    ] = None,
    over_tasks: Annotated[
        bool,
        typer.Option(
            "--over-tasks",
            help="Claims about other tasks alone, for these very trainings: for one to three runs.",
        ),
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", help="Write that comparison to this file, for a document."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write that comparison to this file, for a program."),
    ] = None,
) -> None:
    """Write report.html and summary.json of a run, and print its tables; several runs are pooled or
    put side by side."""
    from leafe.core import UserError
    from leafe.pipeline import report_runs

    if against is None and (markdown or csv):
        raise UserError(
            "--markdown and --csv write the table of every row against one: name that row "
            "with --against."
        )
    where = out or (folders[0] if len(folders) == 1 else None)
    over: Over = "tasks" if over_tasks else "runs"
    console = _console()
    report_runs(
        folders,
        where,
        console,
        tables=True,
        against=against,
        over=over,
        markdown=markdown,
        table_csv=csv,
        compare=compare,
    )
    if where is not None:
        console.print(
            f"The report: {where / 'report.html'}", markup=False, highlight=False, soft_wrap=True
        )


@app.command()
def doctor() -> None:
    """What is installed, and a self-test of each environment."""
    from leafe.cli._inspect import examine

    if not examine(_console()):
        raise typer.Exit(1)


def _run(
    name_or_path: str,
    overrides: list[str] | None,
    name: str | None,
    runs: Path,
    fresh: bool,
    jobs: int | None,
    only: StageKind | None,
    as_json: bool,
    piece: str | None = None,
) -> None:
    from leafe.cli._display import Display
    from leafe.cli._json import JsonLines
    from leafe.core import ForeignFailure, UserError
    from leafe.pipeline import Shard, plan, print_kind, report_run, run_recipe, waiting_stages
    from leafe.recipes import load_recipe

    lines = JsonLines()
    try:
        recipe = load_recipe(name_or_path, overrides or ())
        if jobs is not None:
            recipe = recipe.model_copy(update={"jobs": jobs})
        shard = Shard.parse(piece) if piece is not None else None
        folder = runs / (shard.name(name or recipe.name) if shard else name or recipe.name)
        console = _console(quiet=as_json)
        stages = [s for s in plan(recipe) if only in (None, s.kind)]
        before = [] if fresh else _finished(folder, stages)
        if as_json:
            lines.plan(str(folder), recipe.name, recipe.about, stages, before)
        _print_plan(console, recipe, folder, stages, before)
        # a command for one kind of stage runs what belongs to it too, so that the number of its
        # stages is not known here
        shown = Display(
            console,
            lambda kind: print_kind(folder, kind, console),
            0 if only else len(stages),
            0 if only else len(before),
        )
        with lines if as_json else shown as watcher:
            run = run_recipe(recipe, folder, fresh=fresh, only=only, watcher=watcher, shard=shard)
        waiting = waiting_stages(run, recipe, only) if only is not None and shard is None else []
        if waiting:
            some = ", ".join(waiting[:3]) + (", ..." if len(waiting) > 3 else "")
            console.print(
                (
                    f"{len(waiting)} stages wait for stages of another kind ({some}): run "
                    "those, then this command again."
                ),
                markup=False,
                highlight=False,
            )
        if only is None:
            report_run(folder, console)
            page, figures = folder / "report.html", folder / "summary.json"
            console.print(
                f"The report: {page}; the same figures for programs: {figures}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if as_json:
            files = {"report": str(page), "summary": str(figures)} if only is None else {}
            lines.write("finished", run=str(folder), waiting=waiting, **files)
    except (UserError, ForeignFailure) as error:
        if as_json:
            lines.write(
                "error", message=str(error), exit_code=2 if isinstance(error, UserError) else 1
            )
        raise
    except KeyboardInterrupt:
        if as_json:
            lines.write("error", message="Stopped.", exit_code=130)
        raise Stopped from None  # the command parser would end on it silently


def _finished(folder: Path, stages: list[Stage]) -> list[str]:
    """Stages that an earlier start has finished; `run_recipe` refuses a folder that is no run."""
    return [stage.name for stage in stages if (folder / stage.name / "done.json").is_file()]


def _print_plan(
    console: Console, recipe: Recipe, folder: Path, stages: list[Stage], before: list[str]
) -> None:
    from rich.text import Text

    from leafe.pipeline import KINDS

    kinds = ", ".join(
        f"{sum(s.kind == k for s in stages)} x {k}"
        for k in KINDS
        if any(s.kind == k for s in stages)
    )
    limits = ", ".join(f"{v:g} {k.replace('_', ' ')}" for k, v in recipe.explore.limits.items())
    if recipe.about:
        console.print(Text.assemble((recipe.name, "bold"), f": {recipe.about}"))
    there = f" {len(before)} of these {len(stages)} are finished already." if before else ""
    console.print(
        f"Plan: {kinds}.{there} Environment {recipe.env.name} {recipe.env.options or ''}; "
        f"{recipe.tasks.train or 'all'} training tasks, {limits} each, "
        f"for every strategy; "
        f"then {recipe.evaluate.samples} samples of {recipe.tasks.test or 'all'} "
        f"{recipe.tasks.test_split} tasks a policy. "
        f"{recipe.jobs} job{'s' if recipe.jobs > 1 else ''} at a time; all of it goes to "
        f"{folder}/. Stop with Ctrl-C and run again at any time.",
        markup=False,
        highlight=False,
    )


class Stopped(Exception):
    """The user pressed Ctrl-C while stages ran."""


def main() -> None:
    """The entry point. A `UserError` is one sentence and exit code 2, a `ForeignFailure` one
    sentence and 1, an interrupt 130."""
    from leafe.cli._encoding import plain_where_needed

    plain_where_needed()
    try:
        app(standalone_mode=True)
    except Stopped:
        print(
            "\nStopped. What was finished is kept: give the same command again to go on.",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:
        from leafe.core import ForeignFailure, UserError, visible

        if not isinstance(error, UserError | ForeignFailure):
            raise
        print(f"error: {visible(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
