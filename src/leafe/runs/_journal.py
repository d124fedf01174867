"""The journal: append-only files of lines, each of them one durable write. Trees are built from it
and from the list of tasks; nothing else is stored.

A line is `{"episodes": [...]}`: one episode in exploration, all episodes of a task in evaluation.
One call writes it, and it is synced before `append` returns, so kill -9 at any moment loses only
what was in flight. The files are shards, `journal-00000.jsonl` and so on, each with a first line
that names the format.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leafe.core import Episode, JournalError, Task, Tree, UserError
from leafe.runs._files import atomic_write, cut_torn, lock, sync, unlock, write_all

FORMAT = 1
"""Grows when older lines can no longer be read."""
SHARD_BYTES = 64 << 20
"""A shard that has reached this size is followed by a new one."""
TASKS = "tasks.jsonl"
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged line raises."""


class Journal:
    """The journal of one stage, open for appending. One process at a time.

    Opening cuts off an unfinished last line; `torn` counts the lines that were cut.

    Args:
        folder: The stage's folder; made where it is missing.
        fsync: False leaves the syncing to the operating system: a line then survives the death of
            the process, not that of the machine.
        shard_bytes: A shard of this size is followed by a new one.

    Raises:
        UserError: Another process has the journal open, or the folder cannot be written.
        JournalError: A shard is missing or damaged.
    """

    def __init__(self, folder: Path, *, fsync: bool = True, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = Path(folder)
        self.torn = 0
        self._fsync = fsync
        self._shard_bytes = shard_bytes
        self._mutex = threading.Lock()
        self._fd = -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open(max(0, len(shards(self.folder)) - 1))
        except OSError as error:
            raise UserError(
                f"The journal folder {self.folder} cannot be opened for writing: {error.strerror}."
            ) from error

    def append(self, episodes: Sequence[Episode]) -> None:
        """Add one line; it is on disk when this returns. May be called from any thread.

        Args:
            episodes: What the line holds.

        Raises:
            JournalError: The disk refuses. Nothing was added, and the journal stays usable.
        """
        record = {"episodes": [e.to_json() for e in episodes]}
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._mutex:
            if self._fd < 0:
                raise ValueError("the journal is closed")
            try:
                if os.fstat(self._fd).st_size != self._size:
                    # an earlier failed write could not be undone at once
                    os.ftruncate(self._fd, self._size)
                if self._size >= self._shard_bytes:
                    self._open(self._number + 1)
                data = line if self._size else _header() + line
                write_all(self._fd, data)
                if self._fsync:
                    os.fsync(self._fd)
            except OSError as error:
                # where that fails it is tried again before the next write; readers skip an
                # unfinished last line in any case
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                raise JournalError(
                    f"{self.folder / _name(self._number)} could not be written "
                    f"({error.strerror}): free space and run again; every episode finished before "
                    "this one is kept."
                ) from error
            self._size += len(data)

    def read(self) -> Iterator[tuple[Episode, ...]]:
        """The lines from the first on, as `read_journal`."""
        return read_journal(self.folder)

    def close(self) -> None:
        """Release the journal. May be called twice."""
        with self._mutex:
            if self._fd >= 0:
                unlock(self._fd)
                self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, number: int) -> None:
        path = self.folder / _name(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            lock(fd, self.folder)
            self.torn += cut_torn(fd)
            size = os.fstat(fd).st_size
            if size:
                with path.open("rb") as file:
                    check_header(file.readline(), path)
            sync(self.folder)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            unlock(self._fd)
        self._fd, self._size, self._number = fd, size, number


def read_journal(folder: Path) -> Iterator[tuple[Episode, ...]]:
    """The episodes of each line, from the first line on. Needs no lock.

    Args:
        folder: The stage's folder.

    Yields:
        One tuple a line; an unfinished last line is skipped.

    Raises:
        JournalError: Something before the last line is damaged; the message has file and line.
        UserError: The journal has another format.
    """
    for path in shards(Path(folder)):
        for number, _, line in lines(path):
            yield parsed(line, path, number)


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset in bytes, line) of every whole line of a shard after the header."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if number == 1:
                check_header(line, path)
            else:
                yield number, offset, line
            offset += len(line)


