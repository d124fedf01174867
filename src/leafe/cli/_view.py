"""`leafe view`: a run's trees in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or still being written.")],
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            help=(
                "Of this machine; default: 8765, or a free one where that is in use. 0: any "
                "free one."
            ),
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Inspect a run in the browser: its tasks, their trees, every turn, and what was trained on. On
    this machine only, also while the run goes on."""
    from leafe.view import serve

    serve(run, port, show=show, say=lambda words: print(words, flush=True))
