"""Checkpoints that survive a kill: tensors as safetensors, the rest as JSON, each folder renamed into place when it is whole.

What is random in a training is a pure function of its seed and step (the shuffles, the schedule), save for dropout, whose
generator's state is stored. So a checkpoint is the trained weights, AdamW's moments, and a handful of numbers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoints:
    """The folder `checkpoints` of one training: the newest checkpoint, and the weights of the best validation."""

    def __init__(self, folder: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> None:
        self.folder = folder
        self.trained = trained
        """The parameters that the optimiser changes, by name."""
        self.optimizer = optimizer
        self._named: int | None = None
        """The best step that the newest checkpoint names: its weights must stay."""

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, then remove older ones and the best weights that it does not name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial, final = self.folder / f"partial-{step}", self.folder / f"step-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file({n: p.detach().contiguous() for n, p in self.trained.items()}, partial / "trained.safetensors")
        tensors = {f"{m}.{n}": self.optimizer.state[p][m].contiguous() for n, p in self.trained.items() for m in _MOMENTS}
        tensors["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        save_file(tensors, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(dict(state) | {"step": step}), encoding="utf-8")
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        self._named = state["best_step"]
        for old in self.folder.iterdir():
            if old.is_dir() and old != final:
                shutil.rmtree(old)
            elif old.is_file() and old != self._best(self._named):
                old.unlink()

    def load(self) -> dict[str, Any] | None:
        """Put the newest checkpoint into the parameters, the optimiser and the generators; its state, or None where there is none."""
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return None
        state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        self._put(load_file(found[-1] / "trained.safetensors"))
        self._named = state["best_step"]
        tensors = load_file(found[-1] / "optimizer.safetensors")
        for name, parameter in self.trained.items():
            moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in _MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(state["step"]), device=parameter.device), **moments}
        torch.set_rng_state(tensors["rng"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        return state

    def save_best(self, step: int) -> None:
        """Keep the present weights as those of the best validation so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"partial-best-{step}.safetensors"
        save_file({n: p.detach().contiguous() for n, p in self.trained.items()}, partial)
        partial.replace(self._best(step))
        for old in self.folder.glob("best-*"):
            if old not in (self._best(step), self._best(self._named)):
                old.unlink()

    def load_best(self, step: int) -> None:
        """Put the weights that `save_best(step)` kept back into the parameters."""
        self._put(load_file(self._best(step)))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _best(self, step: int | None) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])


def sync(folder: Path) -> None:
    """Have every file of the folder on the disk before it is renamed."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
