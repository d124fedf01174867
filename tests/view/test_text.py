"""Texts of models and environments on a page: escaped, bounded, and nothing in them hidden;
searches found, whatever is typed."""

from __future__ import annotations

import sqlite3
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.view._text import fts_query, one_line, search_text, show, snippet, storable, url_part

ODD = [
    "\x00",
    "\x1b",
    "\x7f",
    "\x9b",
    "\u200b",
    "\u200f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\ud800",
    "\udfff",
    "\U000e0041",
]
texts = st.text(
    st.characters(codec=None) | st.sampled_from([*ODD, "<", "&", '"', "'", "\n", "\t"]),
    max_size=200,
)
"""Any text, half surrogates included, with more of what is dangerous."""


class Read(HTMLParser):
    """What a browser makes of a piece of HTML: its text, its elements, and the names of their
    attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.attributes = "", list[str](), list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def hides(c: str) -> bool:
    """By Unicode's own categories: controls, formats, line separators and surrogates."""
    return c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")


@given(texts)
def test_a_shown_text_is_nothing_but_text(text: str) -> None:
    read = Read(show(text, 10**6).html)
    assert set(read.tags) <= {"span"}
    assert set(read.attributes) <= {"class", "title"}
    show(text, 10**6).html.encode()  # no half surrogates left


@given(
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=("Cc", "Cf", "Cn", "Cs", "Zl", "Zp", "Zs", "Mn", "Lo")
        ),
        max_size=300,
    )
    | st.text("a b")
)
def test_ordinary_text_comes_out_as_it_was(text: str) -> None:
    assert Read(show(text, 10**6).html).text == text.replace("\r", "")


@given(texts)
def test_nothing_in_it_is_hidden(text: str) -> None:
    shown = Read(show(text, 10**6).html).text
    joiners = {"\u200c", "\u200d"}  # between characters that need them
    assert not {c for c in shown if hides(c)} - joiners


@given(st.sampled_from(ODD), st.text("ab ", max_size=5))
def test_odd_characters_have_their_names(odd: str, around_it: str) -> None:
    html = show(around_it + odd + around_it, 10**6).html
    assert f"U+{ord(odd):04X}" in html
    assert odd not in html


def test_joiners_stay_where_a_script_needs_them_and_nowhere_else() -> None:
    persian, family = (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
    )
    assert show(persian).html == persian
    assert show(family).html == family
    assert "U+200D" in show("pass\u200dword").html


@given(texts, st.integers(1, 400))
def test_the_limit_is_of_what_is_sent(text: str, limit: int) -> None:
    shown = show(text, limit)
    assert len(shown.html.encode()) <= limit
    assert shown.length == len(text)
    assert 0 <= shown.cut <= len(text)
    whole = show(text, 10**6).html
    assert whole.startswith(shown.html)
    assert (shown.cut == 0) == (shown.html == whole)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "<" * 1_000_000,
        "\x1b" * 1_000_000,
        "\u202e" * 1_000_000,
        "\ud83d" * 1_000_000,
    ],
)
def test_a_line_of_a_megabyte_is_cut(text: str) -> None:
    shown = show(text, 20_000)
    assert len(shown.html.encode()) <= 20_000
    assert shown.cut > 900_000
    assert len(one_line(text, 80)) <= 80


@given(texts, st.integers(2, 60))
def test_a_label_is_one_line(text: str, limit: int) -> None:
    label = one_line(text, limit)
    assert len(label) <= limit
    assert not {c for c in label if hides(c) or c in "\n\t"}
    label.encode()


@given(texts)
def test_what_is_stored_can_be_stored_and_linked(text: str) -> None:
    storable(text).encode()
    url_part(text).encode("ascii")


def found(query: str, *texts_: str) -> list[int]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE words USING fts5(stage, answer, observation, content='')")
    db.executemany(
        "INSERT INTO words(rowid, stage, answer, observation) VALUES (?, 's1', ?, '')",
        [(i, search_text(text)) for i, text in enumerate(texts_)],
    )
    asked = fts_query(query, 1)
    return (
        []
        if asked is None
        else [
            row[0]
            for row in db.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid", (asked,)
            )
        ]
    )


@given(texts, texts)
def test_no_query_is_an_error(query: str, text: str) -> None:
    found(query, text)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=8), st.data())
def test_words_and_phrases_of_a_text_find_it(said: list[str], data: st.DataObject) -> None:
    text = ", ".join(said)
    word = data.draw(st.sampled_from(said))
    begin = data.draw(st.integers(0, len(said) - 1))
    end = data.draw(st.integers(begin + 1, len(said)))
    assert found(word, text, "zzz") == [0]
    assert found(word.upper(), text) == [0]
    assert found(f'"{" ".join(said[begin:end])}"', text, "zzz") == [0]
    assert found(f"{word} zzz", text) == []
    assert found(f"{word[:1]}*", text) == [0]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("钥匙", "你拿起了钥匙,打开了门"),
        ("ключ", "Взять ключ от двери"),
        ("مفتاح", "خذ مفتاح الباب"),
        ("กุญแจ", "หยิบกุญแจแล้วเปิดประตู"),
        ("열쇠", "열쇠를 집는다"),
        ("go-left", "then go left, it said"),
        ("don't", "I don't know"),
        ('say "', 'they say "hello"'),
        ("NEAR AND OR", "near and or not"),
        ("x:y", "the column x:y of it"),
        ("nul", "before\x00nul"),
    ],
)
def test_any_script_and_any_sign_can_be_searched_for(query: str, text: str) -> None:
    assert found(query, "something else", text) == [1]


@given(texts, texts)
def test_the_neighbourhood_is_a_part_of_the_text(text: str, query: str) -> None:
    before, hit, after = snippet(text, query)
    assert (before.removeprefix("…") + hit + after) in text


def test_the_neighbourhood_holds_the_term() -> None:
    assert snippet("a" * 500 + " Key " + "b" * 500, "key")[1] == "Key"
