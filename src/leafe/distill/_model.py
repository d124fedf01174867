"""The model that is trained: how it is loaded, what of it learns, what it is held to, and how it is
written in the end.

The start policy, to which a teacher's distributions belong, is a frozen copy, or with LoRA the same
weights without the adapter. Trained weights stay
float32: at a rate of 1e-6 bfloat16 would round every update away.
"""

from __future__ import annotations

import copy
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
"""Parameters below which one CPU thread is as fast as several, and safe where the machine is
shared."""
Start = Callable[[], AbstractContextManager[Any]]
"""Gives the start policy for the length of a `with`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint to start from."""

    path: str
    model: Any
    tokenizer: Any
    stored: torch.dtype
    """In which its weights are stored."""


def load(model_path: str | Path, config: DistillConfig, device: torch.device) -> Source:
    """The model, on the CPU. UserError where it cannot be had."""
    try:
        stored = AutoConfig.from_pretrained(model_path).dtype or torch.float32
        # under LoRA the base is not trained
        dtype = (
            torch.bfloat16
            if config.lora is not None and arithmetic(config, device) is torch.bfloat16
            else torch.float32
        )
        with quiet():
            model = causal_model(model_path, dtype=dtype)
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
    return (
        PreTrainedTokenizerFast if is_plain(Path(model_path)) else AutoTokenizer
    ).from_pretrained(model_path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own progress bars: ours are shown by the caller."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def arithmetic(config: DistillConfig, device: torch.device) -> torch.dtype:
    """Of the forward and backward passes."""
    if config.dtype == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def learner(
    model: Any, config: DistillConfig, parallel: Parallel, taught: bool
) -> tuple[Any, Start | None]:
    """(the model, with an adapter where there is to be one, and the start policy where something is
    `taught` by it)."""
    start: Start | None = None
    if config.lora is None and taught:
        start = parallel.prepare_frozen(copy.deepcopy(model))
    if config.lora is not None:
        model = with_adapter(model, config)
        start = _without_adapter(model) if taught else None
    if config.gradient_checkpointing:
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )  # its new name in transformers
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model, start


def groups(trained: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: norms and biases are not decayed."""
    trained = list(trained)
    decayed = [p for p in trained if p.ndim >= 2]
    plain = [p for p in trained if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def save(
    model: Any, source: str, tokenizer: Any, stored: torch.dtype, lora: Lora | None, folder: Path
) -> None:
    """Write the trained model in the source's type (`stored`), or the adapter alone, and the
    source's tokenizer."""
    if lora is not None and lora.merge:
        model = model.merge_and_unload()
    if lora is None or lora.merge:
        model = model.to(stored)
        model.config.dtype = stored
        model.config.use_cache = True
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in TOKENIZER_FILES:  # the source's own files, to the byte, where it is a folder
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, folder / name)


def rebuilt(
    source: Source,
    config: DistillConfig,
    device: torch.device,
    weights: Iterable[tuple[str, Tensor]],
) -> Any:
    """The trained model in one piece, where no process holds it so: the source's with these weights
    put in."""
    model = load(source.path, config, device).model
    if config.lora is not None:
        model = with_adapter(model, config)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights:
            own[name].copy_(tensor)
    return model


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


def adapter(lora: Lora) -> Any:
    """As peft knows it."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def with_adapter(model: Any, config: DistillConfig) -> Any:
    from peft import get_peft_model

    assert config.lora is not None
    try:
        return get_peft_model(model, adapter(config.lora))
    except ValueError as error:
        raise UserError(
            f"distill.lora.target_modules = {', '.join(config.lora.target_modules)}: {error}"
        ) from error


def _without_adapter(model: Any) -> Start:
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
