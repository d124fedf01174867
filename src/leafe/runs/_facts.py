"""What a run was made with: versions, machine, commit. No package is imported to find out."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from leafe.core.processes import with_default_signals

PACKAGES = (
    "leafe",
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "aiohttp",
    "pydantic",
)


def facts() -> dict[str, Any]:
    """The facts of one start of a run: time (UTC), versions of installed packages, machine, and the
    commit where leafe runs from a checkout."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    package = Path(__file__).resolve().parents[1]

    def ask(*words: str) -> str:
        command = with_default_signals(["git", "-C", str(package), *words])
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # inside another project's tree, that project's commit would say nothing about leafe
        if Path(ask("rev-parse", "--show-toplevel")).resolve() / "src" / "leafe" != package:
            return None
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
