"""The index: where every episode of a run lies in its journals, what the task lists say of it, and
which words stand in it.

The journals stay the truth and hold the texts; the index is one SQLite file beside the user's other
caches, made by reading them once and thrown away at
any time. So a page reads the lines of one task, however large the run is. Written by `_follow`,
read here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from leafe.core import Episode, Task, Tree
from leafe.runs import shards
from leafe.view._text import match, storable

VERSION = 2
"""Of the file; another one is made anew."""
EPISODE = 1_000_000
"""The index of words numbers texts: episode * EPISODE + the turn's place in it, and EPISODE - 1 for
what stands before the first turn; a task is -id."""
_UNUSED_S = 30 * 86400

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE stages(id INTEGER PRIMARY KEY, name TEXT UNIQUE, sign TEXT, problem TEXT NOT NULL DEFAULT '');
CREATE TABLE shards(stage INTEGER, number INTEGER, read INTEGER, line INTEGER, sign TEXT, PRIMARY KEY(stage, number)) WITHOUT ROWID;
CREATE TABLE tasks(
    id INTEGER PRIMARY KEY, stage INTEGER, place INTEGER, task TEXT, instruction TEXT, offset INTEGER, length INTEGER,
    episodes INTEGER NOT NULL DEFAULT 0, samples INTEGER NOT NULL DEFAULT 0, successes INTEGER NOT NULL DEFAULT 0, depth INTEGER,
    turns INTEGER NOT NULL DEFAULT 0, saved INTEGER NOT NULL DEFAULT 0, branches INTEGER NOT NULL DEFAULT 0, diverged INTEGER NOT NULL DEFAULT 0,
    unusable INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, UNIQUE(stage, task));
CREATE INDEX task_place ON tasks(stage, place);
CREATE TABLE episodes(
    id INTEGER PRIMARY KEY, task INTEGER, nth INTEGER, stop TEXT, count INTEGER, shard INTEGER, line INTEGER, offset INTEGER, length INTEGER);
CREATE INDEX episode_task ON episodes(task, nth);
CREATE VIRTUAL TABLE words USING fts5(at, said, seen, content='');
"""
# depth: the least of a successful episode, NULL without one. saved: turns on the trajectories of
# all samples, less those that were sampled.


@dataclass(frozen=True, slots=True)
class Filter:
    """One way to look at a stage's tasks."""

    title: str
    where: str
    """SQL over the columns of `tasks`."""
    order: str = "place"


FILTERS: dict[str, Filter] = {
    "all": Filter("all", "1"),
    "solved": Filter("solved", "successes > 0"),
    "rescued": Filter("solved by rollback only", "successes > 0 AND depth > 0"),
    "never": Filter("never solved", "successes = 0 AND episodes > 0"),
    "diverged": Filter("diverged", "diverged > 0"),
    "unusable": Filter("unusable reflections", "unusable > 0"),
    "errors": Filter("errors", "errors > 0"),
    "saved": Filter("most turns saved", "saved > 0", "saved DESC, place"),
    "waiting": Filter("not begun", "episodes = 0"),
}
SORTS = {
    "place": "place",
    "episodes": "episodes DESC, place",
    "turns": "turns DESC, place",
    "saved": "saved DESC, place",
    "branches": "branches DESC, place",
    "tokens": "tokens DESC, place",
    "rate": "1.0 * successes / max(samples, 1) DESC, place",
    "task": "task",
}


