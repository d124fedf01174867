"""`engine = "ray"`: the tasks of a stage are explored or evaluated by actors on a Ray cluster, and
journaled here.

The driver is the stage's own process. It reads the tasks, deals them (`_deal`) to actors (`_actor`)
that are spread over the nodes, and alone writes the
journal, in the format and the place of the local engine: either goes on with what the other began,
and a task's tree is the same under both. Ray places the
actors and says when one is gone; that nothing is lost or done twice does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leafe.core import Episode, ForeignFailure, Stop, Task, Tree, UserError
from leafe.evaluate import EvaluateProgress
from leafe.explore import Progress, cost_of
from leafe.pipeline._actor import StageActor, order_for
from leafe.pipeline._dispatcher import Actor, Lost, TaskDispatcher, raise_said
from leafe.pipeline._plan import Stage
from leafe.pipeline._progress import evaluating, exploring
from leafe.pipeline._stages import (
    Emit,
    Sampling,
    explore_config,
    make_pool,
    read_playbook,
    same_env,
    sampling_of,
    source_of,
    stage_tasks,
)
from leafe.prompts import load_prompt_set
from leafe.recipes import Recipe
from leafe.runs import Journal, load_trees, write_tasks

OBJECT_STORE = 100 << 20
"""Bytes of shared memory of a cluster that is started here: answers are small and short-lived."""
CLOSING = 20.0
"""Seconds an actor has to let go of its environments before it is killed."""


def spread(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> dict[str, Any]:
    """Run the stage on the cluster that the recipe names; returns what the local engine would, and
    how the actors fared."""
    words = load_prompt_set(recipe.prompts)
    pool = make_pool(recipe, stage.variant, 1)
    try:
        tasks = stage_tasks(recipe, folder, stage, pool)
        env = same_env(folder, stage, pool)
    finally:
        pool.close()
    out = folder / stage.name
    write_tasks(out, tasks)
    with Journal(out) as journal:
        how = sampling_of(recipe, folder, stage)
        tally = (
            _Explored(recipe, stage, tasks, emit)
            if stage.kind == "explore"
            else _Evaluated(recipe, stage, tasks, emit, how)
        )
        left, known = tally.resume(load_trees(out))
        slots = math.ceil(min(tally.concurrency, max(1, len(left))) / recipe.ray.workers)
        order = order_for(
            recipe,
            folder,
            stage,
            words,
            slots,
            source_of(folder, stage),
            how,
            read_playbook(folder, stage),
        )
        with _cluster(recipe) as ray:

            async def main() -> TaskDispatcher:
                hire = _hiring(ray, recipe, order, env)
                dealer = TaskDispatcher(
                    left,
                    known,
                    hire,
                    journal,
                    actors=recipe.ray.workers,
                    slots=slots,
                    whole=stage.kind != "explore",
                    booked=tally.count,
                    news=lambda: tally.show(dealer),
                    wait=recipe.ray.wait,
                    short=lambda: _short(ray, recipe),
                )
                await dealer.run()
                return dealer

            dealer = (
                asyncio.run(main())
                if left
                else TaskDispatcher((), {}, _nobody, journal, actors=0, slots=0)
            )
    return (
        tally.result(dealer)
        | _fared(dealer)
        | {"env": env, "ray": {"lost_actors": dealer.lost, "given_again": dealer.given_again}}
    )


class _Tally:
    """What both kinds of stage count."""

    def __init__(self, recipe: Recipe, stage: Stage, tasks: Sequence[Task], emit: Emit) -> None:
        self.recipe, self.stage, self.tasks, self.emit = recipe, stage, tasks, emit
        self.began = time.monotonic()
        self.before = 0
        """Tasks that an earlier start had finished."""

    def words(self, dealer: TaskDispatcher) -> str:
        said = f"{dealer.at_work} of {self.recipe.ray.workers} actors"
        return said + (
            f", {dealer.lost} lost, {dealer.given_again} tasks given again" if dealer.lost else ""
        )


class _Explored(_Tally):
    """Stage 1: episodes, counted as the local engine counts them."""

    def __init__(self, recipe: Recipe, stage: Stage, tasks: Sequence[Task], emit: Emit) -> None:
        super().__init__(recipe, stage, tasks, emit)
        self.config = explore_config(recipe, stage)
        self.concurrency = self.config.concurrency
        self.progress = Progress(len(tasks))
        self.errors_in_a_row = 0

    def resume(self, trees: Mapping[str, Tree]) -> tuple[list[Task], dict[str, Tree]]:
        """The tasks that are to be gone on with, and what was made of them. Those that may have
        used their budget up are among them: an actor knows."""
        for tree in trees.values():
            so_far = Tree(tree.task)
            for episode in tree.episodes:
                so_far.add(episode)
                self._add(so_far, episode)
        left = [
            t for t in self.tasks if not (trees[t.id].solved and self.config.stop_when == "solved")
        ]
        self.before = len(self.tasks) - len(left)
        return left, dict(trees)

    def count(self, tree: Tree, episode: Episode) -> None:
        self._add(tree, episode)
        self.errors_in_a_row = (
            self.errors_in_a_row + 1 if episode.stop in (Stop.policy_error, Stop.env_error) else 0
        )
        if self.errors_in_a_row >= max(10, self.config.max_errors):
            raise ForeignFailure(
                f"{self.errors_in_a_row} episodes in a row failed, the last with: "
                f"{episode.error} What was finished is kept: mend it and run again."
            )

    def _add(self, tree: Tree, episode: Episode) -> None:
        p = self.progress
        p.stops[episode.stop.value] += not episode.looks_back
        p.turns += len(episode.turns)
        p.unusable_reflections += sum(t.kind == "reflect" and not t.valid for t in episode.turns)
        if episode.success and len(tree.successes()) == 1:
            p.solved += 1
            p.solved_by_rollback += episode.depth > 0
        _charge(p.spent, episode)

    def show(self, dealer: TaskDispatcher) -> None:
        done = self.before + dealer.done
        self.emit(
            exploring(
                self.progress,
                self.config.limits,
                self.config.run_limits,
                done=done,
                words=self.words(dealer),
            )
        )

    def result(self, dealer: TaskDispatcher) -> dict[str, Any]:
        p = self.progress
        spent = asdict(p.spent) | {"seconds": round(time.monotonic() - self.began, 3)}
        waits = _sum(f["waits"] for f in dealer.facts)
        waits["journal"] = round(waits.get("journal", 0.0) + dealer.journal_seconds, 3)
        return {
            "stops": dict(p.stops),
            "unusable_reflections": p.unusable_reflections,
            "cut_short": None,
            "spent": spent,
            "waits": waits,
        }


class _Evaluated(_Tally):
    """Evaluation and validation: samples, by counts."""

    def __init__(
        self, recipe: Recipe, stage: Stage, tasks: Sequence[Task], emit: Emit, how: Sampling
    ) -> None:
        super().__init__(recipe, stage, tasks, emit)
        self.how = how
        self.concurrency = recipe.evaluate.concurrency
        self.progress = EvaluateProgress(len(tasks))

    def resume(self, trees: Mapping[str, Tree]) -> tuple[list[Task], dict[str, Tree]]:
        """A task is in the journal with all of its samples or not at all."""
        samples = self.how.samples
        for tree in trees.values():
            held = sum(e.count for e in tree.episodes)
            if held not in (0, samples):
                raise UserError(
                    f"The journal holds {held} samples of task {tree.task.id!r} where "
                    f"{samples} are asked for: evaluate into another folder."
                )
            for episode in tree.episodes:
                self.count(tree, episode)
            self.before += held > 0
        return [t for t in self.tasks if not trees[t.id].episodes], {}

    def count(self, tree: Tree, episode: Episode) -> None:
        p = self.progress
        p.samples += episode.count
        p.successes += episode.count * episode.success
        p.solved += episode.success and not any(e.success for e in tree.episodes[: episode.index])
        p.stops[episode.stop.value] += episode.count
        _charge(p.spent, episode)

    def show(self, dealer: TaskDispatcher) -> None:
        self.emit(
            evaluating(self.progress, done=self.before + dealer.done, words=self.words(dealer))
        )

    def result(self, dealer: TaskDispatcher) -> dict[str, Any]:
        if not self.progress.samples:
            why = next(iter(dealer.all_samples_lost.values()), "")
            raise ForeignFailure(
                f"Every sample of every task was lost, the last with: {why} Mend it and run again."
            )
        return {"temperature": self.how.temperature, "samples": self.how.samples}


def _charge(spent: Any, episode: Episode) -> None:
    for name, amount in cost_of(episode).items():
        setattr(spent, name, getattr(spent, name) + amount)


def _sum(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    out: Counter[str] = Counter()
    for each in counts:
        out.update(each)  # adds floats as well
    return {name: round(value, 3) for name, value in out.items()}


def _fared(dealer: TaskDispatcher) -> dict[str, Any]:
    """How policies and environments fared on all actors together; a lost actor counts as far as it
    last told."""
    facts = dealer.facts
    out: dict[str, Any] = {
        "policy_failures": _sum(f["policy_failures"] for f in facts),
        "env_failures": sum(f["env_failures"] for f in facts),
    }
    out["observations_cut"] = sum(f.get("observations_cut", 0) for f in facts)
    servers = [f for f in facts if "servers" in f]
    return out | (
        {
            "servers": servers[-1]["servers"],
            "server_restarts": sum(f["server_restarts"] for f in servers),
        }
        if servers
        else {}
    )


async def _nobody() -> Actor:
    raise Lost("nothing is left to do")


class _RayActor:
    """An actor process on some node, by its handle."""

    def __init__(self, ray: Any, handle: Any, env: Mapping[str, str]) -> None:
        self.ray, self.handle, self.env = ray, handle, env

    async def call(self, method: str, *arguments: str) -> str:
        try:
            said: str = await getattr(self.handle, method).remote(*arguments)
        except self.ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"an actor failed in {method}: {error}") from error
        except self.ray.exceptions.RayError as error:
            raise Lost(" ".join(str(error).split())[:600]) from error
        return said

    async def start(self) -> None:
        told = json.loads(await self.call("start"))
        if told["error"] is not None:
            raise_said(told["error"])
        _same_everywhere(told, self.env)

    async def exchange(self, orders: str) -> str:
        return await self.call("exchange", orders)

    async def dismiss(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.call("close"), CLOSING)
        with contextlib.suppress(Exception):
            self.ray.kill(self.handle)


def _hiring(ray: Any, recipe: Recipe, order: str, env: Mapping[str, str]) -> Callable[[], Any]:
    settings = recipe.ray
    kind = ray.remote(StageActor).options(
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        resources=dict(settings.resources),
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )

    async def hire() -> Actor:
        actor = _RayActor(ray, kind.remote(order), env)
        try:
            await actor.call("where")
        except BaseException:
            with contextlib.suppress(Exception):
                ray.kill(actor.handle)
            raise
        return actor

    return hire


def _same_everywhere(told: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """UserError where a node has another leafe or another environment: then a tree would hang on
    where it grew."""
    from leafe import __version__

    if told["leafe"] != __version__:
        raise UserError(
            f"The node {told['at']} has leafe {told['leafe']} and this machine "
            f"{__version__}: install the same version on all nodes."
        )
    changed = next(
        (key for key in {**env, **told["env"]} if env.get(key) != told["env"].get(key)), None
    )
    if changed is not None:
        here, there = env.get(changed), told["env"].get(changed)
        raise UserError(
            f"The environment on the node {told['at']} is not the one here: its {changed} "
            f"is {there!r} and not {here!r}; bring the same to all nodes."
        )


def _short(ray: Any, recipe: Recipe) -> str:
    settings = recipe.ray
    wants = ", ".join(
        f"{amount:g} {name}"
        for name, amount in {
            "CPU": settings.cpus,
            "GPU": settings.gpus,
            **settings.resources,
        }.items()
        if amount
    )
    has = {
        name: amount
        for name, amount in ray.cluster_resources().items()
        if ":" not in name and "memory" not in name
    }
    there = ", ".join(f"{amount:g} {name}" for name, amount in sorted(has.items())) or "nothing"
    return (
        f"No actor was at work for {settings.wait:g} s: each needs {wants or 'nothing'}, "
        f"and the cluster has {there} in all. Wait until it is free, lower "
        "ray.cpus, ray.gpus or ray.resources, or raise ray.wait; what was finished is kept."
    )


@contextlib.contextmanager
def _cluster(recipe: Recipe) -> Iterator[Any]:
    """Ray, connected; what was started here is ended here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            "engine = \"ray\" needs the package ray: run pip install 'leafe[ray]', on all nodes."
        ) from error
    if ray.is_initialized():  # the caller's own
        yield ray
        return
    address = recipe.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        cpus = max(os.cpu_count() or 1, math.ceil(recipe.ray.workers * recipe.ray.cpus))
        options |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
        }
    elif address != "auto":
        _probe(address)
    before = (
        signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        else None
    )
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The Ray cluster {address} cannot be joined "
            f"({' '.join(str(error).split())[:300]}): check ray.address."
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # ray takes it for itself
    try:
        yield ray
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """UserError where nobody listens, or somebody who does not speak gRPC (the dashboard, say): ray
    itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(
            f"ray.address = {address!r} is no cluster's head: write HOST:PORT (the port of "
            "`ray start --head`, 6379 by default), or auto."
        )
    try:
        with socket.create_connection((host, int(port)), timeout=10.0) as wire:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            wire.sendall(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
            )  # HTTP/2: greeting, and settings without any
            frame = wire.recv(9, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error}): check ray.address, or start "
            "its head with `ray start --head`."
        ) from error
    if frame[3:4] != b"\4":  # an answer begins with settings too
        raise UserError(
            f"What answers at {address} is no head of a Ray cluster: give the port that "
            "`ray start --head` was given (6379 by default)."
        )
