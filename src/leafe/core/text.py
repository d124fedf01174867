"""Text that a model, a server or an environment wrote: cleaned before it is stored, and again
before it is shown.

`clean_text` is for storing: the result can be hashed, encoded, tokenised and written. `visible` is
for showing: no character of the result controls a terminal, changes the reading direction or is
invisible.
"""

from __future__ import annotations

import re

LONGEST = 1_000_000
"""The most characters of one answer or observation; the rest is cut."""

_WITHIN = "\u200c\u200d\ufe0e\ufe0f"
"""Joiners and variation selectors: kept between the characters of Persian, Indic scripts and emoji,
which need them."""
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
"""Matches one hostile character: it controls a terminal, changes the reading direction, or is not
seen. The one list, for the terminal, the viewer and the report."""


def clean_text(text: str, longest: int = LONGEST) -> str:
    """Make a text storable: cut it to `longest`, and repair surrogates.

    Args:
        text: What a model, a server or an environment wrote.
        longest: The most characters.

    Returns:
        Its beginning, in which two halves of a surrogate pair are the character that they encode,
        and a lone half is U+FFFD.
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
    """The text with every hostile character replaced by a sign that names it. Letters of any
    script, line breaks and tabs stay."""
    return HOSTILE.sub(lambda found: sign(found[0]), text)


def sign(character: str) -> str:
    """The sign for a hostile character: ␛ for escape, ⟨U+202E⟩ for U+202E."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
