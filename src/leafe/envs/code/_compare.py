"""How a script's output is judged: as CodeContests' own tester does, and what is shown of it.

The rules are those of `execution/tester_sandboxer.cc` in google-deepmind/code_contests: words are
separated by space, newline, tab, carriage return and
vertical tab, case does not count (of ASCII letters), and two words that are both numbers, however
they are written, are the same where they differ by
less than 1e-5. It is bytes that are compared: no other alphabet's digits are digits, and no other
blanks are blanks.
"""

from __future__ import annotations

import re

TOLERANCE = 1e-5
"""Absolute, for every pair of numbers."""
_WORDS = re.compile(rb"[^ \n\t\r\v]+")
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?")
_NO_FINITE_NUMBER = re.compile(rb"[+-]?(?:inf|infinity|nan(?:\([a-z0-9_]*\))?)")
_AROUND = b" \t\n\v\f\r"
"""What the tester strips from a word that it reads as a number; of these a word can only hold a
form feed."""
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
_LINES, _CHARACTERS = 12, 400


def words(output: bytes) -> list[bytes]:
    """What is compared: the words, in small letters."""
    return _WORDS.findall(output.lower())


def first_difference(got: bytes, want: bytes) -> int | None:
    """Index of the first word that is not as it should be; None where the output is right."""
    found, wanted = words(got), words(want)
    if found == wanted:
        return None
    least = min(len(found), len(wanted))
    apart = [at for at in range(least) if not _match(found[at], wanted[at])]
    if len(found) == len(wanted) and not apart:
        return None
    # of two infinities the tester says that they differ, unless all words are alike: what is to be
    # shown is a word that can be seen to differ
    return next(
        (at for at in apart if found[at] != wanted[at]),
        next((at for at in range(least) if found[at] != wanted[at]), least),
    )


def _match(got: bytes, want: bytes) -> bool:
    """Whether two words count as the same where not all words of the output are."""
    one, other = _number(got), _number(want)
    if one is None or other is None:
        return got == want
    return abs(one - other) < TOLERANCE  # not where one is infinite or no number


def _number(word: bytes) -> float | None:
    word = word.strip(_AROUND)
    if _NUMBER.fullmatch(word):
        return float(word)
    return float("nan") if _NO_FINITE_NUMBER.fullmatch(word) else None


def excerpt(text: str) -> str:
    """The beginning of a text, in at most 12 lines and 400 characters: no control characters, no
    addresses, which differ from run to run."""
    text = _ADDRESS.sub(
        "at 0x...",
        "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[: 4 * _CHARACTERS]),
    ).strip()
    kept = "\n".join(text.split("\n")[:_LINES])[:_CHARACTERS]
    return kept if len(kept) == len(text) else kept.rstrip() + " ..."


def shown(got: bytes, want: bytes, at: int) -> str:
    """Expected and got, and where they part if that is not to be seen."""
    expected, found = excerpt(_text(want)), excerpt(_text(got))
    said = f"Expected:\n{expected or '(nothing)'}\nGot:\n{found or '(nothing)'}"
    if expected.endswith(" ...") or found.endswith(" ...") or expected == found:
        one, other = (_word(_WORDS.findall(output), at) for output in (want, got))
        said += f"\nFirst difference: word {at + 1} should be {one}, and is {other}."
    return said


def _text(output: bytes) -> str:
    return output.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _word(of: list[bytes], at: int) -> str:
    if at >= len(of):
        return "the end"
    word = _text(of[at])
    return excerpt(word if len(word) <= 40 else word[:40] + "...") or ascii(word)
