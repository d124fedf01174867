"""All samples of one task, with equal samples carried as one: counted sampling over a tree of
histories.

In a deterministic environment samples that have the same history see the same prompt, so they are
one row with a count. One request asks for as many answers as the count says; the environment steps
once for each distinct answer; the counts continue with them. Nothing is approximated: given a
history the samples are independent draws, whether asked for together or apart. An environment that
is not deterministic runs the same code with every sample in a history of its own, count 1, with its
own environment and seed.

A sample that is lost to the policy's endpoint or to the environment is resampled from the history
at which it was lost, by a new seed (where the environment failed on an action, by that action
again). What was drawn before stays as it was drawn, so no outcome is favoured. In an environment
that is not deterministic there is no way back to that history: there a sample asks again on the
spot, and restarts from the same start where the environment itself failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leafe.core import (
    LOST,
    Completion,
    ContextFull,
    EnvError,
    Episode,
    Policy,
    PolicyError,
    Request,
    Stop,
    Task,
    Tree,
    Usage,
    act_turn,
    derive_seed,
)
from leafe.evaluate._histories import HistoryNode, leaves, to_episodes
from leafe.explore import (
    ActionTrace,
    EnvLease,
    EnvPool,
    ReplayDiverged,
    SnapshotHandle,
    complete_all,
    invalid_in_a_row,
)
from leafe.prompts import History, Prompts

MAX_RESAMPLES = 3
"""How often samples are resampled from the history at which they were lost: when the rest of their
task is done, and as often when all other tasks are."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How every task is sampled."""

    policy: Policy
    pool: EnvPool
    prompts: Prompts
    samples: int
    temperature: float
    top_p: float
    seed: int
    horizon: int
    max_invalid_actions: int


