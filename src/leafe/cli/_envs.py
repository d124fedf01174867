"""`leafe envs`: list environments, check their contract, make data for them, serve one by HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="The environments there are; check, make and serve them.", invoke_without_command=True
)
make = typer.Typer(help="Make data for an environment.", no_args_is_help=True)
app.add_typer(make, name="make")

Env = Annotated[
    str, typer.Argument(help="An environment of `leafe envs`, or package.module:Class.")
]
Options = Annotated[
    list[str] | None, typer.Argument(help="The environment's options: horizon=20 levels=DIR ...")
]


@app.callback()
def listing(context: typer.Context) -> None:
    """The environments there are, their splits, options and needs."""
    if context.invoked_subcommand is None:
        from leafe.cli._inspect import show_envs

        show_envs(console())


@app.command()
def check(
    env: Annotated[
        str | None,
        typer.Argument(
            help=(
                "An environment of `leafe envs`, or package.module:Class; default: all that "
                "are ready here."
            )
        ),
    ] = None,
    options: Options = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to play.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="The most actions on a task.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the random actions.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
    actions: Annotated[
        list[str] | None,
        typer.Option(
            "--actions",
            help=(
                "An action to play where there are no valid_actions; repeat it for more, or "
                "give @FILE."
            ),
        ),
    ] = None,
) -> None:
    """Play environments by their valid actions, replay and restore them in every way, here and in
    other processes, and report what differs."""
    from leafe.cli._inspect import check_envs
    from leafe.recipes import parse_options

    played = _actions(actions)
    if not check_envs(
        console(),
        env,
        parse_options(options or ()),
        count=tasks,
        steps=steps,
        seed=seed,
        markdown=markdown,
        actions=played,
    ):
        raise typer.Exit(1)


def _actions(given: list[str] | None) -> list[str] | None:
    """The actions of the command line, those of files among them; None where there are none."""
    from leafe.core import UserError

    out: list[str] = []
    for text in given or ():
        if not text.startswith("@"):
            out.append(text)
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--actions {text}: the file cannot be read ({error}): give a text file "
                "with one action a line."
            ) from error
        out += [line for line in lines if line.strip()]
    if given and not out:
        raise UserError(f"--actions {' '.join(given)} names no action: write one a line.")
    return out or None


@app.command()
def serve(
    env: Env,
    options: Options = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; others than this machine need --token-env.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="The most sessions at a time.")] = 8,
    token_env: Annotated[
        str | None,
        typer.Option(help="The environment variable with the token that clients must send."),
    ] = None,
) -> None:
    """Serve an environment over HTTP (docs/remote.md) until it is stopped; recipes use it as the
    environment `remote` with this url."""
    import os

    from leafe.core import UserError
    from leafe.envs.remote import serve as run
    from leafe.recipes import parse_options

    token = os.environ.get(token_env) if token_env else None
    if token_env and not token:
        raise UserError(
            f"The environment variable {token_env} holds no token: set it, or leave "
            "--token-env out."
        )
    run(env, parse_options(options or ()), host=host, port=port, workers=workers, token=token)


@make.command("alfworld")
def make_alfworld(
    out: Annotated[
        Path, typer.Option(help="The folder to make; the environment's option `data` afterwards.")
    ],
    games: Annotated[int, typer.Option(min=1, help="How many, over the splits.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed makes the same games.")] = 0,
) -> None:
    """Make household games from ALFWorld's own rules and floor plans, each solved by the planner;
    they are not comparable with the official ones."""
    from leafe.envs.alfworld import make_games

    screen = console()
    with screen.status(f"making {games} games in {out}") as status:
        made = make_games(
            out,
            games=games,
            seed=seed,
            progress=lambda done, of: status.update(f"{done} of {of} games in {out}"),
        )
    screen.print(json.dumps(made, indent=1, default=str), highlight=False)
    screen.print(f"Play them: leafe run alfworld env.options.data={out}", highlight=False)


def console(quiet: bool = False) -> Console:
    """The console that commands print to."""
    import sys

    from leafe.cli._console import SafeConsole

    # without a terminal nothing wraps: tables are read by other programs and by logs
    return SafeConsole(quiet=quiet) if sys.stdout.isatty() else SafeConsole(quiet=quiet, width=200)
