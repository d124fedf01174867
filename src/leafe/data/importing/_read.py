"""Reads log files into logged episodes: chat lines, Inspect logs, verifiers traces (docs/data.md).

A record that cannot be read is counted with its line, and reading goes on. A file without a single
readable record is a UserError.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from leafe.core import UserError
from leafe.core.textfile import refuse_other_encodings
from leafe.data.importing._inspect import read_inspect
from leafe.data.importing._records import InvalidRecord, LoggedEpisode, Problems, episode, number
from leafe.data.importing._verifiers import VERIFIERS_FILES, traces

Format = Literal["chat", "inspect", "verifiers"]
FORMATS: tuple[Format, ...] = ("chat", "inspect", "verifiers")
MAX_LINE = 64 << 20
"""Bytes of one line (one episode)."""


def read_log(path: Path, format: Format, problems: Problems) -> Iterator[LoggedEpisode]:
    """Read the episodes of a log, in order.

    Args:
        path: The file; for verifiers also its output folder.
        format: chat, inspect or verifiers.
        problems: Counts the records that are left out.

    Yields:
        One logged episode at a time.

    Raises:
        UserError: The file is missing, is no such log, or holds no episode.
    """
    if format not in FORMATS:
        raise UserError(
            f"There is no format {format!r} to import: choose one of {', '.join(FORMATS)}."
        )
    if format == "verifiers" and path.is_dir():
        path = next((path / name for name in VERIFIERS_FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise UserError(f"{path} is not there, or is no file: give the file of the {format} log.")
    count = 0
    try:
        for found in _episodes(path, format, problems):
            count += 1
            yield found
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not count:
        first = f" The first: {problems.sentences[0]}" if problems.sentences else " It is empty."
        raise UserError(
            f"{path} holds no episode in the format {format!r} (docs/data.md describes it).{first}"
        )


def _episodes(path: Path, format: Format, problems: Problems) -> Iterator[LoggedEpisode]:
    if format == "inspect":
        yield from read_inspect(path, problems)
    elif format == "verifiers" and path.suffix == ".parquet":
        yield from _parse_each(_parquet(path), traces, problems)
    else:
        yield from _parse_each(
            _lines(path, problems), _chat if format == "chat" else traces, problems
        )


def _parse_each(
    records: Iterator[tuple[str, Mapping[str, Any]]],
    parse: Callable[[str, Mapping[str, Any], Problems], Iterator[LoggedEpisode]],
    problems: Problems,
) -> Iterator[LoggedEpisode]:
    for where, record in records:
        with problems.skipping(where):
            yield from parse(where, record, problems)


def _chat(where: str, record: Mapping[str, Any], problems: Problems) -> Iterator[LoggedEpisode]:
    task = record.get("task", record.get("task_id"))
    about: dict[str, Any] = {}
    if isinstance(task, Mapping):
        payload = task.get("payload")
        if payload is not None and not isinstance(payload, Mapping):
            raise InvalidRecord(
                "a payload that is no object", "the payload of its task is no object"
            )
        about |= {"instruction": str(task.get("instruction", "")), "payload": payload}
        task = task.get("id")
    if task is not None and not isinstance(task, str | int):
        raise InvalidRecord(
            "a task that is no name", "its task is neither an id nor an object with an id"
        )
    success = record.get("success")
    if success is not None and not isinstance(success, bool):
        raise InvalidRecord(
            "success that is not true or false",
            f"its success is {str(success)[:40]!r}, and not true or false",
        )
    for name in ("model", "split"):
        if isinstance(record.get(name), str) and record[name]:
            about[name] = record[name]
    reward = number(record.get("reward"), "its reward")
    yield episode(
        where,
        record.get("messages"),
        problems,
        task=None if task is None else str(task),
        reward=reward,
        success=success,
        **about,
    )


def _lines(path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every line that is a JSON object; empty lines are skipped."""
    with path.open("rb") as file:
        head = file.read(4)
        refuse_other_encodings(head, str(path))
        if head.startswith((b"PK\x03\x04", b"PAR1", b"\x1f\x8b")):
            raise UserError(
                f"{path} is no file of JSON lines (an archive, or parquet): unpack it, or "
                "name its --format."
            )
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path.name}, line {number}"
            with problems.skipping(where):
                if len(line) > MAX_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE)
                    raise InvalidRecord(
                        "a line that is too long", f"it is longer than {MAX_LINE >> 20} MiB"
                    )
                if line.strip():
                    yield where, _object(line)


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRecord("not UTF-8", f"it is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("not JSON", f"it is not JSON ({str(error)[:120]})") from error
    if not isinstance(value, Mapping):
        raise InvalidRecord("no object", "it is JSON, and no object")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError(
            f"Reading {path} needs the package pyarrow, which is not installed: pip "
            "install pyarrow."
        ) from error
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{path} is no parquet file, or a part of one: {str(error)[:120]}."
        ) from error
