"""Where the time of a stage goes, in task-seconds: what each task in flight was waiting for, added
up over tasks.

With 64 tasks in flight a second of wall time is 64 task-seconds. `engine` is waiting for the
policy's answer, `envs` for a call into an environment, `slots` for an
environment to be free, `journal` for an episode to be durable; `leafe` is all the rest: a task that
could go on and was not gone on with.
An answer that has come and lies ready while the event loop is busy with others counts where it was
waited for: a busy processor shows as a longer `engine`.
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
    envs: float = 0.0
    slots: float = 0.0
    journal: float = 0.0
    total: float = 0.0
    """From each task's start to its end."""

    @property
    def leafe(self) -> float:
        return max(0.0, self.total - self.engine - self.envs - self.slots - self.journal)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
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
