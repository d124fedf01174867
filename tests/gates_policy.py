"""A policy for the embedded environment that needs no model: it knows the rules and slips now and
then, by the request's seed alone, so that its trees have all
shapes and are the same wherever they grow. Recipes name it `tests.gates_policy:Fickle`."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from pathlib import Path

from leafe.core import Completion, PolicyError, Request, Usage
from leafe.envs.gates import GatesReference

SLIPS = 0.15


class Fickle:
    """`latency`: seconds a call. The task `deadly` ends its process whenever it is played; the
    calls of the task `all_samples_lost` fail. While there is a file `hold`
    nothing is answered, and whoever was asked leaves a file with its number beside it. In the
    folder `pids` it leaves the number of its process."""

    name = "fickle"

    def __init__(
        self,
        latency: float = 0.0,
        deadly: str = "",
        all_samples_lost: str = "",
        hold: str = "",
        pids: str = "",
    ) -> None:
        self.latency, self.deadly, self.all_samples_lost, self.hold = (
            latency,
            deadly,
            all_samples_lost,
            hold,
        )
        self.stats = {"asked": 0}
        self._knows = GatesReference()
        if pids:
            (Path(pids) / str(os.getpid())).touch()

    async def complete(self, request: Request) -> list[Completion]:
        self.stats["asked"] += 1
        while self.hold and Path(self.hold).exists():
            Path(f"{self.hold}.{os.getpid()}").touch()
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.latency)
        if self.deadly and request.cache_key == self.deadly:
            os._exit(9)
        if self.all_samples_lost and request.cache_key == self.all_samples_lost:
            raise PolicyError("nobody is at home")
        chance = random.Random(request.seed)
        last = request.messages[-1].content
        if last.endswith(" reflect"):
            steps = sum(m.role == "assistant" for m in request.messages)
            return [
                Completion(
                    f"s{chance.randrange(steps)} mind it", usage=Usage(len(last.split()), 0, 3)
                )
            ]
        slips = sum(chance.random() < SLIPS for _ in range(request.n))
        answers = (
            await self._knows.complete(replace(request, n=request.n - slips))
            if slips < request.n
            else []
        )
        answers += [Completion("nonsense", slips)] if slips else []
        return [replace(a, usage=Usage(len(last.split()), 0, 2)) for a in answers]

    async def close(self) -> None:
        """Nothing is held."""
