"""What a model or an environment wrote, made fit for a page: escaped, of bounded size, and with
every character that would hide or reorder others made visible.

Control characters, marks that turn the direction of text and halves of surrogate pairs are shown as
what they are (a small box with the name), never sent
as they stand (`leafe.core.text` has the list). The bound is on what is sent, so that text of
nothing but such characters cannot swell a page either.
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
    """A text as it goes into a page."""

    html: Markup
    length: int
    """Characters of the whole text."""
    cut: int = 0
    """How many of them are left out at the end."""


def show(text: str, limit: int = 20_000) -> Shown:
    """The text's beginning as HTML of about `limit` bytes at most."""
    out: list[str] = []
    size = at = 0
    end = min(len(text), limit)  # a character is a byte or more
    for found in _SHOWN.finditer(text, 0, end):
        piece, mark = text[at : found.start()], _mark(text, found)
        bytes_ = len(piece.encode()) + len(mark.encode())
        if size + bytes_ > limit:
            end = found.start()
            break
        out += (piece, mark)
        size += bytes_
        at = found.end()
    rest = text[at:end].encode()[: limit - size].decode("utf-8", "ignore")
    return Shown(Markup("".join([*out, rest])), len(text), len(text) - at - len(rest))


def plain(text: str, limit: int) -> str:
    """One line of at most `limit` characters, still to be escaped: for labels, tips and titles."""
    short = " ".join(visible(text[: 4 * limit]).split())
    return (
        short
        if len(short) <= limit and len(text) <= 4 * limit
        else short[: limit - 1].rstrip() + "…"
    )


def storable(text: str) -> str:
    """The text as SQLite and addresses can hold it: halves of surrogate pairs are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def part(text: str) -> str:
    """The text as a part of an address."""
    return quote(storable(text), safe="")


def _mark(text: str, found: re.Match[str]) -> str:
    c = found[0]
    if c in "&<>\"'":
        return escape(c)
    return f'<span class="odd" title="{_name(c)}">{sign(c)}</span>'


def _name(c: str) -> str:
    return (
        f"U+{ord(c):04X} "
        f"{unicodedata.name(c, 'half of a surrogate pair' if 0xD800 <= ord(c) < 0xE000 else 'control character')}"
    )


_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
)
"""Scripts that put no space between words: each character is found by itself."""


def words(text: str) -> str:
    """The text as the search index reads it."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", storable(text))


def wanted(query: str) -> list[str]:
    """The terms of a search: words, and what stands in quotes as a phrase; those without a letter
    or digit are left out. A last * is kept: a beginning."""
    found = (phrase or word for phrase, word in re.findall(r'"([^"]+)"|([^\s"]+)', query[:500]))
    return [term for term in found if any(c.isalnum() for c in term)][:20]


def match(query: str, stage: int | None) -> str | None:
    """The query in FTS5's language, every term quoted, so that nothing in it is an operator; None
    where it holds no word."""
    terms = wanted(query)
    if not terms:
        return None
    quoted = [
        '"{}"{}'.format(
            words(t.rstrip("*")).replace('"', '""').replace("\0", " "),
            "*" if t.endswith("*") else "",
        )
        for t in terms
    ]
    said = "{said seen} : (" + " AND ".join(quoted) + ")"
    return said if stage is None else f'at : "s{stage}" AND {said}'


def around(text: str, query: str, width: int = 240) -> tuple[str, str, str]:
    """(before, match, after): the neighbourhood of the first term that stands in the text as it was
    typed; else its beginning."""
    low = text[:2_000_000].casefold()
    for term in wanted(query):
        # casefolding may change lengths: then the place is a little off, and nothing else
        at = low.find(term.rstrip("*").casefold())
        if at >= 0:
            end = at + len(term.rstrip("*"))
            begin = max(0, at - width // 3)
            return ("…" if begin else "") + text[begin:at], text[at:end], text[end : end + width]
    return text[:width], "", ""
