"""`--json`: progress for programs, one JSON object a line, and nothing else on standard output.

Every object has `event` and `time` (seconds since 1970). docs/terminal.md has the events with their
fields; fields may be added, none is removed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from leafe.cli._watch import StageProgress
from leafe.pipeline import Stage, StageResult, Watcher


class JsonLines(Watcher):
    """Writes one object for each event of the pipeline."""

    def __init__(self) -> None:
        super().__init__(self._begins, self._progress, self._ends)
        self._running: dict[str, StageProgress] = {}
        self._read = True

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, event: str, **fields: Any) -> None:
        """Print one line. Where nobody reads any more, the run goes on silently."""
        if not self._read:
            return
        try:
            print(json.dumps({"event": event, "time": round(time.time(), 3)} | fields), flush=True)
        except BrokenPipeError:
            self._read = False
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # the interpreter flushes once more as it ends

    def plan(
        self, run: str, recipe: str, about: str, stages: Sequence[Stage], done: Sequence[str]
    ) -> None:
        rows = [{"stage": stage.name, "kind": stage.kind, "row": stage.row} for stage in stages]
        self.write("plan", run=run, recipe=recipe, about=about, stages=rows, done=list(done))

    def _begins(self, stage: Stage) -> None:
        self._running[stage.name] = StageProgress(stage, time.monotonic())
        self.write("begin", stage=stage.name)

    def _progress(self, stage: Stage, event: dict[str, Any]) -> None:
        progress = self._running[stage.name]
        progress.take(event)
        self.write("progress", stage=stage.name, **progress.to_json())

    def _ends(self, stage: Stage, result: StageResult) -> None:
        self._running.pop(stage.name, None)
        why = {result.outcome.value: result.reason} if result.reason else {}
        self.write("end", stage=stage.name, seconds=result.marker["seconds"], **why)
