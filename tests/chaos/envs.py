"""One environment in three bodies: in the event loop, in a process brought back by replay, in a
process brought back by forks. All say the same."""

from __future__ import annotations

from leafe.core import Completion, Message, Request, Usage
from tests.explore.envs import Doors, answer


class Quick(Doors):
    """In the event loop."""


class Hosted(Doors):
    """In a process of its own."""

    process = True
    quick = False

    def __init__(self) -> None:
        super().__init__(snapshots=False)


class Forked(Hosted):
    """The same, copied for a snapshot."""

    forkable = True


def reply(messages: tuple[Message, ...], seed: int) -> Completion:
    """What the model says: a function of the prompt and of the seed's 31 bits that go over the
    wire."""
    seed &= 0x7FFF_FFFF
    text = answer(Request(messages, seed=seed))[0].text
    prompt = sum(len(m.content.split()) for m in messages)
    return Completion(text, usage=Usage(prompt, prompt // 2, len(text.split())))


class Oracle:
    """The same model in this process, which never fails."""

    name = "mock"

    async def complete(self, request: Request) -> list[Completion]:
        assert request.seed is not None
        return [reply(request.messages, request.seed)]

    async def close(self) -> None:
        pass
