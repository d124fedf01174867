"""A training in this process. The heavy packages are imported when it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leafe.core import UserError
from leafe.distill._config import DistillConfig
from leafe.distill._dataset import Dataset
from leafe.distill._result import Progress, TrainResult


def train_here(
    model_path: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None = None,
) -> TrainResult:
    """`leafe.distill.train` without a launcher."""
    with needs_extra():
        if config.method == "dpo":
            from leafe.distill._dpo import run
        else:
            from leafe.distill._train import run
    return run(model_path, out, data, valid, config, progress)


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn a missing package into a UserError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"Distillation needs the package {error.name}, which is not installed: pip install "
            "'leafe[hf]'."
        ) from error
