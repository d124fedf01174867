"""Histories only grow: every prompt of an episode is the one before, the action, and the answer;
what changes stands at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Kind, Message, Scope, Stop, Tree, UserError
from leafe.prompts import (
    History,
    PromptCache,
    Prompts,
    PromptSet,
    history_before,
    load_prompt_set,
    prompt_sets,
)
from tests.core.growth import grown_trees
from tests.trees import Ep, make_tree, trees

SETS = [*map(load_prompt_set, prompt_sets()), PromptSet(name="bare")]


@pytest.mark.parametrize("prompt_set", SETS, ids=lambda s: s.name)
@given(tree=trees() | grown_trees())
def test_the_next_prompt_is_this_one_the_action_and_the_answer(
    prompt_set: PromptSet, tree: Tree
) -> None:
    prompts = Prompts(prompt_set, "take X; use X")
    for episode in tree.episodes:
        history = History(tree.task, episode.first_observation, preamble=episode.preamble)
        for turn in tree.trajectory(episode):
            before, history = prompts.act(history), history.then(turn)
            after = prompts.act(history)
            assert after[: len(before)] == before
            answer, observation = after[len(before) :]
            assert (answer.role, answer.content, answer.tokens) == (
                "assistant",
                turn.action_text,
                turn.tokens,
            )
            assert observation.role == "user"
            assert turn.observation in observation.content


@pytest.mark.parametrize("prompt_set", SETS, ids=lambda s: s.name)
@given(tree=trees())
def test_an_experience_and_a_reflection_request_change_the_last_message_only(
    prompt_set: PromptSet, tree: Tree
) -> None:
    prompts = Prompts(prompt_set)
    for turn in tree:
        bare, told = (
            history_before(tree, turn, with_experience=False),
            history_before(tree, turn, with_experience=True),
        )
        assert [t.id for t in bare.turns] == [t.id for t in tree.path(turn.parent)]
        if (
            turn.kind is Kind.act
            and turn.experience is not None
            and tree.episode_of(turn.id).scope is Scope.action
            and not told.preamble
        ):
            plain, with_note = (
                prompts.act(
                    replace(told, notes={s: n for s, n in told.notes.items() if s != turn.step})
                ),
                prompts.act(told),
            )
            assert with_note[:-1] == plain[:-1]
            assert with_note[-1].content.startswith(plain[-1].content)
            assert tree[turn.experience].note in with_note[-1].content.removeprefix(
                plain[-1].content
            )
        if turn.kind is Kind.reflect:
            acting, reflecting = prompts.act(bare), prompts.reflect(bare)
            assert reflecting[:-1] == acting[:-1]
            assert reflecting[-1].content.startswith(acting[-1].content)
            assert len(reflecting[-1].content) > len(acting[-1].content)


@given(trees())
def test_without_experience_no_prompt_holds_a_note(tree: Tree) -> None:
    for turn in tree:
        bare = history_before(tree, turn, with_experience=False)
        assert not bare.notes
        assert not bare.preamble


def test_scope_branch_keeps_the_note_where_it_was_put_and_scope_action_drops_it() -> None:
    prompts = Prompts(PromptSet(name="t", experience=" NOTE {experience}"))

    def said(scope: Scope) -> list[str]:
        tree = make_tree(
            Ep("go", "take", stop=Stop.failure, blame=1, note="use lamp"),
            Ep("open", "walk", branch_of=0, scope=scope),
        )
        last = tree.episodes[1].acts[-1]
        return [
            m.content
            for m in prompts.act(history_before(tree, last, with_experience=True))
            if "NOTE use lamp" in m.content
        ]

    assert len(said(Scope.branch)) == 1
    assert said(Scope.branch)[0].endswith("NOTE use lamp")
    assert said(Scope.action) == []


def test_nothing_to_reflect_on() -> None:
    with pytest.raises(ValueError, match="no action"):
        Prompts(PromptSet(name="t")).reflect(History(make_tree().task, "o"))


@given(trees(), st.integers(1, 4))
def test_a_window_shows_its_last_turns_in_one_message(tree: Tree, n: int) -> None:
    prompts = Prompts(
        PromptSet(name="t", window="{shown}|{history}|{observation}"), history=f"window:{n}"
    )
    for turn in tree:
        history = history_before(tree, turn, with_experience=False)
        (message,) = prompts.act(history)
        if history.turns:
            shown, lines, now = message.content.split("|")
            assert shown == str(min(n, history.step))
            assert lines.count("[Step ") == min(n, history.step)
            assert now == history.turns[-1].observation


@pytest.mark.parametrize("bad", ["window", "window:0", "window:-1", "all", "window:3 "])
def test_an_unknown_history_is_the_users_mistake(bad: str) -> None:
    with pytest.raises(UserError, match="is neither"):
        Prompts(PromptSet(name="t"), history=bad)


@pytest.mark.parametrize("history", ["full", "window:2"])
@settings(max_examples=50)
@given(tree=trees() | grown_trees(), data=st.data())
def test_what_was_said_before_changes_no_word(
    history: str, tree: Tree, data: st.DataObject
) -> None:
    """Histories that grow, that branch, whose notes and preambles change, and of other lengths:
    always the prompt that is made from nothing."""
    prompts = Prompts(
        PromptSet(name="bare", system="About {instruction} {preamble}"), "take X", history
    )
    said = PromptCache()
    turns = list(tree)
    for _ in range(data.draw(st.integers(1, 12)) if turns else 0):
        about = history_before(
            tree, data.draw(st.sampled_from(turns)), with_experience=data.draw(st.booleans())
        )
        if data.draw(st.booleans()):
            about = replace(
                about,
                notes={
                    s: data.draw(st.sampled_from(["left", "right"]))
                    for s in data.draw(st.sets(st.integers(0, about.step)))
                },
            )
        if data.draw(st.booleans()):
            about = replace(about, turns=about.turns[: data.draw(st.integers(0, about.step))])
        assert prompts.act(about, said) == prompts.act(about)
        if about.turns and data.draw(st.booleans()):
            assert prompts.reflect(about, said) == prompts.reflect(about)


def test_a_turn_is_put_into_words_once() -> None:
    tree = make_tree(Ep("go", "take", "open", "walk"))
    prompts, said = Prompts(PromptSet(name="bare")), PromptCache()
    history = History(tree.task, tree.first_observation)
    before: tuple[Message, ...] = ()
    for turn in tree.trajectory(tree.episodes[0]):
        now = prompts.act(history, said)
        assert all(a is b for a, b in zip(before, now, strict=False))
        before, history = now, history.then(turn)
    assert len(before) > 2
