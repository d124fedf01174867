"""Three rescues, picked by a rule and shown step by step: the action, the reflection, the revised
action.

A task is *rescued* if its first success came by a rollback. *Turns saved* are the turns of the
winning trajectory that an earlier episode had played: a fresh attempt would have had to play them
again. Of all rescued tasks, in the order of turns saved and then of ids, those at the first
quartile, the median and the third quartile are shown: a small, a typical and a large one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from leafe.core import Episode, Kind, Tree, Turn
from leafe.report._format import clip
from leafe.report._tree import draw_tree, rescued, stop_name

RULE = (
    "Picked by rule, not by hand: of all {n} tasks that {where} solved only after a "
    "rollback, in the order of turns saved and then of task ids, "
    "those at the first quartile, the median and the third quartile. Turns saved: turns of "
    "the winning trajectory that an earlier episode had played already."
)
_TURNS = 40
"""Turns of an episode that are shown in words, half of them from its beginning."""


@dataclass(frozen=True, slots=True)
class Rescue:
    """A rescued task and the way to its first success.

    Attributes:
        tree: The task's tree.
        winner: The first episode that succeeded.
        chain: From the episode that began at the root to the winner; each but the first follows a
            reflection on the one before.
        saved: Turns saved.
    """

    tree: Tree
    winner: Episode
    chain: tuple[Episode, ...]
    saved: int


def rescue_of(tree: Tree) -> Rescue | None:
    """The way to the tree's first success; None where the task was not rescued."""
    if not rescued(tree):
        return None
    chain = [tree.successes()[0]]
    while (experience := chain[0].experience) is not None:
        chain.insert(0, tree.rollout_of(experience))
    return Rescue(tree, chain[-1], tuple(chain), len(tree.path(chain[-1].start)))


def pick_rescues(trees: Collection[Tree]) -> tuple[list[Rescue], int]:
    """Pick rescues by the rule of this module.

    Args:
        trees: Of one exploration. Gone through twice, and three are held in memory.

    Returns:
        The three rescues, or all where there are no more; and how many there are.
    """
    found = sorted(
        (rescue.saved, tree.task.id) for tree in trees if (rescue := rescue_of(tree)) is not None
    )
    n = len(found)
    wanted = [t for _, t in (found if n <= 3 else [found[n * nth // 4] for nth in (1, 2, 3)])]
    picked = {tree.task.id: rescue_of(tree) for tree in trees if tree.task.id in wanted}
    return [rescue for task in wanted if (rescue := picked[task]) is not None], n


def rescue_facts(rescue: Rescue) -> dict[str, Any]:
    """For the page: the task, the chain as a drawing and in words, and every rollback of it."""
    tree = rescue.tree
    return {
        "task": tree.task.id,
        "instruction": clip(tree.task.instruction, 600),
        "saved": rescue.saved,
        "turns": len(tree.trajectory(rescue.winner)),
        "rollbacks": [
            _rollback(tree, before, after)
            for before, after in zip(rescue.chain, rescue.chain[1:], strict=False)
        ],
        "svg": draw_tree(tree, rescue.chain),
        "words": in_words(tree, rescue.chain),
    }


def _rollback(tree: Tree, before: Episode, after: Episode) -> dict[str, Any]:
    """One rollback: the blamed action, the reflection, the revised action."""
    assert after.experience is not None
    reflection = tree[after.experience]
    trajectory = tree.trajectory(before)
    blamed = next((t for t in trajectory if t.step == reflection.target), None)
    revised = after.acts[0] if after.acts else None
    return {
        "step": reflection.target,
        "turns": len(trajectory),
        "stop": stop_name(before.stop),
        "note": clip(reflection.note, 800),
        "before": _turn(blamed) if blamed else None,
        "after": _turn(revised) if revised else None,
        "then": stop_name(after.stop),
    }


def in_words(tree: Tree, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Episodes as text: their own turns and the reflections on them; of long ones the middle is
    left out and counted."""
    return [
        {
            "index": episode.index,
            "from": tree[episode.start].step + 1 if episode.start is not None else 0,
            "stop": stop_name(episode.stop),
            "error": clip(episode.error, 300),
            "turns": [_turn(turn) for turn in turns[: _TURNS // 2]],
            "left_out": max(0, len(turns) - _TURNS),
            "last": [_turn(turn) for turn in turns[_TURNS // 2 :][-_TURNS // 2 :]],
        }
        for episode, turns in ((each, tree.turns_of(each)) for each in episodes)
    ]


_KINDS = {Kind.act: "", Kind.reflect: "Reflection", Kind.aside: "Aside"}


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "what": _KINDS.get(turn.kind, str(turn.kind)),
        "step": turn.step,
        "action": clip(turn.action.strip() or turn.action_text.strip() or "(nothing)", 300),
        "said": clip(turn.action_text),
        "answer": clip(turn.observation),
        "valid": turn.valid,
    }
