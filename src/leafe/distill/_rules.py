"""What of a tree may be learnt: small rules over turns and episodes, each said once. Needs no torch
and no tokenizer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from leafe.core import Episode, ImprovementRule, Message, Stop, Tree, Turn
from leafe.prompts import Prompts, history_before


def same_action(a: Turn, b: Turn, prompts: Prompts) -> bool:
    """Whether two turns gave the environment the same action: their thoughts may differ, and so may
    blanks that mean nothing.

    Trailing blanks and empty lines never count. Within a line runs of blanks count only where the
    action is a program; at
    its beginning they count where there are several lines.
    """
    return _plain(a.action, prompts) == _plain(b.action, prompts)


def _plain(action: str, prompts: Prompts) -> str:
    lines = [line.rstrip() for line in action.splitlines() if line.strip()]
    text = textwrap.dedent("\n".join(lines))
    return text if prompts.set.action == "code" else re.sub(r"(?<=\S)[^\S\n]+", " ", text)


def mentions_advice(tree: Tree, turn: Turn, messages: Sequence[Message], prompts: Prompts) -> bool:
    """Whether a thought leans on advice that will not be there: on an experience that stood in the
    prompt and does not stand in `messages`.

    The rule is one of words: what the answer says beside its action holds one of the set's
    `mentions`, in capitals or small letters,
    which none of the messages to the policy holds. It sees no paraphrase, and a thought that uses
    such a word of something else
    counts too.
    """
    if not prompts.set.mentions:
        return False
    thought = turn.action_text.replace(turn.action, " ") if turn.action else turn.action_text
    found = {
        match[0].lower() for match in re.finditer(prompts.set.mentions, thought, re.IGNORECASE)
    }
    if not found:
        return False
    history = history_before(tree, turn, with_experience=True)
    if not history.notes and not history.preamble:
        return False
    said = " ".join(m.content for m in messages if m.role != "assistant").lower()
    return any(word not in said for word in found)


def good_prefix(tree: Tree, trajectory: Sequence[Turn], rule: ImprovementRule = "progress") -> int:
    """How many of a failed episode's first actions may be rehearsed ("progress prefix").

    Up to but without the earliest step that a usable reflection on it blames, and not past the last
    rise of the progress that the environment
    reports (counted from 0). Without a reflection: up to the last rise. Without either: none. With
    the rule "blame" the environment's progress is not heeded.
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
