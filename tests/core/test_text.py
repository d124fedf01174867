"""Foreign text: whatever it holds, it can be kept; and shown, it steers and hides nothing."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Completion, clean_text, observation_hash, visible

any_text = st.text(
    st.characters(codec=None) | st.sampled_from("\ud800\udfff\ud83d\ude00\x1b\x00\u202e")
)


@given(any_text)
def test_a_cleaned_text_can_be_encoded_and_stays_as_it_is(text: str) -> None:
    clean = clean_text(text)
    clean.encode()
    assert clean_text(clean) == clean
    assert json.loads(json.dumps(clean)) == clean
    observation_hash(clean)


@given(st.text())
def test_sound_text_is_left_alone(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud800", "a\ufffd"),
        ("\udc00\ud800b", "\ufffd\ufffdb"),
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ("\ufeffa\ud800", "\ufeffa\ufffd"),
    ],
)
def test_halves_are_joined_and_lone_ones_replaced(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_what_is_kept_is_bounded() -> None:
    assert clean_text("x" * 10, 4) == "xxxx"
    answer = Completion("x" * 1_000_001)
    assert len(answer.text) == 1_000_000
    assert answer.finish == "length"


@given(any_text)
def test_every_completion_is_clean_whatever_made_it(text: str) -> None:
    assert Completion(text).text == clean_text(text)


@given(any_text)
def test_any_observation_has_a_hash(text: str) -> None:
    assert len(observation_hash(text)) == 12


def test_what_is_hostile_is_what_unicode_says() -> None:
    steers = [
        chr(c)
        for c in range(sys.maxunicode + 1)
        if unicodedata.category(chr(c)) in ("Cc", "Cf", "Zl", "Zp", "Cs") and chr(c) not in "\n\t"
    ]
    shown = [c for c in steers if c in visible(f"a{c}a")]
    assert not shown, [hex(ord(c)) for c in shown]


@given(any_text)
def test_visible_text_holds_nothing_that_steers(text: str) -> None:
    seen = visible(text)
    assert not set(seen) & set(
        "\x00\x07\x08\x0d\x1b\x7f\x9b\u061c\u200e\u200f\u202a\u202d\u202e\u2066\u2069\ud800\udfff"
    )
    assert visible(seen) == seen
    assert len(seen) <= 11 * len(text)


@pytest.mark.parametrize(
    "text",
    ["العربية", "日本語", "हिन्दी", "עברית", "🙂é", "می‌خواهم", "👨‍👩", "❤️‍🔥", "a\tb\nc", "\ufffd"],
)
def test_letters_of_any_script_stay(text: str) -> None:
    assert visible(text) == text


def test_signs_name_what_they_stand_for() -> None:
    assert visible("\x1b[31m\x7f\x9b\u202eab") == "␛[31m␡⟨U+009B⟩⟨U+202E⟩ab"
    assert visible("pass\u200dword") == "pass⟨U+200D⟩word"
