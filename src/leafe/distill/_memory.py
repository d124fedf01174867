"""How much a forward pass may hold, how it is known that memory did not suffice, and the most that
was held."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from leafe.distill._config import DistillConfig

_CPU_TOKENS = 1024
"""In one forward pass on a CPU: rows of like length waste little padding and stay in the caches."""


def budget(model: Any, config: DistillConfig, device: torch.device) -> int:
    """Tokens of a forward pass: on a GPU, what its free memory holds after gradients and moments,
    by a rule of thumb."""
    if device.type != "cuda":
        return _CPU_TOKENS
    shape = model.config.get_text_config()
    free = torch.cuda.mem_get_info(device)[0] - 12 * sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    layers = (
        2 if config.gradient_checkpointing else 17
    )  # bfloat16 numbers of the model's width that a layer keeps for each token
    bytes_each = 2 * layers * shape.hidden_size * shape.num_hidden_layers
    return max(1024, min(1 << 16, int(0.6 * free / bytes_each)))


def is_shortage(error: BaseException) -> bool:
    """Whether this is memory that could not be had: CUDA's own error, or what PyTorch says on a
    CPU."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        w in words for w in ("not enough memory", "can't allocate memory")
    )


def line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
