"""What an episode used is gone with it: nothing is left for Python's collector, which is told to
look seldom while a stage runs."""

from __future__ import annotations

import asyncio
import gc

import pytest

from leafe.core import Completion, Request
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts, PromptSet
from tests.explore.envs import Doors, answer


class Script:
    name = "script"

    async def complete(self, request: Request) -> list[Completion]:
        await asyncio.sleep(0)
        return answer(request)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("snapshots", [True, False])
def test_episodes_leave_no_cycles(snapshots: bool) -> None:
    async def run(tasks: int) -> int:
        pool = EnvPool(lambda: Doors(snapshots=snapshots), size=4)
        config = ExploreConfig(limits={"policy_calls": 40}, concurrency=4)
        gc.collect()
        await explore(
            Script(),
            pool,
            Doors().tasks("train", tasks),
            Prompts(PromptSet(name="doors")),
            config,
            keep=False,
        )
        return gc.collect()

    before = gc.get_threshold()
    gc.disable()
    try:
        assert asyncio.run(run(8)) - asyncio.run(run(2)) < 20
    finally:
        gc.enable()
    assert gc.get_threshold() == before
