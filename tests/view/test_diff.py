"""What changed between two actions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leafe.view._diff import difference

said = st.text("ab c\n.,é", max_size=60)


@given(said, said)
def test_both_texts_are_whole_and_what_is_the_same_is_the_same(before: str, after: str) -> None:
    pieces = difference(before, after)
    assert pieces is not None
    left, right = pieces
    assert "".join(p.text for p in left) == before
    assert "".join(p.text for p in right) == after
    assert {p.kind for p in left} <= {"same", "gone"}
    assert {p.kind for p in right} <= {"same", "new"}
    assert "".join(p.text for p in left if p.kind == "same") == "".join(
        p.text for p in right if p.kind == "same"
    )


@given(said)
def test_a_text_is_the_same_as_itself(text: str) -> None:
    left, right = difference(text, text) or ([], [])
    assert all(p.kind == "same" for p in [*left, *right])


def test_one_word_is_one_change() -> None:
    left, right = difference("go left", "go right") or ([], [])
    assert left == [("same", "go "), ("gone", "left")]
    assert right == [("same", "go "), ("new", "right")]


def test_long_texts_are_compared_by_lines_and_longer_ones_not_at_all() -> None:
    many = "".join(f"line {i} has words in it\n" for i in range(500))
    left, _ = difference(many, many.replace("line 7 ", "line seven ")) or ([], [])
    assert [p.text for p in left if p.kind == "gone"] == ["line 7 has words in it\n"]
    assert difference(many * 3, many) is None
    assert difference("x" * 300_000, "y") is None
