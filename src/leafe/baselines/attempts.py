"""Several attempts at a test task with feedback carried from one to the next, at a known price: so
they can stand beside plain Pass@k at equal cost.

The loop is Stage 1's: strategy `refine` carries the attempts themselves (iterative refinement),
`reflexion` the policy's own reflections, `independent` nothing. A sample is a series of up to R
attempts that ends at the first success; all that it spent (reflections, tokens, environment steps)
is counted. So "Pass@1 with R attempts" has a price, and `Attempts.rows` says how many plain samples
the same calls would have bought. `independent` under the same bounds is that curve for plain
sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leafe.core import LOST, Episode, Policy, Spent, Task, Tree, UserError
from leafe.explore import EnvPool, EpisodeSink, ExploreConfig, Progress, add_cost, explore
from leafe.prompts import Prompts

Ints = NDArray[np.int64]
AttemptMethod = Literal["refine", "reflexion", "independent"]
"""What is carried from one attempt to the next; a strategy of `leafe.explore`."""
SEPARATOR = "~"
"""Between a task's id and the number of its sample."""
MAX_LOST = 3
"""Lost attempts of a sample that are made again."""

_COSTS = (
    "episodes",
    "policy_calls",
    "env_steps",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
)


def attempt_tasks(tasks: Sequence[Task], samples: int) -> list[Task]:
    """Each task `samples` times, `ID~0`, `ID~1`, ...: what is explored and written to the journal.

    Raises:
        UserError: A task's id holds the separator.
    """
    odd = next((t.id for t in tasks if SEPARATOR in t.id), None)
    if odd is not None:
        raise UserError(
            f"The id of task {odd!r} holds a {SEPARATOR}, which separates a task from the number "
            "of its sample: rename the task."
        )
    return [replace(task, id=f"{task.id}{SEPARATOR}{i}") for task in tasks for i in range(samples)]


@dataclass(frozen=True, slots=True)
class AttemptSample:
    """One series of attempts at one task."""

    task_id: str
    number: int
    """Which of the task's samples it is, from 0."""
    solved_at: int | None
    """The attempt that succeeded, from 1; None: none did."""
    lost: bool
    """Neither a success, nor as many sound failures as there are attempts."""
    calls_to_success: int | None
    """Policy calls up to and with the success."""
    after: tuple[Spent, ...]
    """What was spent up to and with each attempt. The reflection on an attempt is part of the next
    one's price, which needs it."""

    def spent(self, attempts: int) -> Spent:
        """What the first so many attempts cost."""
        return self.after[min(attempts, len(self.after)) - 1] if self.after else Spent()


@dataclass(frozen=True, slots=True)
class Attempts:
    """All samples of all tasks."""

    method: str
    attempts: int
    """R: most attempts of a sample."""
    samples: tuple[AttemptSample, ...]

    def counts(
        self, attempts: int | None = None, calls: int | None = None
    ) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
        """The fields of `leafe.evaluate.Counts`, which gives Pass@1 with its interval.

        Args:
            attempts: Attempts allowed; None: all.
            calls: Policy calls allowed a sample; None: any number.

        Returns:
            Task ids; and over these, as arrays, the sound samples, the successes, the lost samples.
        """
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
        """The share of samples that succeeded, mean over tasks; a fraction, NaN without samples.
        Arguments as `counts`."""
        _, n, c, _ = self.counts(attempts, calls)
        return float(np.mean(c[n > 0] / n[n > 0])) if np.any(n > 0) else float("nan")

    def mean_spent(self, attempts: int) -> dict[str, float]:
        """Mean cost of a sample with so many attempts allowed, lost samples included."""
        spent = [s.spent(attempts) for s in self.samples]
        return {
            name: float(np.mean([getattr(s, name) for s in spent])) if spent else float("nan")
            for name in _COSTS
        }

    def rows(self, plain_calls: float | None = None) -> list[dict[str, Any]]:
        """For a table: rate and mean cost for each number of attempts.

        Args:
            plain_calls: Mean policy calls of a plain sample. With it, `plain_k` is the k whose
                Pass@k costs as many calls, rounded up in favour of plain sampling.
        """
        lost = sum(s.lost for s in self.samples)
        out = []
        for attempts in range(1, self.attempts + 1):
            cost = self.mean_spent(attempts)
            k = None
            if plain_calls is not None:
                k = int(np.ceil(cost["policy_calls"] / plain_calls - 1e-9))
            out.append(
                {"method": self.method, "attempts": attempts, "pass_1": self.rate(attempts)}
                | ({"lost": lost} if lost else {})
                | cost
                | {"plain_k": k}
            )
        return out


def read_attempts(trees: Mapping[str, Tree], method: str, attempts: int) -> Attempts:
    """The samples that a journal's trees hold."""
    return Attempts(method, attempts, tuple(_sample(tree, attempts) for tree in trees.values()))


def _sample(tree: Tree, attempts: int) -> AttemptSample:
    """The series of attempts; what a lost attempt cost is part of the price of the next one."""
    task, _, number = tree.task.id.rpartition(SEPARATOR)
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
    return AttemptSample(task, int(number), solved_at, lost, calls, tuple(after))


def _plus(spent: Spent, episode: Episode) -> Spent:
    total = replace(spent)
    add_cost(total, episode)
    return total


async def sample_attempts(
    policy: Policy,
    pool: EnvPool,
    tasks: Sequence[Task],
    prompts: Prompts,
    config: ExploreConfig,
    *,
    method: AttemptMethod,
    attempts: int,
    samples: int,
    journal: EpisodeSink | None = None,
    known: Mapping[str, Tree] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Attempts:
    """Sample series of attempts at every task.

    Nothing is counted together as in evaluation, since every sample goes its own way. In an
    environment whose start depends on the seed every sample draws its own.

    Args:
        policy: Acts, and reflects for `reflexion`.
        pool: Where environments come from.
        tasks: The test tasks.
        prompts: The wording.
        config: Temperatures, `max_attempts_in_prompt`, `max_reflection_attempts`, horizon, seed.
            Its strategy and limits are not used: a sample's only limit is its attempts.
        method: What is carried over.
        attempts: R, most attempts of a sample. A lost attempt is made again, at most `MAX_LOST`
            times a sample.
        samples: Series for each task.
        journal: Where finished attempts go, under the ids of `attempt_tasks(tasks, samples)`.
        known: The trees of an interrupted run, by these ids.
        on_progress: As `leafe.explore.explore`.

    Raises:
        UserError: `attempts` or `samples` below 1, or as `explore`.
        ForeignFailure: As `explore`.
    """
    if attempts < 1 or samples < 1:
        raise UserError(f"attempts = {attempts}, samples = {samples}: both must be at least 1.")
    settings = config.model_copy(
        update={"strategy": method, "run_limits": {}, "stop_when": "solved", "reflect_every": 0}
    )
    due = all_tasks = attempt_tasks(tasks, samples)
    trees: dict[str, Tree] = dict(known or {})
    for allowed in range(attempts, attempts + MAX_LOST + 1):
        found = await explore(
            policy,
            pool,
            due,
            prompts,
            settings.model_copy(update={"limits": {"episodes": float(allowed)}}),
            journal=journal,
            known=trees,
            on_progress=on_progress,
        )
        trees |= found.trees
        due = [
            task
            for task in due
            if task.id in trees
            and _sample(trees[task.id], attempts).lost
            and len(trees[task.id].episodes) >= allowed  # its limit ended it
        ]
        if not due:
            break
    return read_attempts(
        {task.id: trees[task.id] for task in all_tasks if task.id in trees}, method, attempts
    )
