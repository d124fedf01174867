"""Reads problems from files: JSON lines or an array, plain or gzip, and parquet.

An error message names the line.
"""

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
    """(where, row) for each problem of a file; the format follows from the file name."""
    return (
        read_parquet(path, columns, what, names)
        if path.suffix == ".parquet"
        else read_json(path, what)
    )


def read_json(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`PATH, line N` or `PATH, item N`, row) for each problem. `what` names the data in messages.

    Raises:
        UserError: The file or a line cannot be read.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as lines
        ):
            first = next((line for line in lines if line.strip()), "")
            lines.seek(0)
            if first.lstrip().startswith("["):
                for number, row in enumerate(_parse(lines.read(), str(path), what), start=1):
                    yield f"{path}, item {number}", row if isinstance(row, dict) else {}
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = _parse(line, f"{path}, line {number}", what)
                    yield f"{path}, line {number}", row if isinstance(row, dict) else {}
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(
            f"The {what} file {path} cannot be read: {error}. Fetch it again."
        ) from error


def _parse(text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "too deep")
        raise UserError(
            f"{where}: this is no JSON ({reason}): each line, or each item of one array, is "
            f"one {what} problem."
        ) from error


def read_parquet(
    path: Path, columns: Sequence[str], what: str, names: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`PATH, row N`, row) for each problem, with those of `columns` that the file has.

    With `names` only the rows whose `name` is among them are read: the official files hold
    gigabytes of tests.

    Raises:
        UserError: The file cannot be read, or pyarrow is not installed.
    """
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
    """The name and size of each file, for the record of a run."""
    return {f"data {file.name}": f"{file.stat().st_size} bytes" for file in files if file.is_file()}
