"""The index kept up to date with the journals, by a thread that reads on where it stopped: while
the run goes on, and after it.

Whole lines alone are read: one that is being written has no newline yet and is read the next time.
Journals that are not those read before (the run was started over, the folder replaced) are noticed
by their size and by a checksum over their beginning and the place where reading stopped; the index
is then made anew. What cannot be read is reported on the stage's pages and does not hide the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leafe.core import FAILED_BY_ENV, LeafeError, Stop
from leafe.runs import check_header, shards
from leafe.view._index import EPISODE, Index, clear
from leafe.view._text import search_text, storable

_BATCH = 4 << 20
"""Bytes of journal that are committed together."""
_ERRORS = (
    frozenset(Stop) - FAILED_BY_ENV - {Stop.success, Stop.diverged, Stop.budget, Stop.context_full}
)
_HEAD = re.compile(r'\s*\{\s*"episodes"\s*:\s*\[\s*')
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged line raises."""


def gone(run: Path) -> str:
    """A sentence where the run folder is no longer there; empty where it is."""
    if run.is_dir():
        return ""
    return (
        f"The run folder {run} is no longer there: was it moved or deleted? Start the viewer again "
        "with the place where it is now."
    )


class Follower:
    """Keeps an index up to date: `start` does so in a thread, `update` once.

    Attributes:
        revision: Grows whenever there is something new to show.
        bytes_read, bytes_total: Bytes of the journals that are in the index, and that there are.
        problem: Why nothing can be read at all; empty: it can.
        stage_problems: By stage, why its journal cannot be read further.
        progress: By stage, as (`bytes_read`, `bytes_total`).
        caught_up: Stages whose journal is in the index, or can be read no further.
        ready: Set when all that was there at the start is in the index.
    """

    def __init__(self, index: Index, every: float = 1.0) -> None:
        self.index = index
        self.revision = int(time.time())
        self.bytes_read, self.bytes_total = 0, 0
        self.problem = ""
        self.stage_problems: dict[str, str] = {}
        self.progress: dict[str, tuple[int, int]] = {}
        self.caught_up: set[str] = set()
        self.ready = threading.Event()
        self._every = every
        self._stop = threading.Event()
        self._tasks: dict[int, dict[str, int]] = {}
        self._files: dict[tuple[int, int], int] = {}
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    def notify(self) -> None:
        """There is something new to show."""
        self.revision += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.update()
                self.problem = ""
            except Exception as error:  # a full disk, say: the thread goes on, the pages tell why
                self._set_problem(
                    f"The index cannot be kept up ({type(error).__name__}: {error}). It is tried "
                    "again every second."
                )
            self.ready.set()
            self._stop.wait(self._every)

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.notify()

    def update(self) -> None:
        """Read what is new. Does nothing where the run's folder is gone."""
        run = self.index.run
        if problem := gone(run):
            self._set_problem(problem)
            return
        found = sorted(run.glob("[!.]*/[!.]*/tasks.jsonl"))
        folders = {"/".join(path.parts[-3:-1]): path.parent for path in found}
        with self.index.connect() as db:
            for _ in range(3):  # a run that is started over meanwhile is read from its beginning
                try:
                    self._read_stages(db, folders)
                    break
                except _Replaced:
                    db.rollback()
                    clear(db)
                    self._tasks.clear()
                    self._files.clear()
                    self.caught_up.clear()
                    self.notify()

    def _read_stages(self, db: sqlite3.Connection, folders: dict[str, Path]) -> None:
        known = {row["name"]: row for row in db.execute("SELECT * FROM stages")}
        if not known.keys() <= folders.keys():
            raise _Replaced
        work: list[tuple[str, int, list[Path]]] = []
        for name, folder in folders.items():
            row = known.get(name)
            stage = int(row["id"]) if row else self._add_stage(db, name)
            self._read_tasks(db, stage, folder, row["sign"] if row else None)
            try:
                paths = shards(folder)
                self.stage_problems.pop(name, None)
            except LeafeError as error:
                self._set_stage_problem(name, error)
                self.caught_up.add(name)
                continue
            read = (self._offset(db, stage, nth, path)[0] for nth, path in enumerate(paths))
            self.progress[name] = sum(read), sum(path.stat().st_size for path in paths)
            work.append((name, stage, paths))
        self.bytes_read, self.bytes_total = (
            sum(self.progress[name][nth] for name, _, _ in work) for nth in (0, 1)
        )
        for name, stage, paths in work:
            try:
                for nth, path in enumerate(paths):
                    self._read_shard(db, name, stage, nth, path)
            except LeafeError as error:
                db.rollback()
                self._set_stage_problem(name, error)
            if self._stop.is_set():
                return
            if name not in self.caught_up:
                self.caught_up.add(name)
                self.notify()

    def _set_stage_problem(self, name: str, error: Exception) -> None:
        if self.stage_problems.get(name) != str(error):
            self.stage_problems[name] = str(error)
            self.notify()

    def _add_stage(self, db: sqlite3.Connection, name: str) -> int:
        stage = db.execute("INSERT INTO stages(name) VALUES (?)", (name,)).lastrowid
        db.commit()
        self.notify()
        assert stage is not None
        return stage

    def _read_tasks(
        self, db: sqlite3.Connection, stage: int, folder: Path, sign: str | None
    ) -> None:
        """Read the stage's list of tasks, where it is not the one that was read before."""
        path = folder / "tasks.jsonl"
        facts = path.stat()
        now = f"{facts.st_size} {facts.st_mtime_ns}"
        if stage not in self._tasks or now != sign:
            self._tasks[stage] = _task_ids(db, stage)
        if now == sign:
            return
        damaged, offset, place = "", 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    data = json.loads(line)
                    task, instruction = storable(data["id"]), storable(data["instruction"])
                except _DAMAGE as error:
                    damaged = damaged or (
                        f"{path}, line {number} is damaged ({type(error).__name__}: {error}): that "
                        "task is not shown."
                    )
                else:
                    values = (stage, place, task, instruction[:400], offset, len(line))
                    row = db.execute(_ADD_TASK, values).fetchone()
                    if task not in self._tasks[stage]:
                        texts = search_text(task), search_text(instruction)
                        db.execute(_ADD_TEXT, (-row[0], f"s{stage}", *texts))
                    place += 1
                offset += len(line)
        db.execute(
            "UPDATE stages SET sign = ?1, problem = CASE WHEN ?2 = '' THEN problem ELSE ?2 END "
            "WHERE id = ?3",
            (now, damaged, stage),
        )
        db.commit()
        self._tasks[stage] = _task_ids(db, stage)
        self.notify()

    def _offset(
        self, db: sqlite3.Connection, stage: int, number: int, path: Path
    ) -> tuple[int, int]:
        """(bytes, lines) that were read of a shard. `_Replaced` where it is another file than the
        one they were read from."""
        row = db.execute(
            "SELECT read, line, sign FROM shards WHERE stage = ? AND number = ?", (stage, number)
        ).fetchone()
        if row is None:
            return 0, 0
        facts = path.stat()
        if facts.st_size < row["read"]:
            raise _Replaced
        if self._files.get((stage, number)) != facts.st_ino:
            if _sign(path, row["read"]) != row["sign"]:
                raise _Replaced
            self._files[stage, number] = facts.st_ino
        return row["read"], row["line"]

    def _read_shard(
        self, db: sqlite3.Connection, name: str, stage: int, number: int, path: Path
    ) -> None:
        offset, at = self._offset(db, stage, number, path)
        if path.stat().st_size <= offset:
            return
        batch = _Batch(db, stage, number, self._tasks[stage])
        problems: list[str] = []
        committed = offset

        def commit() -> None:
            nonlocal committed
            batch.write()
            db.execute(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?)",
                (stage, number, offset, at, _sign(path, offset)),
            )
            if problems:
                more = f" And {len(problems) - 1} lines more." if len(problems) > 1 else ""
                db.execute(
                    "UPDATE stages SET problem = trim(problem || ' ' || ?) WHERE id = ? AND "
                    "length(problem) < 2000",
                    (problems[0] + more, stage),
                )
                problems.clear()
            db.commit()
            self._files[stage, number] = path.stat().st_ino
            read, total = self.progress[name]
            self.bytes_read += offset - committed
            self.progress[name] = read + offset - committed, total
            committed = offset
            self.notify()

        with path.open("rb") as file:
            file.seek(offset)
            while not self._stop.is_set():
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                at += 1
                if at == 1:
                    check_header(line, path)
                else:
                    try:
                        for start, length, episode in episodes(line):
                            batch.add(episode, at, offset + start, length)
                    except _DAMAGE as error:
                        problems.append(
                            f"{path.name}, line {at} is damaged ({type(error).__name__}: {error}) "
                            "and is not shown."
                        )
                offset += len(line)
                if offset - committed >= _BATCH:
                    commit()
        if offset > committed:
            commit()


