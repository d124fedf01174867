"""A training as a file, so that any launcher can start it on several processes or machines.

    accelerate launch --config_file fsdp.yaml -m leafe.distill JOB.json

The job names model, samples, folder and options; every process reads it. `train_with` writes one,
starts the launcher, forwards the progress and raises the training's errors. The launched processes
read a pipe that the caller holds open, and exit when it closes.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leafe.core import ForeignFailure, LeafeError, UserError, visible
from leafe.core.processes import with_default_signals
from leafe.distill._config import DistillConfig
from leafe.distill._dataset import Dataset
from leafe.distill._local import train_here
from leafe.distill._result import Progress, TrainResult

_STEP = "leafe.distill step "
"""Prefix of a step's metrics on the main process's standard output."""


def write(
    job: Path,
    model: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
) -> None:
    """Write the job's file, and its samples beside it."""
    data.save(job.with_name("data.jsonl"))
    if valid is not None:
        valid.save(job.with_name("valid.jsonl"))
    values = {
        "model": str(model),
        "data": "data.jsonl",
        "valid": None if valid is None else "valid.jsonl",
        "out": str(out.absolute()),
        "config": config.model_dump(mode="json"),
    }
    job.write_text(json.dumps(values, indent=1), encoding="utf-8")


def run(path: Path, progress: Progress | None) -> TrainResult:
    """Train as the job says. Its keys: `model` (folder or name), `data` and `valid` (files of
    samples beside it, or null), `out` (folder), `config`.

    UserError for a file that is no job, and as `leafe.distill.train`.
    """
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        config = DistillConfig(**job["config"])
        data = Dataset.load(path.parent / job["data"])
        valid = None if job.get("valid") is None else Dataset.load(path.parent / job["valid"])
        model, out = job["model"], path.parent / job["out"]
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{path} is no job of a training: {why}.") from error
    return train_here(model, out, data, valid, config, progress)


def main(arguments: list[str]) -> int:
    """`python -m leafe.distill JOB.json`; the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m leafe.distill JOB.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    launched = bool(os.environ.get("LEAFE_LAUNCHED"))
    if launched:
        threading.Thread(target=_exit_with_caller, daemon=True).start()
    try:
        run(path, lambda row: print(_STEP + json.dumps(dict(row)), flush=True))
    except LeafeError as error:
        user = isinstance(error, UserError)
        if launched:
            _error_file(path).write_text(
                json.dumps({"user": user, "message": str(error)}), encoding="utf-8"
            )
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2 if user else 1
    return 0


def train_with(
    launch: str,
    model: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None,
) -> TrainResult:
    """`train` by a launcher's command, such as `accelerate launch --config_file fsdp.yaml`, to
    which `-m leafe.distill JOB` is appended.

    UserError as `train`, and if the command cannot be started; ForeignFailure if it fails
    otherwise, with the path of its log.
    """
    job, log = out / "job" / "job.json", out / "job" / "launch.log"
    job.parent.mkdir(parents=True, exist_ok=True)
    local = Path(model).absolute() if Path(model).exists() else model
    write(job, local, out, data, valid, config)
    _error_file(job).unlink(missing_ok=True)
    command = [*shlex.split(launch), "-m", "leafe.distill", str(job)]
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                with_default_signals(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"LEAFE_LAUNCHED": "1", "PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise UserError(
                f"The training's launch command {launch!r} cannot be started: "
                f"{error.strerror} ({command[0]})."
            ) from error
        assert process.stdout is not None
        try:
            for line in process.stdout:
                row = _metrics(line)
                if row is None:
                    file.write(line)
                    file.flush()
                elif progress:
                    progress(row)
            code = process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()  # the processes exit
            process.stdout.close()
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code == 0:
        stored = json.loads((out / "train.json").read_text(encoding="utf-8"))
        return TrainResult.from_json(stored["result"] | {"path": out})
    if _error_file(job).is_file():
        stored = json.loads(_error_file(job).read_text(encoding="utf-8"))
        raise (UserError if stored["user"] else ForeignFailure)(stored["message"])
    end = log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
    last = f", which ends with: {end[-1].strip()[-300:]}" if end else ""
    raise ForeignFailure(
        f"The training's processes, started by {launch!r}, exited with code {code}: see {log}{last}"
    )


def _error_file(job: Path) -> Path:
    """Where a process writes its error: the launcher's exit code does not tell it."""
    return job.with_name("error.json")


def _metrics(line: bytes) -> Mapping[str, Any] | None:
    """The metrics of a step; None for any other line."""
    _, mark, rest = line.decode(errors="replace").partition(_STEP)
    try:
        return dict(json.loads(rest)) if mark else None
    except ValueError:
        return None


def _exit_with_caller() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)
