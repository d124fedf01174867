"""Problems from files: JSON lines or an array, plain or gzip, and parquet. Whatever is wrong with
one is said with its line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_rows(
    path: Path, columns: Sequence[str], what: str, names: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, the row) for each problem of a file: JSON lines or one JSON array, plain or gzip, or
    parquet, of which `read_parquet` says more."""
    return (
        read_parquet(path, columns, what, names)
        if path.suffix == ".parquet"
        else read_json(path, what)
    )


def read_json(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`PATH, line N` or `PATH, item N`, the row); UserError where the file or a line cannot be
    read. `what`: for messages."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as lines
        ):
            first = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            if first.lstrip().startswith("["):
                for number, row in enumerate(_loaded(lines.read(), str(path), what), start=1):
                    yield f"{path}, item {number}", row if isinstance(row, dict) else {}
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = _loaded(line, f"{path}, line {number}", what)
                    yield f"{path}, line {number}", row if isinstance(row, dict) else {}
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(
            f"The {what} file {path} cannot be read: {error}. Fetch it again."
        ) from error


def _loaded(text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", "too deep")
        raise UserError(
            f"{where}: this is no JSON ({said}): each line, or each item of one array, is "
            f"one {what} problem."
        ) from error


def read_parquet(
    path: Path, columns: Sequence[str], what: str, names: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`PATH, row N`, the row) with those of `columns` that the file has, and where `names` are
    given only the rows whose `name` is among them: the official
    files hold gigabytes of tests. UserError where the file cannot be read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError(
            f"Reading {path} needs the package 'pyarrow': run pip install 'leafe[code]'."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            before = 0
            for batch in file.iter_batches(batch_size=16, columns=there):
                kept = [
                    at
                    for at in range(batch.num_rows)
                    if names is None or batch.column("name")[at].as_py() in names
                ]
                for at, row in zip(
                    kept, batch.take(pyarrow.array(kept, pyarrow.int64())).to_pylist(), strict=True
                ):
                    yield f"{path}, row {before + at + 1}", row
                before += batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"The {what} file {path} cannot be read: {' '.join(str(error).split())[:200]}. "
            "Fetch it again."
        ) from error


def file_versions(files: Iterable[Path]) -> dict[str, str]:
    """Which data it was, for a run's record: name and size of each file."""
    return {f"data {file.name}": f"{file.stat().st_size} bytes" for file in files if file.is_file()}
