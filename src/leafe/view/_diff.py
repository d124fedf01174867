"""What changed between two texts, word by word: an action before a rollback and the revised one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST = 600
"""Words, or lines, that are compared on each side: the time grows with the square of that."""
_LONGEST = 200_000


class Piece(NamedTuple):
    """A part of a text."""

    kind: Literal["same", "gone", "new"]
    text: str


def difference(before: str, after: str) -> tuple[list[Piece], list[Piece]] | None:
    """Compare two texts by words or, where there are too many words, by lines.

    Returns:
        The text before as pieces that are the same or gone, and the text after as pieces that are
        the same or new. None where the texts are too long.
    """
    if max(len(before), len(after)) > _LONGEST:
        return None
    cuts: tuple[Callable[[str], list[str]], ...] = (
        _WORDS.findall,
        lambda text: text.splitlines(keepends=True),
    )
    for cut in cuts:
        a, b = cut(before), cut(after)
        if max(len(a), len(b)) <= _MOST:
            return _compared(a, b)
    return None


def _compared(a: Sequence[str], b: Sequence[str]) -> tuple[list[Piece], list[Piece]]:
    codes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return (
        [
            Piece("same" if what == "equal" else "gone", "".join(a[begin:end]))
            for what, begin, end, _, _ in codes
            if end > begin
        ],
        [
            Piece("same" if what == "equal" else "new", "".join(b[begin:end]))
            for what, _, _, begin, end in codes
            if end > begin
        ],
    )
