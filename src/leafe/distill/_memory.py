"""Tokens per forward pass by the free memory, detecting out-of-memory errors, and peak memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from leafe.distill._config import DistillConfig

_CPU_TOKENS = 1024
"""In one forward pass on a CPU: rows of similar length waste little padding and fit the caches."""


def default_micro_batch_tokens(model: Any, config: DistillConfig, device: torch.device) -> int:
    """Tokens of a forward pass: on a GPU by a rule of thumb, from its free memory less gradients
    and moments."""
    if device.type != "cuda":
        return _CPU_TOKENS
    shape = model.config.get_text_config()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = torch.cuda.mem_get_info(device)[0] - 12 * trained
    # bfloat16 numbers of the model's width that a layer keeps for each token
    kept = 2 if config.gradient_checkpointing else 17
    bytes_each = 2 * kept * shape.hidden_size * shape.num_hidden_layers
    return max(1024, min(1 << 16, int(0.6 * free / bytes_each)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA's own error, or PyTorch's message on a CPU."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in message for phrase in ("not enough memory", "can't allocate memory")
    )


def short_message(error: BaseException, most: int = 160) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most].rstrip(".")


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: on the GPU, or without one all of it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
