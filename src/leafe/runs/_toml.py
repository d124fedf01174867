"""Plain nested values as TOML text that `tomllib` reads back unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """Write settings as TOML.

    Args:
        values: Strings, numbers, booleans, lists and mappings. TOML has no null: a key that holds
            None is left out.

    Returns:
        The text.

    Raises:
        TypeError: Any other value.
    """
    lines: list[str] = []
    _table(values, (), lines)
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def _table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    for key, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(map(_key, (*path, key)))}]"]
            _table(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's too; only DEL must be escaped in TOML and need not be in JSON
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(str(value))
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value)  # also nan, inf and -inf
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            pairs = [f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    raise TypeError(f"TOML cannot hold {value!r}")
