"""Several attempts at a test task with feedback carried from one to the next, counted so that they
can stand beside plain Pass@k at equal cost.

The loop is Stage 1's: strategy `refine` carries the attempts themselves (iterative refinement),
`reflexion` the policy's own reflection, `independent` nothing.
A sample is a row of up to R attempts that ends at the first success; what it spent (reflections,
tokens, environment steps) is counted. So "Pass@1 with R attempts"
has a price, and `rows` says how many plain samples the same calls would have bought. `independent`
under the same bounds is the same curve for plain sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leafe.core import LOST, Episode, Policy, Spent, Task, Tree, UserError
from leafe.explore import EnvPool, EpisodeSink, ExploreConfig, Progress, cost_of, explore
from leafe.prompts import Prompts

Ints = NDArray[np.int64]
Method = Literal["refine", "reflexion", "independent"]
_MARK = "~"
AGAIN = 3
"""Lost attempts of a sample that are made again."""


def samples_of(tasks: Sequence[Task], samples: int) -> list[Task]:
    """Each task `samples` times, `ID~0`, `ID~1`, ...: what is explored and journalled."""
    odd = next((t.id for t in tasks if _MARK in t.id), None)
    if odd is not None:
        raise UserError(
            f"The id of task {odd!r} holds a {_MARK}, which is put between a task and the "
            "number of its sample: rename it."
        )
    return [replace(task, id=f"{task.id}{_MARK}{i}") for task in tasks for i in range(samples)]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of attempts at one task."""

    task_id: str
    number: int
    solved_at: int | None
    """The attempt that succeeded, from 1; None where none did."""
    lost: bool
    """It came to no sound end: neither a success nor a failure."""
    calls_to_success: int | None
    after: tuple[Spent, ...]
    """What was spent up to and with each attempt that was made. The reflection on an attempt is
    part of the next one's price, which needs it."""

    def spent(self, attempts: int) -> Spent:
        return self.after[min(attempts, len(self.after)) - 1] if self.after else Spent()


@dataclass(frozen=True, slots=True)
class Attempts:
    """All samples of all tasks."""

    method: str
    attempts: int
    samples: tuple[Sample, ...]

    def counts(
        self, attempts: int | None = None, calls: int | None = None
    ) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
        """(tasks, n, c, lost) with so many attempts allowed (None: all), and so many policy calls a
        sample: what `leafe.evaluate.Counts` is made of, and
        with it Pass@1 of such samples with its interval."""
        tasks = tuple(dict.fromkeys(s.task_id for s in self.samples))
        where = {task: i for i, task in enumerate(tasks)}
        n, c, lost = (np.zeros(len(tasks), dtype=np.int64) for _ in range(3))
        for s in self.samples:
            if s.lost:
                lost[where[s.task_id]] += 1
                continue
            n[where[s.task_id]] += 1
            within = s.solved_at is not None and (attempts is None or s.solved_at <= attempts)
            c[where[s.task_id]] += within and (calls is None or (s.calls_to_success or 0) <= calls)
        return tasks, n, c, lost

    def rate(self, attempts: int | None = None, calls: int | None = None) -> float:
        """Mean over tasks of the share of samples that succeeded within these bounds; a fraction,
        NaN without samples."""
        _, n, c, _ = self.counts(attempts, calls)
        return float(np.mean(c[n > 0] / n[n > 0])) if np.any(n > 0) else float("nan")

    def mean_spent(self, attempts: int) -> dict[str, float]:
        """What a sample costs on average with so many attempts allowed, lost ones included."""
        names = (
            "episodes",
            "policy_calls",
            "env_steps",
            "prompt_tokens",
            "cached_tokens",
            "generated_tokens",
        )
        spent = [s.spent(attempts) for s in self.samples]
        return {
            name: float(np.mean([getattr(s, name) for s in spent])) if spent else float("nan")
            for name in names
        }

    def rows(self, plain_calls: float | None = None) -> list[dict[str, Any]]:
        """For a table, one row for each number of attempts: the rate, the mean cost, and, where the
        mean calls of a plain sample are given, the `plain_k`
        whose Pass@k costs as many calls (rounded up: the rival gets the benefit)."""
        out = []
        for attempts in range(1, self.attempts + 1):
            cost = self.mean_spent(attempts)
            k = (
                None
                if plain_calls is None
                else int(np.ceil(cost["policy_calls"] / plain_calls - 1e-9))
            )
            lost = (
                {"lost": sum(s.lost for s in self.samples)}
                if any(s.lost for s in self.samples)
                else {}
            )
            out.append(
                {
                    "method": self.method,
                    "attempts": attempts,
                    "pass_1": self.rate(attempts),
                    **lost,
                    **cost,
                    "plain_k": k,
                }
            )
        return out


def read(trees: Mapping[str, Tree], method: str, attempts: int) -> Attempts:
    """The samples that a journal's trees hold."""
    return Attempts(method, attempts, tuple(_sample(tree, attempts) for tree in trees.values()))


def _sample(tree: Tree, attempts: int) -> Sample:
    """The row of attempts; what a lost attempt cost is part of the price of the next one."""
    task, _, number = tree.task.id.rpartition(_MARK)
    running, after = Spent(), []
    solved_at = calls = None
    for episode in tree.episodes:
        if episode.stop not in LOST:
            after.append(_plus(running, replace(episode, turns=episode.acts)))
        running = _plus(running, episode)
        if episode.success and solved_at is None:
            solved_at, calls = len(after), after[-1].policy_calls
    lost = solved_at is None and (
        not after or (len(after) < attempts and any(e.stop in LOST for e in tree.episodes))
    )
    return Sample(task, int(number), solved_at, lost, calls, tuple(after))


def _plus(spent: Spent, episode: Episode) -> Spent:
    return replace(
        spent, **{name: getattr(spent, name) + amount for name, amount in cost_of(episode).items()}
    )


async def sample_attempts(
    policy: Policy,
    pool: EnvPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    config: ExploreConfig,
    *,
    method: Method,
    attempts: int,
    samples: int,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Attempts:
    """`samples` rows of up to `attempts` attempts at every task.

    config: temperatures, `memory`, `max_reflection_attempts`, horizon, seed; its strategy and
    limits are not used, since here a sample's only limit is its attempts.
    A lost attempt is made again, up to `AGAIN` times a sample. Journal and `known` speak of the
    tasks of `samples_of(tasks, samples)`. Unlike evaluation
    nothing is counted together, as every sample goes its own way, and in an environment whose start
    depends on the seed every sample draws its own. UserError and
    ForeignFailure as `explore`.
    """
    if attempts < 1 or samples < 1:
        raise UserError(f"attempts = {attempts}, samples = {samples}: both must be at least 1.")
    settings = config.model_copy(
        update={"strategy": method, "run_limits": {}, "stop_when": "solved", "reflect_every": 0}
    )
    asked = samples_of(tasks, samples)
    trees: dict[str, Tree] = dict(known or {})
    due = asked
    for more in range(AGAIN + 1):
        bounded = settings.model_copy(update={"limits": {"episodes": float(attempts + more)}})
        found = await explore(
            policy,
            pool,
            due,
            prompts,
            bounded,
            journal=journal,
            known=trees,
            on_progress=on_progress,
        )
        trees |= found.trees
        due = [task for task in due if task.id in trees and _sample(trees[task.id], attempts).lost]
        due = [
            task for task in due if len(trees[task.id].episodes) >= attempts + more
        ]  # it ended for the number of its attempts
        if not due:
            break
    return read({task.id: trees[task.id] for task in asked if task.id in trees}, method, attempts)
