"""Progress for people: a live view on a terminal, plain lines elsewhere.

The live view has two or three lines for each running stage and one for the run. It is drawn for the
current width, leaves out what does not fit, and uses no sign that the terminal's encoding lacks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from leafe.cli._watch import StageProgress, clock_time, share_of
from leafe.pipeline import Stage, StageKind, StageResult, Watcher

_LOG_SECONDS = 15.0
"""Seconds between the log lines of a stage."""
_BAR = 16


class Display(Watcher):
    """Shows every running stage.

    Args:
        console: Where to.
        tables: Called with a kind of stage once all of that kind are finished.
        stages: How many stages there are; 0: not known.
        done: How many of them earlier starts finished.
    """

    def __init__(
        self, console: Console, tables: Callable[[StageKind], None], stages: int = 0, done: int = 0
    ) -> None:
        super().__init__(self._begins, self._progress, self._ends, tables)
        self.console = console
        self.stages, self.done = stages, done
        self.utf8 = console.encoding.lower().startswith("utf")
        self.began = time.monotonic()
        self.live: Live | None = None
        # FORCE_COLOR makes rich take a log for a terminal, where no cursor moves
        if (
            console.is_terminal
            and not console.is_dumb_terminal
            and getattr(console.file, "isatty", lambda: False)()
        ):
            self.live = Live(
                get_renderable=lambda: self,
                console=console,
                refresh_per_second=4,
                transient=True,
                vertical_overflow="crop",
            )
        self._running: dict[str, StageProgress] = {}
        self._logged: dict[str, float] = {}
        self._lock = threading.Lock()
        """The view is drawn by a thread of its own."""

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self.live.stop()

    def _begins(self, stage: Stage) -> None:
        now = time.monotonic()
        with self._lock:
            self._running[stage.name], self._logged[stage.name] = StageProgress(stage, now), now
        if self.live is None:
            self._log(f"{stage.name}: begins")

    def _progress(self, stage: Stage, event: dict[str, Any]) -> None:
        with self._lock:
            progress = self._running[stage.name]
            progress.take(event)
        if self.live is None and time.monotonic() - self._logged[stage.name] > _LOG_SECONDS:
            self._logged[stage.name] = time.monotonic()
            eta = [] if progress.eta is None else [f"{clock_time(progress.eta)} left"]
            self._log(f"{stage.name}: {', '.join([_of(event), *progress.words(), *eta])}")

    def _ends(self, stage: Stage, result: StageResult) -> None:
        with self._lock:
            self._running.pop(stage.name, None)
            self.done += 1
        why = f": {result.reason}" if result.reason else ""
        tick = "✓" if self.utf8 else "ok"
        # one print: between two of them another stage might speak
        self.console.print(
            Text.assemble(
                (tick, "green"), f" {stage.name} in {result.marker['seconds']:.1f} s{why}"
            )
        )

    def _log(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            running_now = list(self._running.values())
            running = [(progress, progress.words()) for progress in running_now]
        room = max(2, (options.max_height or console.height) - 2)
        lines = 2 if options.max_width >= 60 else 3
        shown = max(1, room // (lines + 1))
        names = max((len(progress.stage.name) for progress, _ in running[:shown]), default=0)
        for progress, words in running[:shown]:
            yield self._head(progress, options.max_width, names)
            yield from (
                Text("  " + line, "dim", no_wrap=True)
                for line in _wrapped(
                    words, options.max_width - 2, lines, " · " if self.utf8 else ", "
                )
            )
        hidden = f", {len(running) - shown} not shown" if len(running) > shown else ""
        of = f" of {self.stages}" if self.stages else ""
        footer = (
            f"{self.done}{of} stages done, {len(running)} running{hidden}, "
            f"{clock_time(time.monotonic() - self.began)}"
        )
        yield Text(_cut(footer, options.max_width, self.utf8), no_wrap=True)

    def _head(self, progress: StageProgress, width: int, names: int) -> Text:
        """Name (as wide as the longest one, where there is room), bar (where there is room), count,
        time and remaining time."""
        event = progress.last
        spins = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if self.utf8 else "|/-\\"
        spinner = spins[int(time.monotonic() * 4) % len(spins)]
        count = _of(event) if "done" in event else "starting"
        eta = "" if progress.eta is None else f" {clock_time(progress.eta)} left"
        rest = f" {count} {clock_time(progress.seconds)}{eta}"
        share = share_of(event)
        bar = share is not None and width - len(rest) - 2 - _BAR - 1 >= 14
        room = max(8, width - len(rest) - 2 - (_BAR + 1 if bar else 0))
        name = _cut(progress.stage.name.ljust(min(names, room)), room, self.utf8)
        out = Text.assemble((spinner, "cyan"), " ", (name, "bold"), no_wrap=True, overflow="crop")
        if share is not None and bar:
            full = round(_BAR * share)
            signs = "━─" if self.utf8 else "#-"
            out.append(" " + signs[0] * full, "green").append(signs[1] * (_BAR - full), "dim")
        out.append(rest)
        out.truncate(width)
        return out


def _of(event: dict[str, Any] | Any) -> str:
    done, of = event.get("done", 0), event.get("of")
    return f"{done:,}" if of is None else f"{done:,}/{of:,.0f}"


def _wrapped(words: list[str], width: int, lines: int, between: str) -> list[str]:
    """The words on so many lines at most, none broken; what has no room is left out, the least
    important first."""
    out: list[str] = []
    for word in words:
        if out and cell_len(out[-1]) + len(between) + cell_len(word) <= width:
            out[-1] += between + word
        elif len(out) < lines and cell_len(word) <= width:
            out.append(word)
    return out


def _cut(text: str, width: int, utf8: bool) -> str:
    return (
        text
        if cell_len(text) <= width
        else set_cell_size(text, max(0, width - 1)) + ("…" if utf8 else "~")
    )
