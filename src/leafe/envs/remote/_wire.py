"""What goes over the wire: the version, the kinds of error, and answers in JSON, checked on both
sides.

An error is `{"error": {"kind": ..., "message": one sentence}}`. Its kind decides what the client
does; its status is for people and proxies. Numbers are finite. Text may hold anything: JSON is
written in ASCII, so that even a lone surrogate in an action or a task arrives as it was sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from leafe.core import StepResult, Task

PROTOCOL = 1
"""The version of the protocol. It changes where an old client and a new server would misunderstand
each other."""

MAX_BODY = 64 * 2**20
"""Bytes: a longer request or answer is refused."""

STATUS: Mapping[str, int] = {
    "user": 400,  # the request or a setting is wrong, and somebody has to correct it
    # the session is not known (any more): it has expired, or the server was started again
    "lost": 404,
    "absent": 404,  # this server does not offer the call
    "gone": 410,  # the snapshot is no longer held
    "env": 500,  # the environment raised, died or hung; its session is closed
    "busy": 503,  # no place for one more session at present: try again
}
"""Kind of error -> HTTP status."""


class Refused(Exception):
    """The other side refuses: `kind` is a key of STATUS, the text is its sentence."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Malformed(Exception):
    """JSON that the protocol does not allow: the text names the field."""


def encode(value: Mapping[str, Any]) -> bytes:
    """ValueError for NaN and infinities, TypeError for what JSON does not know."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def decode(raw: bytes) -> dict[str, Any]:
    """ValueError where it is no JSON object."""
    value = json.loads(raw, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    return value


def error_body(kind: str, sentence: str) -> bytes:
    return encode({"error": {"kind": kind, "message": sentence}})


def result_from_json(answer: Mapping[str, Any]) -> StepResult:
    """Unknown fields are ignored; absent ones have StepResult's defaults, except the
    observation."""
    progress, info = answer.get("progress"), answer.get("info")
    return StepResult(
        observation=string(answer, "observation"),
        reward=_number(answer, "reward"),
        done=boolean(answer, "done", False),
        success=boolean(answer, "success", False),
        valid=boolean(answer, "valid", True),
        progress=None if progress is None else _number(answer, "progress"),
        info=info if isinstance(info, dict) else {},
    )


def actions_from_json(answer: Mapping[str, Any]) -> list[str]:
    if "actions" not in answer:
        raise Malformed("'actions' is absent")
    return strings(answer, "actions")


def tasks_from_json(answer: Mapping[str, Any]) -> list[Task]:
    tasks = answer.get("tasks")
    if not isinstance(tasks, list):
        raise Malformed("'tasks' is no list")
    return [task_from_json(task) for task in tasks]


def task_from_json(data: object) -> Task:
    if not isinstance(data, dict) or not isinstance(data.get("payload", {}), dict):
        raise Malformed("a task is an object, and so is its payload")
    env, split, instruction = (string(data, name, "") for name in ("env", "split", "instruction"))
    return Task(string(data, "id"), env, split, instruction, data.get("payload", {}))


def string(answer: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = answer.get(name, default)
    if not isinstance(value, str):
        raise Malformed(f"{name!r} is {_kind(value)}, not text")
    return value


def strings(answer: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; empty where there is none."""
    value = answer.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Malformed(f"{name!r} is no list of texts")
    return value


def integer(
    answer: Mapping[str, Any], name: str, default: int | None = None, least: int = -(2**63)
) -> int:
    """A whole number of at most 64 bits."""
    value = answer.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{name!r} is {_kind(value)}, not a whole number")
    if not least <= value < 2**64:
        raise Malformed(f"{name!r} is not a whole number from {least} to {2**64 - 1}")
    return value


def boolean(answer: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    value = answer.get(name, default)
    if not isinstance(value, bool):
        raise Malformed(f"{name!r} is {_kind(value)}, not true or false")
    return value


def _number(answer: Mapping[str, Any], name: str) -> float:
    value = answer.get(name, 0.0)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise Malformed(f"{name!r} is {_kind(value)}, not a number")


def _kind(value: object) -> str:
    return "absent" if value is None else f"a JSON {type(value).__name__}"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
