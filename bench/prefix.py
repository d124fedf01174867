"""How many prompt tokens a rollback tree costs an engine with a prefix cache, by how its prompts
are built.

    python bench/prefix.py [--envs gates sokoban ...] [--tasks 64] [--calls 64] [--flight 8 64]
    [--capacity 0 200000 50000] [--engine]

A real exploration (at most 20 turns an episode; the embedded model on gates, a random player with a
random reflector elsewhere) gives trees. Their requests, the same episodes with the same answers,
are then sent with three kinds of prompts: `append`, as leafe does; `system`, with the experience
and the reflection request in the system message and a growing history; `window`, the last two
turns. They are served by a model of a prefix cache (bench/prefix_cache.py; capacity in tokens, 0:
unlimited), and with --engine by the in-process engine itself, which replays the recorded answers on
a model of one narrow layer with room for as many tokens: its counts do not depend on the weights.
`flight` tasks are open at a time; the simulator takes their requests in turn, the engine as they
come.

Prints computed tokens a turn, ratios to `append` with 95 % intervals (bootstrap over tasks), and
where the saving of `append` comes from.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from bench.prefix_cache import PrefixCache
from leafe.core import ChatTokens, Environment, Kind, Message, Policy, Request, Scope, Task, Tree
from leafe.envs import make_env
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies import make_policy
from leafe.policies.hf import HFPolicy, load_tokenizer
from leafe.policies.hf._engine import Engine
from leafe.policies.hf._jobs import Draw
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import History, Prompts, history_before, load_prompt_set
from leafe.prompts._set import fill

HORIZON = 20
WAYS = ("append", "system", "window")
ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "gates": ("gates", {"setting": "hard"}),
    "sokoban": ("sokoban", {"size": "8x8", "boxes": 2, "horizon": HORIZON}),
    "lake": ("gymnasium", {"horizon": HORIZON}),
    "taxi": ("gymnasium", {"id": "Taxi-v4", "horizon": HORIZON}),
    "scienceworld": ("scienceworld", {"horizon": HORIZON}),
    "textworld": ("textworld", {"make": "coin:level=10", "horizon": HORIZON}),
}
"""Row of the table -> environment (and prompt set) and its options."""
WORDS = (
    "the",
    "a",
    "box",
    "key",
    "door",
    "room",
    "water",
    "left",
    "right",
    "near",
    "now",
    "then",
    "still",
    "first",
    "goal",
    "way",
    "maybe",
    "so",
    "I",
    "must",
)


# exploring


class Player:
    """Plays random valid actions and reflects at random, in the formats of the prompt sets."""

    def __init__(self) -> None:
        self.envs: dict[str, Environment] = {}
        """The environment of each task."""

    def make(self, name: str, options: dict[str, Any]) -> Environment:
        """An environment without snapshots, so that every episode tells where it is played."""
        env: Any = make_env(name, **options)
        env.can_snapshot = False
        reset = env.reset

        def watched(task: Task, seed: int) -> str:
            self.envs[task.id] = env
            return str(reset(task, seed))

        env.reset = watched
        return env  # type: ignore[no-any-return]

    def __call__(self, request: Request) -> str:
        rng = random.Random(request.seed)
        if request.schema is not None:
            step = rng.randint(0, int(request.schema["properties"]["step"]["maximum"]))
            return f'{{"step": {step}, "experience": "{self.words(rng, 20, 40)}"}}'
        actions = self.envs[request.cache_key].valid_actions() or ("look",)
        return f"Thought: {self.words(rng, 8, 20)}\nAction: {rng.choice(list(actions))}"

    def words(self, rng: random.Random, low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high))) + "."


async def grow(
    row: str, tasks: int, calls: int, scope: str, flight: int
) -> tuple[list[Tree], Prompts, ChatTokens, Policy]:
    name, options = ENVS[row]
    if row == "gates":
        from leafe.embedded import base_path

        policy = make_policy("hf", model=str(base_path()), name="base", max_batch=64, threads=1)
        pool, chat = (
            EnvPool(lambda: make_env(name, **options), size=flight),
            ChatTokens(load_tokenizer(base_path())),
        )
    else:
        from leafe.policies import smollm2

        player = Player()
        policy, chat = ScriptedPolicy(player), ChatTokens(load_tokenizer(smollm2.path()))
        flight = flight if name == "sokoban" else min(flight, 4)
        pool = EnvPool(lambda: player.make(name, options), size=flight)
    try:
        prompts = Prompts(load_prompt_set(name), pool.facts.actions_help)
        config = ExploreConfig(
            limits={"policy_calls": calls},
            stop_when="budget",
            horizon=HORIZON,
            scope=Scope(scope),
            max_invalid_actions=HORIZON,
            concurrency=flight,
        )
        found = await explore(policy, pool, pool.facts.tasks("train", tasks, 0), prompts, config)
        return list(found.trees.values()), prompts, chat, policy
    finally:
        await policy.close()
        pool.close()


# replaying the requests


@dataclass(eq=False, slots=True)
class Ask:
    """One request of a tree: its prompt and its recorded answer."""

    task: int
    episode: int
    kind: str
    """act, reflect, or how an episode began: rollback, fresh."""
    messages: tuple[Message, ...]
    prompt: np.ndarray
    answer: tuple[int, ...]
    cached: int = 0
    """As recorded when it was explored; 0 where the policy counts no tokens."""


class InSystem(Prompts):
    """Puts what changes into the system message, as harnesses do that build each prompt anew."""

    def act(self, history: History, _: object = None) -> tuple[Message, ...]:
        return self._moved(history, "")

    def reflect(self, history: History, _: object = None) -> tuple[Message, ...]:
        tried = "".join(
            fill(self.set.tried, {"step": step, "experience": note}) for step, note in history.tried
        )
        return self._moved(
            history,
            tried + fill(self.set.reflect, {"last": history.step - 1, "step": history.step}),
        )

    def _moved(self, history: History, asked: str) -> tuple[Message, ...]:
        said = "".join(self._note(history, step) for step in sorted(history.notes)) + asked
        out = list(super().act(replace(history, notes={})))
        if said and out[0].role == "system":
            out[0] = Message("system", out[0].content + said)
        elif said:
            out.insert(0, Message("system", said.strip()))
        return tuple(out)


def asks_of(trees: list[Tree], prompts: Prompts, chat: ChatTokens, way: str) -> list[list[Ask]]:
    """Every request of every tree, in its order."""
    if way == "system":
        prompts = InSystem(prompts.set, prompts.actions_help)
    if way == "window":
        prompts = Prompts(prompts.set, prompts.actions_help, "window:2")
    out = []
    for i, tree in enumerate(trees):
        mine = []
        for episode in tree.episodes:
            for nth, turn in enumerate(episode.turns):
                history = history_before(tree, turn, with_experience=True)
                reflects = turn.kind is Kind.reflect
                messages = prompts.reflect(history) if reflects else prompts.act(history)
                kind = (
                    "reflect"
                    if reflects
                    else "act"
                    if nth
                    else "rollback"
                    if episode.experience
                    else "fresh"
                )
                answer = chat.answer(Message("assistant", turn.action_text, turn.tokens))
                mine.append(
                    Ask(
                        i,
                        episode.index,
                        kind,
                        messages,
                        np.array(chat.prompt(messages), np.int32),
                        answer,
                        turn.usage.cached,
                    )
                )
        out.append(mine)
    return out


def in_turn(asks: list[list[Ask]], flight: int) -> Iterator[Ask]:
    """One request of each open task after the other; the next task opens when one is done."""
    waiting = deque(deque(a) for a in asks if a)
    opened = deque(waiting.popleft() for _ in range(min(flight, len(waiting))))
    while opened:
        task = opened.popleft()
        yield task.popleft()
        if task:
            opened.append(task)
        elif waiting:
            opened.append(waiting.popleft())


def simulated(asks: list[list[Ask]], flight: int, capacity: int | None) -> np.ndarray:
    """Computed prompt tokens of each task."""
    cache, computed = PrefixCache(capacity), np.zeros(len(asks))
    for ask in in_turn(asks, flight):
        computed[ask.task] += len(ask.prompt) - cache.serve(ask.prompt.tolist(), ask.answer)
    return computed


class ReplayingEngine(Engine):
    """The engine, but every answer is the recorded one."""

    answers: dict[int, tuple[int, ...]]

    def _draw(self, sequences: list[Any], logits: Any) -> None:
        for sequence in sequences:
            done = sequence.length - len(sequence.job.prompt)
            token = self.answers[sequence.job.seed][done]
            self._split(sequence, [Draw(token, 0.0, sequence.samples)])
        self._active = [s for s in self._active if s.entry >= 0]


def engined(asks: list[list[Ask]], flight: int, capacity: int | None, folder: Path) -> np.ndarray:
    """Computed prompt tokens of each task."""
    token_bytes = 1 * 2 * 16 * 4  # layers, keys and values, width, float32
    policy = HFPolicy(
        folder,
        max_batch=flight,
        threads=1,
        cache_gib=64 if capacity is None else (capacity + 1) * token_bytes / 2**30,
    )
    engine = policy.engine
    engine.__class__ = ReplayingEngine
    flat = [a for task in asks for a in task]
    engine.answers = {i: a.answer for i, a in enumerate(flat)}  # type: ignore[attr-defined]
    number, computed = {id(a): i for i, a in enumerate(flat)}, np.zeros(len(asks))

    async def play(queue: Iterator[list[Ask]]) -> None:
        for mine in queue:
            for ask in mine:
                request = Request(
                    ask.messages,
                    max_tokens=len(ask.answer),
                    seed=number[id(ask)],
                    cache_key=str(ask.task),
                )
                (done,) = await policy.complete(request)
                assert done.tokens == ask.answer
                computed[ask.task] += done.usage.prompt - done.usage.cached

    async def main() -> None:
        queue = iter(asks)
        await asyncio.gather(*(play(queue) for _ in range(flight)))
        await policy.close()

    asyncio.run(main())
    return computed


# results


def shared(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def sources(asks: list[list[Ask]]) -> dict[str, float]:
    """Shares of the prompt tokens of `append` that an unlimited cache has, by the nearest earlier
    request with them."""
    found: Counter[str] = Counter()
    firsts = [a[0].prompt for a in asks if a]
    for i, mine in enumerate(asks):
        by_episode: dict[int, list[np.ndarray]] = {}
        for ask in mine:
            most = len(ask.prompt) - 1
            near = max(
                (min(most, shared(ask.prompt, s)) for s in by_episode.get(ask.episode, ())),
                default=0,
            )
            task = max(
                (
                    min(most, shared(ask.prompt, s))
                    for e, all_ in by_episode.items()
                    if e != ask.episode
                    for s in all_
                ),
                default=0,
            )
            every = max((min(most, shared(ask.prompt, s)) for s in firsts[:i]), default=0)
            found[
                "reflection on the episode" if ask.kind == "reflect" else "growth of the episode"
            ] += near
            found[
                "other episodes, after a rollback"
                if ask.kind == "rollback"
                else "other episodes, from the reset"
            ] += max(0, task - near)
            found["other tasks"] += max(0, every - max(task, near))
            found["none"] += len(ask.prompt) - max(near, task, every)
            by_episode.setdefault(ask.episode, []).append(
                np.concatenate((ask.prompt, np.array(ask.answer[:-1], np.int32)))
            )
    return {name: n / found.total() for name, n in found.items()}


def by_kind(asks: list[list[Ask]]) -> dict[str, int]:
    """Tokens that an unlimited cache of single tokens leaves to compute, by kind of request."""
    cache, found = (
        PrefixCache(None, block=1),
        Counter(dict.fromkeys(("act", "reflect", "rollback", "fresh"), 0)),
    )
    for ask in in_turn(asks, len(asks)):
        found[ask.kind] += len(ask.prompt) - cache.serve(ask.prompt.tolist(), ask.answer)
    return dict(found)


def ratio(of: np.ndarray, to: np.ndarray) -> str:
    """The ratio of sums over tasks, with its 95 % interval."""
    drawn = np.random.default_rng(0).integers(len(of), size=(4000, len(of)))
    low, high = np.quantile(of[drawn].sum(1) / to[drawn].sum(1), [0.025, 0.975])
    return f"{of.sum() / to.sum():.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    parser.add_argument("--scopes", nargs="+", choices=list(Scope), default=["action"])
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--calls", type=int, default=64, help="policy calls a task")
    parser.add_argument("--flight", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--capacity", type=int, nargs="+", default=[0, 200_000, 50_000])
    parser.add_argument("--engine", action="store_true")
    args = parser.parse_args()
    say = partial(print, flush=True)
    say(
        "| environment | scope | by | capacity | in flight | tokens a turn: append | "
        "system | window | system / append | window / append |"
    )
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    notes = []
    for row in args.envs:
        for scope in args.scopes:
            began = time.perf_counter()
            trees, prompts, chat, _ = asyncio.run(
                grow(row, args.tasks, args.calls, scope, max(args.flight))
            )
            ways = {way: asks_of(trees, prompts, chat, way) for way in WAYS}
            turns = sum(len(a) for a in ways["append"])
            episodes = [e for t in trees for e in t.episodes]
            length = np.array(
                [len(t.path(e.acts[-1].id)) for t in trees for e in t.episodes if e.acts]
            )

            def show(
                by: str,
                capacity: int | None,
                flight: int | str,
                found: list[np.ndarray],
                row: str = row,
                scope: str = scope,
                turns: int = turns,
            ) -> None:
                each = " | ".join(
                    f"{f.sum() / turns:,.{0 if f.sum() >= 100 * turns else 1}f}" for f in found
                )
                ratios = " | ".join(ratio(f, found[0]) for f in found[1:])
                say(
                    f"| {row} | {scope} | {by} | {capacity or '∞'} | {flight} | {each} | {ratios} |"
                )

            show(
                "no cache",
                None,
                "",
                [np.array([sum(len(a.prompt) for a in t) for t in ways[w]]) for w in WAYS],
            )
            for flight in args.flight:
                for capacity in args.capacity:
                    show(
                        "simulator",
                        capacity,
                        flight,
                        [simulated(ways[w], flight, capacity or None) for w in WAYS],
                    )
            if args.engine:
                from tests.tiny import tiny_checkpoint

                with tempfile.TemporaryDirectory() as folder:
                    path = tiny_checkpoint(
                        folder,
                        tokenizer=chat.tokenizer,
                        layers=1,
                        width=16,
                        heads=1,
                        kv_heads=1,
                        context=32768,
                    )
                    for flight in args.flight:
                        for capacity in args.capacity:
                            show(
                                "engine",
                                capacity,
                                flight,
                                [engined(ways[w], flight, capacity or None, path) for w in WAYS],
                            )
            nearest, total = (
                sources(ways["append"]),
                sum(len(a.prompt) for t in ways["append"] for a in t),
            )
            recorded = sum(a.cached for t in ways["append"] for a in t) / total
            notes.append(
                f"{row}, {scope}: {len(trees)} tasks, {turns:,} turns, {len(episodes)} "
                f"episodes of {length.mean():.1f} actions from the reset on "
                f"({100 * (length >= HORIZON).mean():.0f} % of {HORIZON}), "
                f"{sum(e.experience is not None for e in episodes)} after a rollback; "
                f"{time.perf_counter() - began:.0f} s.\n  Nearest request that has a "
                "prompt token of append, %: "
                + ", ".join(f"{name} {100 * share:.1f}" for name, share in nearest.items())
                + (f"; had while exploring: {100 * recorded:.1f}" if recorded else "")
                + ".\n  Left to compute by an endless cache, tokens a turn: "
                + "; ".join(
                    f"{w}: "
                    + ", ".join(f"{kind} {n / turns:.1f}" for kind, n in by_kind(ways[w]).items())
                    for w in WAYS
                )
            )
    say("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
