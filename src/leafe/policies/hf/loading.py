"""Load a model and a tokenizer from a folder, or say in one sentence what is wrong with it.

Safetensors only, no remote code. The folder of a PEFT adapter names its base model itself.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leafe.core import UserError, is_plain
from leafe.core.checkpoint import causal_model, first_line, with_adapter_merged
from leafe.core.rotary import rotary_switch

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")


@contextlib.contextmanager
def _needs_extra(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} needs the package {error.name!r}, which is not installed: pip install "
            "'leafe[hf]'."
        ) from error


def _folder(path: str | Path) -> Path | str:
    """The folder, or a model's name on the Hugging Face hub; UserError if it can be neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path, str) and _HUB_NAME.fullmatch(path) and not folder.exists():
        return path
    raise UserError(
        f"There is no model folder {path}: give a folder with config.json and model.safetensors."
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / name} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} does not hold a JSON object.")
    return found


def adapter_base(path: str | Path) -> str | None:
    """The base model of a PEFT adapter folder; None where the folder is not just an adapter.

    Raises:
        UserError: The adapter names no base model, or its config cannot be read.
    """
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return None
    base = _read_json(folder, "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"The adapter {folder} names no base model: give the base model as the model and this "
            "folder as the adapter."
        )
    return str(base)


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a checkpoint folder or hub name.

    A folder whose tokenizer is a plain `tokenizer.json` gets exactly that: `AutoTokenizer` would
    replace the pre-tokenizer of a Qwen2 model by Qwen's own.

    Raises:
        UserError: No tokenizer can be loaded.
    """
    with _needs_extra("An in-process model"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    where = _folder(path)
    if (
        isinstance(where, Path)
        and not (where / "tokenizer_config.json").is_file()
        and (base := adapter_base(where)) is not None
    ):
        where = _folder(base)
    try:
        if isinstance(where, Path) and is_plain(where):
            return PreTrainedTokenizerFast.from_pretrained(str(where))
        return AutoTokenizer.from_pretrained(str(where))
    except Exception as error:  # tokenizers raises plain Exceptions on damaged files
        raise UserError(f"No tokenizer can be loaded from {where}: {first_line(error)}") from error


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | Path | None = None,
) -> Any:
    """A causal language model in evaluation mode on its device.

    Args:
        path: A checkpoint folder, a hub name, or the folder of a PEFT adapter.
        dtype: "auto" (float32 on a CPU, the checkpoint's own elsewhere) or a torch name
            ("bfloat16").
        device: "auto" (CUDA where there is one) or a torch name.
        adapter: A PEFT folder, merged into the weights.

    Raises:
        UserError: The folder, the type, the device or the adapter cannot be used.
    """
    with _needs_extra("An in-process model"):
        import torch
        import transformers  # noqa: F401
    where = _folder(path)
    if isinstance(where, Path) and (base := adapter_base(where)) is not None:
        if adapter is not None:
            raise UserError(
                f"{where} is itself an adapter: give its base model ({base}) to use another one."
            )
        where, adapter = _folder(base), where
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind: Any = dtype
    if dtype == "auto":
        kind = torch.float32 if chosen.startswith("cpu") else "auto"
    elif not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(
            f"dtype = {dtype!r} is no torch type: use auto, float32, bfloat16 or float16."
        )
    else:
        kind = getattr(torch, dtype)
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise UserError(f"device = {device!r} cannot be used: {first_line(error)}") from error
    try:
        with _quiet():
            model = causal_model(where, dtype=kind)
    except UserError as error:
        if isinstance(where, Path):
            raise
        raise UserError(
            f"{error} Give policy.model a checkpoint folder or the id of a model that can be "
            'fetched here, or use a server: policy.kind = "http" with options.base_url.'
        ) from error
    if adapter is not None:
        model = _merge(model, adapter)
    return model.to(chosen).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bar: the caller shows its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _merge(model: Any, adapter: str | Path) -> Any:
    with _needs_extra("A LoRA adapter"):
        import peft  # noqa: F401
    if not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise UserError(f"There is no PEFT adapter in {adapter}: adapter_config.json is missing.")
    return with_adapter_merged(model, adapter)


def check_architecture(config: Any, context: int, name: str) -> None:
    """UserError unless every layer attends to the whole context: the engine's only state is the
    keys and values of every position."""
    advice = "serve it over HTTP instead (vLLM, SGLang, llama.cpp)"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder-decoder model, which the in-process engine cannot run: "
            "use a decoder-only model."
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    if kinds - {"sliding_attention"} or (window is None and "sliding_attention" in kinds):
        raise UserError(
            f"{name} has layers of kind {', '.join(sorted(kinds))}, which the in-process "
            f"engine cannot run: {advice}."
        )
    if window is not None and window < context:
        raise UserError(
            f"{name} attends to a sliding window of {window} tokens only: set max_context "
            f"to {window} or less, or {advice}."
        )
    switch = rotary_switch(getattr(config, "get_text_config", lambda: config)())
    if switch is not None and switch < context:
        raise UserError(
            f"{name} uses other rotary factors past {switch} tokens, for all rows of a forward "
            "pass at once (LongRoPE), so that an answer would depend on the rest of the batch: "
            f"set max_context to {switch} or less, or {advice}."
        )
