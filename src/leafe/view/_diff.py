"""What changed between two texts, word by word: the action before a rollback and the revised one
after it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST = 600
"""Words, or lines, that are compared on each side; comparing takes the square of that, and for bad
texts more."""


class Piece(NamedTuple):
    kind: Literal["same", "gone", "new"]
    text: str


def difference(before: str, after: str) -> tuple[list[Piece], list[Piece]] | None:
    """(the text before as pieces that are the same or gone, the text after as pieces that are the
    same or new), by words, or by lines where there are too
    many words; None where there are too many lines too."""
    for cut in (_WORDS.findall, _lines):
        if max(len(before), len(after)) > 200_000:
            return None
        a, b = cut(before), cut(after)
        if max(len(a), len(b)) <= _MOST:
            return _compared(a, b)
    return None


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _compared(a: Sequence[str], b: Sequence[str]) -> tuple[list[Piece], list[Piece]]:
    left: list[Piece] = []
    right: list[Piece] = []
    for what, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if a1 > a0:
            left.append(Piece("same" if what == "equal" else "gone", "".join(a[a0:a1])))
        if b1 > b0:
            right.append(Piece("same" if what == "equal" else "new", "".join(b[b0:b1])))
    return left, right
