"""Logs that are played again in their environment, and what goes on from them."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import FAILED_BY_ENV, Kind, Stop, Tree
from leafe.data import Problems, write_trees
from leafe.distill import build, preset
from leafe.explore import ExploreConfig
from leafe.runs import load_trees
from tests.data.importing.logs import (
    PROMPTS,
    again,
    bare,
    chat_lines,
    grown,
    played,
    tasks,
    write_lines,
)


@pytest.fixture(scope="module")
def trees() -> dict[str, Tree]:
    return played(6, 3)


@pytest.fixture(scope="module")
def lines(trees: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return chat_lines(trees, tmp_path_factory.mktemp("chat") / "out")


def words(tree: Tree) -> set[tuple[Any, ...]]:
    """The tree's episodes by what was done and said."""
    return {
        (
            e.stop,
            e.first_observation,
            *(
                (t.action_text, t.action, t.observation, t.reward, t.progress)
                for t in tree.trajectory(e)
            ),
        )
        for e in tree.episodes
    }


def test_what_was_exported_comes_back_the_same(
    trees: dict[str, Tree], lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = again(write_lines(tmp_path / "a.jsonl", lines))
    assert {name: words(tree) for name, tree in found.trees.items()} == {
        name: words(tree) for name, tree in trees.items()
    }
    assert Stop.diverged not in {e.stop for tree in found.trees.values() for e in tree.episodes}
    assert {t.tokens for tree in found.trees.values() for t in tree} == {
        t.tokens for tree in trees.values() for t in tree
    }


def test_a_log_without_anything_beside_the_texts_is_enough(
    trees: dict[str, Tree], lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The environment's words are found within the messages that a harness made of them."""
    found = again(write_lines(tmp_path / "a.jsonl", [bare(row) for row in lines]))
    assert {name: words(tree) for name, tree in found.trees.items()} == {
        name: words(tree) for name, tree in trees.items()
    }


def test_branches_are_whole_episodes(tmp_path: Path) -> None:
    grew = grown(tasks(6), ExploreConfig(limits={"policy_calls": 60.0}, stop_when="budget"))
    assert any(e.depth for tree in grew.values() for e in tree.episodes)
    found = again(write_lines(tmp_path / "a.jsonl", chat_lines(grew, tmp_path / "out")))
    for (
        name,
        tree,
    ) in found.trees.items():  # each once, and one that a budget cut short is a failure like others
        assert {w[1:] for w in words(tree)} == {w[1:] for w in words(grew[name])}
        assert len(tree.episodes) == len({w[1:] for w in words(grew[name])})
    assert all(
        e.start is None and e.depth == 0 for tree in found.trees.values() for e in tree.episodes
    )


@given(chance=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_what_the_env_does_not_say_again_has_diverged(
    chance: random.Random, lines: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One word of the log is changed, in what the environment said or in how it ended: the episode
    has diverged, the others have not, and it is not trained on."""
    rows = copy.deepcopy(lines)
    row = chance.choice(rows)
    how = chance.choice(["observation", "text", "outcome", "more"])
    if how == "outcome":
        row["success"] = not row["success"]
    elif how == "more":
        row["messages"] += [
            {"role": "assistant", "content": "walk on"},
            {"role": "user", "content": "path"},
        ]
        if row["stop"] not in ("success", "failure"):  # the environment goes on there: another word
            row["messages"][-1]["content"] = "a lion"
    else:
        message = chance.choice([m for m in row["messages"] if m["role"] == "user"])
        if how == "observation":
            message["observation"] += "!"
        else:
            del message["observation"]
            message["content"] = "something else"
    problems = Problems()
    found = again(
        write_lines(tmp_path_factory.mktemp("changed") / "a.jsonl", rows), problems=problems
    )
    stops = [e.stop for tree in found.trees.values() for e in tree.episodes]
    assert stops.count(Stop.diverged) == 1
    assert problems.noted["diverged"] == 1
    data = build(found.trees, PROMPTS, preset("rft"), 0)
    lost = next(
        e for tree in found.trees.values() for e in tree.episodes if e.stop is Stop.diverged
    )
    assert not {s.turn_id for s in data.samples} & {t.id for t in lost.turns}
    if row["success"] or how == "outcome":
        assert data.skipped["rehearsal: the episode diverged on replay"] == 1


def test_exploration_goes_on_with_imported_failures(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The whole way: a log, its trees, reflections on its failures, rollback into them,
    counterfactual samples; also through a stage's folder."""
    lost = [row for row in lines if not row["success"]]
    found = again(write_lines(tmp_path / "a.jsonl", [bare(row) for row in lost]))
    write_trees(tmp_path / "explore", found, tasks(6))
    known = load_trees(tmp_path / "explore")
    assert list(known) == [task.id for task in tasks(6)]
    config = ExploreConfig(limits={"policy_calls": 150.0})
    grew = grown(tasks(6), config, known)
    rescued = 0
    for name, tree in found.trees.items():
        mine = grew[name]
        assert [e.to_json() for e in mine.episodes[: len(tree.episodes)]] == [
            e.to_json() for e in tree.episodes
        ]
        for episode in tree.episodes:
            read = [t for t in mine.reflections if t.parent == episode.acts[-1].id]
            assert bool(read) == (episode.stop in FAILED_BY_ENV), episode.stop
            assert all(t.step == len(episode.acts) for t in read)
        inside = {t.id for e in tree.episodes for t in e.acts}
        branches = mine.branches()
        from_log = [b for b in branches if b.original.id in inside]
        assert from_log
        assert all(b.turn_before is None or b.turn_before in inside for b in from_log)
        rescued += any(b.outcome_after.success for b in from_log)
        looks = [e for e in mine.episodes if e.turns and not e.acts]
        assert all(t.kind is Kind.reflect for e in looks for t in e.turns)
        assert all(e.stop is mine.episode_of(str(e.start)).stop for e in looks)
    assert rescued
    data = build(grew, PROMPTS, preset("leafe+"), 0)
    originals = {t.id for tree in found.trees.values() for t in tree}
    assert any(
        note.note.split(",")[0].removeprefix("instead of ") in originals
        for note in data.part("counterfactual")
    )


def test_going_on_twice_is_going_on_once(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    """A run that is cut off after some episodes ends in the same trees: what was reflected on is
    not reflected on again."""
    found = again(
        write_lines(tmp_path / "a.jsonl", [bare(row) for row in lines if not row["success"]])
    )
    config = ExploreConfig(limits={"policy_calls": 150.0})
    whole = grown(tasks(6), config, found.trees)
    for cut in (1, 2, 4):
        part = {
            name: Tree(tree.task, whole[name].episodes[: len(tree.episodes) + cut])
            for name, tree in found.trees.items()
        }
        on = grown(tasks(6), config, part)
        assert {
            n: [(e.start, e.stop, [t.action_text for t in e.turns]) for e in t.episodes]
            for n, t in on.items()
        } == {
            n: [(e.start, e.stop, [t.action_text for t in e.turns]) for e in t.episodes]
            for n, t in whole.items()
        }


@pytest.mark.parametrize("strategy", ["independent", "refine"])
def test_a_strategy_that_does_not_reflect_does_not_look_back(
    strategy: str, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = again(write_lines(tmp_path / "a.jsonl", [bare(row) for row in lines]))
    grew = grown(
        tasks(6), ExploreConfig(strategy=strategy, limits={"policy_calls": 100.0}), found.trees
    )
    assert not any(tree.reflections for tree in grew.values())


def test_which_tasks_are_taken(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = copy.deepcopy(lines[:5])
    rows[0]["task"]["id"] = "elsewhere"
    rows[1]["task"]["payload"] = {"stages": [], "object": "lamp"}
    del rows[2]["task"]
    problems = Problems()
    found = again(write_lines(tmp_path / "a.jsonl", rows), problems=problems)
    assert dict(problems.left_out) == {
        "an unknown task": 1,
        "another task of that id": 1,
        "no task": 1,
    }
    assert found.episodes == 2
    assert any(
        "line 1: the environment has no task 'elsewhere'" in sentence
        for sentence in problems.sentences
    )
    problems = Problems()
    found = again(write_lines(tmp_path / "a.jsonl", rows), problems=problems, given=True)
    assert "elsewhere" in found.trees
    assert found.trees["elsewhere"].task.payload == lines[0]["task"]["payload"]
    assert found.trees["elsewhere"].episodes[0].stop.value == lines[0]["stop"]
