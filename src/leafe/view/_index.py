"""The index: where every episode of a run lies in its journals, counts of every task, and a search
index of all texts.

The journals hold the texts; the index is one SQLite file among the user's caches, made by reading
them once, and can be deleted at any time. So a page reads the lines of one task, however large the
run is. `_follow` writes it, this module reads it.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from leafe.core import Episode, Task, Tree
from leafe.runs import shards
from leafe.view._text import fts_query, storable

VERSION = 3
"""Of the file; a file of another version is not read."""
EPISODE = 1_000_000
"""The search index numbers texts: episode * EPISODE + the turn's place in it, and EPISODE - 1 for
what stands before the first turn; a task is -id."""
_UNUSED_S = 30 * 86400
_TABLES = ("meta", "stages", "shards", "tasks", "episodes", "words")

# depth: the least of a successful episode, NULL without one. saved: turns on the trajectories of
# all samples, less those that were sampled.
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE stages(
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, sign TEXT, problem TEXT NOT NULL DEFAULT '');
CREATE TABLE shards(
    stage INTEGER, number INTEGER, read INTEGER, line INTEGER, sign TEXT,
    PRIMARY KEY(stage, number)) WITHOUT ROWID;
CREATE TABLE tasks(
    id INTEGER PRIMARY KEY, stage INTEGER, place INTEGER, task TEXT, instruction TEXT,
    offset INTEGER, length INTEGER, depth INTEGER,
    episodes INTEGER NOT NULL DEFAULT 0, samples INTEGER NOT NULL DEFAULT 0,
    successes INTEGER NOT NULL DEFAULT 0, turns INTEGER NOT NULL DEFAULT 0,
    saved INTEGER NOT NULL DEFAULT 0, branches INTEGER NOT NULL DEFAULT 0,
    diverged INTEGER NOT NULL DEFAULT 0, unusable INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, UNIQUE(stage, task));
CREATE INDEX task_place ON tasks(stage, place);
CREATE TABLE episodes(
    id INTEGER PRIMARY KEY, task INTEGER, nth INTEGER, stop TEXT, count INTEGER, shard INTEGER,
    line INTEGER, offset INTEGER, length INTEGER);
CREATE INDEX episode_task ON episodes(task, nth);
CREATE VIRTUAL TABLE words USING fts5(stage, answer, observation, content='');
"""
SUMS = (
    *("episodes", "samples", "turns", "saved", "branches", "successes", "diverged", "unusable"),
    *("errors", "tokens"),
)
"""The counts of a task that are summed over a stage."""
COUNTS = ("tasks", "begun", "solved", "rescued", *SUMS)
"""What `Index.stages` counts of a stage."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One way to look at a stage's tasks: `where` and `order` are SQL over the columns of
    `tasks`."""

    title: str
    where: str
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


@dataclass(frozen=True, slots=True)
class Hit:
    """One text that a search found.

    Attributes:
        stage, task: Where it stands.
        episode, turn: The episode's index and the turn's id; None for a task.
        kind: `task`, `start` (what stands before the first turn), or the turn's kind.
        answer, observation: The policy's text and the environment's.
    """

    stage: str
    task: str
    episode: int | None
    turn: str | None
    kind: str
    answer: str
    observation: str


