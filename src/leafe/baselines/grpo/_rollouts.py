"""Batches of groups, by `leafe.explore` under the training's budget: every task `group` times, side
by side, until a limit is met exactly.

Which tasks a batch has, and the seed of every token, are functions of the training's seed and the
step. As many groups run at the same time as the budget
holds were each as long as it can get; towards the end those are ever fewer, and of the last group
the episodes follow one another, so that
what the limit cuts off does not hang on who was quicker.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from leafe.baselines.grpo._config import COUNTED, GrpoConfig
from leafe.baselines.grpo._rows import Row, nothing, row_of
from leafe.core import Budget, ChatTokens, Policy, Spent, Stop, Task, Tree, derive_seed
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` has `group` rows for each task, in order; those of a group that is not whole are
    `nothing`."""

    rows: list[Row]
    whole: int
    """Groups that are."""
    stops: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    """Actions in the whole groups."""


class Rollouts:
    """Asks the policy for one batch a step."""

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
        self.policy, self.chat, self.pool, self.prompts, self.config, self.budget = (
            policy,
            chat,
            pool,
            prompts,
            config,
            budget,
        )
        self.tasks = list(tasks)
        self.size = min(config.tasks_per_batch, len(self.tasks))
        pad = chat.tokenizer.pad_token_id
        self.pad = chat.end_of_turn if pad is None else int(pad)

    def chosen(self, step: int) -> list[Task]:
        """The tasks of step 0, 1, 2, ...: epoch after epoch in a new order, no task twice in a
        batch."""
        batches = len(self.tasks) // self.size
        order = list(range(len(self.tasks)))
        random.Random(derive_seed(self.config.seed, "tasks", step // batches)).shuffle(order)
        first = step % batches * self.size
        return [self.tasks[i] for i in order[first : first + self.size]]

    async def batch(self, step: int) -> Batch:
        """The rollouts of the step, charged. Raises what `explore` does."""
        tasks = self.chosen(step)
        trees: dict[str, Tree] = {}
        while len(trees) < len(tasks) and self.budget.reached() is None:
            left = tasks[len(trees) :]
            sure = min(len(left), self._affordable())
            trees |= await self._explore(left[: max(1, sure)], step, bounded=not sure)
        rows: list[Row] = []
        stops: Counter[str] = Counter()
        whole = turns = 0
        for task in tasks:
            episodes = trees[task.id].episodes if task.id in trees else []
            stops.update(e.stop.value for e in episodes)
            if len(episodes) < self.config.num_generations or any(
                e.stop is Stop.budget for e in episodes
            ):
                rows += [nothing(self.pad)] * self.config.num_generations
                continue
            whole += 1
            turns += sum(len(e.acts) for e in episodes)
            made = [
                row_of(trees[task.id], e, self.prompts, self.chat, self.config.reward)
                for e in episodes
            ]
            rows += [row if row.completion else nothing(self.pad) for row in made]
        return Batch(rows, whole, stops, turns)

    def _affordable(self) -> int:
        """Groups for which every limit has room, were each as long as it can get."""
        longest = self.config.horizon or self.pool.facts.horizon
        cost = {
            "policy_calls": self.config.num_generations * longest,
            "env_steps": self.config.num_generations * longest,
            "episodes": self.config.num_generations,
        }
        room = {
            name: self.budget.limits[name] - getattr(self.budget.spent, name)
            for name in COUNTED
            if name in self.budget.limits
        }
        return min((math.floor(room[name] / cost[name]) for name in room), default=len(self.tasks))

    async def _explore(self, tasks: Sequence[Task], step: int, bounded: bool) -> dict[str, Tree]:
        """`bounded`: one group, whose episodes follow one another and stop at the budget's
        limits."""
        left = (
            {
                name: limit - getattr(self.budget.spent, name)
                for name, limit in self.budget.limits.items()
            }
            if bounded
            else {}
        )
        config = ExploreConfig(
            strategy="independent",
            limits={"episodes": self.config.num_generations},
            run_limits=left,
            stop_when="budget",
            temperature=self.config.temperature,
            horizon=self.config.horizon,
            max_invalid_actions=self.config.max_invalid_actions,
            concurrency=len(tasks),
            seed=derive_seed(self.config.seed, "rollouts", step),
        )
        found = await explore(self.policy, self.pool, tasks, self.prompts, config)
        self.budget.charge(**counts(found.spent))
        return found.trees


def counts(spent: Spent) -> dict[str, float]:
    """All but the clock."""
    return {name: amount for name, amount in asdict(spent).items() if name != "seconds"}