class Index:
    """The index of one run, open for readers: each question opens its own connection, so that it
    may come from any thread."""

    def __init__(self, run: Path, cache: Path | None = None) -> None:
        """`cache`: the folder for index files; None: the user's. Where another viewer has this
        run's file, or none can be written, it is a temporary one."""
        self.run = run
        self._lock = -1
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.path = self._place(cache or default_cache())
        with self.connect() as db:
            make(db)

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.row_factory = sqlite3.Row
            yield db
        finally:
            db.close()

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._temporary is not None:
            self._temporary.cleanup()

    def _place(self, cache: Path) -> Path:
        name = hashlib.blake2b(
            str(self.run.resolve()).encode("utf-8", "surrogateescape"), digest_size=10
        ).hexdigest()
        path = cache / f"{name}.v{VERSION}.sqlite"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _forget_old(cache)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.touch(mode=0o600)
        except OSError:
            self._temporary = tempfile.TemporaryDirectory(prefix="leafe-view-")
            return Path(self._temporary.name) / "index.sqlite"
        if not _sound(path):
            for each in (
                path,
                path.with_name(path.name + "-wal"),
                path.with_name(path.name + "-shm"),
            ):
                each.unlink(missing_ok=True)
        return path

    def stages(self) -> list[sqlite3.Row]:
        """id, name, problem and the sums over the tasks, by name."""
        with self.connect() as db:
            return db.execute(
                "SELECT s.id, s.name, s.problem, count(t.id) AS tasks, "
                "coalesce(sum(t.episodes), 0) AS episodes, coalesce(sum(t.samples), 0) AS "
                "samples, "
                "coalesce(sum(t.turns), 0) AS turns, coalesce(sum(t.saved), 0) AS saved, "
                "coalesce(sum(t.branches), 0) AS branches, "
                "coalesce(sum(t.successes > 0), 0) AS solved, coalesce(sum(t.successes > 0 "
                "AND t.depth > 0), 0) AS rescued, "
                "coalesce(sum(t.successes), 0) AS successes, coalesce(sum(t.episodes > 0), "
                "0) AS begun, coalesce(sum(t.diverged), 0) AS diverged, "
                "coalesce(sum(t.unusable), 0) AS unusable, coalesce(sum(t.errors), 0) AS "
                "errors, coalesce(sum(t.tokens), 0) AS tokens "
                "FROM stages s LEFT JOIN tasks t ON t.stage = s.id GROUP BY s.id ORDER BY s.name"
            ).fetchall()

    def stage(self, name: str) -> sqlite3.Row | None:
        with self.connect() as db:
            found: sqlite3.Row | None = db.execute(
                "SELECT * FROM stages WHERE name = ?", (name,)
            ).fetchone()
            return found

    def counts(self, stage: int, named: str = "") -> dict[str, int]:
        """How many tasks each filter shows."""
        sums = ", ".join(
            f"coalesce(sum({f.where}), 0) AS {name}" for name, f in FILTERS.items() if name != "all"
        )
        where, values = _named(stage, named)
        with self.connect() as db:
            row = db.execute(
                f"SELECT count(*) AS 'all', {sums} FROM tasks WHERE {where}", values
            ).fetchone()
        return {name: row[name] for name in FILTERS}

    def tasks(
        self, stage: int, show: str, sort: str, named: str, offset: int, limit: int
    ) -> list[sqlite3.Row]:
        chosen = FILTERS[show]
        where, values = _named(stage, named)
        order = SORTS.get(sort, chosen.order)
        with self.connect() as db:
            sql = (
                f"SELECT * FROM tasks WHERE {where} AND {chosen.where} ORDER BY {order} LIMIT "
                "? OFFSET ?"
            )
            return db.execute(sql, (*values, limit, offset)).fetchall()

    def task(self, stage: int, task: str) -> sqlite3.Row | None:
        with self.connect() as db:
            found: sqlite3.Row | None = db.execute(
                "SELECT * FROM tasks WHERE stage = ? AND task = ?", (stage, task)
            ).fetchone()
            return found

    def records(self, task: int) -> int:
        """How many records of the journals are the task's: rollouts, and reflections on earlier
        ones."""
        with self.connect() as db:
            return int(
                db.execute("SELECT count(*) FROM episodes WHERE task = ?", (task,)).fetchone()[0]
            )

    def beside(self, row: sqlite3.Row) -> tuple[str | None, str | None]:
        """The tasks before and after this one, in the tasks' order."""
        with self.connect() as db:
            before = db.execute(
                "SELECT task FROM tasks WHERE stage = ? AND place < ? ORDER BY place DESC LIMIT 1",
                (row["stage"], row["place"]),
            ).fetchone()
            after = db.execute(
                "SELECT task FROM tasks WHERE stage = ? AND place > ? ORDER BY place LIMIT 1",
                (row["stage"], row["place"]),
            ).fetchone()
        return (before["task"] if before else None, after["task"] if after else None)

    def tree(self, stage_name: str, row: sqlite3.Row) -> tuple[Tree, str]:
        """The task's tree, and a sentence where some of it cannot be shown. OSError where the files
        are gone."""
        folder = self.run / stage_name
        with self.connect() as db:
            places = db.execute(
                "SELECT nth, shard, line, offset, length FROM episodes WHERE task = ? ORDER BY id",
                (row["id"],),
            ).fetchall()
        with (folder / "tasks.jsonl").open("rb") as file:
            file.seek(row["offset"])
            try:
                task = Task.from_json(json.loads(file.read(row["length"])))
            except (ValueError, TypeError, RecursionError):
                task = Task(
                    row["task"], "", "", row["instruction"]
                )  # the file was replaced a moment ago
        if storable(task.id) != row["task"]:
            task = Task(row["task"], "", "", row["instruction"])
        tree = Tree(task)
        paths = shards(folder)
        with contextlib.ExitStack() as opened:
            files: dict[int, BinaryIO] = {}
            for place in places:
                try:
                    number = place["shard"]
                    if number not in files:
                        files[number] = opened.enter_context(paths[number].open("rb"))
                    files[number].seek(place["offset"])
                    tree.add(Episode.from_json(json.loads(files[number].read(place["length"]))))
                except (
                    IndexError,
                    ValueError,
                    KeyError,
                    TypeError,
                    AttributeError,
                    RecursionError,
                ) as error:
                    return (
                        tree,
                        (
                            f"Episode {place['nth']} (shard {number}, line {place['line']}) "
                            f"and what follows it cannot be shown: {error}."
                        ),
                    )
        return tree, ""

    def search(
        self, query: str, stage: int | None, offset: int, limit: int
    ) -> tuple[list[Hit], int]:
        """The texts that hold all words of the query, in the journals' order, tasks first; and
        their number, counted to 10,001 at most."""
        asked = match(query, stage)
        if asked is None:
            return [], 0
        with self.connect() as db:
            number = db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT 10001)",
                (asked,),
            ).fetchone()[0]
            rows = [
                row[0]
                for row in db.execute(
                    "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ? OFFSET ?",
                    (asked, limit, offset),
                )
            ]
            return [hit for rowid in rows if (hit := self._hit(db, rowid)) is not None], number

    def _hit(self, db: sqlite3.Connection, rowid: int) -> Hit | None:
        columns = "s.name AS stage, t.task AS task, t.instruction AS instruction"
        if rowid < 0:
            row = db.execute(
                f"SELECT {columns} FROM tasks t JOIN stages s ON s.id = t.stage WHERE t.id = ?",
                (-rowid,),
            ).fetchone()
            return (
                Hit(row["stage"], row["task"], None, None, "task", row["instruction"], "")
                if row
                else None
            )
        episode, nth = divmod(rowid, EPISODE)
        row = db.execute(
            f"SELECT {columns}, e.nth AS nth, e.shard AS shard, e.offset AS offset, "
            "e.length AS length FROM episodes e JOIN tasks t ON t.id = e.task "
            "JOIN stages s ON s.id = t.stage WHERE e.id = ?",
            (episode,),
        ).fetchone()
        if row is None:
            return None
        try:
            with shards(self.run / row["stage"])[row["shard"]].open("rb") as file:
                file.seek(row["offset"])
                data: dict[str, Any] = json.loads(file.read(row["length"]))
            turns = data["turns"]
            if nth == EPISODE - 1:
                first = turns[0]["id"] if turns else None
                return Hit(
                    row["stage"],
                    row["task"],
                    row["nth"],
                    first,
                    "start",
                    data.get("first_observation", ""),
                    data.get("error", ""),
                )
            turn = turns[nth]
            return Hit(
                row["stage"],
                row["task"],
                row["nth"],
                turn["id"],
                turn["kind"],
                turn["action_text"],
                turn.get("observation", ""),
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Hit:
    """One text that a search found."""

    stage: str
    task: str
    episode: int | None
    turn: str | None
    kind: str
    """`task`, `start` (what stands before the first turn), or the turn's kind."""
    said: str
    seen: str


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leafe" / "view"


def make(db: sqlite3.Connection) -> None:
    """The tables, where they are not there yet."""
    db.execute("PRAGMA journal_mode = WAL")
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is None:
        db.executescript("BEGIN;" + _TABLES + "COMMIT;")


def drop(db: sqlite3.Connection) -> None:
    """Forget everything: the journals are others than those that were read."""
    tables: Sequence[str] = ("meta", "stages", "shards", "tasks", "episodes", "words")
    db.executescript(
        "BEGIN;" + "".join(f"DROP TABLE IF EXISTS {name};" for name in tables) + _TABLES + "COMMIT;"
    )


def _named(stage: int, named: str) -> tuple[str, tuple[Any, ...]]:
    if not named:
        return "stage = ?", (stage,)
    like = "%" + storable(named).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    return "stage = ? AND (task LIKE ? ESCAPE '\\' OR instruction LIKE ? ESCAPE '\\')", (
        stage,
        like,
        like,
    )


def _sound(path: Path) -> bool:
    try:
        db = sqlite3.connect(path)
        try:
            found = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
            return not found or {"meta", "stages", "shards", "tasks", "episodes", "words"} <= found
        finally:
            db.close()
    except sqlite3.DatabaseError:
        return False


def _forget_old(cache: Path) -> None:
    """Index files that no viewer has opened for a month; their runs, if they are still there, are
    read again when they are asked for."""
    for path in cache.glob("*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.with_suffix(".sqlite").stat().st_mtime > _UNUSED_S:
                for name in (
                    f"{path.stem}.sqlite",
                    f"{path.stem}.sqlite-wal",
                    f"{path.stem}.sqlite-shm",
                    path.name,
                ):
                    path.with_name(name).unlink(missing_ok=True)
