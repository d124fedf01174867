"""`--json`: what happens while stages run, for programs: one JSON object a line on the standard
output, and nothing else there.

Every object has `event` and `time` (seconds since 1970). docs/terminal.md has the events with their
fields; fields may be added, those that are there stay.
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
    """Writes an object for everything that the pipeline says."""

    def __init__(self) -> None:
        super().__init__(self._begins, self._progress, self._ends)
        self._courses: dict[str, StageProgress] = {}
        self._heard = True

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, event: str, **fields: Any) -> None:
        """One line. Where nobody reads any more the run goes on unheard: what counts is in its
        folder."""
        if not self._heard:
            return
        try:
            print(json.dumps({"event": event, "time": round(time.time(), 3)} | fields), flush=True)
        except BrokenPipeError:
            self._heard = False
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # the interpreter flushes once more as it ends

    def plan(
        self, run: str, recipe: str, about: str, stages: Sequence[Stage], done: Sequence[str]
    ) -> None:
        rows = [{"stage": stage.name, "kind": stage.kind, "row": stage.row} for stage in stages]
        self.say("plan", run=run, recipe=recipe, about=about, stages=rows, done=list(done))

    def _begins(self, stage: Stage) -> None:
        self._courses[stage.name] = StageProgress(stage, time.monotonic())
        self.say("begin", stage=stage.name)

    def _progress(self, stage: Stage, event: dict[str, Any]) -> None:
        course = self._courses[stage.name]
        course.take(event)
        self.say("progress", stage=stage.name, **course.told())

    def _ends(self, stage: Stage, result: StageResult) -> None:
        self._courses.pop(stage.name, None)
        why = {result.outcome.value: result.reason} if result.reason else {}
        self.say("end", stage=stage.name, seconds=result.marker["seconds"], **why)
