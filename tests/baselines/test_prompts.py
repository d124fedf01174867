"""A playbook in the prompt: a prefix that all prompts share, or a lesson at the steps that it is
about; histories go on growing only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from leafe.core import Tree
from leafe.prompts import History, PromptCache, Prompts, PromptSet, load_prompt_set, prompt_sets
from tests.core.growth import grown_trees
from tests.trees import trees

SETS = [*map(load_prompt_set, prompt_sets()), PromptSet(name="bare")]
TOPICS = {"door": "open it", "key": "take {observation}", "no such thing": "never"}


@pytest.mark.parametrize("prompt_set", SETS, ids=lambda s: s.name)
@given(tree=trees() | grown_trees())
def test_with_playbook_and_lessons_the_next_prompt_is_still_this_one_and_what_came_of_it(
    prompt_set: PromptSet, tree: Tree
) -> None:
    plain = Prompts(prompt_set, "take X")
    prompts = plain.with_playbook("BOOK {step}\n", TOPICS)
    for episode in tree.episodes:
        history = History(tree.task, episode.first_observation, preamble=episode.preamble)
        said = PromptCache()
        first = len(prompts.act(history)) - 1
        for turn in tree.trajectory(episode):
            before, asked, history = (
                prompts.act(history, said),
                prompts.with_request(history, " ASKED"),
                history.then(turn),
            )
            after = prompts.act(history, said)
            assert after[: len(before)] == before
            assert after == prompts.act(history)
            assert before[first].content.startswith("BOOK {step}\n")
            assert asked[:-1] == before[:-1]
            assert asked[-1].content.endswith(" ASKED")
            assert prompts.reflect(history)[:-1] == after[:-1]
            bare = plain.act(history)
            assert (
                after[first].content.removeprefix("BOOK {step}\n").startswith(bare[first].content)
            )
            for mine, theirs in zip(after[first + 1 :], bare[first + 1 :], strict=True):
                assert mine.content.startswith(theirs.content)


def test_a_lesson_stands_where_its_topic_is_seen_and_no_experience_stands() -> None:
    from tests.trees import make_tree

    words = PromptSet(name="t", experience=" NOTE {experience}")
    prompts = Prompts(words).with_playbook(
        lessons={"Rusty gate": "take lamp", "gate": "go slowly", "": "nothing"}
    )
    history = History(make_tree().task, "a rusty gate")
    assert prompts.act(history)[-1].content.endswith("a rusty gate NOTE take lamp go slowly")
    assert prompts.act(replace(history, first_observation="A mossy Gate."))[-1].content.endswith(
        "A mossy Gate. NOTE go slowly"
    )
    assert prompts.act(replace(history, first_observation="a gatehouse"))[-1].content.endswith(
        "a gatehouse"
    )
    assert prompts.act(replace(history, notes={0: "mind"}))[-1].content.endswith(" NOTE mind")
    assert prompts.with_request(history, " SAY")[-1].content.endswith("a rusty gate SAY")


def test_a_window_begins_with_the_playbook_and_sets_stay_what_they_are() -> None:
    from tests.trees import make_tree

    tree = make_tree()
    [*_, episode] = tree.episodes
    history = History(tree.task, episode.first_observation)
    for turn in tree.trajectory(episode):
        history = history.then(turn)
        text = (
            Prompts(PromptSet(name="w"), history="window:1", playbook="BOOK ")
            .act(history)[-1]
            .content
        )
        assert (
            text
            == "BOOK " + Prompts(PromptSet(name="w"), history="window:1").act(history)[-1].content
        )
    one = Prompts(PromptSet(name="w"), "help", "window:2", "BOOK ", {"a": "b"}).with_texts(
        preamble="P {experience}"
    )
    assert (one.actions_help, one.window, one.playbook, one.lessons, one.set.preamble) == (
        "help",
        2,
        "BOOK ",
        {"a": "b"},
        "P {experience}",
    )
