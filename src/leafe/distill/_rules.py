"""What of a tree may be learnt: small rules over turns and episodes. Needs no torch and no
tokenizer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from leafe.core import Episode, ImprovementRule, Message, Stop, Tree, Turn
from leafe.prompts import Prompts, history_before


def same_action(a: Turn, b: Turn, prompts: Prompts) -> bool:
    """Whether two turns gave the environment the same action; their thoughts may differ.

    Trailing blanks and empty lines never count. Runs of blanks within a line count only in
    programs; indentation counts only where the action has several lines.

    Args:
        a: A turn.
        b: Another turn.
        prompts: The prompt set; its `action` tells programs from other actions.
    """
    return _normalized(a.action, prompts) == _normalized(b.action, prompts)


def _normalized(action: str, prompts: Prompts) -> str:
    lines = [line.rstrip() for line in action.splitlines() if line.strip()]
    text = textwrap.dedent("\n".join(lines))
    return text if prompts.set.action == "code" else re.sub(r"(?<=\S)[^\S\n]+", " ", text)


def mentions_advice(tree: Tree, turn: Turn, messages: Sequence[Message], prompts: Prompts) -> bool:
    """Whether a thought mentions an experience that was in its prompt and is not in `messages`.

    The rule is lexical: the answer beside its action has a match of the set's `mentions` (ignoring
    case) that none of the messages to the policy contains. It misses paraphrases and counts other
    uses of such a word.
    """
    if not prompts.set.mentions:
        return False
    thought = turn.action_text.replace(turn.action, " ") if turn.action else turn.action_text
    found = {m[0].lower() for m in re.finditer(prompts.set.mentions, thought, re.IGNORECASE)}
    if not found:
        return False
    history = history_before(tree, turn, with_experience=True)
    if not history.notes and not history.preamble:
        return False
    prompt = " ".join(m.content for m in messages if m.role != "assistant").lower()
    return any(phrase not in prompt for phrase in found)


def good_prefix(tree: Tree, trajectory: Sequence[Turn], rule: ImprovementRule = "progress") -> int:
    """How many of a failed episode's first actions may be rehearsed (`progress_prefix`).

    They end before the earliest step that a usable reflection on the episode blames, and at the
    last rise of the progress that the environment reports, counted from 0. Without a reflection the
    progress alone decides; without either there are none. With the rule "blame" progress is
    ignored.
    """
    blamed = tree.blamed(trajectory)
    if rule != "progress" or all(t.progress is None for t in trajectory):
        return 0 if blamed is None else blamed
    best, end = 0.0, 0
    for nth, turn in enumerate(trajectory):
        if turn.progress is not None and turn.progress > best:
            best, end = turn.progress, nth + 1
    return end if blamed is None else min(blamed, end)


def diverged(tree: Tree, episode: Episode) -> bool:
    """Whether the episode diverged on replay, or started from one that did."""
    return episode.stop is Stop.diverged or not _all_sound(tree, tree.path(episode.start))


def sound(tree: Tree, turn: Turn) -> bool:
    """Whether nothing on the path to this turn, itself included, diverged on replay."""
    return _all_sound(tree, tree.path(turn.id))


def _all_sound(tree: Tree, turns: Iterable[Turn]) -> bool:
    return not any(tree.episode_of(t.id).stop is Stop.diverged for t in turns)
