"""Episodes played again in their environment, so that they can be branched from: what the
environment does not say again has diverged and is never trained on.

The log's messages are what some harness made of the environment's words, so the environment's
answer has to stand in them word for word (blanks apart); where the log
has the observation beside the message, it has to be that. Outcomes have to agree too.
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
from leafe.data.importing._records import Bad, Logged, LoggedTurn, Problems
from leafe.data.importing._trees import Imported, Seen
from leafe.explore import EnvPool
from leafe.prompts import Prompts


async def replayed(
    records: Iterable[Logged],
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
    """Trees of the episodes, every one of them played again from its task's reset; the
    environment's own answers, rewards and outcomes are what they hold.

    `tasks`: the environment's, by id. `given`: a record that brings its task with it (id and
    payload) needs none of these. `prompts` reads the action out of a
    text where the log does not say it. `seed` is the run's: an environment is reset with the seed
    that exploration resets it with.
    Episodes of other tasks are left out and counted; one that the environment does not repeat is
    there as `diverged`.
    """
    found = Imported(verified=True)
    seen = Seen()
    due: list[tuple[Logged, Task]] = []
    for record in records:
        try:
            there = seen.before(record)
            if there is not None:
                raise Bad("the same again", f"it is the same episode as {there}")
            due.append((record, _task_of(record, pool.facts.name, tasks, given)))
        except Bad as bad:
            problems.leave_out(record.where, bad)
    limit = asyncio.Semaphore(pool.size)
    done = 0

    async def play(record: Logged, task: Task) -> tuple[Stop, list[Turn], str, str]:
        nonlocal done
        async with limit:
            try:
                played = await _play(record, task, pool, prompts, seed, success_at)
            except EnvError as error:
                played = (Stop.env_error, [], "", str(error))
        done += 1
        on_progress(done)
        return played

    outcomes = await asyncio.gather(*(play(record, task) for record, task in due))
    for (record, task), (stop, turns, first, error) in zip(due, outcomes, strict=True):
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


def _task_of(record: Logged, env: str, tasks: Mapping[str, Task], given: bool) -> Task:
    if record.task is None:
        raise Bad(
            "no task", "it does not say which task of the environment it is: give it a task id"
        )
    known = tasks.get(record.task)
    if known is not None:
        if record.payload is not None and dict(record.payload) != dict(known.payload):
            raise Bad(
                "another task of that id",
                (
                    f"its task {record.task!r} is not the environment's task of that id "
                    "(another setting, split or seed?)"
                ),
            )
        return known
    if given and record.payload is not None:
        return Task(record.task, env, record.split, record.instruction, dict(record.payload))
    raise Bad(
        "an unknown task",
        f"the environment has no task {record.task!r} among those that are asked for",
    )


async def _play(
    record: Logged, task: Task, pool: EnvPool, prompts: Prompts, seed: int, success_at: float
) -> tuple[Stop, list[Turn], str, str]:
    turns: list[Turn] = []
    async with pool.acquire() as env:
        first = await env.reset(task, derive_seed(seed, task.id, "world"))
        if not _agrees(first, record.first_observation, record.first):
            return (
                Stop.diverged,
                turns,
                first,
                (
                    f"after reset the environment says {first[:120]!r}, which does not stand "
                    "in the log's first message"
                ),
            )
        for step, said in enumerate(record.turns):
            if turns and turns[-1].done:
                return (
                    Stop.diverged,
                    turns,
                    first,
                    (
                        f"at step {step} the episode is over in the environment, and goes on "
                        "in the log"
                    ),
                )
            thought, action = (
                (said.thought, said.action)
                if said.action is not None
                else prompts.parse_action(said.text)
            )
            result = await env.step(action)
            if not _agrees(result.observation, said.observation, said.answer):
                log = said.observation if said.observation is not None else said.answer
                return (
                    Stop.diverged,
                    turns,
                    first,
                    (
                        f"at step {step} the environment says {result.observation[:120]!r}, "
                        f"the log {str(log)[:120]!r}"
                    ),
                )
            turns.append(_turn(said, thought, action, result, task, step, record.model))
    last = turns[-1]
    won = last.done and last.success
    if record.won(success_at) != won:
        what = ("a success", "none") if not won else ("no success", "one")
        return (
            Stop.diverged,
            turns,
            first,
            f"by the log it is {what[0]}, by the environment {what[1]}",
        )
    return (Stop.success if won else Stop.failure if last.done else Stop.horizon), turns, first, ""


def _turn(
    said: LoggedTurn,
    thought: str,
    action: str,
    result: StepResult,
    task: Task,
    step: int,
    model: str,
) -> Turn:
    answer = Completion(said.text, tokens=said.tokens)
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
    """Whether the log says what the environment says. `exact`: the observation itself; `message`:
    what was made of it; without either nothing is to compare."""
    if exact is not None:
        return exact == env
    if message is None:
        return True
    words = [re.escape(word) for word in env.split()]
    return not words or re.search(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", message) is not None