class Index:
    """The index of one run, open for readers. Each query opens a connection of its own, so it may
    come from any thread.

    Args:
        run: The run folder.
        cache: The folder for index files; default: the user's cache. Where another viewer has this
            run's file, or none can be written, the file is a temporary one.
    """

    def __init__(self, run: Path, cache: Path | None = None) -> None:
        self.run = run
        self._lock = -1
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.path = self._place(cache or default_cache())
        with self.connect() as db:
            db.execute("PRAGMA journal_mode = WAL")
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is None:
                db.executescript(f"BEGIN;{_SCHEMA}COMMIT;")

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
        """The file of this index, locked; a damaged file is deleted."""
        run = str(self.run.resolve()).encode("utf-8", "surrogateescape")
        path = cache / f"{hashlib.blake2b(run, digest_size=10).hexdigest()}.v{VERSION}.sqlite"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _delete_unused(cache)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.touch(mode=0o600)
        except OSError:
            self._temporary = tempfile.TemporaryDirectory(prefix="leafe-view-")
            return Path(self._temporary.name) / "index.sqlite"
        if not _sound(path):
            _delete(path)
        return path

    def _all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self.connect() as db:
            return db.execute(sql, values).fetchall()

    def _first(self, sql: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._all(f"{sql} LIMIT 1", *values)), None)

    def stages(self) -> list[sqlite3.Row]:
        """id, name, problem and `COUNTS` of every stage, by name."""
        sums = ", ".join(f"coalesce(sum(t.{name}), 0) AS {name}" for name in SUMS)
        return self._all(
            "SELECT s.id, s.name, s.problem, count(t.id) AS tasks, "
            "coalesce(sum(t.episodes > 0), 0) AS begun, "
            "coalesce(sum(t.successes > 0), 0) AS solved, "
            f"coalesce(sum(t.successes > 0 AND t.depth > 0), 0) AS rescued, {sums} "
            "FROM stages s LEFT JOIN tasks t ON t.stage = s.id GROUP BY s.id ORDER BY s.name"
        )

    def stage(self, name: str) -> sqlite3.Row | None:
        return self._first("SELECT * FROM stages WHERE name = ?", name)

    def counts(self, stage: int, named: str = "") -> dict[str, int]:
        """How many tasks each filter shows."""
        sums = ", ".join(f"coalesce(sum({f.where}), 0) AS '{name}'" for name, f in FILTERS.items())
        where, values = _named(stage, named)
        return dict(self._all(f"SELECT {sums} FROM tasks WHERE {where}", *values)[0])

    def tasks(
        self, stage: int, show: str, sort: str, named: str, offset: int, limit: int
    ) -> list[sqlite3.Row]:
        """The tasks of a filter, sorted, from `offset` on; `named` must stand in id or
        instruction."""
        where, values = _named(stage, named)
        return self._all(
            f"SELECT * FROM tasks WHERE {where} AND {FILTERS[show].where} "
            f"ORDER BY {SORTS.get(sort, FILTERS[show].order)} LIMIT ? OFFSET ?",
            *(*values, limit, offset),
        )

    def task(self, stage: int, task: str) -> sqlite3.Row | None:
        return self._first("SELECT * FROM tasks WHERE stage = ? AND task = ?", stage, task)

    def records(self, task: int) -> int:
        """How many episodes of the journals are the task's, records that look back included."""
        return int(self._all("SELECT count(*) FROM episodes WHERE task = ?", task)[0][0])

    def beside(self, row: sqlite3.Row) -> tuple[str | None, str | None]:
        """The tasks before and after this one, in the tasks' order."""
        before, after = (
            self._first(
                f"SELECT task FROM tasks WHERE stage = ? AND place {side} ? ORDER BY place {order}",
                row["stage"],
                row["place"],
            )
            for side, order in (("<", "DESC"), (">", "ASC"))
        )
        return before["task"] if before else None, after["task"] if after else None

    def tree(self, stage_name: str, row: sqlite3.Row) -> tuple[Tree, str]:
        """The task's tree, and a sentence where some of it cannot be shown. OSError where the files
        are gone."""
        folder = self.run / stage_name
        places = self._all("SELECT * FROM episodes WHERE task = ? ORDER BY id", row["id"])
        tree, used = Tree(_task(folder, row)), {place["shard"] for place in places}
        with contextlib.ExitStack() as opened:
            paths = enumerate(shards(folder))
            files = {n: opened.enter_context(path.open("rb")) for n, path in paths if n in used}
            for place in places:
                try:
                    data = json.loads(_read(files[place["shard"]], place))
                    tree.add(Episode.from_json(data))
                except (
                    LookupError,
                    ValueError,
                    TypeError,
                    AttributeError,
                    RecursionError,
                ) as error:
                    return tree, (
                        f"Episode {place['nth']} (shard {place['shard']}, line {place['line']}) "
                        f"and what follows it cannot be shown: {error}."
                    )
        return tree, ""

    def search(
        self, query: str, stage: int | None, offset: int, limit: int
    ) -> tuple[list[Hit], int]:
        """The texts that hold all words of the query, in the journals' order, tasks first; and how
        many there are, counted to 10,001 at most."""
        asked = fts_query(query, stage)
        if asked is None:
            return [], 0
        count = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT 10001)"
        found = self._all(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ? OFFSET ?",
            *(asked, limit, offset),
        )
        hits = [hit for row in found if (hit := self._hit(row[0])) is not None]
        return hits, self._all(count, asked)[0][0]

    def _hit(self, rowid: int) -> Hit | None:
        columns = "s.name AS stage, t.task AS task, t.instruction AS instruction"
        if rowid < 0:
            row = self._first(
                f"SELECT {columns} FROM tasks t JOIN stages s ON s.id = t.stage WHERE t.id = ?",
                -rowid,
            )
            if row is None:
                return None
            return Hit(row["stage"], row["task"], None, None, "task", row["instruction"], "")
        episode, nth = divmod(rowid, EPISODE)
        row = self._first(
            f"SELECT {columns}, e.nth AS nth, e.shard AS shard, e.offset AS offset, "
            "e.length AS length FROM episodes e JOIN tasks t ON t.id = e.task "
            "JOIN stages s ON s.id = t.stage WHERE e.id = ?",
            episode,
        )
        if row is None:
            return None
        where = row["stage"], row["task"], row["nth"]
        try:
            with shards(self.run / row["stage"])[row["shard"]].open("rb") as file:
                data = json.loads(_read(file, row))
            turns = data["turns"]
            if nth == EPISODE - 1:
                first = turns[0]["id"] if turns else None
                texts = data.get("first_observation", ""), data.get("error", "")
                return Hit(*where, first, "start", *texts)
            turn = turns[nth]
            texts = turn["action_text"], turn.get("observation", "")
            return Hit(*where, turn["id"], turn["kind"], *texts)
        except (OSError, ValueError, LookupError, TypeError):
            return None


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leafe" / "view"


