"""`engine = "ray"`: actors on a Ray cluster run the tasks of a stage, and the driver journals them.

The driver is the stage's own process. It reads the tasks, gives them to actors (`_dispatcher`,
`_actor`), and alone writes the journal, in the format and the place of the local engine: either
goes on with what the other began, and a task's tree is the same under both.

Ray places the actors by their resources, restarts lost ones (`max_restarts`), holds a call for a
place until there is one (`max_task_retries`), and says which calls have replies (`ray.wait`). Runs
of tasks are not retried by Ray: only the driver knows the episodes from which a run goes on.
"""

from __future__ import annotations

import contextlib
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

from leafe.core import Episode, ForeignFailure, LeafeError, Stop, Task, Tree, UserError
from leafe.evaluate import EvaluateProgress
from leafe.explore import Progress, cost_of
from leafe.pipeline._acting import (
    Emit,
    Sampling,
    check_versions,
    explore_config,
    make_pool,
    read_playbook,
    sampling_of,
    source_of,
    stage_tasks,
)
from leafe.pipeline._actor import StageActor, actor_order
from leafe.pipeline._dispatcher import Reply, TaskDispatcher, WorkerLost
from leafe.pipeline._plan import Stage
from leafe.pipeline._progress import evaluating, exploring
from leafe.pipeline._result import StageResult
from leafe.prompts import load_prompt_set
from leafe.recipes import Recipe
from leafe.runs import Journal, load_trees, write_tasks

OBJECT_STORE = 100 << 20
"""Bytes of shared memory of a cluster that is started here: replies are small and short-lived."""
CLOSING = 20.0
"""Seconds the actors have to free their environments before they are killed."""


def run_on_ray(recipe: Recipe, folder: Path, stage: Stage, emit: Emit) -> StageResult:
    """Run the stage on the cluster that the recipe names.

    Returns:
        What the local engine would return, and under `ray` how many actors were lost.
    """
    prompt_set = load_prompt_set(recipe.prompts)
    pool = make_pool(recipe, stage.variant, 1)
    try:
        tasks = stage_tasks(recipe, folder, stage, pool)
        env = check_versions(folder, stage, pool)
    finally:
        pool.close()
    out = folder / stage.name
    write_tasks(out, tasks)
    how = sampling_of(recipe, folder, stage)
    tally: _Explored | _Evaluated
    if stage.kind == "explore":
        tally = _Explored(recipe, stage, tasks, emit)
    else:
        tally = _Evaluated(recipe, stage, tasks, emit, how)
    left, known = tally.resume(load_trees(out))
    slots = math.ceil(min(tally.concurrency, max(1, len(left))) / recipe.ray.workers)
    source, playbook = source_of(folder, stage), read_playbook(folder, stage)
    order = actor_order(recipe, folder, stage, prompt_set, slots, source, how, playbook)
    count = min(recipe.ray.workers, len(left))
    with (
        Journal(out) as journal,
        _connected(recipe) as ray,
        contextlib.closing(_Cluster(ray, recipe, order, env, count)) as cluster,
    ):
        dispatcher = TaskDispatcher(
            left,
            known,
            cluster.workers,
            cluster.wait_for,
            journal,
            slots=slots,
            whole=stage.kind != "explore",
            on_episode=tally.count,
            on_change=lambda: tally.show(dispatcher),
            patience=recipe.ray.wait,
            no_worker=cluster.no_worker,
        )
        dispatcher.run()
    lost = {"lost_actors": dispatcher.lost, "given_again": dispatcher.given_again}
    result = tally.result(dispatcher) | _summed_stats(dispatcher.stats)
    return StageResult.completed(**result, env=env, ray=lost)


class _Tally:
    """What both kinds of stage count."""

    def __init__(self, recipe: Recipe, stage: Stage, tasks: Sequence[Task], emit: Emit) -> None:
        self.recipe, self.stage, self.tasks, self.emit = recipe, stage, tasks, emit
        self.began = time.monotonic()
        self.before = 0
        """Tasks that an earlier start had finished."""

    def words(self, dispatcher: TaskDispatcher) -> str:
        lost = f", {dispatcher.lost} lost, {dispatcher.given_again} tasks given again"
        at_work = f"{dispatcher.at_work} of {self.recipe.ray.workers} actors"
        return at_work + (lost if dispatcher.lost else "")


