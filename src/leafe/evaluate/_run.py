"""Plain sampling of a policy on tasks, with equal samples carried as one: counted sampling over a
tree of histories.

In a deterministic environment samples that have the same history see the same prompt, so they are
one row with a count. One request asks for
as many answers as the count says; the environment steps once for each distinct answer; the counts
go on with them. Nothing is approximated: given a
history the samples are independent draws, whether asked for together or apart. An environment that
is not deterministic
runs the same code with every sample in a history of its own, count 1, with its own environment and
seed.

There is no barrier: each distinct history goes on as soon as its answer is there. No reflection, no
rollback, no search.

A sample that is lost to the policy's endpoint or to the environment is sampled on from the history
at which it was lost, by a new seed (where the environment
failed on an action, by that action again): what was drawn before stays as it was drawn, so that it
hangs on nothing but luck which samples are made up
for, and none is likelier to be drawn anew for what it would have come to. In an environment that is
not deterministic there is no way back to that
history: there a sample asks again on the spot, and begins anew, from the same start, where the
environment itself failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core import (
    LOST,
    Completion,
    ContextFull,
    EnvError,
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
    act_turn,
    derive_seed,
)
from leafe.evaluate._frontier import Node, leaves, to_episodes
from leafe.evaluate._passk import counts
from leafe.explore import (
    ActionTrace,
    Diverged,
    EnvLease,
    EnvPool,
    EpisodeSink,
    SnapshotHandle,
    cost_of,
)
from leafe.prompts import History, Prompts

HOPELESS = 10
"""Tasks in a row, all of whose samples were lost, after which the evaluation ends: the endpoint or
the environment is down."""
AGAIN = 3
"""How often samples are sampled again from the history at which they were lost: when the rest of
their task is done, and as often when all other tasks are."""


@dataclass(slots=True)
class EvaluateProgress:
    """Where an evaluation stands; handed to the caller after every finished task. Samples,
    successes and stops go by counts."""

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
    pool: EnvPool,
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
    max_invalid_actions: int = 5,
    concurrency: int = 128,
    on_progress: Callable[[EvaluateProgress], None] | None = None,
) -> list[Tree]:
    """`samples` independent episodes of every task (docs/method.md, Evaluation); one tree a task,
    in tasks' order, counts on its turns and episodes.

    horizon: the most steps, None for the environment's own. max_invalid_actions: invalid actions in
    a row that end an episode. concurrency: tasks in
    flight. A finished task is one write of the journal; `known` holds the trees of an interrupted
    run, whose tasks are not sampled again.
    Samples lost to the policy's endpoint or to the environment are sampled again, within bounds,
    when the rest of the task is done and when all other tasks are,
    those of `known` trees too; till then a task that lacks some is not written. One that is lost
    for good is an episode with `Stop.policy_error`,
    `env_error` or `diverged` and is missing from the n of Pass@k. A task whose samples were all
    lost is not written, so that the next run tries it again.

    Raises UserError for an empty task list, ForeignFailure where everything is lost again and again
    (finished tasks are in the journal).
    """
    if not tasks:
        raise UserError("There are no tasks to evaluate on: check the split and the count.")
    if samples < 1:
        raise UserError(f"samples = {samples}: an evaluation needs at least one sample a task.")
    doubles = [task_id for task_id, times in Counter(t.id for t in tasks).items() if times > 1]
    if doubles:
        raise UserError(f"Two tasks share an id: {doubles[0]!r}; ids must be unique.")
    stage = _Stage(
        policy,
        pool,
        prompts,
        samples,
        temperature,
        top_p,
        seed,
        horizon or pool.facts.horizon,
        max_invalid_actions,
        journal,
        on_progress,
    )
    stage.progress = EvaluateProgress(len(tasks))
    trees: dict[str, Tree] = {}
    for task in tasks:
        if known and task.id in known and known[task.id].episodes:
            held = sum(e.count for e in known[task.id].episodes if e.again is None)
            if held != samples:
                raise UserError(
                    f"The journal holds {held} samples of task {task.id!r} where {samples} "
                    "are asked for: evaluate into another folder."
                )
            if counts([known[task.id]]).lost[0]:
                stage.late.append(_TaskSampler(stage, task, known[task.id]))
            else:
                trees[task.id] = known[task.id]
                stage.count(known[task.id])
    begun = {*trees, *(sampler.task.id for sampler in stage.late)}

    async def work(waiting: Iterator[Task]) -> None:
        for task in waiting:
            trees.update(await stage.task(task))

    async def work_late(waiting: Iterator[_TaskSampler]) -> None:
        for sampler in waiting:
            trees[sampler.task.id] = await stage.late_task(sampler)

    try:
        async with asyncio.TaskGroup() as group:
            fresh = iter([task for task in tasks if task.id not in begun])
            for _ in range(min(concurrency, len(tasks))):
                group.create_task(work(fresh))
        async with asyncio.TaskGroup() as group:
            late = iter(stage.late)
            for _ in range(min(concurrency, len(stage.late))):
                group.create_task(work_late(late))
    except BaseExceptionGroup as errors:
        first = _first(errors)
        # without the group around it, and with what brought it about
        raise first from first.__cause__
    finally:
        stage.writer.shutdown(wait=True)
    if all(_all_lost(t) for t in trees.values()):
        raise ForeignFailure(
            f"Every sample of every task was lost, the last with: {stage.last_error} Mend "
            "it and run again."
        )
    return [trees[task.id] for task in tasks]


@dataclass(slots=True)
class _Stage:
    """What all tasks of one evaluation share."""

    policy: Policy
    pool: EnvPool
    prompts: Prompts
    samples: int
    temperature: float
    top_p: float
    seed: int
    horizon: int
    max_invalid_actions: int
    journal: EpisodeSink | None
    on_progress: Callable[[EvaluateProgress], None] | None
    progress: EvaluateProgress = field(default_factory=lambda: EvaluateProgress(0))
    writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="journal")
    )
    lost_in_a_row: int = 0
    last_error: str = ""

    late: list[_TaskSampler] = field(default_factory=list)
    """Tasks that lack samples, for when all others are done."""

    async def task(self, task: Task) -> dict[str, Tree]:
        """The task's tree by its id; nothing where some of its samples are to be had later."""
        sampler = _TaskSampler(self, task)
        try:
            await sampler.begin()
            if not sampler.all_lost:
                await sampler.again()
        finally:
            sampler.release()
        if sampler.all_lost:
            self.lost_in_a_row += 1
            self.last_error = sampler.last_error
            if self.lost_in_a_row >= HOPELESS:
                raise ForeignFailure(
                    f"All samples of {self.lost_in_a_row} tasks in a row were lost, the "
                    f"last with: {self.last_error} "
                    "What was finished is kept: mend it and run again."
                )
        else:
            self.lost_in_a_row = 0
        if sampler.lost:
            self.late.append(sampler)
            return {}
        return {task.id: await self.keep(sampler)}

    async def late_task(self, sampler: _TaskSampler) -> Tree:
        """What it still lacks is sampled for the last time."""
        try:
            await sampler.again()
        finally:
            sampler.release()
        return await self.keep(sampler)

    async def keep(self, sampler: _TaskSampler) -> Tree:
        """Write what is new and sound, and count the task as done."""
        new = sampler.episodes()
        worth = not all(e.stop in LOST for e in new)
        if worth and self.journal is not None:
            await asyncio.get_running_loop().run_in_executor(self.writer, self.journal.append, new)
        before = [] if sampler.known is None else sampler.known.episodes
        tree = Tree(sampler.task, [*before, *(new if worth or not before else ())])
        self.count(tree)
        return tree

    def count(self, tree: Tree) -> None:
        p = self.progress
        p.tasks_done += 1
        p.solved += tree.solved
        for episode in tree.episodes:
            p.samples += episode.count if episode.again is None else 0
            p.successes += episode.count * episode.success
            p.stops[episode.stop.value] += episode.count
            for name, amount in cost_of(episode).items():
                setattr(p.spent, name, getattr(p.spent, name) + amount)
        if self.on_progress is not None:
            self.on_progress(p)


