"""What of a tree may be learnt: small rules over turns and episodes, each said once. Needs no torch and no tokenizer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from leafe.core import Episode, ImprovementRule, Stop, Tree, Turn
from leafe.prompts import Prompts


def same_action(a: Turn, b: Turn, prompts: Prompts) -> bool:
    """Whether two turns gave the world the same action: their thoughts may differ, and so may blanks that mean nothing.

    Trailing blanks and empty lines never count. Within a line runs of blanks count only where the action is a program; at
    its beginning they count where there are several lines.
    """
    return _plain(a.action, prompts) == _plain(b.action, prompts)


def _plain(action: str, prompts: Prompts) -> str:
    lines = [line.rstrip() for line in action.splitlines() if line.strip()]
    text = textwrap.dedent("\n".join(lines))
    return text if prompts.set.action == "code" else re.sub(r"(?<=\S)[^\S\n]+", " ", text)


def good_prefix(tree: Tree, trajectory: Sequence[Turn], rule: ImprovementRule = "progress") -> int:
    """How many of a failed episode's first actions may be rehearsed ("progress prefix").

    Up to but without the earliest step that a usable reflection on it blames, and not past the last rise of the progress that the world
    reports (counted from 0). Without a reflection: up to the last rise. Without either: none. With the rule "blame" the world's progress is not heeded.
    """
    blamed = tree.blamed(trajectory)
    reported = rule == "progress" and any(t.progress is not None for t in trajectory)
    if not reported:
        return 0 if blamed is None else blamed
    best, end = 0.0, 0
    for nth, turn in enumerate(trajectory):
        if turn.progress is not None and turn.progress > best:
            best, end = turn.progress, nth + 1
    return end if blamed is None else min(blamed, end)


def diverged(tree: Tree, episode: Episode) -> bool:
    """Whether the episode diverged on replay, or grew on one that did."""
    return episode.stop is Stop.diverged or not _all_sound(tree, tree.path(episode.start))


def sound(tree: Tree, turn: Turn) -> bool:
    """Whether nothing on the way to this turn diverged on replay, itself included."""
    return _all_sound(tree, tree.path(turn.id))


def _all_sound(tree: Tree, turns: Iterable[Turn]) -> bool:
    return not any(tree.episode_of(t.id).stop is Stop.diverged for t in turns)
