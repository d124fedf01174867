"""How a reflection's prompt differs from an action's: the history may be shortened to fit, and
advice that was followed already is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leafe.core import FAILED, Tree, Turn

MAX_TRIED_ADVICE = 8
"""Pieces of advice that a reflection is shown, the latest."""


def shortened(
    first: str, turns: Sequence[Turn], count: int, instead: str
) -> tuple[str, tuple[Turn, ...]]:
    """Replace the oldest texts of a history.

    The order is: observations from o_0 on, without the last; then actions from a_0 on, without the
    last; then the last observation and the last action. Every step keeps its place and number.

    Args:
        first: The first observation.
        turns: The act turns.
        count: How many texts to replace.
        instead: What stands in their place.

    Returns:
        The first observation and the turns.
    """
    last = len(turns)
    observations = set(range(min(count, last))) | ({last} if count > 2 * last - 1 else set())
    actions = set(range(min(max(0, count - last), last - 1))) | (
        {last - 1} if count > 2 * last else set()
    )
    kept = []
    for i, turn in enumerate(turns):
        if i in actions:
            turn = replace(turn, action_text=instead, action=instead, thought="", tokens=None)
        kept.append(replace(turn, observation=instead) if i + 1 in observations else turn)
    return (instead if 0 in observations else first), tuple(kept)


def shortenings(steps: int) -> list[int]:
    """The counts for `shortened` to try one after another, for a history of `steps` actions: each
    replaces half of the observations that are left, then half of the actions."""
    counts = []
    for start, size in ((0, steps), (steps, steps - 1), (2 * steps - 1, 1), (2 * steps, 1)):
        left = size
        while left:
            left //= 2
            counts.append(start + size - left)
    return counts


def tried_advice(
    tree: Tree, path: Sequence[Turn], before: int, own: str | None = None
) -> tuple[tuple[int, str], ...]:
    """Advice that was followed at a step of this path and did not solve the task.

    Advice counts if it was given for the history that the path begins with, and all episodes that
    followed it failed.

    Args:
        tree: The task's tree.
        path: Act turns from the root.
        before: Only episodes with lower numbers count.
        own: The reflection that the path's own episode follows; it counts.

    Returns:
        (step, experience) in the order of the advice, the last `MAX_TRIED_ADVICE`.
    """
    followed: dict[str, list[bool]] = {own: [True]} if own is not None else {}
    for episode in tree.episodes[:before]:
        if episode.experience is not None and episode.experience != own and episode.acts:
            followed.setdefault(episode.experience, []).append(episode.stop in FAILED)
    ids = [turn.id for turn in path]
    out: dict[tuple[int, str], None] = {}
    for reflection in tree.reflections:
        step = reflection.target
        if step is None or step >= len(ids) or not all(followed.get(reflection.id, [False])):
            continue
        if [turn.id for turn in tree.path(reflection.id)][:step] == ids[:step]:
            out[step, reflection.note] = None
    return tuple(out)[-MAX_TRIED_ADVICE:]
