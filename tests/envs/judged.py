"""Programs and tests that hold for them in plain Python, by kind: what a judge in a box of its own
must not judge otherwise (judged.txt)."""

from __future__ import annotations

import re
from pathlib import Path

_CASE = re.compile(r"^#### (.+?): (.+)\n((?:.*\n)*?)--\n((?:(?!####).*\n)*)", re.MULTILINE)


def kinds() -> dict[str, dict[str, tuple[str, str]]]:
    """Kind, name of the case, (program, test)."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for kind, name, program, test in _CASE.findall(
        Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    ):
        found.setdefault(kind, {})[name] = (program.rstrip("\n"), test[:-1])
    return found


KINDS = kinds()
