"""An earlier attempt in words, for what carries attempts over (refinement; Reflexion where the set
says so)."""

from __future__ import annotations

from collections.abc import Sequence

from leafe.core import Turn
from leafe.prompts._set import PromptSet, fill


def attempt_text(words: PromptSet, turns: Sequence[Turn]) -> str:
    """What was done in an attempt and what the environment said of it, each step by the set's
    `attempt`; its last observation alone where that is empty.

    At most `attempt_chars` characters: where the steps are longer, observations are left out, the
    oldest first, then whole
    steps, the oldest first. The last step always stands; where it is too long by itself, its action
    and its observation are cut in the middle.
    """
    if not words.attempt:
        return turns[-1].observation
    for observations in range(len(turns)):
        text = _said(words, turns, observations, 0)
        if len(text) <= words.attempt_chars:
            return text
    for steps in range(1, len(turns)):
        text = _said(words, turns, len(turns) - 1, steps)
        if len(text) <= words.attempt_chars:
            return text
    return _last_cut(words, turns)


def _said(words: PromptSet, turns: Sequence[Turn], observations: int, steps: int) -> str:
    """Without the first `observations` and without the first `steps`."""
    first = turns[0].step
    out = (
        [
            _step(
                words,
                f"{first} to {first + steps - 1}" if steps > 1 else first,
                words.left_out,
                words.left_out,
            )
        ]
        if steps
        else []
    )
    for i, turn in enumerate(turns[steps:], start=steps):
        out.append(
            _step(
                words,
                turn.step,
                turn.action,
                words.left_out if i < observations else turn.observation,
            )
        )
    return "".join(out)


def _last_cut(words: PromptSet, turns: Sequence[Turn]) -> str:
    last = turns[-1]
    frame = (
        len(_said(words, turns, len(turns) - 1, len(turns) - 1))
        - len(last.action)
        - len(last.observation)
    )
    room = max(0, words.attempt_chars - frame)
    action = cut_middle(last.action, max(room // 2, room - len(last.observation)))
    observation = cut_middle(last.observation, room - len(action))
    cut = _step(words, last.step, action, observation)
    if len(turns) == 1:
        return cut
    first = turns[0].step
    return (
        _step(
            words,
            f"{first} to {last.step - 1}" if len(turns) > 2 else first,
            words.left_out,
            words.left_out,
        )
        + cut
    )


def _step(words: PromptSet, step: object, action: str, observation: str) -> str:
    return fill(words.attempt, {"step": step, "action": action, "observation": observation})


def cut_middle(text: str, most: int) -> str:
    """The text in at most so many characters: its beginning and its end, with the number of
    characters that are missing said between
    them; where there is no room for that, its beginning alone."""
    if len(text) <= most:
        return text
    room = most - len(_cut_words(len(text)))
    if room < 2:
        return text[: max(0, most)]
    head = (room + 1) // 2
    return text[:head] + _cut_words(len(text) - room) + text[len(text) - room + head :]


def _cut_words(count: int) -> str:
    return f"\n[... {count} characters cut ...]\n"
