"""What every training here needs, whatever its loss: checkpoints that survive a kill, metrics, and
weights written in the standard form. Imports torch."""

from leafe.distill._checkpoint import Checkpoints
from leafe.distill._metrics import Metrics
from leafe.distill._model import SMALL, adapter, groups, quiet, save
from leafe.distill._publish import finished, publish, same

__all__ = [
    "SMALL",
    "Checkpoints",
    "Metrics",
    "adapter",
    "finished",
    "groups",
    "publish",
    "quiet",
    "same",
    "save",
]
