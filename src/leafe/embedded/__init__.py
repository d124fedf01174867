"""The embedded base policy: a word-level model of 0.8M parameters for the environment gates, in the
package as a standard checkpoint.

It is built by `studies/base` in leafe's repository.
"""

from pathlib import Path


def base_path() -> Path:
    """The folder of the base policy: config.json, model.safetensors, tokenizer files with the chat
    template."""
    return Path(__file__).parent / "base"