class _TaskSampler:
    """The samples of one task; of a `known` tree those that it lacks. Every distinct history is one
    coroutine of the task's group."""

    group: asyncio.TaskGroup

    def __init__(self, stage: _Stage, task: Task, known: Tree | None = None) -> None:
        self.stage = stage
        self.task = task
        self.known = known
        self.held: list[SnapshotHandle] = []
        """Snapshots taken."""
        self.began = time.monotonic()
        self.shared = stage.pool.facts.deterministic
        """Equal histories are one row."""
        self.snapshots = (
            self.shared and stage.pool.facts.can_snapshot and not stage.pool.facts.process
        )
        """An environment is borrowed for one step only; else it stays with one history to the end,
        and the others return to theirs by replay, or by a
        snapshot where one costs a process: taken only where histories part."""
        name = (stage.seed, task.id, "sample")
        if known is not None:
            self.roots = list(self._lost_of(known))
        elif self.shared:
            self.roots = [Node(History(task, ""), stage.samples, derive_seed(*name))]
        else:
            self.roots = [
                Node(History(task, ""), 1, derive_seed(*name, i), index=i)
                for i in range(stage.samples)
            ]

    async def begin(self) -> None:
        """Play all samples to their ends."""
        await self._together([self._start(root) for root in self.roots])

    async def again(self) -> None:
        """Sample what was lost again, until nothing is, or `AGAIN` times from the same history (or
        start)."""
        for node in [*leaves(self.roots), *self.roots]:
            node.tries = 0
        while True:
            if self.shared:
                due = [node for node in self.lost if node.tries < AGAIN]
                work = [self._once_more(node) for node in due]
            else:
                anew = [
                    at
                    for at, root in enumerate(self.roots)
                    if leaves([root])[0].stop in LOST and root.tries < AGAIN
                ]
                work = [self._anew(at) for at in anew]
            if not work:
                return
            await self._together(work)

    @property
    def lost(self) -> list[Node]:
        return [node for node in leaves(self.roots) if node.stop in LOST]

    @property
    def all_lost(self) -> bool:
        return all(node.stop in LOST for node in leaves(self.roots))

    @property
    def last_error(self) -> str:
        return leaves(self.roots)[-1].error

    def episodes(self) -> list[Episode]:
        """All of them that are not in the known tree."""
        return to_episodes(
            self.task.id, self.roots, 0 if self.known is None else len(self.known.episodes)
        )

    def release(self) -> None:
        """Free the snapshots."""
        self.stage.pool.release(self.held)
        self.held = []

    def _lost_of(self, tree: Tree) -> Iterator[Node]:
        """The histories at which samples were lost that nothing makes up for yet, as if they had
        been lost just now."""
        for episode in tree.episodes:
            missing = episode.count - sum(
                e.count for e in tree.episodes if e.again == episode.index
            )
            if episode.stop in LOST and missing > 0:
                path = tree.trajectory(episode) if self.shared else []
                history = History(self.task, episode.first_observation if path else "", tuple(path))
                invalid = next(
                    (nth for nth, turn in enumerate(reversed(path)) if turn.valid), len(path)
                )
                seed = derive_seed(self.stage.seed, self.task.id, "again", episode.index)
                yield Node(
                    history,
                    missing,
                    seed,
                    invalid=invalid,
                    stop=episode.stop,
                    error=episode.error,
                    index=episode.index,
                    after=path[-1].id if path else None,
                    again=episode.index,
                )

    async def _together(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as self.group:
            for each in work:
                self.group.create_task(each)

    async def _anew(self, at: int) -> None:
        """Begin a sample again, from the same start."""
        root = self.roots[at]
        seed = derive_seed(root.seed, "again")
        root = replace(
            root,
            history=History(self.task, ""),
            seed=seed,
            children=[],
            stop=None,
            error="",
            invalid=0,
            tries=root.tries + 1,
        )
        self.roots[at] = root
        await self._start(root)

    async def _once_more(self, node: Node) -> None:
        """Go on at a history where samples were lost: ask again, by another seed, or take the
        action again on which the environment failed."""
        node.stop, node.error, node.tries = None, "", node.tries + 1
        if node.answer is not None and node.turn is None:
            await self._rejoin(node, None)
            return
        node.seed = derive_seed(node.seed, "again")
        if not node.history.turns:
            await self._start(node)
            return
        with self._failing(node):
            async with self.stage.pool.acquire() as env:
                with self._env_of(node, env):
                    await self._follow(node, env)
                await self._stay(node, env)

    async def _follow(self, node: Node, env: EnvLease) -> None:
        await env.follow(
            ActionTrace.along(
                self.task, self._env_seed(0), node.history.first_observation, node.history.turns
            )
        )

    async def _start(self, root: Node) -> None:
        state = None
        with self._failing(root):
            async with self.stage.pool.acquire() as env:
                with self._env_of(root, env):
                    root.history = History(
                        self.task, await env.reset(self.task, self._env_seed(root.index))
                    )
                    if self.snapshots:
                        state = await self._snapshot(env)
                if not self.snapshots:
                    await self._stay(root, env)
        if state is not None:
            await self._spread(root, state)

    @contextlib.contextmanager
    def _env_of(self, node: Node, env: EnvLease) -> Iterator[None]:
        """What the environment does here is the node's: its replays, and its end where the
        environment fails for good."""

        def count() -> None:
            node.replayed += 1

        env.on_replay = count
        with self._failing(node):
            yield

    @contextlib.contextmanager
    def _failing(self, node: Node) -> Iterator[None]:
        """The node's end where an environment fails for good, or none can be made."""
        try:
            yield
        except Diverged as error:
            self._end(node, Stop.diverged, str(error))
        except EnvError as error:
            self._end(node, Stop.env_error, str(error))

    async def _snapshot(self, env: EnvLease) -> SnapshotHandle:
        self.held.append(await env.snapshot())
        return self.held[-1]

    async def _spread(self, node: Node, state: SnapshotHandle) -> None:
        """Ask at this history and go on with every answer from its snapshot; one answer goes on in
        this coroutine, as at low entropy most do."""
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

    async def _branch(self, node: Node, state: SnapshotHandle) -> None:
        after = await self._step_from(state, node)
        if after is not None:
            await self._spread(node, after)

    async def _step_from(self, state: SnapshotHandle, node: Node) -> SnapshotHandle | None:
        """Take the node's action from its parent's snapshot; returns the snapshot after it, None
        where the node ended."""
        with self._failing(node):
            async with self.stage.pool.acquire() as env:
                with self._env_of(node, env):
                    await env.restore(state)
                    await self._take(node, env)
                    return await self._snapshot(env) if node.stop is None else None
        return None

    async def _stay(self, node: Node, env: EnvLease) -> None:
        """Go on in the environment that stands at this history, with the most frequent answer; the
        others find environments of their own."""
        while node.stop is None:
            children = await self._ask(node)
            for _ in range(0 if self.shared or not node.history.step else AGAIN):
                if node.stop is not Stop.policy_error:
                    break
                node.stop, node.error, node.seed = (
                    None,
                    "",
                    derive_seed(node.seed, "again"),
                )  # no other environment stands here
                children = await self._ask(node)
            if not children:
                return
            state = None
            if len(children) > 1 and self.shared and env.env.can_snapshot:
                with contextlib.suppress(
                    EnvError, Diverged
                ):  # then the others return by replay; what is wrong here shows at the next step
                    state = await self._snapshot(env)
            for child in children[1:]:
                self.group.create_task(self._rejoin(child, state))
            node = children[0]
            with self._env_of(node, env):
                await self._take(node, env)

    async def _rejoin(self, node: Node, state: SnapshotHandle | None) -> None:
        """Bring another environment to the node's parent, checked, and go on from there."""
        with self._failing(node):
            async with self.stage.pool.acquire() as env:
                with self._env_of(node, env):
                    if state is not None:
                        await env.restore(state)
                    else:
                        await self._follow(node, env)
                    await self._take(node, env)
                await self._stay(node, env)

    def _env_seed(self, index: int) -> int:
        """A deterministic environment starts every sample alike, and like Stage 1 would; another
        draws a start for each."""
        names = ("world",) if self.shared else ("world", index)
        return derive_seed(self.stage.seed, self.task.id, *names)

    async def _ask(self, node: Node) -> list[Node]:
        """The distinct answers at this history as its children, most frequent first, not yet acted
        on. None where the policy fails: that ends the node."""
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
                raise PolicyError(
                    f"The policy {stage.policy.name} gave {given} samples where "
                    f"{node.count} were asked for."
                )
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
        answer = (
            replace(
                same[0],
                count=sum(a.count for a in same),
                usage=sum((a.usage for a in same), Usage()),
            )
            if len(same) > 1
            else same[0]
        )
        name = answer.text if answer.tokens is None else ",".join(map(str, answer.tokens))
        return Node(
            node.history,
            answer.count,
            derive_seed(node.seed, name),
            answer,
            seconds,
            invalid=node.invalid,
        )

    async def _take(self, node: Node, env: EnvLease) -> None:
        """Give the environment the node's action; afterwards the node has its turn, its history
        holds it, and its stop is set where that ends the episode."""
        answer, step = node.answer, node.history.step
        assert answer is not None
        thought, action = self.stage.prompts.parse_action(answer.text, answer.finish == "length")
        began = time.monotonic()
        result = await env.step(action)
        node.turn = act_turn(
            answer,
            thought,
            action,
            result,
            id="",  # named when the episodes are written down
            parent=None,
            task_id=self.task.id,
            step=step,
            policy=self.stage.policy.name,
            seconds=node.asked + time.monotonic() - began,
            count=answer.count,
        )
        node.history = node.history.then(node.turn)
        node.invalid = 0 if result.valid else node.invalid + 1
        if result.done:
            self._end(node, Stop.success if result.success else Stop.failure)
        elif node.invalid >= self.stage.max_invalid_actions:
            self._end(node, Stop.invalid_limit)
        elif step + 1 >= self.stage.horizon:
            self._end(node, Stop.horizon)

    def _end(self, node: Node, stop: Stop, error: str = "") -> None:
        node.stop, node.error, node.seconds = stop, error, round(time.monotonic() - self.began, 3)


def _distinct(answers: Sequence[Completion]) -> list[list[Completion]]:
    """Equal answers together, most frequent first, then by text. Equal means the same token ids
    where they are known: the same text
    spelled in other tokens is another prompt from here on."""
    groups: dict[tuple[str, tuple[int, ...] | None], list[Completion]] = {}
    for answer in answers:
        groups.setdefault((answer.text, answer.tokens), []).append(answer)
    return [
        groups[key]
        for key in sorted(
            groups, key=lambda key: (-sum(a.count for a in groups[key]), key[0], key[1] or ())
        )
    ]


def _all_lost(tree: Tree) -> bool:
    return all(e.stop in LOST for e in tree.episodes)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that the group stands for: the first one that is not itself a group."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
