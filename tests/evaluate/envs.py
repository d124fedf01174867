"""A small environment and a stochastic policy whose path probabilities are known exactly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import count as counter

import numpy as np

from leafe.core import (
    Completion,
    Environment,
    Episode,
    PolicyError,
    Request,
    StepResult,
    Task,
    Tree,
    Usage,
)
from leafe.evaluate import evaluate
from leafe.explore import EnvPool
from leafe.prompts import Prompts, PromptSet

PROMPTS = Prompts(
    PromptSet(
        name="letters", action="plain", first="{instruction}\n{observation}", turn="{observation}"
    )
)
LETTERS = "abcx"


class Spell(Environment):
    """Spell the task's word letter by letter. A wrong letter fails two letters later; x is
    invalid."""

    name = "spell"
    quick = True
    can_snapshot = True
    horizon = 8

    def reset(self, task: Task, seed: int) -> str:
        self.word, self.said = str(task.payload["word"]), ""
        return "say a letter"

    def step(self, action: str) -> StepResult:
        if action not in ("a", "b", "c"):
            return StepResult(f"no such letter as {action}", valid=False)
        self.said += action
        if self.said == self.word:
            return StepResult("well spelled", 1.0, True, True)
        if not self.word.startswith(self.said) and len(self.said) > len(self.word):
            return StepResult(f"wrong: {self.word}", done=True)
        return StepResult(f"said {self.said}")

    def snapshot(self) -> object:
        return (self.word, self.said)

    def restore(self, snapshot: object) -> None:
        self.word, self.said = snapshot  # type: ignore[misc]


class Replayed(Spell):
    """The same without snapshots, in worker threads."""

    quick = False
    can_snapshot = False


class Plain(Spell):
    """The same, but it doesn't promise to be deterministic: every sample plays alone."""

    deterministic = False
    can_snapshot = False


class Fickle(Replayed):
    """Says something else after a reset: no replay reproduces it, though it promises to be
    deterministic."""

    resets = counter()

    def reset(self, task: Task, seed: int) -> str:
        return f"{super().reset(task, seed)} ({next(self.resets)})"


class Fragile(Spell):
    """Breaks at the letter c."""

    def step(self, action: str) -> StepResult:
        if action == "c":
            raise RuntimeError("the slate broke")
        return super().step(action)


class Chance:
    """Draws letters with the probabilities of `chances`, which depend on the last observation.
    Counted: distinct answers with counts, by an exact
    multinomial; else n single answers. Tokens: 7 a prompt, 2 a letter; the counted engine gives
    their ids, as any that counts must."""

    name = "chance"

    def __init__(self, counted: bool = True, delays: int | None = None, down: str = "") -> None:
        self.counted, self.delays, self.down = (
            counted,
            None if delays is None else random.Random(delays),
            down,
        )
        self.requests: list[Request] = []

    @staticmethod
    def chances(observation: str) -> np.ndarray:
        tilt = sum(map(ord, observation)) % 5
        weights = np.array([6.0, 3.0 + tilt, 2.0, 0.5])
        return np.asarray(weights / weights.sum())

    async def complete(self, request: Request) -> list[Completion]:
        self.requests.append(request)
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() * 0.002)
        last = request.messages[-1].content
        if self.down and last.endswith(self.down):
            raise PolicyError("the endpoint is down")
        rng = np.random.default_rng(request.seed)
        if self.counted:
            split = rng.multinomial(request.n, self.chances(last))
            usage = iter([Usage(7, 0, 2)] + [Usage(0, 0, 2)] * 3)
            return [
                Completion(letter, int(n), (ord(letter), 0), usage=next(usage))
                for letter, n in zip(LETTERS, split, strict=True)
                if n
            ]
        drawn = rng.choice(list(LETTERS), size=request.n, p=self.chances(last))
        return [
            Completion(str(letter), usage=Usage(7 if i == 0 else 0, 0, 2))
            for i, letter in enumerate(drawn)
        ]

    async def close(self) -> None:
        pass


class ListSink:
    def __init__(self) -> None:
        self.writes: list[list[Episode]] = []

    def append(self, episodes: Sequence[Episode]) -> None:
        self.writes.append(list(episodes))


def tasks(number: int, word: str = "ab") -> list[Task]:
    return [Task(f"t{i}", "spell", "test", f"spell {word}", {"word": word}) for i in range(number)]


def play(
    env: type[Environment] = Spell,
    policy: Chance | None = None,
    number: int = 3,
    word: str = "ab",
    size: int = 4,
    **settings: object,
) -> list[Tree]:
    async def main() -> list[Tree]:
        pool = EnvPool(env, size=size)
        try:
            return await evaluate(
                policy or Chance(),
                pool,
                tasks(number, word),
                PROMPTS,
                **({"samples": 64} | settings),
            )  # type: ignore[arg-type]
        finally:
            pool.close()

    return asyncio.run(main())


def said(tree: Tree, episode: Episode) -> str:
    """The letters of a sample."""
    return "".join(t.action for t in tree.trajectory(episode))


def path_chances(word: str, horizon: int, max_invalid_actions: int = 5) -> dict[str, float]:
    """The exact probability of every path of the policy `Chance` in `Spell`, by walking all of
    them."""
    out: dict[str, float] = {}

    def walk(path: str, chance: float, observation: str, invalid: int) -> None:
        for letter, p in zip(LETTERS, Chance.chances(observation), strict=True):
            env = Spell()
            env.reset(Task("t", "spell", "test", "", {"word": word}), 0)
            result = StepResult("")
            for action in path + letter:
                result = env.step(action)
            bad = 0 if result.valid else invalid + 1
            if result.done or bad >= max_invalid_actions or len(path) + 1 >= horizon:
                out[path + letter] = chance * p
            else:
                walk(path + letter, chance * p, result.observation, bad)

    walk("", 1.0, f"spell {word}\nsay a letter", 0)
    return out
