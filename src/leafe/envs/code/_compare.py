"""Compares a script's output with the expected one, as CodeContests' own tester does.

The rules are those of `execution/tester_sandboxer.cc` in google-deepmind/code_contests. Words are
separated by space, newline, tab, carriage return and vertical tab. The case of ASCII letters does
not count. Two words that are both numbers are equal if they differ by less than 1e-5, however they
are written. Bytes are compared: other alphabets' digits and blanks count as letters.
"""

from __future__ import annotations

import re

TOLERANCE = 1e-5
"""Absolute, for every pair of numbers."""
_WORDS = re.compile(rb"[^ \n\t\r\v]+")
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(?:inf|infinity|nan(?:\([a-z0-9_]*\))?)")
_STRIPPED = b" \t\n\v\f\r"
"""What the tester strips from a word that it reads as a number."""
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
_MAX_LINES, _MAX_CHARACTERS = 12, 400


def words(output: bytes) -> list[bytes]:
    """The words of an output, in lower case."""
    return _WORDS.findall(output.lower())


def first_difference(got: bytes, want: bytes) -> int | None:
    """The index of the first wrong word; None if the output is right."""
    found, wanted = words(got), words(want)
    if found == wanted:
        return None
    least = min(len(found), len(wanted))
    apart = [at for at in range(least) if not _match(found[at], wanted[at])]
    if len(found) == len(wanted) and not apart:
        return None
    # The tester takes two infinities for different unless all words are equal. Prefer to show a
    # word that visibly differs.
    return next(
        (at for at in apart if found[at] != wanted[at]),
        next((at for at in range(least) if found[at] != wanted[at]), least),
    )


def _match(got: bytes, want: bytes) -> bool:
    """Whether two words are equal to the tester."""
    one, other = _number(got), _number(want)
    if one is None or other is None:
        return got == want
    return abs(one - other) < TOLERANCE  # false if one is infinite or nan


def _number(word: bytes) -> float | None:
    word = word.strip(_STRIPPED)
    if _NUMBER.fullmatch(word):
        return float(word)
    return float("nan") if _NOT_FINITE.fullmatch(word) else None


def excerpt(text: str) -> str:
    """The beginning of a text: at most 12 lines and 400 characters, without control characters and
    without addresses, which differ from run to run."""
    text = _ADDRESS.sub(
        "at 0x...",
        "".join(
            c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[: 4 * _MAX_CHARACTERS]
        ),
    ).strip()
    kept = "\n".join(text.split("\n")[:_MAX_LINES])[:_MAX_CHARACTERS]
    return kept if len(kept) == len(text) else kept.rstrip() + " ..."


def describe_difference(got: bytes, want: bytes, at: int) -> str:
    """The expected and the actual output, and where they differ if that is not visible."""
    expected, found = excerpt(_text(want)), excerpt(_text(got))
    text = f"Expected:\n{expected or '(nothing)'}\nGot:\n{found or '(nothing)'}"
    if expected.endswith(" ...") or found.endswith(" ...") or expected == found:
        one, other = (_word(_WORDS.findall(output), at) for output in (want, got))
        text += f"\nFirst difference: word {at + 1} should be {one}, and is {other}."
    return text


def _text(output: bytes) -> str:
    return output.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _word(of: list[bytes], at: int) -> str:
    if at >= len(of):
        return "the end"
    word = _text(of[at])
    return excerpt(word if len(word) <= 40 else word[:40] + "...") or ascii(word)
