"""A process that grows a playbook or collects alternatives into the journal of a folder, slowly:
`python -m tests.baselines.kill_me ace FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from leafe.baselines.ace import AceConfig, AceResult, ace
from leafe.baselines.early_experience import Collected, EarlyConfig, by_task, collect
from leafe.explore import EnvPool, ExploreConfig
from leafe.policies.scripted import ScriptedPolicy
from leafe.runs import Journal, load_trees, read_journal, write_tasks
from tests.baselines.doors import PROMPTS, pupil
from tests.baselines.test_ace import tasks
from tests.baselines.test_early_experience import forest, script
from tests.explore.envs import Doors


def grow(folder: Path, latency: float = 0.0) -> AceResult:
    async def main() -> AceResult:
        pool = EnvPool(Doors, size=4)
        write_tasks(folder, tasks(8))
        try:
            with Journal(folder) as journal:
                config = ExploreConfig(limits={"policy_calls": 40}, seed=5)
                policy = ScriptedPolicy(pupil, latency=latency)
                return await ace(
                    policy,
                    pool,
                    tasks(8),
                    PROMPTS,
                    config,
                    AceConfig(batch=3),
                    journal=journal,
                    known=load_trees(folder),
                )
        finally:
            pool.close()

    return asyncio.run(main())


def gather(folder: Path, latency: float = 0.0) -> Collected:
    async def main() -> Collected:
        pool = EnvPool(lambda: Doors(snapshots=False), size=4)
        try:
            with Journal(folder) as journal:
                config = ExploreConfig(limits={}, seed=5)
                policy, known = (
                    ScriptedPolicy(script, latency=latency),
                    by_task(read_journal(folder)),
                )
                return await collect(
                    policy,
                    pool,
                    forest(),
                    PROMPTS,
                    config,
                    EarlyConfig(explanations=1),
                    journal=journal,
                    known=known,
                )
        finally:
            pool.close()

    return asyncio.run(main())


if __name__ == "__main__":
    {"ace": grow, "early": gather}[sys.argv[1]](Path(sys.argv[2]), 0.02)
