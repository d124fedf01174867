"""Talks that are longer than a model's context, cut so that they still say what the answer is
about.

What every talk begins with (system message, examples) and the message after that, which states the
task, stay; so do the last observation and as many turns
before it as fit. Oldest turns go first, and when one has to go, so many go that half of the room is
free again: the answers of the next turns stand behind
the same cut, so that their prompts are prefixes of each other as ever and a long episode is a few
sequences, not one for every turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from leafe.core import ChatTokens, Message


class Shortener:
    """For talks of which none, with its answer, may have more than `most` tokens. `talks`: one of
    each task; what they all begin with is kept."""

    def __init__(self, chat: ChatTokens, most: int, talks: Sequence[Sequence[Message]]) -> None:
        self.chat = chat
        self.most = most
        common = _common(talks)
        first = next(
            (i for i, m in enumerate(talks[0][common:], common) if m.role == "user"),
            len(talks[0]) - 1,
        )
        self.head = first + 1
        """Messages at the beginning that stay."""
        self._cuts: dict[
            int, int
        ] = {}  # hash of a talk and its answer -> messages left out after the head

    def shortened(self, messages: Sequence[Message], answer: Message) -> tuple[Message, ...] | None:
        """The talk without its oldest turns, or None where even its last turn does not fit. What is
        left out depends on the talk alone, not on others."""
        key = 0
        cut = 0
        talk = [*messages, answer]
        for at, message in enumerate(talk):
            key = hash((key, message.role, message.content, message.tokens))
            if message.role != "assistant" or at <= self.head:
                continue
            found = self._cuts.get(key)
            if found is None:
                found = self._cuts[key] = self._cut(talk[:at], message, cut)
            cut = found
        kept = self._kept(messages, cut)
        return kept if self._length(kept, answer) <= self.most else None

    def _cut(self, messages: Sequence[Message], answer: Message, before: int) -> int:
        """Messages to leave out for this answer, where `before` were left out for the last one."""
        if self._length(self._kept(messages, before), answer) <= self.most:
            return before
        last = max(
            before, len(messages) - 2 - self.head
        )  # the last action and its observation stay
        for cut in range(before + 2, last, 2):
            if self._length(self._kept(messages, cut), answer) <= self.most // 2:
                return cut
        return last

    def _kept(self, messages: Sequence[Message], cut: int) -> tuple[Message, ...]:
        return (*messages[: self.head], *messages[self.head + cut :])

    def _length(self, messages: Sequence[Message], answer: Message) -> int:
        return len(self.chat.prompt(messages)) + len(self.chat.answer(answer))


def _common(talks: Sequence[Sequence[Message]]) -> int:
    """How many messages all talks begin with; of one talk alone, none: its first user message is
    the task."""
    if len(talks) < 2:
        return 0
    shortest = min(map(len, talks))
    return next(
        (i for i in range(shortest) if any(talk[i] != talks[0][i] for talk in talks)), shortest
    )
