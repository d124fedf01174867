"""Text files that users write: UTF-8 with or without a byte order mark; any other encoding is
refused by its name."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

from leafe.core.errors import UserError

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(path: str | Path) -> str:
    """Read a text file that a user wrote.

    Args:
        path: The file.

    Returns:
        Its text, without a byte order mark.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return decoded(raw, str(path))


def decoded(raw: bytes, name: str) -> str:
    """The text of a user's file; `UserError`, with `name`, where it is not UTF-8."""
    refuse_other_encodings(raw, name)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} cannot be read: it is not UTF-8 (byte 0x{raw[error.start]:02x} in line "
            f"{line}; perhaps Latin-1 or Windows-1252): save it as UTF-8."
        ) from error


def refuse_other_encodings(head: bytes, name: str) -> None:
    """`UserError` where a text file begins as UTF-16 or UTF-32 does, with a mark or without."""
    found = next((kind for mark, kind in _MARKS if head.startswith(mark)), None)
    if found is None and b"\0" in head[:4]:  # a text that begins with an ASCII character
        found = "UTF-32" if b"\0\0" in head[:4] else "UTF-16"
    if found is not None:
        raise UserError(
            f"{name} cannot be read: it is {found}, as some editors and shells save it: save it "
            "as UTF-8."
        )


def parsed_toml(text: str, name: str) -> dict[str, Any]:
    """The values of a TOML text; `UserError`, with `name`, where it is not valid."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{name} cannot be read: it is nested too deeply.") from error
    except ValueError as error:  # TOMLDecodeError, and what Python's own int() refuses
        raise UserError(f"{name} cannot be read: it is not valid TOML ({error}).") from error
