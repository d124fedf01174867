"""Conversations that are longer than a model's context, without their oldest turns.

The common beginning of all conversations (system message, examples), the next message, which states
the task, and the last observation stay, with as many turns before it as fit. When a turn has to go,
so many go that half of the room is free again. The prompts of the next turns keep the same cut, so
that they are prefixes of each other as ever, and a long episode is a few sequences instead of one
per turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from leafe.core import ChatTokens, Message


class Shortener:
    """Shortens conversations to `max_tokens`, answer included.

    Args:
        chat: The chat template.
        max_tokens: Most tokens of a conversation with its answer.
        conversations: One of each task; what they all begin with is kept.
    """

    def __init__(
        self, chat: ChatTokens, max_tokens: int, conversations: Sequence[Sequence[Message]]
    ) -> None:
        self.chat = chat
        self.max_tokens = max_tokens
        one, common = conversations[0], _common(conversations)
        first = next((i for i, m in enumerate(one[common:], common) if m.role == "user"), None)
        self.head = len(one) if first is None else first + 1
        """Messages at the beginning that stay."""
        self._cuts: dict[int, int] = {}
        """Messages left out after the head, by the hash of a conversation with its answer."""

    def shortened(self, messages: Sequence[Message], answer: Message) -> tuple[Message, ...] | None:
        """The conversation without its oldest turns; None where even its last turn does not fit.
        The cut depends on this conversation alone."""
        key = cut = 0
        conversation = [*messages, answer]
        for at, message in enumerate(conversation):
            key = hash((key, message.role, message.content, message.tokens))
            if message.role != "assistant" or at <= self.head:
                continue
            if key not in self._cuts:
                self._cuts[key] = self._cut(conversation[:at], message, cut)
            cut = self._cuts[key]
        kept = self._kept(messages, cut)
        return kept if self._length(kept, answer) <= self.max_tokens else None

    def _cut(self, messages: Sequence[Message], answer: Message, before: int) -> int:
        """Messages to leave out for this answer, where `before` were left out for the last one."""
        if self._length(self._kept(messages, before), answer) <= self.max_tokens:
            return before
        last = max(before, len(messages) - 2 - self.head)  # keep the last action and observation
        for cut in range(before + 2, last, 2):
            if self._length(self._kept(messages, cut), answer) <= self.max_tokens // 2:
                return cut
        return last

    def _kept(self, messages: Sequence[Message], cut: int) -> tuple[Message, ...]:
        return (*messages[: self.head], *messages[self.head + cut :])

    def _length(self, messages: Sequence[Message], answer: Message) -> int:
        return len(self.chat.prompt(messages)) + len(self.chat.answer(answer))


def _common(conversations: Sequence[Sequence[Message]]) -> int:
    """How many messages all conversations begin with; 0 for a single one, whose first user message
    is the task."""
    if len(conversations) < 2:
        return 0
    first, shortest = conversations[0], min(map(len, conversations))
    differ = (i for i in range(shortest) if any(c[i] != first[i] for c in conversations))
    return next(differ, shortest)
