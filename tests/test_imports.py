"""`import leafe` and `leafe --help` are light: no torch, no transformers, nothing else that takes
seconds to import."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import leafe

HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "gguf",
    "matplotlib",
    "ray",
)
PARTS = sorted(m.name for m in pkgutil.iter_modules(leafe.__path__) if m.name not in {"__main__"})


def loaded(code: str) -> set[str]:
    """The heavy packages in memory after this code."""
    report = f"\nimport sys; print('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded("import matplotlib") == {"matplotlib"}


def test_importing_leafe_loads_nothing_heavy() -> None:
    assert loaded("import leafe") == set()


def test_importing_every_part_loads_nothing_heavy() -> None:
    assert {"core", "explore", "policies", "distill", "cli"} <= set(PARTS)
    assert loaded("".join(f"import leafe.{part}\n" for part in PARTS)) == set()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["demo", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    # as `python -m leafe.cli` does it; the module ends by raising SystemExit
    code = f"""
import runpy, sys
sys.argv = ["leafe", *{words!r}]
try:
    runpy.run_module("leafe.cli", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded(code) == set()