class TaskSampler:
    """The samples of one task; of a `known` tree those that it lacks. Every distinct history is one
    coroutine."""

    _group: asyncio.TaskGroup

    def __init__(self, sampling: Sampling, task: Task, known: Tree | None = None) -> None:
        self.sampling = sampling
        self.task = task
        self.known = known
        self._taken: list[SnapshotHandle] = []
        self._began = time.monotonic()
        facts = sampling.pool.facts
        self.counted = facts.deterministic
        """Equal histories are one row."""
        self.snapshots = facts.deterministic and facts.can_snapshot and not facts.process
        """An environment is acquired for one step only. Else it stays with one history to the end,
        and the others return to theirs by replay, or by a snapshot where that costs a process: it
        is taken only where histories part."""
        names = (sampling.seed, task.id, "sample")
        if known is not None:
            self.roots = list(self._lost_in(known))
        elif self.counted:
            self.roots = [HistoryNode(History(task, ""), sampling.samples, derive_seed(*names))]
        else:
            self.roots = [
                HistoryNode(History(task, ""), 1, derive_seed(*names, i), index=i)
                for i in range(sampling.samples)
            ]

    async def sample(self) -> None:
        """Play all samples to their ends."""
        await self._together([self._start(root) for root in self.roots])

    async def resample_lost(self) -> None:
        """Resample what was lost, at most `MAX_RESAMPLES` times from the same history (start)."""
        for node in [*leaves(self.roots), *self.roots]:
            node.resampled = 0
        while True:
            if self.counted:
                work = [
                    self._resample(node) for node in self.lost if node.resampled < MAX_RESAMPLES
                ]
            else:
                work = [
                    self._restart(at)
                    for at, root in enumerate(self.roots)
                    if leaves([root])[0].stop in LOST and root.resampled < MAX_RESAMPLES
                ]
            if not work:
                return
            await self._together(work)

    @property
    def lost(self) -> list[HistoryNode]:
        """Where samples are lost at present."""
        return [node for node in leaves(self.roots) if node.stop in LOST]

    @property
    def all_lost(self) -> bool:
        """No sample came to a sound end."""
        return all(node.stop in LOST for node in leaves(self.roots))

    @property
    def last_error(self) -> str:
        """What the last of them failed with."""
        return leaves(self.roots)[-1].error

    def episodes(self) -> list[Episode]:
        """The episodes that are not in the known tree."""
        first = 0 if self.known is None else len(self.known.episodes)
        return to_episodes(self.task.id, self.roots, first)

    def release(self) -> None:
        """Free the snapshots."""
        self.sampling.pool.release(self._taken)
        self._taken = []

    def _lost_in(self, tree: Tree) -> Iterator[HistoryNode]:
        """The histories at which samples were lost that nothing makes up for yet, as if they had
        been lost just now."""
        for episode in tree.episodes:
            missing = episode.count - sum(
                e.count for e in tree.episodes if e.again == episode.index
            )
            if episode.stop in LOST and missing > 0:
                path = tree.trajectory(episode) if self.counted else []
                yield HistoryNode(
                    History(self.task, episode.first_observation if path else "", tuple(path)),
                    missing,
                    derive_seed(self.sampling.seed, self.task.id, "again", episode.index),
                    invalid=invalid_in_a_row(path),
                    stop=episode.stop,
                    error=episode.error,
                    index=episode.index,
                    after=path[-1].id if path else None,
                    again=episode.index,
                )

    # coroutines of the group: each plays one history, and starts others where histories part

    async def _together(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as self._group:
            for each in work:
                self._group.create_task(each)

    async def _start(self, root: HistoryNode) -> None:
        """Sample from the reset on."""
        state = None
        with self._ends(root):
            async with self.sampling.pool.acquire(root.count_replay) as env:
                first = await env.reset(self.task, self._env_seed(root.index))
                root.history = History(self.task, first)
                if self.snapshots:
                    state = await self._snapshot(env)
                else:
                    await self._play(root, env)
        if state is not None:
            await self._play_by_snapshots(root, state)

    async def _restart(self, at: int) -> None:
        """Sample root number `at` anew, from the same start."""
        root = self.roots[at]
        root = self.roots[at] = replace(
            root,
            history=History(self.task, ""),
            seed=derive_seed(root.seed, "again"),
            children=[],
            stop=None,
            error="",
            invalid=0,
            resampled=root.resampled + 1,
        )
        await self._start(root)

    async def _resample(self, node: HistoryNode) -> None:
        """Continue at a history where samples were lost: ask again, by another seed, or take the
        action again on which the environment failed."""
        node.stop, node.error, node.resampled = None, "", node.resampled + 1
        if node.answer is not None and node.turn is None:
            await self._rejoin(node, None)
            return
        node.seed = derive_seed(node.seed, "again")
        if not node.history.turns:
            await self._start(node)
            return
        with self._ends(node):
            async with self.sampling.pool.acquire(node.count_replay) as env:
                await self._replay(node, env)
                await self._play(node, env)

    async def _play(self, node: HistoryNode, env: EnvLease) -> None:
        """Continue in the environment that stands at this history, with the most frequent answer;
        the others find environments of their own."""
        while node.stop is None:
            children = await self._ask(node)
            for _ in range(0 if self.counted or not node.history.step else MAX_RESAMPLES):
                if node.stop is not Stop.policy_error:
                    break
                # no other environment stands here: ask again on the spot
                node.stop, node.error, node.seed = None, "", derive_seed(node.seed, "again")
                children = await self._ask(node)
            if not children:
                return
            state = None
            if len(children) > 1 and self.counted and env.env.can_snapshot:
                # without it the others return by replay; what is wrong shows at the next step
                with contextlib.suppress(EnvError, ReplayDiverged):
                    state = await self._snapshot(env)
            for child in children[1:]:
                self._group.create_task(self._rejoin(child, state))
            node = children[0]
            env.on_replay = node.count_replay
            with self._ends(node):
                await self._act(node, env)

    async def _rejoin(self, node: HistoryNode, state: SnapshotHandle | None) -> None:
        """Bring another environment to the node's parent, compared, and continue from there."""
        with self._ends(node):
            async with self.sampling.pool.acquire(node.count_replay) as env:
                if state is not None:
                    await env.restore(state)
                else:
                    await self._replay(node, env)
                await self._act(node, env)
                await self._play(node, env)

    async def _play_by_snapshots(self, node: HistoryNode, state: SnapshotHandle) -> None:
        """Ask at this history and continue with every answer from its snapshot; the most frequent
        one continues in this coroutine, since at low entropy most samples have it."""
        after: SnapshotHandle | None = state
        while after is not None:
            children = await self._ask(node)
            if not children:
                return
            for child in children[1:]:
                self._group.create_task(self._branch(child, after))
            node = children[0]
            after = await self._act_from(after, node)

    async def _branch(self, node: HistoryNode, state: SnapshotHandle) -> None:
        after = await self._act_from(state, node)
        if after is not None:
            await self._play_by_snapshots(node, after)

    async def _act_from(self, state: SnapshotHandle, node: HistoryNode) -> SnapshotHandle | None:
        """Take the node's action from its parent's snapshot; the snapshot after it, None where the
        node ended."""
        with self._ends(node):
            async with self.sampling.pool.acquire(node.count_replay) as env:
                await env.restore(state)
                await self._act(node, env)
                return await self._snapshot(env) if node.stop is None else None
        return None

    # what they do

    @contextlib.contextmanager
    def _ends(self, node: HistoryNode) -> Iterator[None]:
        """The node ends where the environment fails for good or none can be made."""
        try:
            yield
        except ReplayDiverged as error:
            self._end(node, Stop.diverged, str(error))
        except EnvError as error:
            self._end(node, Stop.env_error, str(error))

    async def _snapshot(self, env: EnvLease) -> SnapshotHandle:
        self._taken.append(await env.snapshot())
        return self._taken[-1]

    async def _replay(self, node: HistoryNode, env: EnvLease) -> None:
        history = node.history
        await env.replay(
            ActionTrace.of(self.task, self._env_seed(0), history.first_observation, history.turns)
        )

    def _env_seed(self, index: int) -> int:
        """A deterministic environment starts every sample alike, and as Stage 1 would; another
        draws a start for each."""
        names = ("world",) if self.counted else ("world", index)
        return derive_seed(self.sampling.seed, self.task.id, *names)

    async def _ask(self, node: HistoryNode) -> list[HistoryNode]:
        """The distinct answers at this history as its children, most frequent first, not yet acted
        on. Empty where the policy fails: that ends the node."""
        sampling, words = self.sampling, self.sampling.prompts.set
        request = Request(
            messages=sampling.prompts.act(node.history),
            n=node.count,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=words.max_tokens,
            stop=words.stop,
            seed=node.seed,
            cache_key=self.task.id,
        )
        began = time.monotonic()
        try:
            answers = await complete_all(sampling.policy, request)
        except ContextFull as error:
            self._end(node, Stop.context_full, str(error))
            return []
        except PolicyError as error:
            self._end(node, Stop.policy_error, str(error))
            return []
        seconds = time.monotonic() - began
        node.children = [_child(node, answer, seconds) for answer in _distinct(answers)]
        return node.children

    async def _act(self, node: HistoryNode, env: EnvLease) -> None:
        """Take the node's action. Afterwards the node has its turn, its history holds it, and its
        stop is set where that ends the episode."""
        answer, step = node.answer, node.history.step
        assert answer is not None
        thought, action = self.sampling.prompts.parse_action(answer.text, answer.finish == "length")
        began = time.monotonic()
        result = await env.step(action)
        node.turn = act_turn(
            answer,
            thought,
            action,
            result,
            id="",  # given when the episodes are written
            parent=None,
            task_id=self.task.id,
            step=step,
            policy=self.sampling.policy.name,
            seconds=node.policy_seconds + time.monotonic() - began,
            count=answer.count,
        )
        node.history = node.history.then(node.turn)
        node.invalid = 0 if result.valid else node.invalid + 1
        if result.done:
            self._end(node, Stop.success if result.success else Stop.failure)
        elif node.invalid >= self.sampling.max_invalid_actions:
            self._end(node, Stop.invalid_limit)
        elif step + 1 >= self.sampling.horizon:
            self._end(node, Stop.horizon)

    def _end(self, node: HistoryNode, stop: Stop, error: str = "") -> None:
        node.stop, node.error, node.seconds = stop, error, round(time.monotonic() - self._began, 3)


def _child(node: HistoryNode, answer: Completion, seconds: float) -> HistoryNode:
    name = answer.text if answer.tokens is None else ",".join(map(str, answer.tokens))
    seed = derive_seed(node.seed, name)
    return HistoryNode(node.history, answer.count, seed, answer, seconds, invalid=node.invalid)


def _distinct(answers: Sequence[Completion]) -> list[Completion]:
    """Equal answers as one, most frequent first, then by text. Equal means the same token ids where
    they are known: the same text in other tokens is another prompt from here on."""
    groups: dict[tuple[str, tuple[int, ...] | None], list[Completion]] = {}
    for answer in answers:
        groups.setdefault((answer.text, answer.tokens), []).append(answer)
    merged = [
        same[0]
        if len(same) == 1
        else replace(
            same[0],
            count=sum(a.count for a in same),
            usage=sum((a.usage for a in same), Usage()),
        )
        for same in groups.values()
    ]
    return sorted(merged, key=lambda a: (-a.count, a.text, a.tokens or ()))
