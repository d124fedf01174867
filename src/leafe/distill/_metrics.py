"""Where a training's metrics go: metrics.jsonl, the caller, and experiment trackers through
accelerate.

metrics.jsonl has one line per step; a resumed training drops the lines of the steps that it takes
again. Trackers continue the same run if they can (wandb, trackio), or purge what came after
(TensorBoard).
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator

from leafe.core import UserError
from leafe.distill._result import Progress

_PROJECT = "leafe"


def require_trackers(names: Sequence[str]) -> None:
    """UserError if a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"distill.report_to names {name}, which is not installed: pip install {name}, or "
                "leave it out."
            )


class Metrics:
    """Writes the metrics of one training; only the main process has it.

    Args:
        path: metrics.jsonl.
        first: Steps that are done.
        progress: The caller's function.
        accelerator: With the trackers in its `log_with`.
        settings: The options, for the trackers.
        identity: The same for every start of one training, and for no other training.
    """

    def __init__(
        self,
        path: Path,
        first: int,
        progress: Progress | None,
        accelerator: Accelerator,
        settings: Mapping[str, Any] = MappingProxyType({}),
        identity: str = "",
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_later_steps(path, first)
        self.file = path.open("a", encoding="utf-8")
        self.progress = progress
        self.accelerator = accelerator
        if accelerator.log_with:
            name = "/".join(path.parent.parts[-3:])
            folder = str(path.parent)
            accelerator.init_trackers(
                _PROJECT,
                {
                    k: v if isinstance(v, bool | int | float | str) else json.dumps(v)
                    for k, v in settings.items()
                    if v is not None
                },
                {
                    "tensorboard": {"purge_step": first + 1} if first else {},
                    "wandb": {"name": name, "id": identity, "resume": "allow", "dir": folder},
                    "trackio": {"name": f"{name} {identity[:8]}", "resume": "allow"},
                },
            )

    def row(self, values: Mapping[str, Any]) -> None:
        """Record the metrics of the step `values["step"]`."""
        self.file.write(json.dumps(dict(values)) + "\n")
        self.file.flush()
        self.accelerator.log(
            {
                k: v
                for k, v in values.items()
                if isinstance(v, int | float) and math.isfinite(v) and k != "step"
            },
            step=values["step"],
        )
        if self.progress:
            self.progress(values)

    def close(self) -> None:
        """Close the file and the trackers; also after a failure."""
        self.file.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def drop_later_steps(path: Path, first: int) -> None:
    """Keep the lines of metrics.jsonl up to step `first`; 0 keeps none."""
    kept = []
    if first and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill: its step is taken again
                break
            if row["step"] <= first:
                kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
