"""What a reflection's prompt may hold less of, and more of, than an action's: a history cut to fit,
and the advice that was followed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leafe.core import FAILED, Tree, Turn

MOST_TRIED = 8
"""Pieces of advice that a reflection is shown, the latest."""


def shortened(
    first: str, turns: Sequence[Turn], count: int, instead: str
) -> tuple[str, tuple[Turn, ...]]:
    """First observation and turns with `instead` in the place of the `count` oldest texts.

    Observations first, o_0 on, up to but without the last one; then actions, a_0 on, up to but
    without the last one; then
    the last observation and the last action. Every step keeps its place and its number.
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
    """The counts for `shortened` that are tried one after another, for a history of so many
    actions: each time half of the observations that are left,
    then half of the actions."""
    counts = []
    for start, size in ((0, steps), (steps, steps - 1), (2 * steps - 1, 1), (2 * steps, 1)):
        left = size
        while left:
            left //= 2
            counts.append(start + size - left)
    return counts


def tried_on(
    tree: Tree, path: Sequence[Turn], before: int, own: str | None = None
) -> tuple[tuple[int, str], ...]:
    """(step, experience) of the advice that was followed at a step of this path and did not solve
    the task, in the order in which it was given.

    Advice counts where it was given for the very history that the path begins with, and the
    episodes before number
    `before` that followed it all failed. `own`: the reflection that the episode of the path itself
    follows; it counts.
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
    return tuple(out)[-MOST_TRIED:]