def clear(db: sqlite3.Connection) -> None:
    """Delete everything: the journals are not those that were read."""
    dropped = "".join(f"DROP TABLE IF EXISTS {name};" for name in _TABLES)
    db.executescript(f"BEGIN;{dropped}{_SCHEMA}COMMIT;")


def _read(file: BinaryIO, place: sqlite3.Row) -> bytes:
    file.seek(place["offset"])
    return file.read(place["length"])


def _task(folder: Path, row: sqlite3.Row) -> Task:
    """The task from its file, or from the index where the file was replaced a moment ago."""
    with (folder / "tasks.jsonl").open("rb") as file:
        line = _read(file, row)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        task = Task.from_json(json.loads(line))
        if storable(task.id) == row["task"]:
            return task
    return Task(row["task"], "", "", row["instruction"])


def _named(stage: int, named: str) -> tuple[str, tuple[Any, ...]]:
    if not named:
        return "stage = ?", (stage,)
    like = "%" + storable(named).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    where = "stage = ? AND (task LIKE ? ESCAPE '\\' OR instruction LIKE ? ESCAPE '\\')"
    return where, (stage, like, like)


def _sound(path: Path) -> bool:
    """Whether the file is a new one, or an index with all tables."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            found = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
            return not found or set(_TABLES) <= found
    except sqlite3.DatabaseError:
        return False


def _delete(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _delete_unused(cache: Path) -> None:
    """Delete the index files that no viewer has opened for a month."""
    for path in cache.glob("*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.with_suffix(".sqlite").stat().st_mtime > _UNUSED_S:
                _delete(path.with_suffix(".sqlite"))
                path.unlink(missing_ok=True)
