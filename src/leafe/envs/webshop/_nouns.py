"""The nouns of a product's title, without a tagger.

The published reward compares titles by the tokens that spaCy's `en_core_web_sm` tags as noun or
proper noun. In titles, where most words are capitalised, that tagger takes nearly every word for a
noun, adjectives too. So here every word with a letter counts, except function words, numbers and a
few verbs. Words are split as spaCy splits them: a hyphen, comma or slash between letters splits,
one beside a digit does not. docs/environments.md says how often the two differ.
"""

from __future__ import annotations

import re
from functools import lru_cache

_INSIDE = re.compile(
    r"(?<=[^\W\d_])[-–—~,](?=[^\W\d_])|(?<=[^\W_])[:<>=/](?=[^\W\d_])|(?<=[a-z])\.(?=[A-Z])"
)
_OUTSIDE = re.compile(r"^[\W_]+|[\W_]+$")
_UNIT = re.compile(r"(?<=\d)(?:[kmcµ]?m|[kmµ]?g|ft|lb|oz|l|k)$")
"""The unit that spaCy splits from a number: `24k`, `40mm`."""

NOT_NOUNS = frozenset(
    """
    a an the and or but nor for of in on at by to from with without into onto over under up down
    out off as than then so if not no per via plus all any both each every few more most other
    some such only own same this that these those it its is are was were be been being am do
    does did has have had can could may might must shall should will would i you he she we they
    me him her us them my your his our their who whom whose which what when where why how very
    too just also even ever never always about above across after against along around before
    behind below beneath beside between beyond during inside near outside since through toward
    towards upon while within like still one two three four five six seven eight nine ten eleven
    twelve hundred thousand first second third buy get make made makes use used using uses keep
    keeps help helps give gives go goes fit fits wear includes including included designed
    removes improves
    """.split()  # noqa: SIM905 (a block of words reads better)
)
"""Words, in lower case, that do not count as nouns."""


@lru_cache(maxsize=1 << 16)
def nouns_of(title: str) -> tuple[str, ...]:
    """The nouns of a title, in lower case, in order, with repetitions."""
    found = []
    for piece in title.split():
        for token in _INSIDE.split(_OUTSIDE.sub("", piece)):
            word = _OUTSIDE.sub("", token).lower().removesuffix("'s").removesuffix("’s")
            if unit := _UNIT.search(word):
                word = unit[0]
            if any(letter.isalpha() for letter in word) and word not in NOT_NOUNS:
                found.append(word)
    return tuple(found)
