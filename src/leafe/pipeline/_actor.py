"""What runs on a node of the cluster: a policy client and environments of its own.

The actor builds what the local stage builds, by the same functions, and runs `explore` and
`evaluate` as they are, one call a task; its journal is the stream of replies. It knows neither Ray
nor the run folder's journal, and of the driver's files it needs a trained arm's weights alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leafe.baselines.ace import Place, Playbook, with_playbook
from leafe.core import Episode, ForeignFailure, Policy, Task, Tree, UserError
from leafe.core.answers import versions_of
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, explore
from leafe.pipeline._acting import (
    Sampling,
    Source,
    check_policy,
    explore_config,
    make_pool,
    make_source,
    policy_stats,
)
from leafe.pipeline._dispatcher import End, Reply
from leafe.pipeline._plan import Stage, find
from leafe.pipeline._policy_ref import BASE
from leafe.policies.server import deaths, stop_all
from leafe.prompts import Prompts, PromptSet
from leafe.recipes import Recipe, parse_recipe


def actor_order(
    recipe: Recipe,
    folder: Path,
    stage: Stage,
    prompt_set: PromptSet,
    slots: int,
    source: Source | None = None,
    how: Sampling | None = None,
    playbook: tuple[Playbook, Place] | None = None,
) -> dict[str, Any]:
    """All that an actor must know of its stage, as plain values.

    Plain, since a node may have another version of leafe until `StageActor.start` has told it.
    """
    model = recipe.policy.model
    if Path(model).is_dir():
        policy = recipe.policy.model_copy(update={"model": str(Path(model).absolute())})
        recipe = recipe.model_copy(update={"policy": policy})
    weights = source.weights if source else None
    return {
        "recipe": recipe.model_dump(mode="json"),
        "folder": str(folder.absolute()),
        "stage": stage.name,
        "prompt_set": prompt_set.model_dump(mode="json"),
        "slots": slots,
        "weights": None if weights is None else str(weights.absolute()),
        "how": asdict(how or Sampling(recipe.evaluate.samples, recipe.evaluate.temperature)),
        "playbook": playbook and {"items": playbook[0].to_json(), "place": playbook[1]},
    }


class StageActor:
    """One stage's tasks on one node."""

    pool: EnvPool
    policy: Policy
    prompts: Prompts

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order = order
        self.recipe = parse_recipe(order["recipe"])
        self.stage = find(self.recipe, order["stage"])
        # the base's weights also act for an arm that learned nothing
        weights = None if order["weights"] is None else Path(order["weights"])
        imported = self.stage.policy.kind == "imported"
        self.source = Source(self.stage.policy if imported or weights else BASE, weights)
        self.how = Sampling(**order["how"])
        self._info: dict[str, Any] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._replies = 0

    async def place(self) -> str:
        """Answers as soon as the actor has a place, with the node's name."""
        return socket.gethostname()

    async def start(self) -> dict[str, Any]:
        """Make the policy and an environment, unless they are there.

        Returns:
            `node`, `leafe` (its version) and `env` (the environment's versions).
        """
        from leafe import __version__

        for running in self._running:  # of calls whose replies nobody reads any more
            running.cancel()
        if not self._info:
            self._died = deaths()
            with _on_this_node():
                await self._make()
            self._info = {
                "node": socket.gethostname(),
                "leafe": __version__,
                "env": versions_of(self.pool.facts),
            }
        return self._info

    async def _make(self) -> None:
        order, recipe = self.order, self.recipe
        self._check_files()
        self.pool = make_pool(recipe, self.stage.variant, order["slots"])
        prompt_set = PromptSet(**order["prompt_set"])
        self.prompts = Prompts(prompt_set, self.pool.facts.actions_help, recipe.history)
        if order["playbook"] is not None:
            playbook = Playbook.from_json(order["playbook"]["items"])
            self.prompts = with_playbook(self.prompts, playbook, order["playbook"]["place"])
        folder = Path(order["folder"])
        if not folder.is_dir():
            folder = Path(tempfile.mkdtemp(prefix="leafe-"))  # for the logs of a server it launches
        name = str(self.stage.policy) if self.stage.kind == "explore" else self.stage.what
        self.policy = await make_source(recipe, folder, self.source, name)
        await check_policy(self.policy)

    def _check_files(self) -> None:
        here = socket.gethostname()
        weights = self.source.weights
        if weights is not None and not weights.is_dir():
            raise UserError(
                f"The weights of {self.stage.policy} lie in {weights}, which the node "
                f"{here} does not see: put the run folder on a file system that all "
                'nodes share, or set engine = "local".'
            )
        model = Path(self.recipe.policy.model)
        if model.is_absolute() and not model.is_dir() and self.recipe.policy.kind != "http":
            raise UserError(
                f"The model {model} is a folder that the node {here} does not see: put it "
                "on a file system that all nodes share, or give a hub id."
            )

    async def run(self, task: Task, episodes: Sequence[Episode]) -> AsyncIterator[Reply]:
        """Go on with the task; replies whenever episodes are finished, and once at its end."""
        inbox: asyncio.Queue[tuple[Episode, ...] | None] = asyncio.Queue()
        working = asyncio.create_task(self._work(task, episodes, _Sink(inbox)))
        working.add_done_callback(lambda _: inbox.put_nowait(None))
        self._running.add(working)
        try:
            while (finished := await inbox.get()) is not None:
                yield self._reply(finished)
            try:
                await working
                yield self._reply(end=End.done)
            except UserError:
                with _on_this_node():
                    raise
            except ForeignFailure as error:
                # evaluation raises the plain class where all samples of a task were lost; whatever
                # else failed may go better on another node
                lost = type(error) is ForeignFailure and self.stage.kind != "explore"
                end = End.all_samples_lost if lost else End.failed
                yield self._reply(end=end, reason=str(error))
        finally:
            working.cancel()
            self._running.discard(working)

    async def _work(self, task: Task, episodes: Sequence[Episode], sink: _Sink) -> None:
        recipe = self.recipe
        if self.stage.kind == "explore":
            await explore(
                self.policy,
                self.pool,
                [task],
                self.prompts,
                explore_config(recipe, self.stage),
                journal=sink,
                known={task.id: Tree(task, episodes)},
                keep=False,
            )
        else:
            await evaluate(
                self.policy,
                self.pool,
                [task],
                self.prompts,
                samples=self.how.samples,
                temperature=self.how.temperature,
                top_p=recipe.evaluate.top_p,
                seed=self.stage.variant.seed,
                journal=sink,
                horizon=recipe.explore.horizon,
                max_invalid_actions=recipe.explore.max_invalid_actions,
            )

    def _reply(
        self, episodes: tuple[Episode, ...] = (), end: End | None = None, reason: str = ""
    ) -> Reply:
        self._replies += 1
        stats = {
            "waits": self.pool.waits.to_json(),
            "env_failures": self.pool.broken,
            "observations_cut": self.pool.cut,
            **policy_stats(self.policy, self._died),
        }
        return Reply(episodes, end, reason, stats, self._replies)

    async def close(self) -> None:
        """Free everything."""
        for running in list(self._running):
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if hasattr(self, "policy"):
            await self.policy.close()
        if hasattr(self, "pool"):
            self.pool.close()
        stop_all()


class _Sink:
    """The journal of a run: episodes that `explore` makes durable, in a thread of its own, are
    replied next."""

    def __init__(self, inbox: asyncio.Queue[tuple[Episode, ...] | None]) -> None:
        self._inbox, self._loop = inbox, asyncio.get_running_loop()

    def append(self, episodes: Sequence[Episode]) -> None:
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, tuple(episodes))


@contextlib.contextmanager
def _on_this_node() -> Iterator[None]:
    """Errors name the node."""
    try:
        yield
    except (UserError, ForeignFailure) as error:
        kind = UserError if isinstance(error, UserError) else ForeignFailure
        raise kind(f"On the node {socket.gethostname()}: {error}") from error
