"""Splits text into search terms like the published index: lower case, no stop words, Porter stems.

The published search is Lucene's English analyser through Pyserini. One regular expression
approximates its word breaks: letters and digits, with a point, comma, colon or apostrophe inside
where Lucene keeps one (`3.5`, `color:red`, `women's`). The possessive 's is dropped, and a hyphen
splits words. docs/environments.md says how often results differ from Lucene's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from leafe.envs.webshop._packages import package

STOP_WORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with
    """.split()  # noqa: SIM905 (a block of words reads better)
)
"""Lucene's English stop words."""
_WORD = re.compile(r"\w+(?:(?:(?<=\d)[.,;'‘’](?=\d)|(?<=[^\W\d_])[.:·：'‘’](?=[^\W\d_]))\w+)*")


def words_of(text: str) -> list[str]:
    """The words of a text without stop words, not yet stemmed."""
    found = []
    for word in _WORD.findall(text.lower()):
        if word.endswith(("'s", "’s")):
            word = word[:-2]
        if word not in STOP_WORDS:
            found.append(word)
    return found


def make_stemmer() -> Callable[[str], str]:
    """Porter's stemmer; it leaves words of one or two letters."""
    stem: Callable[[str], str] = package("Stemmer", "PyStemmer").Stemmer("porter").stemWord
    return stem
