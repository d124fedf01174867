"""Episodes taken from a log as they are, without an environment: for rehearsal and preference
pairs, whose prompts are the log's own messages.

The prompt set `chat` repeats them word for word: the system message is the task's instruction, the
first user message the first observation. These episodes cannot be rolled back.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from leafe.core import Episode, Kind, Stop, Task, Turn, turn_id
from leafe.data.importing._records import LoggedEpisode, Problems
from leafe.data.importing._trees import Duplicates, Imported

CHAT_PROMPTS = "chat"
"""The prompt set for these trees."""
IMPORTED_ENV = "imported"
"""The environment that their tasks name; no environment has this name."""


def as_logged(
    records: Iterable[LoggedEpisode], *, success_at: float = 1.0, problems: Problems
) -> Imported:
    """Build trees from logged episodes without verifying them.

    Args:
        records: Logged episodes (`read_log`).
        success_at: The least reward of a success, where the log does not say.
        problems: Counts what is left out.

    Returns:
        Trees in which each episode is a root of its own.
    """
    found = Imported()
    duplicates = Duplicates()
    names: dict[tuple[str | None, str, str], Task] = {}
    taken: set[str] = set()
    for record in records:
        with problems.skipping(record.where):
            duplicates.check(record)
            key = (record.task, record.system, record.first)
            if key not in names:
                names[key] = _task(record, taken, problems)
            task = names[key]
            found.add(task, _episode(record, task, found.next_index(task), record.won(success_at)))
    return found


def _task(record: LoggedEpisode, taken: set[str], problems: Problems) -> Task:
    """Episodes belong to one task if their prompts are equal: an id with several prompts becomes
    several tasks."""
    name = (
        record.task
        or "prompt-"
        + blake2b(f"{record.system}\x1f{record.first}".encode(), digest_size=6).hexdigest()
    )
    unique, nth = name, 1
    while unique in taken:
        nth += 1
        unique = f"{name}~{nth}"
    taken.add(unique)
    if nth > 1:
        problems.note(
            record.where,
            "a task with several prompts",
            f"the task {name!r} has another prompt here and is kept apart as {unique!r}",
        )
    return Task(
        unique,
        IMPORTED_ENV,
        record.split,
        record.system,
        {"instruction": record.instruction} if record.instruction else {},
    )


def _episode(record: LoggedEpisode, task: Task, index: int, won: bool) -> Episode:
    turns: list[Turn] = []
    for step, logged in enumerate(record.turns):
        final = step == len(record.turns) - 1
        reward = logged.reward
        if reward is None:
            reward = (record.reward or 0.0) if final else 0.0
        turns.append(
            Turn(
                id=turn_id(task.id, index, step),
                parent=turns[-1].id if turns else None,
                task_id=task.id,
                step=step,
                kind=Kind.act,
                action_text=logged.text,
                action=logged.action if logged.action is not None else logged.text,
                thought=logged.thought,
                observation=logged.answer or "",
                reward=reward,
                done=final,
                success=final and won,
                policy=record.model,
                env_steps=1,
                tokens=logged.tokens,
            )
        )
    return Episode(
        task.id, index, Stop.success if won else Stop.failure, tuple(turns), record.first
    )
