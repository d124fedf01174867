"""The index kept up with the journals, by a thread that reads on where it stopped: while the run
goes on, and after it.

Only whole lines are read: one that is being written has no newline yet and is read the next time. A
journal that is not the one read before (the run was
started over, the folder exchanged) is noticed by its size and by a sum over its beginning and the
place where reading stopped; the index is then made anew.
What cannot be read is said on the stage's pages and does not hide the rest.
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
from leafe.view._index import EPISODE, Index, drop
from leafe.view._text import storable, words

_BATCH = 4 << 20
"""Bytes of journal that are committed together."""
_ERRORS = (
    frozenset(Stop) - FAILED_BY_ENV - {Stop.success, Stop.diverged, Stop.budget, Stop.context_full}
)
_HEAD = re.compile(r'\s*\{\s*"episodes"\s*:\s*\[\s*')
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Follower:
    """Keeps an index up to date; `start` runs it in a thread, `look` does one round by itself."""

    def __init__(self, index: Index, every: float = 1.0) -> None:
        self.index = index
        self.revision = int(time.time())
        """Grows whenever there is something new to show."""
        self.read, self.of = 0, 0
        """Bytes of the journals that are in the index, and that there are."""
        self.problem = ""
        """Why nothing can be read at all; empty: it can."""
        self.trouble: dict[str, str] = {}
        """By stage, why its journal cannot be read on."""
        self.at: dict[str, tuple[int, int]] = {}
        """By stage, as `read` and `of`."""
        self.caught_up: set[str] = set()
        """Stages of which everything that was there is in the index, or can be read no further."""
        self.ready = threading.Event()
        """Everything that was there at the start is in the index."""
        self._every = every
        self._stop = threading.Event()
        self._tasks: dict[int, dict[str, int]] = {}
        self._files: dict[tuple[int, int], int] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def news(self) -> None:
        """There is something new to show that does not stand in the journals."""
        self.revision += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
                self.problem = ""
            # a full disk, a folder that vanishes under it: the thread goes on, and the pages say
            # what is wrong
            except Exception as error:
                self._say(
                    f"The index cannot be kept up ({type(error).__name__}: {error}). It is "
                    "tried again every second."
                )
            self.ready.set()
            self._stop.wait(self._every)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.revision += 1

    def look(self) -> None:
        """Read what is new. Nothing is done where the run's folder is gone."""
        run = self.index.run
        if not run.is_dir():
            self._say(
                f"The run folder {run} is no longer there: was it moved or deleted? Start "
                "the viewer again with the place where it is now."
            )
            return
        there = {
            "/".join(path.parts[-3:-1]): path.parent
            for path in sorted(run.glob("[!.]*/[!.]*/tasks.jsonl"))
        }
        with self.index.connect() as db:
            for _ in range(
                3
            ):  # a run that is started over while it is read is read from its beginning
                try:
                    self._round(db, there)
                    break
                except _Replaced:
                    db.rollback()
                    drop(db)
                    self._tasks.clear()
                    self._files.clear()
                    self.caught_up.clear()
                    self.revision += 1

    def _round(self, db: sqlite3.Connection, there: dict[str, Path]) -> None:
        known = {row["name"]: row for row in db.execute("SELECT * FROM stages")}
        if not known.keys() <= there.keys():
            raise _Replaced
        work: list[tuple[str, int, list[Path]]] = []
        read = of = 0
        for name, folder in there.items():
            row = known.get(name)
            stage = int(row["id"]) if row else self._begin(db, name)
            self._read_tasks(db, stage, folder, row["sign"] if row else None)
            try:
                paths = shards(folder)
                self.trouble.pop(name, None)
            except LeafeError as error:
                self._trouble(name, error)
                self.caught_up.add(name)
                continue
            before, there_are = (
                sum(self._offset(db, stage, number, path)[0] for number, path in enumerate(paths)),
                sum(path.stat().st_size for path in paths),
            )
            self.at[name] = before, there_are
            read, of = read + before, of + there_are
            work.append((name, stage, paths))
        self.read, self.of = read, of
        for name, stage, paths in work:
            try:
                for number, path in enumerate(paths):
                    self._read_shard(db, name, stage, number, path)
            except LeafeError as error:
                db.rollback()
                self._trouble(name, error)
            if self._stop.is_set():
                return
            if name not in self.caught_up:
                self.caught_up.add(name)
                self.revision += 1

    def _trouble(self, name: str, error: Exception) -> None:
        if self.trouble.get(name) != str(error):
            self.trouble[name] = str(error)
            self.revision += 1

    def _begin(self, db: sqlite3.Connection, name: str) -> int:
        stage = db.execute("INSERT INTO stages(name) VALUES (?)", (name,)).lastrowid
        db.commit()
        self.revision += 1
        assert stage is not None
        return stage

    def _read_tasks(
        self, db: sqlite3.Connection, stage: int, folder: Path, sign: str | None
    ) -> None:
        """The tasks of the stage, where their file is not the one that was read before."""
        path = folder / "tasks.jsonl"
        facts = path.stat()
        now = f"{facts.st_size} {facts.st_mtime_ns}"
        if now == sign:
            if stage not in self._tasks:
                self._tasks[stage] = {
                    row["task"]: row["id"]
                    for row in db.execute("SELECT id, task FROM tasks WHERE stage = ?", (stage,))
                }
            return
        damaged, offset, place = "", 0, 0
        before = {
            row["task"] for row in db.execute("SELECT task FROM tasks WHERE stage = ?", (stage,))
        }
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    data = json.loads(line)
                    task, instruction = storable(data["id"]), storable(data["instruction"])
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    damaged = damaged or (
                        f"{path}, line {number} is damaged ({type(error).__name__}: "
                        f"{error}): that task is not shown."
                    )
                else:
                    row = db.execute(
                        "INSERT INTO tasks(stage, place, task, instruction, offset, "
                        "length) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(stage, task) DO "
                        "UPDATE SET "
                        "place = excluded.place, offset = excluded.offset, length = "
                        "excluded.length, instruction = excluded.instruction RETURNING id",
                        (stage, place, task, instruction[:400], offset, len(line)),
                    ).fetchone()
                    if task not in before:
                        db.execute(
                            "INSERT INTO words(rowid, at, said, seen) VALUES (?, ?, ?, ?)",
                            (-row[0], f"s{stage}", words(task), words(instruction)),
                        )
                    place += 1
                offset += len(line)
        db.execute(
            (
                "UPDATE stages SET sign = ?, problem = CASE WHEN ? = '' THEN problem ELSE ? "
                "END WHERE id = ?"
            ),
            (now, damaged, damaged, stage),
        )
        db.commit()
        self._tasks[stage] = {
            row["task"]: row["id"]
            for row in db.execute("SELECT id, task FROM tasks WHERE stage = ?", (stage,))
        }
        self.revision += 1

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
        begun = offset

        def commit() -> None:
            nonlocal begun
            batch.write()
            db.execute(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?)",
                (stage, number, offset, at, _sign(path, offset)),
            )
            if problems:
                more = f" And {len(problems) - 1} lines more." if len(problems) > 1 else ""
                db.execute(
                    (
                        "UPDATE stages SET problem = trim(problem || ' ' || ?) WHERE id = ? "
                        "AND length(problem) < 2000"
                    ),
                    (problems[0] + more, stage),
                )
                problems.clear()
            db.commit()
            self._files[stage, number] = path.stat().st_ino
            self.read += offset - begun
            self.at[name] = self.at[name][0] + offset - begun, self.at[name][1]
            begun = offset
            self.revision += 1

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
                    except (
                        ValueError,
                        KeyError,
                        TypeError,
                        AttributeError,
                        RecursionError,
                    ) as error:
                        problems.append(
                            f"{path.name}, line {at} is damaged ({type(error).__name__}: "
                            f"{error}) and is not shown."
                        )
                offset += len(line)
                if offset - begun >= _BATCH:
                    commit()
        if offset > begun:
            commit()


