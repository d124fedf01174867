"""Loading a checkpoint with every tensor in its place, or an error that says what is wrong.

transformers initialises missing tensors at random and ignores superfluous ones, with a warning. A
run on such a model measures nothing. torch and transformers are imported on use.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leafe.core.errors import UserError

_LFS = b"version https://git-lfs"
_BUFFERS = ("inv_freq", "attn.bias", "attn.masked_bias")
"""Ends of names of tensors in old checkpoints that models now compute themselves."""


def check_weights(folder: str | Path) -> None:
    """Check that the safetensors files of a folder can be opened.

    Args:
        folder: The folder. The name of a model on a hub has no files here and passes.

    Raises:
        UserError: A file is a Git LFS pointer, was cut off, or is damaged.
    """
    from safetensors import safe_open

    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        with path.open("rb") as file:
            head = file.read(len(_LFS))
        if head == _LFS:
            raise UserError(
                f"{path} is a Git LFS pointer and not the weights: fetch them with git lfs pull."
            )
        try:
            with safe_open(path, "np"):
                pass
        except Exception as error:
            raise UserError(
                f"{path} cannot be read: it was cut off or is damaged "
                f"({first_line(error)}): copy it again."
            ) from error


def causal_model(path: str | Path, *, dtype: Any) -> Any:
    """Load a causal language model, with every tensor in its place.

    Args:
        path: The folder, or the name of a model on a hub.
        dtype: As transformers takes it.

    Returns:
        The `transformers` model.

    Raises:
        UserError: It cannot be loaded, or its tensors are not those that its config.json needs.
    """
    from transformers import AutoModelForCausalLM

    check_weights(path)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # the files are foreign: the library may raise anything on them
        raise UserError(f"No model can be loaded from {path}: {first_line(error)}") from error
    names = {
        kind: _own(found.get(kind, ()))
        for kind in ("mismatched_keys", "missing_keys", "unexpected_keys")
    }
    for kind, what in (
        ("mismatched_keys", "has another shape"),
        ("missing_keys", "is missing"),
        ("unexpected_keys", "is there and has no place in the model"),
    ):
        if names[kind]:
            raise UserError(
                f"{_weights(path)} does not fit its config.json: {_some(names[kind])} {what}. "
                "Copy all files of one checkpoint again."
            )
    return model


def with_adapter_merged(model: Any, adapter: str | Path) -> Any:
    """The model with a PEFT adapter merged into its weights.

    Args:
        model: The `transformers` model that the adapter was trained on.
        adapter: The adapter's folder.

    Raises:
        UserError: The adapter's files are damaged, or are not for this model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    check_weights(adapter)
    try:
        loaded = PeftModel.from_pretrained(model, str(adapter))
        wanted = {name for name in get_peft_model_state_dict(loaded) if "lora_" in name}
    except Exception as error:
        raise UserError(
            f"The adapter {adapter} does not fit its base model: {first_line(error)}"
        ) from error
    file = Path(adapter).expanduser() / "adapter_model.safetensors"
    if file.is_file():
        with safe_open(file, "np") as opened:
            there = {name for name in opened.keys() if "lora_" in name}  # noqa: SIM118 (no mapping)
        for names, what in ((wanted - there, "is missing"), (there - wanted, "has no place in it")):
            if names:
                raise UserError(
                    f"The adapter {adapter} does not fit its base model: {_some(names)} {what}."
                )
    return loaded.merge_and_unload()


def _weights(path: str | Path) -> str:
    """For an error: the one weight file, else the folder or the model's name."""
    files = list(Path(path).expanduser().glob("*.safetensors"))
    return str(files[0]) if len(files) == 1 else f"The checkpoint {path}"


def _some(names: Iterable[str]) -> str:
    """The first name, and how many more."""
    listed = sorted(names)
    return listed[0] + (f" (and {len(listed) - 1} more)" if len(listed) > 1 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, 300 characters at most; its type where it has none."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (line or type(error).__name__)[:300]


def _own(keys: Iterable[Any]) -> list[str]:
    """The names of tensors, without the buffers that models compute themselves."""
    names = [str(key if isinstance(key, str) else key[0]) for key in keys]
    return [name for name in names if not name.endswith(_BUFFERS)]
