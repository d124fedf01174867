"""The trained model: how it is loaded, which of its weights learn, its frozen start, and how it is
saved.

The start policy, whose distributions a teacher's targets are, is a frozen copy, or with LoRA the
same weights without the adapter. Trained weights stay float32: at a rate of 1e-6 bfloat16 would
round every update away.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from leafe.core import UserError, is_plain
from leafe.core.checkpoint import causal_model, first_line
from leafe.distill._config import DistillConfig, Lora
from leafe.distill._parallel import Parallel

SMALL = 20_000_000
"""Parameters below which one CPU thread is as fast as several, and safe on a shared machine."""
StartPolicy = Callable[[], AbstractContextManager[Any]]
"""Gives the start policy for the length of a `with`."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint to start from."""

    path: str
    model: Any
    tokenizer: Any
    stored: torch.dtype
    """The type in which its weights are stored."""

    def context(self, config: DistillConfig) -> int:
        """The longest sequence in tokens."""
        own = getattr(self.model.config, "max_position_embeddings", 1 << 30)
        return min(config.max_length or 1 << 30, int(own))

    def fingerprint(self, config: bytes, data: Iterable[Any]) -> str:
        """What a checkpoint must agree with to be resumed: options, data, and the start weights
        (the first values of each)."""
        digest = hashlib.blake2b(config, digest_size=12)
        for item in data:
            digest.update(item)
        for name, parameter in self.model.named_parameters():
            first = parameter.detach().flatten()[:8].float().tolist()
            digest.update(f"{name} {tuple(parameter.shape)} {first}".encode())
        return digest.hexdigest()


def load(model_path: str | Path, config: DistillConfig, device: torch.device) -> Source:
    """Load a checkpoint to train on `device`; its model stays on the CPU. UserError if it cannot be
    loaded."""
    try:
        stored = AutoConfig.from_pretrained(model_path).dtype or torch.float32
        # under LoRA the base is not trained
        low = config.lora is not None and arithmetic(config, device) is torch.bfloat16
        with without_progress_bars():
            model = causal_model(model_path, dtype=torch.bfloat16 if low else torch.float32)
        tokenizer = load_tokenizer(model_path)
    except UserError:
        raise
    except Exception as error:  # the files are foreign
        raise UserError(
            f"{model_path} cannot be loaded as a causal language model: {first_line(error)}"
        ) from error
    model.config.use_cache = False
    return Source(str(model_path), model, tokenizer, stored)


def load_tokenizer(model_path: str | Path) -> Any:
    """The tokenizer as its file says."""
    kind = PreTrainedTokenizerFast if is_plain(Path(model_path)) else AutoTokenizer
    return kind.from_pretrained(model_path)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Without transformers' progress bars: the caller shows its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def cpu_threads(model: Any, device: torch.device) -> Iterator[None]:
    """One CPU thread for a small model on a CPU, unless OMP_NUM_THREADS is set."""
    threads = torch.get_num_threads()
    small = sum(p.numel() for p in model.parameters()) < SMALL
    if small and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def arithmetic(config: DistillConfig, device: torch.device) -> torch.dtype:
    """The type of forward and backward passes."""
    if config.dtype == "auto":
        low = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        low = config.dtype == "bfloat16"
    return torch.bfloat16 if low else torch.float32


def trainable(
    model: Any, config: DistillConfig, parallel: Parallel, taught: bool
) -> tuple[Any, StartPolicy | None]:
    """The model with an adapter if configured, and the start policy if targets are `taught` by
    it."""
    start: StartPolicy | None = None
    if config.lora is not None:
        model = with_adapter(model, config.lora)
        start = _without_adapter(model) if taught else None
    elif taught:
        start = parallel.prepare_frozen(copy.deepcopy(model))
    if config.gradient_checkpointing:
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )  # its new name in transformers
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model, start


def parameter_groups(trained: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, without weight decay for norms and biases."""
    trained = list(trained)
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def save_model(
    model: Any, source: str, tokenizer: Any, stored: torch.dtype, lora: Lora | None, folder: Path
) -> None:
    """Write the trained model in the type `stored`, or the adapter alone, and the tokenizer of the
    checkpoint `source`."""
    if lora is not None and lora.merge:
        model = model.merge_and_unload()
    if lora is None or lora.merge:
        model = model.to(stored)
        model.config.dtype = stored
        model.config.use_cache = True
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in TOKENIZER_FILES:  # the source's own files byte for byte, if it is a folder
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, folder / name)


def rebuilt(
    source: Source,
    config: DistillConfig,
    device: torch.device,
    weights: Iterable[tuple[str, Tensor]],
) -> Any:
    """The source's model with these weights, where no process holds the trained one whole."""
    model = load(source.path, config, device).model
    if config.lora is not None:
        model = with_adapter(model, config.lora)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights:
            own[name].copy_(tensor)
    return model


def lora_config(lora: Lora) -> Any:
    """As peft's `LoraConfig`."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def with_adapter(model: Any, lora: Lora) -> Any:
    """The model with new adapters; UserError for unknown `target_modules`."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, lora_config(lora))
    except ValueError as error:
        raise UserError(
            f"distill.lora.target_modules = {', '.join(lora.target_modules)}: {error}"
        ) from error


def _without_adapter(model: Any) -> StartPolicy:
    @contextmanager
    def start() -> Iterator[Any]:
        was = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was)

    return start
