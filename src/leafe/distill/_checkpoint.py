"""Checkpoints that survive a kill: tensors as safetensors, the rest as JSON, each folder renamed
into place when it is complete.

All randomness of a training is a pure function of its seed and step, so a checkpoint is the trained
weights, AdamW's moments, and a few numbers. Tensors are stored whole however many processes hold
them (FSDP2), so that a training can resume on another number of processes. They are gathered one
after the other, and the main process writes them in files of bounded size. DeepSpeed keeps its own
form.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leafe.distill._parallel import Parallel, SingleProcess, gathered, sharded_like

_MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 2 << 30
"""Of the tensors in one file: the main process holds this much at a time."""


class Checkpoints:
    """The folder `checkpoints` of one training: the newest checkpoint, and the weights of the best
    validation.

    Every process calls every method, and all of them see the same folder. `notes` gets a sentence
    for each checkpoint that could not be used.

    Args:
        folder: The folder.
        trained: The parameters that the optimiser changes, by name.
        optimizer: Whose moments are stored.
        parallel: The processes; None: this one alone.
        model: As `Parallel.prepare` gave it; needed if several processes share it.
    """

    def __init__(
        self,
        folder: Path,
        trained: Mapping[str, Tensor],
        optimizer: Any,
        parallel: SingleProcess | None = None,
        model: Any = None,
    ) -> None:
        self.folder = folder
        self.trained = trained
        self.optimizer = optimizer
        self.parallel = parallel or SingleProcess()
        self.model = model
        self.notes: list[str] = []
        self._named: int | None = None
        """The best step that the newest checkpoint names: its weights must stay."""

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, then remove older ones and the best weights that it does
        not name.

        Args:
            step: Steps that are done.
            state: Plain values. It names its `best_step` (or None), and `updates` if the optimiser
                is updated more than once a step.
        """
        partial, final = self.folder / f"partial-{step}", self.folder / f"step-{step:08d}"
        self._create(partial)
        if self.parallel.deepspeed and isinstance(self.parallel, Parallel):
            self.parallel.wait()
            self.parallel.accelerator.save_state(str(partial / "engine"))
            self.parallel.wait()
        else:
            self._write(partial, "trained", self.parallel.weights(self.model, self.trained))
            self._write(partial, "optimizer", self._moments())
        self._named = state["best_step"]
        if not self.parallel.main:
            return
        sizes = {
            str(path.relative_to(partial)): path.stat().st_size
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / "state.json").write_text(
            json.dumps(dict(state) | {"step": step, "files": sizes}), encoding="utf-8"
        )
        self._move(partial, final)
        for old in self.folder.iterdir():
            if old not in (final, self._best(self._named)):
                shutil.rmtree(old)

    def load(self) -> dict[str, Any] | None:
        """Load the newest complete checkpoint into the parameters and the optimiser.

        Returns:
            Its state; None if there is no checkpoint.
        """
        newest = self.parallel.broadcast(self._newest() if self.parallel.main else None)
        if newest is None:
            return None
        folder, state = newest
        if self.parallel.deepspeed and isinstance(self.parallel, Parallel):
            self.parallel.accelerator.load_state(str(folder / "engine"))
        else:
            self._load_weights(_read(folder, "trained"))
            updates = float(state.get("updates", state["step"]))
            for parameter in self.trained.values():
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(updates, device=parameter.device)
                }
            for key, tensor in _read(folder, "optimizer"):
                moment, _, name = key.partition(".")
                parameter = self.trained[name]
                self.optimizer.state[parameter][moment] = sharded_like(parameter, tensor)
        self._named = state["best_step"]
        del state["files"]
        return state

    def save_best(self, step: int) -> None:
        """Keep the present weights as those of the best validation so far."""
        partial = self.folder / f"partial-best-{step}"
        self._create(partial)
        self._write(partial, "trained", self.parallel.weights(self.model, self.trained))
        if not self.parallel.main:
            return
        self._move(partial, self._best(step))
        for old in self.folder.glob("best-*"):
            if old not in (self._best(step), self._best(self._named)):
                shutil.rmtree(old)

    def best(self, step: int) -> Iterator[tuple[str, Tensor]]:
        """The weights that `save_best(step)` kept."""
        return _read(self._best(step), "trained")

    def load_best(self, step: int) -> None:
        """Load them into the parameters; not with DeepSpeed."""
        self.parallel.wait()
        self._load_weights(self.best(step))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                state: dict[str, Any] = json.loads(
                    (folder / "state.json").read_text(encoding="utf-8")
                )
                for name, size in state["files"].items():
                    if (folder / name).stat().st_size != size:
                        raise ValueError(
                            f"{name} has {(folder / name).stat().st_size} bytes instead of {size}"
                        )
                for file in folder.glob("*.safetensors"):
                    with safe_open(file, "pt"):
                        pass
                if state["best_step"] is not None and not self._best(state["best_step"]).is_dir():
                    raise ValueError(
                        f"the weights of the best step, {state['best_step']}, are gone"
                    )
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                self.notes.append(
                    f"The checkpoint {folder} is not complete and was not used ({error})."
                )
                continue
            return folder, state
        return None

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        for moment in _MOMENTS:
            for name, parameter in self.trained.items():
                yield f"{moment}.{name}", gathered(self.optimizer.state[parameter][moment])

    def _write(self, folder: Path, name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write NAME-0.safetensors, NAME-1.safetensors, ...; all processes gather, the main one
        writes."""
        held: dict[str, Tensor] = {}
        number = size = 0
        for key, tensor in tensors:
            if not self.parallel.main:
                continue
            if held and size + tensor.nbytes > _FILE_BYTES:
                save_file(held, folder / f"{name}-{number}.safetensors")
                held, number, size = {}, number + 1, 0
            held[key] = tensor.cpu().contiguous()
            size += tensor.nbytes
        if held:
            save_file(held, folder / f"{name}-{number}.safetensors")

    def _create(self, partial: Path) -> None:
        if self.parallel.main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _move(self, partial: Path, final: Path) -> None:
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync_one(self.folder)

    def _best(self, step: int | None) -> Path:
        return self.folder / f"best-{step}"

    def _load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.parallel.reshard(self.model)
        with torch.no_grad():
            for name, tensor in tensors:
                self.trained[name].copy_(sharded_like(self.trained[name], tensor))


def _read(folder: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                yield key, file.get_tensor(key)


def sync(folder: Path) -> None:
    """Sync every file under the folder and the folder itself to disk, before it is renamed."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
