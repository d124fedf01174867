"""What any training here needs, whatever its loss: checkpoints that survive a kill, metrics, and
publishing the weights in standard form. Imports torch."""

from leafe.distill._checkpoint import Checkpoints
from leafe.distill._metrics import Metrics
from leafe.distill._model import (
    SMALL,
    lora_config,
    parameter_groups,
    save_model,
    without_progress_bars,
)
from leafe.distill._publish import finished_result, publish, require_same

__all__ = [
    "SMALL",
    "Checkpoints",
    "Metrics",
    "finished_result",
    "lora_config",
    "parameter_groups",
    "publish",
    "require_same",
    "save_model",
    "without_progress_bars",
]
