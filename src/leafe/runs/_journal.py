"""The journal is the truth: an append-only file of lines, each of them one durable write.

A line is `{"episodes": [...]}`: one episode in exploration, all episodes of a task in evaluation.
It is written by one call and
synced before `append` returns, so that kill -9 at any moment loses only what was in flight. The
files are shards,
`journal-00000.jsonl` and so on, each with a first line that names the format. Trees are built from
the tasks and the journal; nothing else is stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leafe.core import Episode, JournalError, Task, Tree, UserError
from leafe.runs._files import atomic_write, cut_torn, lock, sync_folder, write_all

FORMAT = 1
"""Grows when older lines can no longer be read."""
SHARD_BYTES = 64 << 20
"""A shard that has reached this size is followed by a new one."""
TASKS = "tasks.jsonl"


class Journal:
    """The journal of one stage, open for appending: one process at a time (UserError for a second
    one).

    Opening cuts off what a killed process left of its last line; `torn` counts the lines that were
    cut.
    `fsync=False` leaves the syncing to the operating system: a line then survives the death of the
    process, not that of the machine.
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
        """Add one line that holds these episodes. It is on disk when this returns.

        JournalError where the disk refuses: then nothing was added, and the journal can be used on.
        May be called from any thread.
        """
        line = (
            json.dumps(
                {"episodes": [e.to_json() for e in episodes]},
                separators=(",", ":"),
                allow_nan=False,
            ).encode()
            + b"\n"
        )
        with self._mutex:
            if self._fd < 0:
                raise ValueError("the journal is closed")
            try:
                if os.fstat(self._fd).st_size != self._size:
                    os.ftruncate(
                        self._fd, self._size
                    )  # an earlier failed write could not be undone at once
                if self._size >= self._shard_bytes:
                    self._open(self._number + 1)
                data = line if self._size else _header() + line
                write_all(self._fd, data)
                if self._fsync:
                    os.fsync(self._fd)
            except OSError as error:
                self._undo()
                raise JournalError(
                    f"{self._path} could not be written ({error.strerror}): free space and "
                    "run again; every episode finished before this one is kept."
                ) from error
            self._size += len(data)

    def read(self) -> Iterator[tuple[Episode, ...]]:
        """The lines from the first on, as `read_journal`."""
        return read_journal(self.folder)

    def close(self) -> None:
        """Release the journal. May be called twice."""
        with self._mutex:
            if self._fd >= 0:
                _release(self._fd)
                self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _path(self) -> Path:
        return self.folder / _name(self._number)

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
            sync_folder(self.folder)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            _release(self._fd)
        self._fd, self._size, self._number = fd, size, number

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            # tried again before the next write; a reader skips an unfinished last line in any case
            return


def read_journal(folder: Path) -> Iterator[tuple[Episode, ...]]:
    """The episodes of each line, from the first line on; needs no lock and skips an unfinished last
    line.

    JournalError, with file and line, where something before that is damaged; UserError for another
    format.
    """
    for path in shards(Path(folder)):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                if number == 1:
                    check_header(line, path)
                    continue
                try:
                    episodes = tuple(Episode.from_json(e) for e in json.loads(line)["episodes"])
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise damaged(path, number, error) from error
                yield episodes


def write_tasks(folder: Path, tasks: Iterable[Task]) -> None:
    """Write the tasks of a stage, in their order, as one atomic file. UserError where two have the
    same id."""
    lines, seen = [], set[str]()
    for task in tasks:
        if task.id in seen:
            raise UserError(
                f"Two tasks of the environment {task.env!r} have the id {task.id!r}: ids "
                "must be unique within a run."
            )
        seen.add(task.id)
        lines.append(json.dumps(task.to_json(), separators=(",", ":"), allow_nan=False) + "\n")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TASKS, "".join(lines))


def read_tasks(folder: Path) -> list[Task]:
    """The tasks that `write_tasks` wrote. UserError where there are none, JournalError where a line
    is damaged."""
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


def load_trees(folder: Path) -> dict[str, Tree]:
    """The trees of a stage by task id, in the order of the tasks; a task without a finished episode
    has an empty tree."""
    with _no_collection():
        return _load_trees(folder)


def _load_trees(folder: Path) -> dict[str, Tree]:
    trees = {task.id: Tree(task) for task in read_tasks(folder)}
    for episodes in read_journal(folder):
        for episode in episodes:
            try:
                trees[episode.task_id].add(episode)
            except KeyError:
                raise JournalError(
                    f"The journal in {folder} holds an episode of the task "
                    f"{episode.task_id!r}, which is not in {TASKS}."
                ) from None
            except ValueError as error:
                raise JournalError(f"The journal in {folder} is not a tree: {error}.") from error
    return trees


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of records are made and none is garbage: looking through them again and again took a
    fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _name(number: int) -> str:
    return f"journal-{number:05d}.jsonl"


def shards(folder: Path) -> list[Path]:
    """The shards in order. JournalError where one is missing between others: then finished work is
    missing too."""
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
    """Whether the first line of a shard is one; UserError for another format, JournalError for
    anything else."""
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
    return JournalError(
        f"{path}, line {number} is damaged ({type(error).__name__}: {error}): restore the "
        "file from a copy, or start the stage again."
    )


def _release(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to a forked child
    os.close(fd)