class _Explored(_Tally):
    """Stage 1: episodes, counted as the local engine counts them."""

    def __init__(self, recipe: Recipe, stage: Stage, tasks: Sequence[Task], emit: Emit) -> None:
        super().__init__(recipe, stage, tasks, emit)
        self.config = explore_config(recipe, stage)
        self.concurrency = self.config.concurrency
        self.progress = Progress(len(tasks))
        self.errors_in_a_row = 0

    def resume(self, trees: Mapping[str, Tree]) -> tuple[list[Task], dict[str, Tree]]:
        """Count what is in the journal; (tasks that are not done, trees to go on with). Tasks that
        may have used up their budget are among them: an actor finds out."""
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
                f"{episode.error} What was finished is kept: fix the cause and run again."
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

    def show(self, dispatcher: TaskDispatcher) -> None:
        done = self.before + dispatcher.done
        self.emit(
            exploring(
                self.progress,
                self.config.limits,
                self.config.run_limits,
                done=done,
                words=self.words(dispatcher),
            )
        )

    def result(self, dispatcher: TaskDispatcher) -> dict[str, Any]:
        p = self.progress
        spent = asdict(p.spent) | {"seconds": round(time.monotonic() - self.began, 3)}
        waits = _sum(stats["waits"] for stats in dispatcher.stats)
        waits["journal"] = round(waits.get("journal", 0.0) + dispatcher.journal_seconds, 3)
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

    def show(self, dispatcher: TaskDispatcher) -> None:
        self.emit(
            evaluating(
                self.progress, done=self.before + dispatcher.done, words=self.words(dispatcher)
            )
        )

    def result(self, dispatcher: TaskDispatcher) -> dict[str, Any]:
        if not self.progress.samples:
            why = next(iter(dispatcher.all_samples_lost.values()), "")
            raise ForeignFailure(
                f"Every sample of every task was lost, the last with: {why} "
                "Fix the cause and run again."
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


def _summed_stats(stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The failures of all actors together; a lost actor counts as far as its last reply."""
    out: dict[str, Any] = {
        "policy_failures": _sum(each["policy_failures"] for each in stats),
        "env_failures": sum(each["env_failures"] for each in stats),
        "observations_cut": sum(each["observations_cut"] for each in stats),
    }
    servers = [each for each in stats if "servers" in each]
    if servers:
        out["servers"] = servers[-1]["servers"]
        out["server_restarts"] = sum(each["server_restarts"] for each in servers)
    return out


class _Call:
    """A call to an actor: one reply, or a stream of them."""

    def __init__(self, ray: Any, refs: Any, check: Callable[[Any], None] | None = None) -> None:
        self.ray, self.refs, self.check = ray, refs, check

    def next(self) -> Reply:
        errors = self.ray.exceptions
        try:
            ref = (
                next(self.refs) if isinstance(self.refs, self.ray.ObjectRefGenerator) else self.refs
            )
            reply = self.ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, LeafeError):
                raise error.cause from None
            raise RuntimeError(f"an actor failed: {error}") from error
        except errors.RayError as error:
            raise WorkerLost(" ".join(str(error).split())[:600]) from error
        if isinstance(reply, Reply):
            return reply
        if self.check is not None:
            self.check(reply)
        return Reply()


class _RayWorker:
    """An actor by its handle, which stays the same when Ray restarts the actor."""

    def __init__(self, ray: Any, handle: Any, env: Mapping[str, str]) -> None:
        self.ray, self.handle, self.env = ray, handle, env
        self.placed = False

    def place(self) -> _Call:
        def found(node: str) -> None:
            self.placed = True

        self.placed = False
        # Ray holds this call until the actor has a place, at first and after a restart
        return _Call(self.ray, self.handle.place.options(max_task_retries=-1).remote(), found)

    def start(self) -> _Call:
        def check(info: Mapping[str, Any]) -> None:
            _check_node(info, self.env)

        return _Call(self.ray, self.handle.start.remote(), check)

    def run(self, task: Task, episodes: Sequence[Episode]) -> _Call:
        return _Call(self.ray, self.handle.run.remote(task, tuple(episodes)))


class _Cluster:
    """The actors of one stage on a connected cluster."""

    def __init__(
        self,
        ray: Any,
        recipe: Recipe,
        order: Mapping[str, Any],
        env: Mapping[str, str],
        count: int,
    ) -> None:
        self.ray, self.settings = ray, recipe.ray
        kind = ray.remote(StageActor).options(
            num_cpus=self.settings.cpus,
            num_gpus=self.settings.gpus,
            resources=dict(self.settings.resources),
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self.workers = [_RayWorker(ray, kind.remote(order), env) for _ in range(count)]

    def wait_for(self, calls: Sequence[_Call], seconds: float) -> list[_Call]:
        """The calls that have a reply, once there is one."""
        by_ref = {call.refs: call for call in calls}
        refs = list(by_ref)
        if self.ray.wait(refs, num_returns=1, timeout=seconds)[0]:
            refs = self.ray.wait(refs, num_returns=len(refs), timeout=0)[0]
            return [by_ref[ref] for ref in refs]
        return []

    def no_worker(self) -> str:
        """Why no actor may have a place."""
        settings = self.settings
        asked = {"CPU": settings.cpus, "GPU": settings.gpus, **settings.resources}
        wants = ", ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
        has = {
            name: amount
            for name, amount in self.ray.cluster_resources().items()
            if ":" not in name and "memory" not in name
        }
        there = ", ".join(f"{amount:g} {name}" for name, amount in sorted(has.items())) or "nothing"
        return (
            f"No actor was at work for {settings.wait:g} s: each needs {wants or 'nothing'}, "
            f"and the cluster has {there} in all. Wait until it is free, lower "
            "ray.cpus, ray.gpus or ray.resources, or raise ray.wait; what was finished is kept."
        )

    def close(self) -> None:
        """Let the actors free what they hold, then end them."""
        with contextlib.suppress(Exception):
            closing = [worker.handle.close.remote() for worker in self.workers if worker.placed]
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=CLOSING)
        for worker in self.workers:
            with contextlib.suppress(Exception):
                self.ray.kill(worker.handle)


def _check_node(info: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Refuse a node with another leafe or another environment: trees would depend on the node.

    Raises:
        UserError: Its versions are not those of this machine.
    """
    from leafe import __version__

    if info["leafe"] != __version__:
        raise UserError(
            f"The node {info['node']} has leafe {info['leafe']} and this machine "
            f"{__version__}: install the same version on all nodes."
        )
    for key in {**env, **info["env"]}:
        here, there = env.get(key), info["env"].get(key)
        if here != there:
            raise UserError(
                f"The environment on the node {info['node']} is not the one here: its {key} "
                f"is {there!r} and not {here!r}; install the same on all nodes."
            )


@contextlib.contextmanager
def _connected(recipe: Recipe) -> Iterator[Any]:
    """The package ray, connected to the cluster; a cluster that was started here is ended here."""
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
    """UserError where nothing listens, or something that does not speak gRPC (the dashboard, say):
    ray itself would try for minutes."""
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
