"""A policy that a function plays: for tests, references and examples. The answer depends on the
request alone, its seed included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from leafe.core import Completion, Request, Usage


class ScriptedPolicy:
    """`script` maps a request to completions whose counts sum to n, or to one text for all n
    samples.

    Plain texts get a usage in words. `latency`: seconds that each answer takes, without blocking
    others. `calls` counts requests.
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
        """ValueError where the script's counts do not sum to n: a broken script."""
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
        if sum(c.count for c in answer) != request.n:
            raise ValueError(
                f"the script gave {sum(c.count for c in answer)} samples where {request.n} "
                "were asked for"
            )
        return answer

    async def close(self) -> None:
        """Nothing is held."""