class _Replaced(Exception):
    """The journals are not those that the index was made from."""


class _Batch:
    """What was read and is not yet in the index."""

    def __init__(
        self, db: sqlite3.Connection, stage: int, shard: int, tasks: dict[str, int]
    ) -> None:
        self.db, self.stage, self.shard, self.tasks = db, stage, shard, tasks
        self.next = int(db.execute("SELECT coalesce(max(id), 0) + 1 FROM episodes").fetchone()[0])
        self._clear()

    def _clear(self) -> None:
        self.episodes: list[tuple[Any, ...]] = []
        self.words: list[tuple[Any, ...]] = []
        self.sums: dict[int, list[Any]] = {}

    def add(self, episode: dict[str, Any], line: int, offset: int, length: int) -> None:
        """Take one episode; KeyError, TypeError or ValueError where it is none, and then nothing of
        it is taken."""
        task = self.tasks.get(storable(episode["task_id"]))
        if task is None:
            raise ValueError(
                f"an episode of the task {episode['task_id']!r}, which is not in tasks.jsonl"
            )
        turns, stop, count = episode["turns"], Stop(episode["stop"]), int(episode.get("count", 1))
        acts = unusable = tokens = 0
        prefix: int | None = None
        texts: list[tuple[Any, ...]] = []
        for nth, turn in enumerate(turns):
            kind, said, seen = turn["kind"], turn["action_text"], turn.get("observation", "")
            if kind == "act":
                acts += 1
                prefix = int(turn["step"]) if prefix is None else prefix
            elif kind == "reflect" and not turn.get("valid", True):
                unusable += 1
            tokens += turn.get("usage", {}).get("generated", 0)
            texts.append((self.next * EPISODE + nth, f"s{self.stage}", words(said), words(seen)))
        first, error = episode.get("first_observation", ""), episode.get("error", "")
        index = int(episode["index"])
        if error or (first and index == 0):
            texts.append(
                (
                    self.next * EPISODE + EPISODE - 1,
                    f"s{self.stage}",
                    words(first if index == 0 else ""),
                    words(error),
                )
            )
        won = stop is Stop.success
        saved = count * ((prefix or 0) + acts) - acts
        rollout = not (
            episode.get("start") is not None
            and episode.get("experience") is None
            and turns
            and all(turn["kind"] == "reflect" for turn in turns)
        )
        count *= rollout  # reflections on an earlier episode are no sample
        row = [
            int(rollout),
            count,
            count * won,
            episode.get("depth", 0) if won else None,
            acts,
            max(0, saved),
            episode.get("experience") is not None,
            count * (stop is Stop.diverged),
            unusable,
            count * (stop in _ERRORS),
            tokens,
        ]
        self.episodes.append(
            (self.next, task, index, str(stop), count, self.shard, line, offset, length)
        )
        self.words += texts[: EPISODE - 1]
        self.next += 1
        sums = self.sums.get(task)
        if sums is None:
            self.sums[task] = row
            return
        for i, value in enumerate(row):
            if i == _DEPTH:
                sums[i] = (
                    value if sums[i] is None else sums[i] if value is None else min(sums[i], value)
                )
            else:
                sums[i] += value

    def write(self) -> None:
        self.db.executemany(
            "INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self.episodes
        )
        self.db.executemany(
            "INSERT INTO words(rowid, at, said, seen) VALUES (?, ?, ?, ?)", self.words
        )
        self.db.executemany(_ADD, [(*values, task) for task, values in self.sums.items()])
        self._clear()


