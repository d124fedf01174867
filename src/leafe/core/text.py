"""Text that a model, a server or an environment wrote: the one place where it is cleaned and
bounded, and where it is made fit to be shown.

`clean_text` is for what is kept: every text can then be hashed, encoded, tokenised and stored.
`visible` is for what is shown: no character of it steers a terminal, turns the reading direction
or hides."""

from __future__ import annotations

import re

LONGEST = 1_000_000
"""Characters that are kept of one answer or observation."""

_WITHIN = "\u200c\u200d\ufe0e\ufe0f"
"""Joiners and variation selectors: Persian, Indic scripts and emoji need them between their own
characters; there they stay."""
_ALWAYS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the reading direction
    "\u2028\u2029\u202f"  # separators
    "\u00ad\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2"
    "\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # format characters
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0d\uffa0"  # drawn as nothing
    "\ufff0-\ufff8\ufffe\uffff"  # no characters
    "\ud800-\udfff"  # halves of surrogate pairs
    "\U000e0000-\U000e0fff"  # tags, which spell text that nobody sees
)
HOSTILE = re.compile(f"[{_ALWAYS}]|(?<![^\x00-\x7f{_ALWAYS}{_WITHIN}])(?<!\ufe0f)[{_WITHIN}]")
"""A character that steers a terminal, turns the reading direction, or is not seen: the list of
the terminal, the viewer and the report."""


def clean_text(text: str, longest: int = LONGEST) -> str:
    """Make a foreign text one that can be hashed, encoded, tokenised and stored.

    Args:
        text: What a model, a server or an environment wrote.
        longest: How many characters are kept of it.

    Returns:
        Its beginning, in which two halves of a surrogate pair are the character that they stand
        for, and a lone half is U+FFFD.
    """
    text = text[:longest]
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def visible(text: str) -> str:
    """The text with every hostile character as a sign that names it; letters of any script, line
    breaks and tabs stay."""
    return HOSTILE.sub(lambda found: sign(found[0]), text)


def sign(character: str) -> str:
    """The sign that stands for a hostile character: ␛, or ⟨U+202E⟩."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
