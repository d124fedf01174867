"""A policy that a function plays, for tests, references and examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from leafe.core import Completion, Request, Usage


class ScriptedPolicy:
    """Answers with `script`; `calls` counts requests.

    Args:
        script: Maps a request to completions whose counts sum to n, or to one text for all n
            samples, whose usage is counted in words. It depends on the request alone.
        name: The policy's name.
        latency: Seconds that each answer takes.
    """

    def __init__(
        self,
        script: Callable[[Request], list[Completion] | str],
        *,
        name: str = "scripted",
        latency: float = 0.0,
    ) -> None:
        self.name = name
        self.calls = 0
        self._script = script
        self._latency = latency

    async def complete(self, request: Request) -> list[Completion]:
        """Answer a request.

        Raises:
            ValueError: The script's counts do not sum to n.
        """
        self.calls += 1
        if self._latency:
            await asyncio.sleep(self._latency)
        answer = self._script(request)
        if isinstance(answer, str):
            read = sum(len(m.content.split()) for m in request.messages)
            return [
                Completion(
                    answer, request.n, usage=Usage(prompt=read, generated=len(answer.split()))
                )
            ]
        count = sum(c.count for c in answer)
        if count != request.n:
            raise ValueError(f"the script gave {count} samples where {request.n} were asked for")
        return answer

    async def close(self) -> None:
        """Nothing to close."""
