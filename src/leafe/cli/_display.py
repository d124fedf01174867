"""What a person sees while stages run: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from leafe.pipeline import Stage, StageKind, Watcher


class Display(Watcher):
    """Shows every stage that runs. `tables` is called with a stage kind once all of that kind are finished."""

    def __init__(self, console: Console, tables: Callable[[StageKind], None]) -> None:
        super().__init__(self._begins, self._progress, self._ends, tables)
        self.console = console
        self.bars: Progress | None = None
        if console.is_terminal:
            words = TextColumn("{task.fields[words]}")
            name = TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=16))  # the name is the last to give way
            columns = (SpinnerColumn(), name, BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), words)
            self.bars = Progress(*columns, console=console, transient=True)
        self._ids: dict[str, TaskID] = {}
        self._spoke: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def _begins(self, stage: Stage) -> None:
        self._began[stage.name] = self._spoke[stage.name] = time.monotonic()
        if self.bars is not None:
            self._ids[stage.name] = self.bars.add_task(stage.name, total=None, words="starting")
        else:
            self.console.print(f"{stage.name}: begins", highlight=False)

    def _progress(self, stage: Stage, event: dict[str, Any]) -> None:
        words = str(event.get("words", ""))
        if "tokens" in event:
            seconds = max(1e-9, time.monotonic() - self._began[stage.name])
            words += f", {event['turns'] / seconds:.3g} turns/s, {event['tokens'] / seconds:.3g} tokens/s"
        if self.bars is not None:
            self.bars.update(self._ids[stage.name], completed=event["done"], total=event.get("of"), words=words)
        elif time.monotonic() - self._spoke[stage.name] > 15:
            self._spoke[stage.name] = time.monotonic()
            self.console.print(f"{stage.name}: {event['done']} of {event['of']}, {words}", highlight=False)

    def _ends(self, stage: Stage, info: dict[str, Any]) -> None:
        if self.bars is not None:
            self.bars.remove_task(self._ids.pop(stage.name))
        self.console.print(f"[green]✓[/] {stage.name} in {info['seconds']:.1f} s", highlight=False)
