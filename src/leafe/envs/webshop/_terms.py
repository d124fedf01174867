"""Text to search terms, as the published index has them: words in lower case, without stop words,
stemmed by Porter.

The published search is Lucene's English analyser through Pyserini. Its word breaks are approximated
by one regular expression: letters and digits, with
a point, comma, colon or apostrophe inside where Lucene keeps one (`3.5`, `color:red`, `women's`);
the possessive 's goes, and a hyphen parts words.
How often the results differ from Lucene's own: docs/environments.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from leafe.envs.webshop._packages import package

STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)
"""Lucene's English stop words."""
_WORD = re.compile(r"\w+(?:(?:(?<=\d)[.,;'‘’](?=\d)|(?<=[^\W\d_])[.:·：'‘’](?=[^\W\d_]))\w+)*")


def words_of(text: str) -> list[str]:
    """The words of a text before stemming, stop words left out."""
    found = []
    for word in _WORD.findall(text.lower()):
        if word.endswith(("'s", "’s")):
            word = word[:-2]
        if word not in STOP_WORDS:
            found.append(word)
    return found


def make_stemmer() -> Callable[[str], str]:
    """Porter's stemmer; words of one or two letters are left as they are."""
    stem: Callable[[str], str] = package("Stemmer", "PyStemmer").Stemmer("porter").stemWord
    return stem
