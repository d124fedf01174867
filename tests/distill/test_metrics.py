"""Metrics reach the trackers by their own integrations, and a training that goes on does not count
a step twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from leafe.distill import Dataset, preset, train

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "rehearsal_batch_size": 4,
    "counterfactual_batch_size": 3,
    "anchor_batch_size": 3,
    "reflection_batch_size": 1,
    "max_steps": 5,
    "save_steps": 2,
}


class Killed(Exception):
    pass


def killed(row: Mapping[str, Any]) -> None:
    if row["step"] == 3:
        raise Killed


def losses(out: Path) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_tensorboard_has_every_step_once(data: Dataset, model_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = preset("leafe+", **SIZES, report_to=("tensorboard",))
    with pytest.raises(Killed):
        train(model_path, tmp_path, data, None, config, killed)
    train(model_path, tmp_path, data, None, config)
    events = EventAccumulator(str(tmp_path / "logs" / "leafe"), size_guidance={"scalars": 0})
    events.Reload()
    assert {"loss", "lr", "grad_norm", "tokens", "loss/rehearsal"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses(tmp_path))


@pytest.mark.slow
def test_wandb_offline(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = train(
        model_path, tmp_path / "out", data, None, preset("leafe+", **SIZES, report_to=("wandb",))
    )
    assert result.steps == 5
    assert len(losses(tmp_path / "out")) == 5
    assert list((tmp_path / "out").rglob("*.wandb"))


def test_any_tracker_gets_numbers_by_step(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking
    from accelerate.utils import LoggerType

    log: list[Any] = []

    class Fake(tracking.GeneralTracker):
        name = "trackio"
        requires_logging_directory = False
        main_process_only = False

        def __init__(self, run_name: str, **options: Any) -> None:
            log.append(("init", run_name, options))

        def start(self) -> None:
            pass

        tracker = property(lambda self: None)

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            log.append(("settings", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            log.append((step, values))

        def finish(self) -> None:
            log.append("finish")

    monkeypatch.setattr("leafe.distill._train.require_trackers", lambda names: None)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TRACKIO])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Fake)
    config = preset("leafe+", **SIZES, report_to=("trackio",))
    with pytest.raises(Killed):
        train(model_path, tmp_path, data, None, config, killed)
    assert log[-1] == "finish"
    train(model_path, tmp_path, data, None, config)
    begins = [entry for entry in log if entry[0] == "init"]
    assert begins[0] == begins[1]
    assert begins[0][1] == "leafe"
    assert begins[0][2]["resume"] == "allow"
    (settings, _) = [entry[1] for entry in log if entry[0] == "settings"]
    assert settings["learning_rate"] == config.learning_rate
    assert all(isinstance(v, bool | int | float | str) for v in settings.values())
    steps = [entry for entry in log if isinstance(entry[0], int)]
    assert [step for step, _ in steps] == [1, 2, 3, 3, 4, 5]
    assert all(isinstance(v, int | float) for _, values in steps for v in values.values())
