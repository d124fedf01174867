"""Reads the JSON object that a model's answer ends with, within bounds and without guessing.

Strict JSON comes first, wherever it stands, with raw line breaks in its texts. What is nearly JSON
(a comma too many, other quotes, a key without quotes) is read by the library json-repair, within
three bounds. It gets a piece whose braces match, never an answer that was cut. The piece has at
most a few thousand characters and little depth, since the library's time grows with the square of
its length and its stack with its depth. The result must hold exactly the letters and digits of the
piece, so that only punctuation is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from leafe.core import clean_text

LONGEST = 20_000
"""Characters at an answer's end that are searched for an object."""
_REPAIRED = 2_000
_DEEPEST = 16
_WRAPPED = 3
"""Most objects or lists around the wanted one."""
_WHOLE = re.compile(r"\s*\[?\s*(?:step\s*)?#?(\d{1,9})(?:\.0{1,9})?\s*\]?\s*", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


class Unreadable(ValueError):
    """The answer holds no readable object; the message says why."""


def last_object(text: str, key: str) -> dict[str, Any]:
    """Read the last object of a text that holds a key.

    Args:
        text: A model's answer, drafts taken out.
        key: A key of the wanted object, in lower case.

    Returns:
        The last object with that key, alone, among other text or within others; if none has it, the
        last object. Keys are in lower case, and texts are cleaned.

    Raises:
        Unreadable: There is no object, or the last one with the key cannot be read.
    """
    text = text[-LONGEST:]
    last: dict[str, Any] | None = None
    other: dict[str, Any] | None = None
    end = 0
    for value, until in _strict(text):
        found = _within(value, key, _WRAPPED)
        if found is not None:
            last, end = found, until
        elif isinstance(value, dict):
            other = value
    piece = _near(text[end:], key)
    if piece:
        last = _within(_repaired(piece), key, _WRAPPED)
        if last is None:
            raise Unreadable("the JSON object cannot be read")
    found = other if last is None else last
    if found is None:
        raise Unreadable("the answer holds no JSON object")
    return {_name(k): clean_text(v) if isinstance(v, str) else v for k, v in found.items()}


def whole_number(value: object) -> int | None:
    """The whole number in a value: 3, 3.0, "3", "step 3"; None for anything else or a number that
    is too large."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value[:100])
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) < 1e9 and value == int(value) else None


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


_DECODER = json.JSONDecoder(strict=False, parse_int=_number)
"""`int` refuses more than 4,300 digits; a float is infinite then."""


def _strict(text: str) -> Iterator[tuple[Any, int]]:
    """(object, end) of the outermost objects that are JSON as they stand."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
            yield value, end
        except ValueError:
            end = at + 1
        except RecursionError:  # too deep to mean anything
            return
        at = text.find("{", end)


def _near(text: str, key: str) -> str:
    """The last piece in braces that holds the key and is no JSON; empty if no brace precedes the
    key. Unreadable if the braces do not match."""
    named = re.compile(rf"\b{key}\b[\"'“”‘’]?\s*:", re.IGNORECASE)
    spans, loose = _braces(text)
    start, end = next((span for span in reversed(spans) if named.search(text, *span)), (-1, 0))
    if any(at > start for at in loose) and (end or named.search(text, loose[0])):
        raise Unreadable("the JSON object is not closed, or its braces do not match")
    return text[start:end] if end else ""


def _braces(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """The outermost pairs of braces, by counting, and the unmatched braces."""
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    closers: list[int] = []
    for found in re.finditer(r"[{}]", text):
        if found[0] == "{":
            opened.append(found.start())
        elif opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, found.end()))
        else:
            closers.append(found.start())
    return spans, sorted(opened + closers)


def _repaired(piece: str) -> Any:
    """json-repair's reading; None if the piece is out of bounds or the reading a guess."""
    if len(piece) > _REPAIRED or not piece.endswith("}") or _depth(piece) > _DEEPEST:
        return None
    if re.sub(r"\\.", "", piece).count('"') % 2:  # a text is not closed: the piece ends within it
        return None
    from json_repair import repair_json  # importing takes a quarter of a second

    try:
        value = repair_json(piece, return_objects=True, skip_json_loads=True)
    except Exception:  # any failure: not readable
        return None
    return value if _letters(value) == _kept(_ESCAPE.sub(_unescaped, piece)) else None


def _depth(piece: str) -> int:
    depth = deepest = 0
    for c in piece:
        depth += (c in "{[(") - (c in "}])")
        deepest = max(deepest, depth)
    return deepest


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else " "


def _letters(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(_letters(k) + _letters(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return "".join(map(_letters, value))
    return _kept(value if isinstance(value, str) else json.dumps(value))


def _kept(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def _within(value: Any, key: str, depth: int) -> dict[str, Any] | None:
    """The last object with this key that a value is or holds, also as JSON text (as tool calls have
    their arguments)."""
    if isinstance(value, dict):
        if any(_name(k) == key for k in value):
            return value
        inner: list[Any] = list(value.values())
    elif isinstance(value, list):
        inner = value
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        inner = [found for found, _ in _strict(value)]
    else:
        return None
    for each in reversed(inner if depth else []):
        found = _within(each, key, depth - 1)
        if found is not None:
            return found
    return None


def _name(key: object) -> str:
    return str(key).strip().lower()