def parsed(line: bytes, path: Path, number: int, task: str | None = None) -> tuple[Episode, ...]:
    """The episodes of a line, or those of one task. JournalError where it is damaged."""
    try:
        found = json.loads(line)["episodes"]
        return tuple(Episode.from_json(e) for e in found if task is None or e["task_id"] == task)
    except DAMAGE as error:
        raise damaged(path, number, error) from error


def write_tasks(folder: Path, tasks: Iterable[Task]) -> None:
    """Write the tasks of a stage, in their order, as one atomic file.

    Args:
        folder: The stage's folder; made where it is missing.
        tasks: The tasks.

    Raises:
        UserError: Two tasks have the same id.
        JournalError: The disk refuses.
    """
    text, seen = "", set[str]()
    for task in tasks:
        if task.id in seen:
            raise UserError(
                f"Two tasks of the environment {task.env!r} have the id {task.id!r}: ids "
                "must be unique within a run."
            )
        seen.add(task.id)
        text += json.dumps(task.to_json(), separators=(",", ":"), allow_nan=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TASKS, text)


def read_tasks(folder: Path) -> list[Task]:
    """The tasks that `write_tasks` wrote, in their order.

    Args:
        folder: The stage's folder.

    Raises:
        UserError: The folder has no list of tasks.
        JournalError: A line of it is damaged.
    """
    path = Path(folder) / TASKS
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {TASKS}: it is not the folder of a stage that was begun."
        )
    tasks = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                tasks.append(Task.from_json(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise damaged(path, number, error) from error
    return tasks


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without garbage collection: millions of records are made and none is garbage, and searching
    them again and again took a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_no_collection()
def load_trees(folder: Path) -> dict[str, Tree]:
    """All trees of a stage, in memory.

    Args:
        folder: The stage's folder.

    Returns:
        Trees by task id, in the order of the tasks; a task without a finished episode has an empty
        tree.

    Raises:
        UserError: The folder has no list of tasks, or the journal another format.
        JournalError: Tasks or journal are damaged.
    """
    trees = {task.id: Tree(task) for task in read_tasks(folder)}
    for episodes in read_journal(folder):
        for episode in episodes:
            if episode.task_id not in trees:
                raise unknown_task(folder, episode.task_id)
            grow(trees[episode.task_id], (episode,), folder)
    return trees


def grow(tree: Tree, episodes: Iterable[Episode], folder: Path) -> None:
    """Add episodes of the journal in `folder` to their tree; JournalError where they do not fit."""
    try:
        for episode in episodes:
            tree.add(episode)
    except ValueError as error:
        raise JournalError(f"The journal in {folder} is not a tree: {error}.") from error


def _name(number: int) -> str:
    return f"journal-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The shards of a stage's journal, in order.

    Raises:
        JournalError: One is missing between others, and finished work with it.
    """
    found = sorted(folder.glob("journal-[0-9]*.jsonl"))
    expected = [folder / _name(number) for number in range(len(found))]
    if found != expected:
        missing = next(e.name for e, f in zip(expected, found, strict=True) if e != f)
        raise JournalError(
            f"The journal in {folder} lacks its shard {missing}: put it back, or start the "
            "stage again in another folder."
        )
    return found


def _header() -> bytes:
    return json.dumps({"journal": "leafe", "format": FORMAT}).encode() + b"\n"


def check_header(line: bytes, path: Path) -> None:
    """Check the first line of a shard.

    Args:
        line: The line.
        path: The shard, for the error.

    Raises:
        UserError: The shard has another format.
        JournalError: The line is no header.
    """
    try:
        header: Any = json.loads(line)
        version = header["format"] if header["journal"] == "leafe" else None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, 1, error) from error
    if version != FORMAT:
        raise UserError(
            f"{path} is written in format {version}, and this leafe reads format {FORMAT}: "
            "use the leafe that wrote it, or start another run."
        )


def damaged(path: Path, number: int, error: Exception) -> JournalError:
    """The error for a damaged line."""
    return JournalError(
        f"{path}, line {number} is damaged ({type(error).__name__}: {error}): restore the "
        "file from a copy, or start the stage again."
    )


def unknown_task(folder: Path, task: str) -> JournalError:
    """The error for an episode whose task is not listed."""
    return JournalError(
        f"The journal in {folder} holds an episode of the task {task!r}, which is not in {TASKS}."
    )
