"""A strategy is a pure function of a task's tree: what should the next episode be?

It keeps no state of its own, so that a resumed run asks the same question of the same tree and gets
the same answer. Four
are built in; another is a class with `next` and one line in `STRATEGIES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from leafe.core import FAILED, Tree, Turn, UserError
from leafe.explore._config import ExploreConfig
from leafe.prompts import PromptSet, attempt_text, fill


@dataclass(frozen=True, slots=True)
class Plan:
    """One episode to run."""

    start: str | None = None
    """Roll back to the state after this turn; None: begin at the root."""
    experience: str | None = None
    """The reflection whose experience the first action is sampled with."""
    depth: int = 0
    preamble: tuple[str, ...] = ()
    look_back: bool = False
    """Act no more: reflect on the episode that ended with `start` (`look_back`)."""


def look_back(strategy: Strategy, tree: Tree, config: ExploreConfig) -> Plan | None:
    """The first failure that nobody has reflected on, though the strategy reflects on such; None
    where there is none, or nothing to reflect with.

    An episode that `explore` ran itself was reflected on at its end. One that was imported comes
    without: it is what exploration begins with.
    """
    if not config.reflect_on_failure:
        return None
    read = {t.parent for t in tree.reflections}
    for episode in tree.episodes:
        if (
            episode.stop in FAILED
            and episode.acts
            and episode.acts[-1].id not in read
            and strategy.reflects_at(episode.depth)
        ):
            return Plan(
                episode.acts[-1].id, depth=episode.depth, preamble=episode.preamble, look_back=True
            )
    return None


class Strategy(Protocol):
    def next(self, tree: Tree) -> Plan | None:
        """The next episode's plan; None: there is nothing left to try."""

    def reflects_at(self, depth: int) -> bool:
        """Whether an episode of this depth is reflected on."""


def siblings(strategy: Strategy, tree: Tree) -> int:
    """How many times in a row the strategy will ask for the plan that it asks for now, whatever
    comes of it: these may run at the same time."""
    count = getattr(strategy, "siblings", None)
    return int(count(tree)) if count is not None else 1


class RollbackTree:
    """LEAFE's Stage 1 (docs/method.md): reflections wait in a first-in-first-out queue; each gives
    `width` branches at its step tau.
    Where the queue is empty (all depths used up, no usable reflection), a fresh root begins."""

    def __init__(self, config: ExploreConfig, words: PromptSet) -> None:
        self.config = config

    def next(self, tree: Tree) -> Plan | None:
        return self._first(tree)[0]

    def siblings(self, tree: Tree) -> int:
        return self._first(tree)[1]

    def _first(self, tree: Tree) -> tuple[Plan, int]:
        """The plan whose turn it is, and how many branches of its reflection are due."""
        used = Counter(e.experience for e in tree.episodes if e.experience is not None)
        for reflection in tree.reflections:
            if not reflection.valid or used[reflection.id] >= self.config.branches_per_reflection:
                continue
            depth = tree.episode_of(reflection.id).depth + 1
            if depth > self.config.max_depth:
                continue
            assert reflection.target is not None
            read = tree.path(reflection.id)
            plan = Plan(
                read[reflection.target - 1].id if reflection.target else None, reflection.id, depth
            )
            return plan, self.config.branches_per_reflection - used[reflection.id]
        return Plan(), 1

    def reflects_at(self, depth: int) -> bool:
        return depth < self.config.max_depth


class Independent:
    """Independent sampling: fresh episodes, nothing carried over. Where their number is given and
    no success ends the task, they need not wait for each
    other."""

    def __init__(self, config: ExploreConfig, words: PromptSet) -> None:
        self.config = config

    def next(self, tree: Tree) -> Plan | None:
        return Plan()

    def siblings(self, tree: Tree) -> int:
        if self.config.stop_when != "budget" or "episodes" not in self.config.limits:
            return 1
        return max(1, int(self.config.limits["episodes"]) - len(tree.episodes))

    def reflects_at(self, depth: int) -> bool:
        return False


class Refine:
    """Iterative refinement: start again with the latest failed attempts in the first prompt, what
    was done in them and what came of it, in the words of the
    prompt set (`leafe.prompts.attempt_text`)."""

    def __init__(self, config: ExploreConfig, words: PromptSet) -> None:
        self.config, self.words = config, words

    def next(self, tree: Tree) -> Plan | None:
        shown: list[str] = []
        for episode in reversed(tree.episodes):
            if len(shown) == self.config.max_attempts_in_prompt:
                break
            if episode.stop in FAILED and episode.acts:
                text = attempt_text(self.words, tree.trajectory(episode))
                if text not in shown:
                    shown.append(text)
        return Plan(preamble=tuple(reversed(shown)))

    def reflects_at(self, depth: int) -> bool:
        return False


class Reflexion:
    """Start again with what the policy told itself after the latest failed attempts (Reflexion,
    arXiv 2303.11366): refinement whose feedback is the note of
    a reflection. Where the set has an `advice_attempt` (programs), the last attempt that was
    reflected on stands there too, as in Reflexion's own prompts for
    programs. The step that the reflection names is not used. `explore` puts the notes into words by
    the set's `advice`."""

    def __init__(self, config: ExploreConfig, words: PromptSet) -> None:
        self.config, self.words = config, words

    def next(self, tree: Tree) -> Plan | None:
        told: list[str] = []
        last: Turn | None = None
        for reflection in tree.reflections:
            if reflection.valid:
                told = [t for t in told if t != reflection.note] + [reflection.note]
                last = reflection
        told = told[-self.config.max_attempts_in_prompt :]
        if last is not None and self.words.advice_attempt:
            attempt = attempt_text(self.words, tree.path(last.id))
            told[-1] = fill(self.words.advice_attempt, {"experience": told[-1], "history": attempt})
        return Plan(preamble=tuple(told))

    def reflects_at(self, depth: int) -> bool:
        return True


STRATEGIES: dict[str, Callable[[ExploreConfig, PromptSet], Strategy]] = {
    "tree": RollbackTree,
    "independent": Independent,
    "refine": Refine,
    "reflexion": Reflexion,
}


def make_strategy(config: ExploreConfig, words: PromptSet) -> Strategy:
    """The strategy that the config names, for tasks that are played with this prompt set; UserError
    for an unknown name."""
    if config.strategy not in STRATEGIES:
        raise UserError(
            f"There is no strategy {config.strategy!r}: choose one of {', '.join(STRATEGIES)}."
        )
    return STRATEGIES[config.strategy](config, words)
