"""Replays logged episodes in their environment, so that they can be branched from. An episode that
the environment does not reproduce is `diverged` and is never trained on.

The log's messages are what some harness made of the observations, so each observation must stand in
its message word for word (blanks apart). Where the log has the observation itself, it must be
equal. Outcomes must agree too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from leafe.core import (
    Completion,
    EnvError,
    Episode,
    StepResult,
    Stop,
    Task,
    Turn,
    act_turn,
    derive_seed,
    turn_id,
)
from leafe.data.importing._records import InvalidRecord, LoggedEpisode, LoggedTurn, Problems
from leafe.data.importing._trees import Duplicates, Imported
from leafe.explore import EnvPool
from leafe.prompts import Prompts


async def replayed(
    records: Iterable[LoggedEpisode],
    pool: EnvPool,
    tasks: Mapping[str, Task],
    prompts: Prompts,
    *,
    problems: Problems,
    seed: int = 0,
    success_at: float = 1.0,
    given: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Replay logged episodes, each from its task's reset.

    Args:
        records: Logged episodes (`read_log`).
        pool: The environment's pool.
        tasks: The environment's tasks by id; episodes of other tasks are left out and counted.
        prompts: Parses the action out of a text where the log does not have it.
        problems: Counts what is left out or diverged.
        seed: The run's seed: environments are reset with the seeds that exploration uses.
        success_at: The least reward of a success, where the log does not say.
        given: A record that holds its task (id and payload) needs none in `tasks`.
        on_progress: Called with the number of episodes replayed so far.

    Returns:
        Trees with the environment's own answers, rewards and outcomes; an episode that it did not
        reproduce ends as `diverged`.
    """
    found = Imported(verified=True)
    duplicates = Duplicates()
    pending: list[tuple[LoggedEpisode, Task]] = []
    for record in records:
        with problems.skipping(record.where):
            duplicates.check(record)
            pending.append((record, _task_of(record, pool.facts.name, tasks, given)))
    limit = asyncio.Semaphore(pool.size)
    done = 0

    async def play(record: LoggedEpisode, task: Task) -> tuple[Stop, list[Turn], str, str]:
        nonlocal done
        async with limit:
            try:
                played = await _play(record, task, pool, prompts, seed, success_at)
            except EnvError as error:
                played = (Stop.env_error, [], "", str(error))
        done += 1
        on_progress(done)
        return played

    outcomes = await asyncio.gather(*(play(record, task) for record, task in pending))
    for (record, task), (stop, turns, first, error) in zip(pending, outcomes, strict=True):
        index = found.next_index(task)
        named: list[Turn] = []
        for turn in turns:
            named.append(
                replace(
                    turn,
                    id=turn_id(task.id, index, turn.step),
                    parent=named[-1].id if named else None,
                )
            )
        if error:
            problems.note(
                record.where,
                "diverged" if stop is Stop.diverged else "the environment failed",
                error,
            )
        found.add(task, Episode(task.id, index, stop, tuple(named), first, error=error))
    return found


def _task_of(record: LoggedEpisode, env: str, tasks: Mapping[str, Task], given: bool) -> Task:
    if record.task is None:
        raise InvalidRecord("no task", "it names no task of the environment: give it a task id")
    known = tasks.get(record.task)
    if known is not None:
        if record.payload is not None and dict(record.payload) != dict(known.payload):
            raise InvalidRecord(
                "another task of that id",
                (
                    f"its task {record.task!r} is not the environment's task of that id "
                    "(another setting, split or seed?)"
                ),
            )
        return known
    if given and record.payload is not None:
        return Task(record.task, env, record.split, record.instruction, dict(record.payload))
    raise InvalidRecord(
        "an unknown task",
        f"the environment has no task {record.task!r} among the requested ones",
    )


class _Diverged(Exception):
    """The environment does not reproduce the episode: the message says where."""


async def _play(
    record: LoggedEpisode, task: Task, pool: EnvPool, prompts: Prompts, seed: int, success_at: float
) -> tuple[Stop, list[Turn], str, str]:
    """How the replay ended, its turns, the first observation, and what diverged."""
    turns: list[Turn] = []
    first = ""
    try:
        async with pool.acquire() as env:
            first = await env.reset(task, derive_seed(seed, task.id, "world"))
            if not _agrees(first, record.first_observation, record.first):
                raise _Diverged(
                    f"after reset the environment answers {first[:120]!r}, which is not in the "
                    "log's first message"
                )
            for step, logged in enumerate(record.turns):
                if turns and turns[-1].done:
                    raise _Diverged(
                        f"at step {step} the episode is over in the environment, but not in the log"
                    )
                thought, action = logged.thought, logged.action
                if action is None:
                    thought, action = prompts.parse_action(logged.text)
                result = await env.step(action)
                if not _agrees(result.observation, logged.observation, logged.answer):
                    log = logged.answer if logged.observation is None else logged.observation
                    raise _Diverged(
                        f"at step {step} the environment answers {result.observation[:120]!r}, "
                        f"the log has {str(log)[:120]!r}"
                    )
                turns.append(_turn(logged, thought, action, result, task, step, record.model))
        last = turns[-1]
        won = last.done and last.success
        if record.won(success_at) != won:
            log, played = ("no success", "one") if won else ("a success", "none")
            raise _Diverged(f"by the log it is {log}, by the environment {played}")
    except _Diverged as error:
        return Stop.diverged, turns, first, str(error)
    return (Stop.success if won else Stop.failure if last.done else Stop.horizon), turns, first, ""


def _turn(
    logged: LoggedTurn,
    thought: str,
    action: str,
    result: StepResult,
    task: Task,
    step: int,
    model: str,
) -> Turn:
    answer = Completion(logged.text, tokens=logged.tokens)
    return act_turn(
        answer,
        thought,
        action,
        result,
        id="",
        parent=None,
        task_id=task.id,
        step=step,
        policy=model,
        seconds=0.0,
    )


def _agrees(env: str, exact: str | None, message: str | None) -> bool:
    """Whether the log agrees with an observation. `exact`: the logged observation; `message`: the
    message made from it; without either there is nothing to compare."""
    if exact is not None:
        return exact == env
    if message is None:
        return True
    words = [re.escape(word) for word in env.split()]
    return not words or re.search(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", message) is not None
