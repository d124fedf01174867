"""Checkpoints that survive a kill: the trained weights and AdamW's moments as safetensors, the rest as JSON, each folder renamed into place when it is whole.

One process, one file a kind: what GRPO needs of what Stage 2 keeps for many.
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
    """In one folder: the newest checkpoint, and the weights that did best on validation."""

    def __init__(self, folder: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> None:
        self.folder, self.trained, self.optimizer = folder, trained, optimizer

    def save(self, step: int, updates: int, state: Mapping[str, Any]) -> None:
        """The checkpoint of `step`, after so many optimiser steps; then older ones go, and best weights that `state["best_step"]` does not name."""
        partial, final = self.folder / f"partial-{step}", self.folder / f"step-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: p.detach().contiguous() for name, p in self.trained.items()}, partial / "trained.safetensors")
        moments = {f"{m}.{name}": self.optimizer.state[p][m].contiguous() for name, p in self.trained.items() for m in _MOMENTS}
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(dict(state) | {"step": step, "updates": updates}), encoding="utf-8")
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        sync(self.folder)
        for old in self.folder.iterdir():
            if old.is_dir() and old != final:
                shutil.rmtree(old)
            elif old.is_file() and old != self._best(state["best_step"]):
                old.unlink()

    def load(self) -> dict[str, Any] | None:
        """Put the newest checkpoint into the parameters and the optimiser; its state, or None where there is none."""
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return None
        state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        self._put(found[-1] / "trained.safetensors")
        moments = load_file(found[-1] / "optimizer.safetensors")
        for name, p in self.trained.items():
            taken = torch.tensor(float(state["updates"]))
            self.optimizer.state[p] = {"step": taken} | {m: moments[f"{m}.{name}"].to(p.device) for m in _MOMENTS}
        return state

    def save_best(self, step: int) -> None:
        """The present weights, beside those that an older checkpoint may name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "partial-best"
        save_file({name: p.detach().contiguous() for name, p in self.trained.items()}, partial)
        partial.replace(self._best(step))

    def load_best(self, step: int) -> None:
        self._put(self._best(step))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _best(self, step: int | None) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _put(self, path: Path) -> None:
        tensors = load_file(path)
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(tensors[name])


def sync(folder: Path) -> None:
    """Have the folder and its files on the disk before anything else is done."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
