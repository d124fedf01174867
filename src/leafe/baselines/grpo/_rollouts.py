"""Batches of groups by `leafe.explore` under the training's budget: every task `num_generations`
times, side by side, until a limit is met exactly.

Which tasks a batch has, and the seed of every token, are functions of the training's seed and the
step. As many groups run at the same time as the budget covers were each as long as it can get.
Towards the end these are ever fewer, and the episodes of the last group follow one another, so that
what the limit cuts off does not depend on timing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from leafe.baselines.grpo._config import COUNTED, GrpoConfig
from leafe.baselines.grpo._sequences import RolloutSequence, empty_sequence, rollout_sequence
from leafe.core import Budget, ChatTokens, Policy, Spent, Stop, Task, Tree, derive_seed
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of one step."""

    rollouts: list[RolloutSequence]
    """`num_generations` for each task, in order; empty ones for a group that is not complete."""
    complete: int
    """Groups that are."""
    stops: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    """Actions in the complete groups."""


class Rollouts:
    """Samples one batch a step."""

    def __init__(
        self,
        policy: Policy,
        chat: ChatTokens,
        pool: EnvPool,
        tasks: Sequence[Task],
        prompts: Prompts,
        config: GrpoConfig,
        budget: Budget,
    ) -> None:
        self.policy, self.chat, self.pool, self.prompts = policy, chat, pool, prompts
        self.config, self.budget = config, budget
        self.tasks = list(tasks)
        self.size = min(config.tasks_per_batch, len(self.tasks))
        pad = chat.tokenizer.pad_token_id
        self.pad = chat.end_of_turn if pad is None else int(pad)

    def tasks_at(self, step: int) -> list[Task]:
        """The tasks of step 0, 1, 2, ...: epoch after epoch in a new order, no task twice in a
        batch."""
        batches = len(self.tasks) // self.size
        order = list(range(len(self.tasks)))
        random.Random(derive_seed(self.config.seed, "tasks", step // batches)).shuffle(order)
        first = step % batches * self.size
        return [self.tasks[i] for i in order[first : first + self.size]]

    async def batch(self, step: int) -> Batch:
        """The rollouts of the step, charged. Raises what `explore` does."""
        tasks = self.tasks_at(step)
        trees: dict[str, Tree] = {}
        while len(trees) < len(tasks) and self.budget.reached() is None:
            left = tasks[len(trees) :]
            covered = min(len(left), self._covered_groups())
            trees |= await self._explore(left[: max(1, covered)], step, one_by_one=not covered)
        size, empty = self.config.num_generations, empty_sequence(self.pad)
        rollouts: list[RolloutSequence] = []
        stops: Counter[str] = Counter()
        complete = turns = 0
        for task in tasks:
            episodes = trees[task.id].episodes if task.id in trees else []
            stops.update(e.stop.value for e in episodes)
            if len(episodes) < size or any(e.stop is Stop.budget for e in episodes):
                rollouts += [empty] * size
                continue
            complete += 1
            turns += sum(len(e.acts) for e in episodes)
            for episode in episodes:
                made = rollout_sequence(
                    trees[task.id], episode, self.prompts, self.chat, self.config.reward
                )
                rollouts.append(made if made.completion else empty)
        return Batch(rollouts, complete, stops, turns)

    def _covered_groups(self) -> int:
        """Groups that every limit covers, were each as long as it can get."""
        longest = self.config.horizon or self.pool.facts.horizon
        size = self.config.num_generations
        cost = {"policy_calls": size * longest, "env_steps": size * longest, "episodes": size}
        return min(
            (int(self._left(name) // cost[name]) for name in COUNTED if name in self.budget.limits),
            default=len(self.tasks),
        )

    def _left(self, name: str) -> float:
        return self.budget.limits[name] - float(getattr(self.budget.spent, name))

    async def _explore(self, tasks: Sequence[Task], step: int, one_by_one: bool) -> dict[str, Tree]:
        """`one_by_one`: one group, whose episodes follow one another and stop at the budget's
        limits."""
        config = ExploreConfig(
            strategy="independent",
            limits={"episodes": self.config.num_generations},
            run_limits={name: self._left(name) for name in self.budget.limits}
            if one_by_one
            else {},
            stop_when="budget",
            temperature=self.config.temperature,
            horizon=self.config.horizon,
            max_invalid_actions=self.config.max_invalid_actions,
            concurrency=len(tasks),
            seed=derive_seed(self.config.seed, "rollouts", step),
        )
        found = await explore(self.policy, self.pool, tasks, self.prompts, config)
        self.budget.charge(**counted(found.spent))
        return found.trees


def counted(spent: Spent) -> dict[str, float]:
    """All but the clock."""
    return {name: amount for name, amount in asdict(spent).items() if name != "seconds"}
