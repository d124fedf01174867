"""A training as a file, so that any launcher can start it on several processes or machines.

    accelerate launch --config_file fsdp.yaml -m leafe.distill JOB.json

The job names model, samples, folder and options; every process reads it. `launched` writes one,
starts the launcher, passes the progress on, and says what
an error was in the caller's own kinds. What the launcher starts ends when the caller does: the
processes read a pipe that it holds open.
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
from leafe.distill._result import Progress, TrainResult

_STEP = "leafe.distill step "
"""Before the figures of a step on the standard output of the main process."""


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
    }
    job.write_text(
        json.dumps(values | {"config": config.model_dump(mode="json")}, indent=1), encoding="utf-8"
    )


def run(path: Path, progress: Progress | None) -> TrainResult:
    """Train as the job says. Its keys: `model` (folder or name), `data` and `valid` (files of
    samples beside it, or null), `out` (folder), `config`.

    UserError for a file that is no job, and as `leafe.distill.train`.
    """
    from leafe.distill import train

    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        config = DistillConfig(**job["config"])
        data = Dataset.load(path.parent / job["data"])
        valid = None if job.get("valid") is None else Dataset.load(path.parent / job["valid"])
        model, out = job["model"], path.parent / job["out"]
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{path} is no job of a training: {why}.") from error
    return train(model, out, data, valid, config, progress)


def main(arguments: list[str]) -> int:
    """`python -m leafe.distill JOB.json`; the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m leafe.distill JOB.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if os.environ.get("LEAFE_LAUNCHED"):
        threading.Thread(target=_die_with_caller, daemon=True).start()
    try:
        run(path, lambda row: print(_STEP + json.dumps(dict(row)), flush=True))
    except LeafeError as error:
        if os.environ.get("LEAFE_LAUNCHED"):
            _said(path).write_text(
                json.dumps({"user": isinstance(error, UserError), "words": str(error)}),
                encoding="utf-8",
            )
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def launched(
    launch: str,
    model: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None,
) -> TrainResult:
    """`train` by a launcher's command, such as `accelerate launch --config_file fsdp.yaml`, to
    which `-m leafe.distill JOB` is added.

    UserError as `train`, and where the command cannot be started; ForeignFailure where it fails
    otherwise, with the file of what it wrote.
    """
    job, log = out / "job" / "job.json", out / "job" / "launch.log"
    job.parent.mkdir(parents=True, exist_ok=True)
    write(
        job, model if not Path(model).exists() else Path(model).absolute(), out, data, valid, config
    )
    _said(job).unlink(missing_ok=True)
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
                row = _figures(line)
                if row is None:
                    file.write(line)
                    file.flush()
                elif progress:
                    progress(row)
            code = process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()  # ends the processes, if they are still there
            process.stdout.close()
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code == 0:
        return TrainResult.from_json(
            json.loads((out / "train.json").read_text(encoding="utf-8"))["result"] | {"path": out}
        )
    if _said(job).is_file():
        said = json.loads(_said(job).read_text(encoding="utf-8"))
        raise (UserError if said["user"] else ForeignFailure)(said["words"])
    end = log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
    last = f", its end: {end[-1].strip()[-300:]}" if end else ""
    raise ForeignFailure(
        f"The training's processes, started by {launch!r}, ended with code {code}: what "
        f"they wrote is in {log}{last}"
    )


def _said(job: Path) -> Path:
    """Where a process says what its error was: the launcher's exit code does not."""
    return job.with_name("error.json")


def _figures(line: bytes) -> Mapping[str, Any] | None:
    _, mark, rest = line.decode(errors="replace").partition(_STEP)
    try:
        return dict(json.loads(rest)) if mark else None
    except ValueError:
        return None


def _die_with_caller() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)
