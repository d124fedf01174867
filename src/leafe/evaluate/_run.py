"""Plain sampling of a policy on tasks, with equal samples carried as one: counted sampling over a tree of histories.

In a deterministic world samples that have the same history see the same prompt, so they are one row with a count. One request asks for
as many answers as the count says; the world steps once for each distinct answer; the counts go on with them. Nothing is approximated: given a
history the samples are independent draws, whether asked for together or apart. A world that is not deterministic
runs the same code with every sample in a history of its own, count 1, with its own world and seed.

There is no barrier: each distinct history goes on as soon as its answer is there. No reflection, no rollback, no search.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from leafe.core import (
    Completion,
    ContextFull,
    Episode,
    ForeignFailure,
    Policy,
    PolicyError,
    Request,
    Spent,
    Stop,
    Task,
    Tree,
    Usage,
    UserError,
    WorldError,
    act_turn,
    derive_seed,
)
from leafe.evaluate._frontier import Node, to_episodes
from leafe.evaluate._passk import LOST
from leafe.explore import BorrowedWorld, Diverged, EpisodeSink, Held, Trail, WorldPool, cost_of
from leafe.prompts import History, Prompts

HOPELESS = 10
"""Tasks in a row, all of whose samples were lost, after which the evaluation ends: the endpoint or the world is down."""


@dataclass(slots=True)
class EvaluateProgress:
    """Where an evaluation stands; handed to the caller after every finished task. Samples, successes and stops go by counts."""

    tasks: int
    tasks_done: int = 0
    samples: int = 0
    successes: int = 0
    solved: int = 0
    """Tasks with a success."""
    stops: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)
    """What was really computed, the seconds aside."""


async def evaluate(
    policy: Policy,
    pool: WorldPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    *,
    samples: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    horizon: int | None = None,
    invalid_limit: int = 5,
    concurrency: int = 128,
    on_progress: Callable[[EvaluateProgress], None] | None = None,
) -> list[Tree]:
    """`samples` independent episodes of every task (METHOD.md, Evaluation); one tree a task, in the tasks' order, counts on its turns and episodes.

    horizon: the most steps, None for the world's own. invalid_limit: invalid actions in a row that end an episode. concurrency: tasks in
    flight. A finished task is one write of the journal; `known` holds the trees of an interrupted run, whose tasks are not sampled again.
    A sample lost to the policy's endpoint or to the world is an episode with `Stop.policy_error`, `env_error` or `diverged` and is missing from the n of
    Pass@k. A task whose samples were all lost is not written, so that the next run tries it again.

    Raises UserError for an empty task list, ForeignFailure where everything is lost again and again (finished tasks are in the journal).
    """
    if not tasks:
        raise UserError("There are no tasks to evaluate on: check the split and the count.")
    if samples < 1:
        raise UserError(f"samples = {samples}: an evaluation needs at least one sample a task.")
    doubles = [task_id for task_id, times in Counter(t.id for t in tasks).items() if times > 1]
    if doubles:
        raise UserError(f"Two tasks share an id: {doubles[0]!r}; ids must be unique.")
    stage = _Stage(policy, pool, prompts, samples, temperature, top_p, seed, horizon or pool.facts.horizon, invalid_limit, journal, on_progress)
    stage.progress = EvaluateProgress(len(tasks))
    trees: dict[str, Tree] = {}
    for task in tasks:
        if known and task.id in known and known[task.id].episodes:
            held = sum(e.count for e in known[task.id].episodes)
            if held != samples:
                raise UserError(f"The journal holds {held} samples of task {task.id!r} where {samples} are asked for: evaluate into another folder.")
            trees[task.id] = known[task.id]
            stage.count(known[task.id])
    waiting = iter([task for task in tasks if task.id not in trees])

    async def work() -> None:
        for task in waiting:
            trees[task.id] = await stage.task(task)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(tasks))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        first = _first(errors)
        raise first from first.__cause__  # without the group around it, and with what brought it about
    finally:
        stage.writer.shutdown(wait=True)
    if all(_all_lost(t) for t in trees.values()):
        raise ForeignFailure(f"Every sample of every task was lost, the last with: {stage.last_error} Mend it and run again.")
    return [trees[task.id] for task in tasks]


@dataclass(slots=True)
class _Stage:
    """What all tasks of one evaluation share."""

    policy: Policy
    pool: WorldPool
    prompts: Prompts
    samples: int
    temperature: float
    top_p: float
    seed: int
    horizon: int
    invalid_limit: int
    journal: EpisodeSink | None
    on_progress: Callable[[EvaluateProgress], None] | None
    progress: EvaluateProgress = field(default_factory=lambda: EvaluateProgress(0))
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="journal"))
    lost_in_a_row: int = 0
    last_error: str = ""

    async def task(self, task: Task) -> Tree:
        held: list[Held] = []
        try:
            async with asyncio.TaskGroup() as group:
                sampler = _TaskSampler(self, task, group, held)
        finally:
            self.pool.release(held)
        tree = Tree(task, sampler.episodes())
        if _all_lost(tree):
            self.lost_in_a_row += 1
            self.last_error = tree.episodes[-1].error
            if self.lost_in_a_row >= HOPELESS:
                raise ForeignFailure(
                    f"All samples of {self.lost_in_a_row} tasks in a row were lost, the last with: {self.last_error} "
                    "What was finished is kept: mend it and run again."
                )
        else:
            self.lost_in_a_row = 0
            if self.journal is not None:
                await asyncio.get_running_loop().run_in_executor(self.writer, self.journal.append, tree.episodes)
        self.count(tree)
        return tree

    def count(self, tree: Tree) -> None:
        p = self.progress
        p.tasks_done += 1
        p.solved += tree.solved
        for episode in tree.episodes:
            p.samples += episode.count
            p.successes += episode.count * episode.success
            p.stops[episode.stop.value] += episode.count
            for name, amount in cost_of(episode).items():
                setattr(p.spent, name, getattr(p.spent, name) + amount)
        if self.on_progress is not None:
            self.on_progress(p)


class _TaskSampler:
    """The samples of one task. Every distinct history is one coroutine of the task's group."""

    def __init__(self, stage: _Stage, task: Task, group: asyncio.TaskGroup, held: list[Held]) -> None:
        self.stage = stage
        self.task = task
        self.group = group
        self.held = held
        """Snapshots taken, for whoever frees them."""
        self.began = time.monotonic()
        self.shared = stage.pool.facts.deterministic
        """Equal histories are one row."""
        self.snapshots = self.shared and stage.pool.facts.can_snapshot and not stage.pool.facts.process
        """A world is borrowed for one step only; else it stays with one history to the end, and the others return to theirs by replay, or by a
        snapshot where one costs a process: taken only where histories part."""
        name = (stage.seed, task.id, "sample")
        if self.shared:
            self.roots = [Node(History(task, ""), stage.samples, derive_seed(*name))]
        else:
            self.roots = [Node(History(task, ""), 1, derive_seed(*name, i)) for i in range(stage.samples)]
        for index, root in enumerate(self.roots):
            group.create_task(self._start(root, index))

    def episodes(self) -> list[Episode]:
        """All of them, once the group is done."""
        return to_episodes(self.task.id, self.roots)

    async def _start(self, root: Node, index: int) -> None:
        state = None
        with self._failing(root):
            async with self.stage.pool.borrow() as world:
                with self._world_of(root, world):
                    root.history = History(self.task, await world.reset(self.task, self._world_seed(index)))
                    if self.snapshots:
                        state = await self._snapshot(world)
                if not self.snapshots:
                    await self._stay(root, world)
        if state is not None:
            await self._spread(root, state)

    @contextlib.contextmanager
    def _world_of(self, node: Node, world: BorrowedWorld) -> Iterator[None]:
        """What the world does here is the node's: its replays, and its end where the world fails for good."""

        def count() -> None:
            node.replayed += 1

        world.on_replay = count
        with self._failing(node):
            yield

    @contextlib.contextmanager
    def _failing(self, node: Node) -> Iterator[None]:
        """The node's end where a world fails for good, or none can be made."""
        try:
            yield
        except Diverged as error:
            self._end(node, Stop.diverged, str(error))
        except WorldError as error:
            self._end(node, Stop.env_error, str(error))

    async def _snapshot(self, world: BorrowedWorld) -> Held:
        self.held.append(await world.snapshot())
        return self.held[-1]

    async def _spread(self, node: Node, state: Held) -> None:
        """Ask at this history and go on with every answer from its snapshot; one answer goes on in this coroutine, as at low entropy most do."""
        while True:
            children = await self._ask(node)
            if not children:
                return
            for child in children[1:]:
                self.group.create_task(self._branch(child, state))
            node = children[0]
            after = await self._step_from(state, node)
            if after is None:
                return
            state = after

    async def _branch(self, node: Node, state: Held) -> None:
        after = await self._step_from(state, node)
        if after is not None:
            await self._spread(node, after)

    async def _step_from(self, state: Held, node: Node) -> Held | None:
        """Take the node's action from its parent's snapshot; returns the snapshot after it, None where the node ended."""
        with self._failing(node):
            async with self.stage.pool.borrow() as world:
                with self._world_of(node, world):
                    await world.restore(state)
                    await self._take(node, world)
                    return await self._snapshot(world) if node.stop is None else None
        return None

    async def _stay(self, node: Node, world: BorrowedWorld) -> None:
        """Go on in the world that stands at this history, with the most frequent answer; the others find worlds of their own."""
        while node.stop is None:
            children = await self._ask(node)
            if not children:
                return
            state = None
            if len(children) > 1 and self.shared and world.world.can_snapshot:
                with contextlib.suppress(WorldError, Diverged):  # then the others return by replay; what is wrong here shows at the next step
                    state = await self._snapshot(world)
            for child in children[1:]:
                self.group.create_task(self._rejoin(child, state))
            node = children[0]
            with self._world_of(node, world):
                await self._take(node, world)

    async def _rejoin(self, node: Node, state: Held | None) -> None:
        """Bring another world to the node's parent, checked, and go on from there."""
        with self._failing(node):
            async with self.stage.pool.borrow() as world:
                with self._world_of(node, world):
                    if state is not None:
                        await world.restore(state)
                    else:
                        await world.follow(Trail.along(self.task, self._world_seed(0), node.history.first_observation, node.history.turns))
                    await self._take(node, world)
                await self._stay(node, world)

    def _world_seed(self, index: int) -> int:
        """A deterministic world starts every sample alike, and like Stage 1 would; another draws a start for each."""
        names = ("world",) if self.shared else ("world", index)
        return derive_seed(self.stage.seed, self.task.id, *names)

    async def _ask(self, node: Node) -> list[Node]:
        """The distinct answers at this history as its children, most frequent first, not yet acted on. None where the policy fails: that ends the node."""
        stage, words = self.stage, self.stage.prompts.set
        request = Request(
            messages=stage.prompts.act(node.history),
            n=node.count,
            temperature=stage.temperature,
            top_p=stage.top_p,
            max_tokens=words.max_tokens,
            stop=words.stop,
            seed=node.seed,
            cache_key=self.task.id,
        )
        began = time.monotonic()
        try:
            answers = await stage.policy.complete(request)
            given = sum(a.count for a in answers)
            if given != node.count:
                raise PolicyError(f"The policy {stage.policy.name} gave {given} samples where {node.count} were asked for.")
        except ContextFull as error:
            self._end(node, Stop.context_full, str(error))
            return []
        except PolicyError as error:
            self._end(node, Stop.policy_error, str(error))
            return []
        seconds = time.monotonic() - began
        node.children = [self._child(node, same, seconds) for same in _distinct(answers)]
        return node.children

    def _child(self, node: Node, same: Sequence[Completion], seconds: float) -> Node:
        answer = replace(same[0], count=sum(a.count for a in same), usage=sum((a.usage for a in same), Usage())) if len(same) > 1 else same[0]
        name = answer.text if answer.tokens is None else ",".join(map(str, answer.tokens))
        return Node(node.history, answer.count, derive_seed(node.seed, name), answer, seconds, invalid=node.invalid)

    async def _take(self, node: Node, world: BorrowedWorld) -> None:
        """Give the world the node's action; afterwards the node has its turn, its history holds it, and its stop is set where that ends the episode."""
        answer, step = node.answer, node.history.step
        assert answer is not None
        thought, action = self.stage.prompts.parse_action(answer.text, answer.finish == "length")
        began = time.monotonic()
        result = await world.step(action)
        node.turn = act_turn(
            answer, thought, action, result,
            id="",  # named when the episodes are written down
            parent=None, task_id=self.task.id, step=step, policy=self.stage.policy.name, seconds=node.asked + time.monotonic() - began, count=answer.count,
        )  # fmt: skip
        node.history = node.history.then(node.turn)
        node.invalid = 0 if result.valid else node.invalid + 1
        if result.done:
            self._end(node, Stop.success if result.success else Stop.failure)
        elif node.invalid >= self.stage.invalid_limit:
            self._end(node, Stop.invalid_limit)
        elif step + 1 >= self.stage.horizon:
            self._end(node, Stop.horizon)

    def _end(self, node: Node, stop: Stop, error: str = "") -> None:
        node.stop, node.error, node.seconds = stop, error, round(time.monotonic() - self.began, 3)


def _distinct(answers: Sequence[Completion]) -> list[list[Completion]]:
    """Equal answers together, most frequent first, then by text. Equal means the same token ids where they are known: the same text
    spelled in other tokens is another prompt from here on."""
    groups: dict[tuple[str, tuple[int, ...] | None], list[Completion]] = {}
    for answer in answers:
        groups.setdefault((answer.text, answer.tokens), []).append(answer)
    return [groups[key] for key in sorted(groups, key=lambda key: (-sum(a.count for a in groups[key]), key[0], key[1] or ()))]


def _all_lost(tree: Tree) -> bool:
    return all(e.stop in LOST for e in tree.episodes)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that the group stands for: the first one that is not itself a group."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