_DEPTH = 3
_ADD = """UPDATE tasks SET episodes = episodes + ?1, samples = samples + ?2, successes = successes + ?3, depth = min(coalesce(depth, ?4), coalesce(?4, depth)),
turns = turns + ?5, saved = saved + ?6, branches = branches + ?7, diverged = diverged + ?8, unusable = unusable + ?9, errors = errors + ?10,
tokens = tokens + ?11 WHERE id = ?12"""


def episodes(line: bytes) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(offset, length, data) of each episode of a journal's line, in bytes; ValueError where it is
    no such line."""
    text = line.decode()
    head = _HEAD.match(text)
    if head is None:
        raise ValueError("it does not begin with a list of episodes")
    plain = text.isascii()
    at = head.end()
    while text[at : at + 1] != "]":
        data, end = _DECODER.raw_decode(text, at)
        start, length = (
            (at, end - at) if plain else (len(text[:at].encode()), len(text[at:end].encode()))
        )
        yield start, length, data
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise ValueError(f"the list of episodes is broken at character {at}")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _sign(path: Path, read: int) -> str:
    """A sum over the beginning of what was read and its end."""
    with path.open("rb") as file:
        first = file.read(min(4096, read))
        file.seek(max(0, read - 4096))
        last = file.read(min(4096, read))
    return hashlib.blake2b(first + last, digest_size=16).hexdigest()
