"""How the study's commands end: as `leafe` does, with one sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from leafe.core import ForeignFailure, UserError, visible


class Stopped(Exception):
    """The user pressed Ctrl-C while stages ran."""


def run_command(command: Callable[[], object]) -> None:
    """Run `command`; exit with 2 after a UserError, 1 after a ForeignFailure, 130 after Ctrl-C."""
    try:
        command()
    except UserError as error:
        _exit(f"error: {visible(str(error))}", 2)
    except ForeignFailure as error:
        _exit(f"error: {visible(str(error))}", 1)
    except (Stopped, KeyboardInterrupt):
        _exit("\nStopped. Finished work is kept: give the same command again to go on.", 130)


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
