"""A tree accepts what fits and nothing else; what it derives agrees with an oracle that walks flat
tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Episode, ImprovementRule, Kind, Stop, Task, Tree, Turn
from tests.core.growth import grown_trees, tasks
from tests.trees import make_tree


@given(grown_trees())
def test_records_survive_json_text(tree: Tree) -> None:
    again = [Episode.from_json(json.loads(json.dumps(e.to_json()))) for e in tree.episodes]
    assert again == tree.episodes


@given(tasks)
def test_tasks_survive_json_text(task: Task) -> None:
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def up(turns: dict[str, Turn], turn: str | None) -> list[str]:
    """Ids of the act turns from this one up to the root."""
    out = []
    while turn is not None:
        if turns[turn].kind is Kind.act:
            out.append(turn)
        turn = turns[turn].parent
    return out


def oracle(
    episodes: list[Episode], rule: ImprovementRule
) -> list[tuple[str, str, str, int, int, bool, bool]]:
    """Branch events from the records alone: (reflection, original, revised, episode before, episode
    after, improved, on a successful path)."""
    turns = {t.id: t for e in episodes for t in e.turns}
    holder = {t.id: e for e in episodes for t in e.turns}
    ends = {
        e.index: ([t.id for t in e.turns if t.kind is Kind.act] or [e.start])[-1] for e in episodes
    }
    paths = {e.index: up(turns, ends[e.index]) for e in episodes}
    out = []
    for after in episodes:
        own = [t for t in after.turns if t.kind is Kind.act]
        if after.experience is None or after.stop == "diverged" or not own:
            continue
        reflection, revised = turns[after.experience], own[0]
        before = holder[reflection.id]
        original = [t for t in up(turns, reflection.parent) if turns[t].step == revised.step]
        assert len(original) == 1
        scores = [
            [p for t in paths[e.index] if (p := turns[t].progress) is not None]
            for e in (before, after)
        ]
        if after.stop == "success" or before.stop == "success":
            improved = after.stop == "success"
        elif rule == "progress" and (scores[0] or scores[1]):
            improved = max(scores[1] or [0.0]) > max(scores[0] or [0.0])
        else:
            later = [t.target for t in after.turns if t.kind is Kind.reflect and t.valid]
            improved = bool(later) and later[0] > reflection.target  # type: ignore[operator]
        winning = any(revised.id in paths[e.index] for e in episodes if e.stop == "success")
        out.append(
            (reflection.id, original[0], revised.id, before.index, after.index, improved, winning)
        )
    return out


@given(grown_trees(max_episodes=9), st.sampled_from(["progress", "blame"]))
def test_branches_agree_with_the_oracle(tree: Tree, rule: ImprovementRule) -> None:
    derived = [
        (
            b.reflection.id,
            b.original.id,
            b.revised.id,
            b.outcome_before.index,
            b.outcome_after.index,
            b.improved,
            b.on_success_path,
        )
        for b in tree.branches(rule)
    ]
    assert derived == oracle(tree.episodes, rule)


@given(grown_trees())
def test_a_branch_point_is_shared_by_both_sides(tree: Tree) -> None:
    for branch in tree.branches():
        assert branch.original.step == branch.revised.step == branch.reflection.target
        assert branch.original.parent == branch.revised.parent == branch.turn_before


@given(grown_trees())
def test_a_trajectory_is_a_path_from_the_root_with_steps_counting_up(tree: Tree) -> None:
    for episode in tree.episodes:
        path = tree.trajectory(episode)
        assert [t.step for t in path] == list(range(len(path)))
        assert [t.parent for t in path] == [None, *(t.id for t in path)][: len(path)]
        assert path[len(path) - len(episode.acts) :] == list(episode.acts)


def _retarget(episode: Episode, at: int, **changes: object) -> Episode:
    turns = list(episode.turns)
    turns[at] = replace(turns[at], **changes)  # type: ignore[arg-type]
    return replace(episode, turns=tuple(turns))


MISFITS: dict[str, tuple[Callable[[Episode], Episode], str]] = {
    "another task": (lambda e: replace(e, task_id="t1"), "given to the tree"),
    "an index that is not due": (lambda e: replace(e, index=7), "is due"),
    "an index that was there": (lambda e: replace(e, index=0), "is due"),
    "an unknown start": (lambda e: replace(e, start="t0/9.9"), "unknown turn"),
    "an unknown reflection": (lambda e: replace(e, experience="t0/9.9r0"), "unknown reflection"),
    "an id that is taken": (lambda e: _retarget(e, 0, id="t0/0.0"), "there already"),
    "the same id twice": (lambda e: _retarget(e, 1, id=e.turns[0].id), "there already"),
    "a gap in the steps": (lambda e: _retarget(e, 1, step=9), "does not follow"),
    "a parent elsewhere": (lambda e: _retarget(e, 1, parent="t0/0.0"), "does not follow"),
    "a turn of another task": (lambda e: _retarget(e, 0, task_id="t1"), "does not follow"),
    "a start one turn off": (lambda e: replace(e, start="t0/0.1"), "does not follow"),
    "a reflection ahead of its history": (lambda e: _retarget(e, 2, target=3), "outside 0..2"),
    "a reflection without a step": (lambda e: _retarget(e, 2, target=None), "outside 0..2"),
    "a reflection below 0": (lambda e: _retarget(e, 2, target=-1), "outside 0..2"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_refused_and_leaves_the_tree_as_it_was(name: str) -> None:
    change, words = MISFITS[name]
    whole = make_tree()
    tree = Tree(whole.task, whole.episodes[:1])
    before = (len(tree), list(tree.episodes), [t.id for t in tree])
    with pytest.raises(ValueError, match=words):
        tree.add(change(whole.episodes[1]))
    assert (len(tree), list(tree.episodes), [t.id for t in tree]) == before
    tree.add(whole.episodes[1])
    assert len(tree.branches()) == 1


def test_a_diverged_branch_is_no_branch_event() -> None:
    tree = make_tree()
    last = replace(tree.episodes[1], stop=Stop.diverged)
    assert [
        b.outcome_after.index for b in Tree(tree.task, [tree.episodes[0], last]).branches()
    ] == []
