"""The merge of a playbook: the same delta twice changes nothing, the size is bounded, counts are
kept, and no text is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.baselines._asides import Unusable
from leafe.baselines.ace import Delta, Playbook, jaccard, parse_delta, parse_insight
from leafe.core import UserError
from leafe.prompts import PromptSet, load_prompt_set

WORDS = ("open", "the", "red", "door", "first", "never", "eat", "parsley", "look")
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
deltas = st.builds(
    Delta,
    st.sampled_from(["ADD", "ADD", "ADD", "UPDATE", "REMOVE"]),
    st.integers(0, 12),
    st.sampled_from(["doors", "food"]),
    texts,
)
marks = st.tuples(
    st.frozensets(st.integers(0, 12), max_size=3), st.frozensets(st.integers(0, 12), max_size=3)
)
steps = st.lists(deltas | marks, max_size=40)
LIMITS = {"max_items": 4, "similarity": 0.8}


def grown(
    what: list[Delta | tuple[frozenset[int], frozenset[int]]],
    most: int = 4,
    similarity: float = 0.8,
) -> Playbook:
    playbook = Playbook()
    for one in what:
        playbook = (
            playbook.merge(one, max_items=most, similarity=similarity)[0]
            if isinstance(one, Delta)
            else playbook.mark(*one)
        )
    return playbook


@given(steps, deltas)
def test_a_delta_given_twice_changes_nothing_more(before: list[Delta], delta: Delta) -> None:
    once, _ = grown(before).merge(delta, **LIMITS)
    twice, became = once.merge(delta, **LIMITS)
    assert twice == once
    assert became in ("said already", "unknown item", "empty text")


@given(steps, st.integers(1, 5), st.sampled_from([0.3, 0.8, 1.0]))
def test_bounded_ids_fresh_and_no_two_items_alike(
    what: list[Delta], most: int, similarity: float
) -> None:
    playbook = grown(what, most, similarity)
    assert len(playbook.items) <= most
    ids = [i.id for i in playbook.items]
    assert ids == sorted(set(ids))
    assert all(0 < i < playbook.next_id for i in ids)


@given(
    st.lists(st.builds(Delta, st.just("ADD"), st.just(0), st.just("s"), texts), max_size=30),
    st.sampled_from([0.5, 0.8]),
)
def test_what_is_added_only_is_never_doubled(what: list[Delta], similarity: float) -> None:
    playbook = grown(what, 6, similarity)
    assert all(
        jaccard(a.text, b.text) < similarity
        for a in playbook.items
        for b in playbook.items
        if a.id < b.id
    )


@given(steps)
def test_every_text_is_there_or_gone_for_a_reason_or_was_said_already(what: list[Delta]) -> None:
    playbook = Playbook()
    given: list[str] = []
    for one in what:
        if not isinstance(one, Delta):
            playbook = playbook.mark(*one)
            continue
        playbook, became = playbook.merge(one, **LIMITS)
        if became in ("added", "added, another dropped", "updated", "joined"):
            given.append(" ".join(one.text.split()))
        held = [i.text for i in playbook.items] + [g.item.text for g in playbook.gone]
        assert set(given) <= set(held)
    assert all(
        g.why in ("no room", "removed", "updated") or g.why.startswith("joined with ")
        for g in playbook.gone
    )
    known = {i.id for i in playbook.items} | {g.item.id for g in playbook.gone}
    assert known == set(range(1, playbook.next_id))


@given(steps, marks)
def test_counts_change_by_marks_alone_and_stay_with_their_item(
    what: list[Delta], mark: tuple[frozenset[int], frozenset[int]]
) -> None:
    before = grown(what)
    after = before.mark(*mark)
    for a, b in zip(before.items, after.items, strict=True):
        assert (b.helpful - a.helpful, b.harmful - a.harmful) == (
            a.id in mark[0] - mark[1],
            a.id in mark[1] - mark[0],
        )
    merged, became = after.merge(Delta("ADD", section="s", text="quite another thing"), **LIMITS)
    assert became.startswith("added")
    for item in merged.items[:-1]:
        assert item == after[item.id]
    assert sum(i.helpful for i in merged.items) + sum(
        g.item.helpful for g in merged.gone[len(after.gone) :]
    ) == sum(i.helpful for i in after.items)


@given(steps)
def test_through_json_and_back(what: list[Delta]) -> None:
    playbook = grown(what)
    assert Playbook.from_json(json.loads(json.dumps(playbook.to_json()))) == playbook


def test_what_is_dropped_is_the_least_worth_and_of_these_the_oldest_never_the_newest() -> None:
    playbook = (
        grown([Delta("ADD", section="s", text=t) for t in ("one", "two", "three")])
        .mark({1, 3}, {2})
        .mark({3}, set())
    )
    playbook, became = playbook.merge(
        Delta("ADD", section="s", text="four"), max_items=3, similarity=0.8
    )
    assert became == "added, another dropped"
    assert [i.text for i in playbook.items] == ["one", "three", "four"]
    assert [(g.item.text, g.why) for g in playbook.gone] == [("two", "no room")]
    playbook, _ = playbook.merge(
        Delta("ADD", section="s", text="five"), max_items=3, similarity=0.8
    )
    assert [i.text for i in playbook.items] == ["one", "three", "five"]


def test_an_update_that_says_what_another_item_says_joins_the_two() -> None:
    playbook = (
        grown([Delta("ADD", section="s", text=t) for t in ("open the door", "eat parsley")])
        .mark({1, 2}, set())
        .mark(set(), {2})
    )
    playbook, became = playbook.merge(
        Delta("UPDATE", 2, text="the door: open"), max_items=4, similarity=0.8
    )
    assert became == "joined"
    assert [(i.id, i.text, i.helpful, i.harmful) for i in playbook.items] == [
        (1, "the door: open", 2, 1)
    ]
    assert {(g.item.text, g.why) for g in playbook.gone} == {
        ("eat parsley", "joined with 1"),
        ("open the door", "updated"),
    }


def test_saved_loaded_and_a_damaged_file_is_the_users_to_mend(tmp_path: Path) -> None:
    playbook = grown([Delta("ADD", section="s", text="Ärger {items}")])
    playbook.save(tmp_path / "p.json")
    assert Playbook.load(tmp_path / "p.json") == playbook
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(UserError, match="no playbook"):
        Playbook.load(tmp_path / "p.json")
    with pytest.raises(UserError, match="no playbook"):
        Playbook.load(tmp_path / "none.json")


def test_what_stands_in_an_item_is_never_read_as_a_template() -> None:
    words = PromptSet(name="p")
    playbook = grown(
        [
            Delta("ADD", section="b", text="say {instruction} {id}"),
            Delta("ADD", section="a", text="x"),
            Delta("ADD", section="b", text="y"),
        ]
    )
    assert playbook.list_items(words) == "[1] b: say {instruction} {id}\n[3] b: y\n[2] a: x\n"
    assert playbook.list_items(words) in playbook.render(words)
    assert Playbook().render(words) == ""


LESSONS = st.dictionaries(
    st.sampled_from(["section", "lesson", "helpful", "harmful"]),
    st.text(max_size=9) | st.integers() | st.none(),
).map(json.dumps)
DELTAS = st.dictionaries(
    st.sampled_from(["operation", "item", "section", "text"]),
    st.sampled_from(["ADD", "none", "3", ""]) | st.integers(),
).map(json.dumps)


@given(st.text() | LESSONS)
def test_any_text_is_a_lesson_or_unusable(text: str) -> None:
    for words in (PromptSet(name="p"), load_prompt_set("gates")):
        try:
            lesson = parse_insight(text, words, Playbook(), 0.8)
        except Unusable:
            continue
        assert lesson.text == " ".join(lesson.text.split())


@given(st.text() | DELTAS)
def test_any_text_is_a_delta_or_unusable(text: str) -> None:
    try:
        delta = parse_delta(text)
    except Unusable:
        return
    assert delta is None or delta.operation == "REMOVE" or delta.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("none", "no JSON object"),
        ('{"operation": "REWRITE"}', "none of ADD"),
        ('{"operation": "UPDATE", "item": "all", "text": "x"}', "not a number"),
        ('{"operation": "ADD", "text": "None."}', "empty"),
        ('{"operation": "ADD", "text": "' + "x" * 401 + '"}', "longer"),
    ],
)
def test_why_a_delta_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        parse_delta(text)


def test_marks_are_numbers_however_they_are_written() -> None:
    read = parse_insight(
        '{"lesson": "x", "helpful": "[1], 2 and 30", "harmful": [4, "5"]}',
        PromptSet(name="p"),
        Playbook(),
        0.8,
    )
    assert (read.helpful, read.harmful) == ({1, 2, 30}, {4, 5})


def test_in_gates_a_lesson_confirms_what_says_the_same_and_contradicts_the_rest() -> None:
    words = load_prompt_set("gates")
    playbook = grown(
        [
            Delta("ADD", section="attic", text="attic go down"),
            Delta("ADD", section="rusty", text="rusty needs lamp"),
        ]
    )
    assert parse_insight("s3 attic go left", words, playbook, 0.8).harmful == {1}
    read = parse_insight("s0 rusty needs lamp", words, playbook, 0.8)
    assert (read.section, read.text, read.helpful, read.harmful) == (
        "rusty",
        "rusty needs lamp",
        {2},
        frozenset(),
    )
    assert (
        playbook.render(words)
        == "earlier gate breaks ; attic go down ; earlier gate breaks ; rusty needs lamp ; "
    )


def test_by_section_is_what_was_confirmed_more_often_than_contradicted() -> None:
    playbook = grown(
        [
            Delta("ADD", section=s, text=t)
            for s, t in (("a", "one"), ("a", "two"), ("b", "three"), ("c", "four"))
        ]
    )
    playbook = playbook.mark({1, 2, 3}, set()).mark({2}, {3})
    assert playbook.by_section() == {"a": "two"}
