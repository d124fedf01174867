"""A worker process: runs the stages that its parent names, one after another.

Commands are JSON lines on standard input, answers JSON lines on a copy of standard output (what
libraries print goes to the log). When the parent is gone, standard input ends and so does the
worker, at once: what it journalled is kept.
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

    def answer(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")

    while True:
        command = json.loads(commands.get())
        recipe = parse_recipe(command["recipe"])
        stage = find(recipe, command["stage"])
        try:
            result = run_stage(
                recipe,
                Path(command["folder"]),
                stage,
                lambda event: answer(kind="progress", **event),
            )
            answer(kind="finished", info=result.marker)
        except UserError as error:
            answer(kind="failed", error="user", message=str(error))
        except ForeignFailure as error:
            answer(kind="failed", error="foreign", message=str(error))
        except BaseException as error:
            traceback.print_exc()
            answer(
                kind="failed",
                error="bug",
                message=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
            if not isinstance(error, Exception):
                raise


if __name__ == "__main__":
    main()