class _Replaced(Exception):
    """The journals are not those that the index was made from."""


def _task_ids(db: sqlite3.Connection, stage: int) -> dict[str, int]:
    found = db.execute("SELECT task, id FROM tasks WHERE stage = ?", (stage,))
    return {row["task"]: row["id"] for row in found}


_ADD_TEXT = "INSERT INTO words(rowid, stage, answer, observation) VALUES (?, ?, ?, ?)"
_ADD_TASK = """INSERT INTO tasks(stage, place, task, instruction, offset, length)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(stage, task) DO UPDATE SET place = excluded.place,
offset = excluded.offset, length = excluded.length, instruction = excluded.instruction
RETURNING id"""
_ADDED = (
    *("episodes", "samples", "successes", "turns", "saved", "branches", "diverged", "unusable"),
    *("errors", "tokens"),
)
_ADD_COUNTS = (
    f"UPDATE tasks SET {', '.join(f'{name} = {name} + :{name}' for name in _ADDED)}, "
    "depth = min(coalesce(depth, :depth), coalesce(:depth, depth)) WHERE id = :id"
)


class _Batch:
    """Episodes that were read and are not yet in the index."""

    def __init__(
        self, db: sqlite3.Connection, stage: int, shard: int, tasks: dict[str, int]
    ) -> None:
        self.db, self.stage, self.shard, self.tasks = db, stage, shard, tasks
        self.next = int(db.execute("SELECT coalesce(max(id), 0) + 1 FROM episodes").fetchone()[0])
        self._clear()

    def _clear(self) -> None:
        self.episodes: list[tuple[Any, ...]] = []
        self.texts: list[tuple[Any, ...]] = []
        self.counts: list[dict[str, Any]] = []

    def add(self, episode: dict[str, Any], line: int, offset: int, length: int) -> None:
        """Take one episode. One of `_DAMAGE` where it is none, and then nothing of it is taken."""
        task = self.tasks.get(storable(episode["task_id"]))
        if task is None:
            raise ValueError(
                f"an episode of the task {episode['task_id']!r}, which is not in tasks.jsonl"
            )
        turns, stop, count = episode["turns"], Stop(episode["stop"]), int(episode.get("count", 1))
        texts = [(turn["action_text"], turn.get("observation", "")) for turn in turns]
        first, error = episode.get("first_observation", ""), episode.get("error", "")
        index = int(episode["index"])
        places = [*range(len(turns))][: EPISODE - 1]
        if error or (first and index == 0):
            texts.insert(len(places), (first if index == 0 else "", error))
            places.append(EPISODE - 1)
        rows = [
            (self.next * EPISODE + place, f"s{self.stage}", *map(search_text, text))
            for place, text in zip(places, texts, strict=False)
        ]
        acts = [turn for turn in turns if turn["kind"] == "act"]
        reflections = [turn for turn in turns if turn["kind"] == "reflect"]
        # reflections on an earlier episode are no sample
        starts, follows = episode.get("start") is not None, episode.get("experience") is not None
        rollout = not (starts and not follows and turns and len(reflections) == len(turns))
        prefix = int(acts[0]["step"]) if acts else 0
        saved = count * (prefix + len(acts)) - len(acts)
        won = stop is Stop.success
        counts = {
            "id": task,
            "episodes": int(rollout),
            "samples": count * rollout,
            "successes": count * rollout * won,
            "depth": episode.get("depth", 0) if won else None,
            "turns": len(acts),
            "saved": max(0, saved),
            "branches": follows,
            "diverged": count * rollout * (stop is Stop.diverged),
            "unusable": sum(not turn.get("valid", True) for turn in reflections),
            "errors": count * rollout * (stop in _ERRORS),
            "tokens": sum(turn.get("usage", {}).get("generated", 0) for turn in turns),
        }
        place = (self.shard, line, offset, length)
        self.episodes.append((self.next, task, index, str(stop), count * rollout, *place))
        self.texts += rows
        self.counts.append(counts)
        self.next += 1

    def write(self) -> None:
        self.db.executemany(
            "INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self.episodes
        )
        self.db.executemany(_ADD_TEXT, self.texts)
        self.db.executemany(_ADD_COUNTS, self.counts)
        self._clear()


def episodes(line: bytes) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(offset, length, data) of each episode of a journal's line, in bytes. ValueError where it is
    no such line."""
    text = line.decode()
    head = _HEAD.match(text)
    if head is None:
        raise ValueError("it does not begin with a list of episodes")
    plain = text.isascii()
    at = head.end()
    while text[at : at + 1] != "]":
        data, end = _DECODER.raw_decode(text, at)
        yield (
            at if plain else len(text[:at].encode()),
            end - at if plain else len(text[at:end].encode()),
            data,
        )
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[at : at + 1] == ",":
            at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
        elif text[at : at + 1] != "]":
            raise ValueError(f"the list of episodes is broken at character {at}")


def _sign(path: Path, read: int) -> str:
    """A checksum over the beginning and the end of what was read."""
    with path.open("rb") as file:
        first = file.read(min(4096, read))
        file.seek(max(0, read - 4096))
        last = file.read(min(4096, read))
    return hashlib.blake2b(first + last, digest_size=16).hexdigest()
