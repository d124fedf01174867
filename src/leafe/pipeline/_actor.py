"""What runs on a node of the cluster: a policy client and environments of its own, tasks in,
episodes out, all of it plain JSON.

The actor builds what the local stage builds, by the same functions, and runs `explore` and
`evaluate` as they are, one call a task; its sink is the answer
that it gives next. It knows neither Ray nor the run folder's journal, and it needs no file of the
driver's but a trained arm's weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leafe.baselines.ace import Place, Playbook, with_playbook
from leafe.core import Episode, ForeignFailure, Policy, Task, Tree, UserError
from leafe.core.answers import versions_of
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, explore
from leafe.pipeline._plan import Stage, find
from leafe.pipeline._stages import (
    Sampling,
    explore_config,
    make_pool,
    make_source,
    policy_stats,
    start_policy,
)
from leafe.policies.server import deaths, stop_all
from leafe.prompts import Prompts, PromptSet
from leafe.recipes import Recipe, parse_recipe

BEAT = 2.0
"""Seconds after which it answers even where it has nothing to tell."""


def order_for(
    recipe: Recipe,
    folder: Path,
    stage: Stage,
    words: PromptSet,
    slots: int,
    source: str = "base",
    how: Sampling | None = None,
    playbook: tuple[Playbook, Place] | None = None,
) -> str:
    """All that an actor must know of its stage: also whose weights act (`source_of`), how it
    samples, and what stands before the prompts."""
    model = recipe.policy.model
    if Path(model).is_dir():
        recipe = recipe.model_copy(
            update={
                "policy": recipe.policy.model_copy(update={"model": str(Path(model).absolute())})
            }
        )
    data = recipe.model_dump(mode="json")
    who = source if source in ("base", stage.policy) else str(Path(source).absolute())
    how = how or Sampling(recipe.evaluate.samples, recipe.evaluate.temperature)
    order = {
        "recipe": data,
        "folder": str(folder.absolute()),
        "stage": stage.name,
        "words": words.model_dump(mode="json"),
        "slots": slots,
    }
    book = None if playbook is None else {"items": playbook[0].to_json(), "place": playbook[1]}
    return json.dumps(order | {"source": who, "how": asdict(how), "playbook": book})


class StageActor:
    """One stage's tasks on one node. Every answer is JSON; what went wrong is told, not raised, so
    that it arrives whole."""

    pool: EnvPool
    policy: Policy
    prompts: Prompts

    def __init__(self, order: str) -> None:
        data = json.loads(order)
        self.recipe = parse_recipe(data["recipe"])
        self.stage = find(self.recipe, data["stage"])
        self.folder = Path(data["folder"])
        self.words = PromptSet(**data["words"])
        self.slots: int = data["slots"]
        self.source: str = data["source"]
        self.how = Sampling(**data["how"])
        self.playbook: dict[str, Any] | None = data["playbook"]
        self._running: set[asyncio.Task[None]] = set()
        self._something = asyncio.Event()
        self._tell: dict[str, Any] = _nothing()

    async def where(self) -> str:
        """Answers as soon as it has a place."""
        return socket.gethostname()

    async def start(self) -> str:
        """Make the policy and an environment; tells where it is and what it runs (`at`, `leafe`,
        `env`), or an `error`."""
        from leafe import __version__

        self._died = deaths()
        self._loop = asyncio.get_running_loop()
        told: dict[str, Any] = {"at": socket.gethostname(), "leafe": __version__, "error": None}
        try:
            self._check_files()
            self.pool = make_pool(self.recipe, self.stage.variant, self.slots)
            self.prompts = Prompts(self.words, self.pool.facts.actions_help, self.recipe.history)
            if self.playbook is not None:
                self.prompts = with_playbook(
                    self.prompts, Playbook.from_json(self.playbook["items"]), self.playbook["place"]
                )
            folder = (
                self.folder if self.folder.is_dir() else Path(tempfile.mkdtemp(prefix="leafe-"))
            )  # for the logs of a server that it launches
            name = self.stage.policy if self.stage.kind == "explore" else self.stage.what
            self.policy = await make_source(self.recipe, folder, self.source, name)
            await start_policy(self.policy)
            told["env"] = versions_of(self.pool.facts)
        except Exception as error:
            told["error"] = _said(error)
        return json.dumps(told)

    def _check_files(self) -> None:
        here = socket.gethostname()
        if self.source not in ("base", self.stage.policy) and not Path(self.source).is_dir():
            raise UserError(
                f"The weights of {self.stage.policy} lie in {self.source}, which the node "
                f"{here} does not see: put the run folder on a file system that all "
                'nodes share, or set engine = "local".'
            )
        model = Path(self.recipe.policy.model)
        if model.is_absolute() and not model.is_dir() and self.recipe.policy.kind != "http":
            raise UserError(
                f"The model {model} is a folder that the node {here} does not see: put it "
                "on a file system that all nodes share, or give a hub id."
            )

    async def exchange(self, orders: str) -> str:
        """Take tasks on; answers when something was finished, at the latest after `BEAT`
        seconds."""
        for order in json.loads(orders):
            running = asyncio.create_task(self._work(order))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._something.wait(), BEAT)
        self._something.clear()
        told, self._tell = self._tell, _nothing()
        return json.dumps(told | {"facts": self._facts()})

    async def close(self) -> None:
        """Let go of everything."""
        for running in list(self._running):
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if hasattr(self, "policy"):
            await self.policy.close()
        if hasattr(self, "pool"):
            self.pool.close()
        stop_all()

    def append(self, episodes: Sequence[Episode]) -> None:
        """It is its own journal: what `explore` or `evaluate` make durable (in a thread of theirs)
        is told next."""
        data = [e.to_json() for e in episodes]

        def tell() -> None:
            self._tell["episodes"] += data
            self._something.set()

        self._loop.call_soon_threadsafe(tell)

    async def _work(self, order: dict[str, Any]) -> None:
        task = Task.from_json(order["task"])
        try:
            if self.stage.kind == "explore":
                tree = Tree(task, map(Episode.from_json, order["episodes"]))
                config = explore_config(self.recipe, self.stage)
                await explore(
                    self.policy,
                    self.pool,
                    [task],
                    self.prompts,
                    config,
                    journal=self,
                    known={task.id: tree},
                    keep=False,
                )
            else:
                await self._evaluate(task)
            self._tell["done"].append(task.id)
        except UserError as error:
            self._tell["error"] = _said(error)
        except ForeignFailure as error:
            # evaluation says with the plain kind that a task's samples were all lost; whatever else
            # failed may go better on another node
            all_samples_lost = type(error) is ForeignFailure and self.stage.kind != "explore"
            self._tell["unheard" if all_samples_lost else "failed"][task.id] = str(error)
        except Exception as error:
            self._tell["error"] = _said(error)
        self._something.set()

    async def _evaluate(self, task: Task) -> None:
        settings = self.recipe.evaluate
        await evaluate(
            self.policy,
            self.pool,
            [task],
            self.prompts,
            samples=self.how.samples,
            temperature=self.how.temperature,
            top_p=settings.top_p,
            seed=self.stage.variant.seed,
            journal=self,
            horizon=self.recipe.explore.horizon,
            max_invalid_actions=self.recipe.explore.max_invalid_actions,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "waits": self.pool.waits.to_json(),
            "env_failures": self.pool.broken,
            "observations_cut": self.pool.cut,
            **policy_stats(self.policy, self._died),
        }


def _nothing() -> dict[str, Any]:
    return {"episodes": [], "done": [], "failed": {}, "unheard": {}, "error": None}


def _said(error: Exception) -> dict[str, str]:
    if isinstance(error, UserError):
        return {"kind": "user", "message": f"On the node {socket.gethostname()}: {error}"}
    if isinstance(error, ForeignFailure):
        return {"kind": "foreign", "message": f"On the node {socket.gethostname()}: {error}"}
    return {
        "kind": "bug",
        "message": (
            f"on the node {socket.gethostname()}: {type(error).__name__}: "
            f"{error}\n{''.join(traceback.format_exception(error))}"
        ),
    }
