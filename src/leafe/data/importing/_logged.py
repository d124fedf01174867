"""Episodes taken as they stand, without an environment: for rehearsal and preference pairs, whose
prompts are then the log's own messages.

The prompt set `chat` says them again word for word: the system message is the task's instruction,
the first user message the first observation. Nothing
can be rolled back here.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from leafe.core import Episode, Kind, Stop, Task, Turn, turn_id
from leafe.data.importing._records import Bad, Logged, Problems
from leafe.data.importing._trees import Imported, Seen

CHAT_PROMPTS = "chat"
"""The prompt set for these trees."""
IMPORTED_ENV = "imported"
"""What their tasks name as their environment: there is none of that name."""


def as_logged(
    records: Iterable[Logged], *, success_at: float = 1.0, problems: Problems
) -> Imported:
    """Trees of the episodes. Success is what the log says, or a reward of at least `success_at`."""
    found = Imported()
    seen = Seen()
    names: dict[tuple[str | None, str, str], Task] = {}
    taken: set[str] = set()
    for record in records:
        there = seen.before(record)
        if there is not None:
            problems.leave_out(
                record.where, Bad("the same again", f"it is the same episode as {there}")
            )
            continue
        key = (record.task, record.system, record.first)
        if key not in names:
            names[key] = _task(record, taken, problems)
        task = names[key]
        found.add(task, _episode(record, task, found.next_index(task), record.won(success_at)))
    return found


def _task(record: Logged, taken: set[str], problems: Problems) -> Task:
    """Episodes are of one task where their prompts are one: an id that stands for several prompts
    is several tasks."""
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


def _episode(record: Logged, task: Task, index: int, won: bool) -> Episode:
    turns: list[Turn] = []
    for step, said in enumerate(record.turns):
        final = step == len(record.turns) - 1
        reward = (
            said.reward if said.reward is not None else (record.reward or 0.0) if final else 0.0
        )
        turns.append(
            Turn(
                id=turn_id(task.id, index, step),
                parent=turns[-1].id if turns else None,
                task_id=task.id,
                step=step,
                kind=Kind.act,
                action_text=said.text,
                action=said.action if said.action is not None else said.text,
                thought=said.thought,
                observation=said.answer or "",
                reward=reward,
                done=final,
                success=final and won,
                policy=record.model,
                env_steps=1,
                tokens=said.tokens,
            )
        )
    return Episode(
        task.id, index, Stop.success if won else Stop.failure, tuple(turns), record.first
    )
