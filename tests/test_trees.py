"""The builders in tests/trees.py give what they promise."""

from __future__ import annotations

from hypothesis import given

from leafe.core import Episode, Stop, Tree
from tests.trees import Ep, make_tree, trees


def test_the_default_tree_fails_improves_and_wins() -> None:
    tree = make_tree()
    assert tree.solved
    first, second = tree.branches()
    assert (first.original.action, first.revised.action, first.improved, first.on_success_path) == (
        "take lamp",
        "take key",
        True,
        True,
    )
    assert (second.original.action, second.revised.action, second.outcome_after.success) == (
        "open box",
        "open door",
        True,
    )
    assert [t.action for t in tree.trajectory(tree.episodes[2])] == [
        "go left",
        "take key",
        "open door",
        "walk out",
    ]


def test_an_unusable_reflection_names_no_step() -> None:
    tree = make_tree(Ep("go", stop=Stop.failure, blame=-1, note="x"))
    assert [(r.valid, r.target) for r in tree.reflections] == [(False, None)]


@given(trees())
def test_random_trees_survive_json(tree: Tree) -> None:
    again = Tree(tree.task, [Episode.from_json(e.to_json()) for e in tree.episodes])
    assert again.episodes == tree.episodes
    assert again.branches() == tree.branches()
