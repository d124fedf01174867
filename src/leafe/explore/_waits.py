"""Where the time of a stage goes, in task-seconds: what each task in flight waited for.

With 64 tasks in flight a second of wall time is 64 task-seconds. An answer that has arrived while
the event loop is busy with other tasks counts where it was waited for: a busy processor shows as a
longer `engine`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(slots=True)
class Waits:
    """Task-seconds by what was waited for."""

    engine: float = 0.0
    """The policy's answer."""
    envs: float = 0.0
    """A call into an environment."""
    slots: float = 0.0
    """A free environment."""
    journal: float = 0.0
    """An episode to be durable."""
    total: float = 0.0
    """From each task's start to its end."""

    @property
    def leafe(self) -> float:
        """All the rest: the task could continue and was not continued."""
        return max(0.0, self.total - self.engine - self.envs - self.slots - self.journal)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the duration of the block to the field `what`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - began)

    def to_json(self) -> dict[str, float]:
        """Seconds, rounded; with `leafe`."""
        return {f.name: round(getattr(self, f.name), 3) for f in fields(self)} | {
            "leafe": round(self.leafe, 3)
        }
