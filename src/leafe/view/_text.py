"""Texts of models and environments, made fit for a page: escaped, of bounded size, with hostile
characters visible; and for a search.

The hostile characters are those of `leafe.core.text`: each is shown as a small box with its name,
never sent as it stands. The bound counts what is sent, so that a text of nothing but such
characters cannot swell a page either.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from markupsafe import Markup

from leafe.core import visible
from leafe.core.text import HOSTILE, sign

_SHOWN = re.compile(f"{HOSTILE.pattern}|[&<>\"']")


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it goes into a page: its beginning as HTML, the length of the whole text in
    characters, and how many are cut off its end."""

    html: Markup
    length: int
    cut: int = 0


def show(text: str, limit: int = 20_000) -> Shown:
    """The text's beginning as HTML of about `limit` bytes at most."""
    out: list[str] = []
    size = at = 0
    end = min(len(text), limit)  # a character is a byte or more
    for found in _SHOWN.finditer(text, 0, end):
        piece, mark = text[at : found.start()], _escaped(found[0])
        bytes_ = len(piece.encode()) + len(mark.encode())
        if size + bytes_ > limit:
            end = found.start()
            break
        out += (piece, mark)
        size += bytes_
        at = found.end()
    rest = text[at:end].encode()[: limit - size].decode("utf-8", "ignore")
    return Shown(Markup("".join([*out, rest])), len(text), len(text) - at - len(rest))


def _escaped(c: str) -> str:
    if c in "&<>\"'":
        return escape(c)
    unnamed = "half of a surrogate pair" if 0xD800 <= ord(c) < 0xE000 else "control character"
    title = f"U+{ord(c):04X} {unicodedata.name(c, unnamed)}"
    return f'<span class="odd" title="{title}">{sign(c)}</span>'


def one_line(text: str, limit: int) -> str:
    """One line of at most `limit` characters, still to be escaped: for labels, tips and titles."""
    short = " ".join(visible(text[: 4 * limit]).split())
    fits = len(short) <= limit and len(text) <= 4 * limit
    return short if fits else short[: limit - 1].rstrip() + "…"


def storable(text: str) -> str:
    """The text as SQLite and addresses can hold it: halves of surrogate pairs are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def url_part(text: str) -> str:
    """The text as one part of an address."""
    return quote(storable(text), safe="")


_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
)
"""Scripts without spaces between words: each character is indexed by itself."""


def search_text(text: str) -> str:
    """The text as the search index reads it."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", storable(text))


def search_terms(query: str) -> list[str]:
    """The terms of a search: words, and phrases in quotes. A term without a letter or digit is left
    out; a last * is kept and stands for any ending."""
    found = (phrase or word for phrase, word in re.findall(r'"([^"]+)"|([^\s"]+)', query[:500]))
    return [term for term in found if any(c.isalnum() for c in term)][:20]


def fts_query(query: str, stage: int | None) -> str | None:
    """The query in FTS5's language, with every term quoted so that none is an operator; None where
    it holds no word."""
    quoted = [
        '"{}"{}'.format(
            search_text(t.rstrip("*")).replace('"', '""').replace("\0", " "),
            "*" if t.endswith("*") else "",
        )
        for t in search_terms(query)
    ]
    if not quoted:
        return None
    found = "{answer observation} : (" + " AND ".join(quoted) + ")"
    return found if stage is None else f'stage : "s{stage}" AND {found}'


def snippet(text: str, query: str, width: int = 240) -> tuple[str, str, str]:
    """(before, match, after) around the first term that stands in the text as it was typed; else
    the text's beginning."""
    low = text[:2_000_000].casefold()
    for term in search_terms(query):
        # casefolding may change lengths: then the place is a little off, and nothing else
        at = low.find(term.rstrip("*").casefold())
        if at >= 0:
            end = at + len(term.rstrip("*"))
            begin = max(0, at - width // 3)
            return ("…" if begin else "") + text[begin:at], text[at:end], text[end : end + width]
    return text[:width], "", ""
