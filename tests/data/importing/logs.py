"""Logged episodes for tests: gates played by a policy that slips, as trees and as the lines that
other tools would have written of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import Environment, Task, Tree
from leafe.data import Imported, Problems, Source, export, read_log, replayed
from leafe.envs import load_tasks, make_env
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts, load_prompt_set
from tests.gates_policy import Fickle

PROMPTS = Prompts(load_prompt_set("gates"))
ABOUT: dict[str, Any] = {
    "run": "logs",
    "recipe": "logs",
    "question": "",
    "env": "gates",
    "options": {},
    "model": "fickle",
    "prompts": "gates",
    "seed": 0,
    "explored": ["explore/tree"],
    "selection": "all",
    "tasks": 0,
    "versions": {},
    "imported": [],
}


def make() -> Environment:
    return make_env("gates", setting="easy")


def tasks(number: int) -> list[Task]:
    with make() as env:
        return load_tasks(env, "train", number)


def played(number: int = 6, episodes: int = 3, strategy: str = "independent") -> dict[str, Tree]:
    """Trees of gates tasks by `Fickle`; of independent episodes, each a root."""
    config = ExploreConfig(
        strategy=strategy,
        limits={"episodes": float(episodes), "policy_calls": 400.0},
        stop_when="budget",
    )
    return grown(tasks(number), config)


def grown(
    chosen: Sequence[Task], config: ExploreConfig, known: Mapping[str, Tree] | None = None
) -> dict[str, Tree]:
    async def main() -> dict[str, Tree]:
        pool = EnvPool(make, 4)
        try:
            return (await explore(Fickle(), pool, chosen, PROMPTS, config, known=known)).trees
        finally:
            pool.close()

    return asyncio.run(main())


def chat_lines(trees: Mapping[str, Tree], folder: Path) -> list[dict[str, Any]]:
    """What `leafe export --to chat` writes of them."""
    export(Source(ABOUT, trees=trees, prompts=PROMPTS), "chat", folder)
    return [
        json.loads(line) for line in (folder / "episodes.jsonl").read_text("utf-8").splitlines()
    ]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bare(row: Mapping[str, Any]) -> dict[str, Any]:
    """The line as another tool would have it: messages and a reward, and nothing beside the
    texts."""
    said = [
        {"role": m["role"], "content": m["content"]}
        for m in row["messages"]
        if not m.get("example")
    ]
    return {"task": row["task"]["id"], "messages": said, "reward": row["reward"]}


def again(
    path: Path, number: int = 6, problems: Problems | None = None, **options: Any
) -> Imported:
    """Import the lines and play them again in gates."""
    problems = problems or Problems()
    known = {task.id: task for task in tasks(number)}

    async def main() -> Imported:
        pool = EnvPool(make, 4)
        try:
            return await replayed(
                list(read_log(path, "chat", problems)),
                pool,
                known,
                PROMPTS,
                problems=problems,
                **options,
            )
        finally:
            pool.close()

    return asyncio.run(main())
