"""A worker: runs the stages that its parent names, one after another, and says how they go.

Commands come as JSON lines on standard input, answers go as JSON lines to standard output (a copy
of it: what libraries print goes
to the log). When the parent is gone, so is standard input, and the worker ends at once: what it
journalled is kept.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from leafe.core import ForeignFailure, UserError


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    commands: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            commands.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    from leafe.pipeline._plan import find
    from leafe.pipeline._stages import run_stage
    from leafe.recipes import parse_recipe

    def say(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")

    while True:
        command = json.loads(commands.get())
        recipe = parse_recipe(command["recipe"])
        stage = find(recipe, command["stage"])
        try:
            result = run_stage(
                recipe, Path(command["folder"]), stage, lambda event: say(kind="progress", **event)
            )
            say(kind="finished", info=result.marker)
        except UserError as error:
            say(kind="failed", error="user", message=str(error))
        except ForeignFailure as error:
            say(kind="failed", error="foreign", message=str(error))
        except BaseException as error:
            traceback.print_exc()
            say(
                kind="failed",
                error="bug",
                message=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
            if not isinstance(error, Exception):
                raise


if __name__ == "__main__":
    main()
