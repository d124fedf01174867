"""An earlier attempt as text, for strategies that carry attempts over (refinement, and Reflexion if
the set says so)."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.core import Turn
from leafe.prompts._set import PromptSet, fill


def attempt_text(words: PromptSet, turns: Sequence[Turn]) -> str:
    """The steps of an attempt as text, each by the set's `attempt`; the last observation alone if
    that is empty.

    Longer texts than `attempt_chars` lose observations, the oldest first, then whole steps, the
    oldest first. The last step stays; if it is too long by itself, its action and its observation
    are cut in the middle.

    Args:
        words: The prompt set.
        turns: The act turns of the attempt; at least one.

    Returns:
        At most `attempt_chars` characters.
    """
    if not words.attempt:
        return turns[-1].observation
    last = len(turns) - 1
    shorter = [(i, 0) for i in range(last + 1)] + [(last, i) for i in range(1, last + 1)]
    for observations, steps in shorter:
        text = _text(words, turns, observations, steps)
        if len(text) <= words.attempt_chars:
            return text
    return _last_step(words, turns)


def _text(words: PromptSet, turns: Sequence[Turn], observations: int, steps: int) -> str:
    """The attempt without its first `observations` and without its first `steps`."""
    out = [_left_out(words, turns[0].step, steps)] if steps else []
    for i, turn in enumerate(turns[steps:], start=steps):
        observation = words.left_out if i < observations else turn.observation
        out.append(_step(words, turn.step, turn.action, observation))
    return "".join(out)


def _last_step(words: PromptSet, turns: Sequence[Turn]) -> str:
    last, before = turns[-1], len(turns) - 1
    frame = len(_text(words, turns, before, before)) - len(last.action) - len(last.observation)
    room = max(0, words.attempt_chars - frame)
    action = cut_middle(last.action, max(room // 2, room - len(last.observation)))
    observation = cut_middle(last.observation, room - len(action))
    head = _left_out(words, turns[0].step, before) if before else ""
    return head + _step(words, last.step, action, observation)


def _left_out(words: PromptSet, first: int, steps: int) -> str:
    numbers = f"{first} to {first + steps - 1}" if steps > 1 else first
    return _step(words, numbers, words.left_out, words.left_out)


def _step(words: PromptSet, step: object, action: str, observation: str) -> str:
    return fill(words.attempt, {"step": step, "action": action, "observation": observation})


def cut_middle(text: str, most: int) -> str:
    """The text in at most `most` characters: its beginning and its end, and between them how many
    characters are missing; its beginning alone if there is no room for that."""
    if len(text) <= most:
        return text
    room = most - len(_missing(len(text)))
    if room < 2:
        return text[: max(0, most)]
    head = (room + 1) // 2
    return text[:head] + _missing(len(text) - room) + text[len(text) - room + head :]


def _missing(count: int) -> str:
    return f"\n[... {count} characters cut ...]\n"
