"""A strategy is a pure function of a task's tree: what should the next episode be?

It keeps no state, so that a resumed run asks the same question of the same tree and gets the same
answer. Four are built in; another one is a class that derives from `Strategy` and one line in
`STRATEGIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from leafe.core import FAILED, Tree, UserError
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
    """How many rollbacks led to the episode."""
    preamble: tuple[str, ...] = ()
    """Feedback of earlier attempts, for the first prompt."""
    look_back: bool = False
    """Take no action: reflect on the episode that ended with `start`."""


def plan_missing_reflection(strategy: Strategy, tree: Tree, config: ExploreConfig) -> Plan | None:
    """A plan for the first failure that was never reflected on, though the strategy reflects on
    such failures; None where there is none.

    `explore` reflects at the end of an episode of its own. An imported episode comes without.
    """
    if not config.reflect_on_failure:
        return None
    reflected = {t.parent for t in tree.reflections}
    for episode in tree.episodes:
        if (
            episode.stop in FAILED
            and episode.acts
            and episode.acts[-1].id not in reflected
            and strategy.reflects_at(episode.depth)
        ):
            return Plan(
                episode.acts[-1].id, depth=episode.depth, preamble=episode.preamble, look_back=True
            )
    return None


class Strategy(ABC):
    """Plans the episodes of a task."""

    def __init__(self, config: ExploreConfig, prompt_set: PromptSet) -> None:
        self.config, self.prompt_set = config, prompt_set

    @abstractmethod
    def next(self, tree: Tree) -> Plan | None:
        """The next episode's plan; None: nothing is left to try. Depends on the tree alone."""

    def siblings(self, tree: Tree) -> int:
        """How many times in a row `next` gives the plan that it gives now, whatever the episodes
        come to: these may run at the same time."""
        return 1

    def reflects_at(self, depth: int) -> bool:
        """Whether an episode of this depth is reflected on."""
        return False


class RollbackTree(Strategy):
    """LEAFE's Stage 1 (docs/method.md): reflections wait in a first-in-first-out queue; each gives
    `branches_per_reflection` branches at its step tau.

    Where the queue is empty (all depths used up, no usable reflection), a new root begins.
    """

    def next(self, tree: Tree) -> Plan | None:
        return self._first(tree)[0]

    def siblings(self, tree: Tree) -> int:
        return self._first(tree)[1]

    def reflects_at(self, depth: int) -> bool:
        return depth < self.config.max_depth

    def _first(self, tree: Tree) -> tuple[Plan, int]:
        """The next plan, and how many branches of its reflection are due."""
        used = Counter(e.experience for e in tree.episodes if e.experience is not None)
        for reflection in tree.reflections:
            due = self.config.branches_per_reflection - used[reflection.id]
            if not reflection.valid or due <= 0:
                continue
            depth = tree.episode_of(reflection.id).depth + 1
            if depth > self.config.max_depth:
                continue
            assert reflection.target is not None
            history = tree.path(reflection.id)
            start = history[reflection.target - 1].id if reflection.target else None
            return Plan(start, reflection.id, depth), due
        return Plan(), 1


class Independent(Strategy):
    """Independent sampling: fresh episodes that carry nothing over.

    Where their number is given and no success ends the task, they run at the same time.
    """

    def next(self, tree: Tree) -> Plan | None:
        return Plan()

    def siblings(self, tree: Tree) -> int:
        if self.config.stop_when != "budget" or "episodes" not in self.config.limits:
            return 1
        return max(1, int(self.config.limits["episodes"]) - len(tree.episodes))


class Refine(Strategy):
    """Iterative refinement: start again with the latest failed attempts in the first prompt, what
    was done and what came of it (`leafe.prompts.attempt_text`)."""

    def next(self, tree: Tree) -> Plan | None:
        shown: list[str] = []
        for episode in reversed(tree.episodes):
            if len(shown) == self.config.max_attempts_in_prompt:
                break
            if episode.stop in FAILED and episode.acts:
                text = attempt_text(self.prompt_set, tree.trajectory(episode))
                if text not in shown:
                    shown.append(text)
        return Plan(preamble=tuple(reversed(shown)))


class Reflexion(Strategy):
    """Start again with the policy's own notes on the latest failed attempts (Reflexion,
    arXiv 2303.11366).

    The notes are those of reflections; the step that a reflection names is not used. `explore`
    words them by the prompt set's `advice`. Where the set has an `advice_attempt` (programs), the
    last attempt that was reflected on stands there too, as in Reflexion's prompts for programs.
    """

    def next(self, tree: Tree) -> Plan | None:
        usable = [reflection for reflection in tree.reflections if reflection.valid]
        latest = dict.fromkeys(reflection.note for reflection in reversed(usable))
        notes = list(latest)[: self.config.max_attempts_in_prompt][::-1]
        if usable and self.prompt_set.advice_attempt:
            attempt = attempt_text(self.prompt_set, tree.path(usable[-1].id))
            notes[-1] = fill(
                self.prompt_set.advice_attempt, {"experience": notes[-1], "history": attempt}
            )
        return Plan(preamble=tuple(notes))

    def reflects_at(self, depth: int) -> bool:
        return True


STRATEGIES: dict[str, Callable[[ExploreConfig, PromptSet], Strategy]] = {
    "tree": RollbackTree,
    "independent": Independent,
    "refine": Refine,
    "reflexion": Reflexion,
}
"""The built-in strategies by their names in a recipe."""


def make_strategy(config: ExploreConfig, prompt_set: PromptSet) -> Strategy:
    """The strategy that the config names.

    Args:
        config: The settings of Stage 1.
        prompt_set: The prompt set that tasks are played with.

    Raises:
        UserError: The strategy is unknown.
    """
    if config.strategy not in STRATEGIES:
        raise UserError(
            f"There is no strategy {config.strategy!r}: choose one of {', '.join(STRATEGIES)}."
        )
    return STRATEGIES[config.strategy](config, prompt_set)
