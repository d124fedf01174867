"""The embedded base policy: a word-level model of 0.8M parameters for the environment gates, as a
standard checkpoint in the package.

`studies/base` in the repository builds it again. Nothing here imports torch.
"""

from pathlib import Path


def base_path() -> Path:
    """The base policy's folder: config.json, model.safetensors, tokenizer files with the chat
    template."""
    return Path(__file__).parent / "base"
