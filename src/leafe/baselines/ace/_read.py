"""Parses the answers of the reflector (an insight) and of the curator (a delta), with bounds. An
answer that cannot be used has a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from leafe.baselines._asides import Unusable
from leafe.baselines.ace._playbook import Delta, Operation, Playbook
from leafe.prompts import PromptSet, Unreadable, last_object, whole_number

INSIGHT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "section": {"type": "string", "minLength": 1, "maxLength": 40},
        "lesson": {"type": "string", "minLength": 1, "maxLength": 400},
        "helpful": {"type": "string", "minLength": 1, "maxLength": 60},
        "harmful": {"type": "string", "minLength": 1, "maxLength": 60},
    },
    "required": ["section", "lesson", "helpful", "harmful"],
    "additionalProperties": False,
}
"""Of the reflector's answer. Flat, since the in-process engine honours flat schemas: ids stand in a
string."""
DELTA_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "operation": {"type": "string", "minLength": 1, "maxLength": 8},
        "item": {"type": "integer", "minimum": 0},
        "section": {"type": "string", "minLength": 1, "maxLength": 40},
        "text": {"type": "string", "minLength": 1, "maxLength": 400},
    },
    "required": ["operation", "item", "section", "text"],
    "additionalProperties": False,
}
"""Of the curator's answer."""
MAX_TEXT = 400
"""Characters of an item's text. A longer one is unusable: long items would push the task out of the
context."""


@dataclass(frozen=True, slots=True)
class Insight:
    """What the reflector learned from an attempt."""

    section: str
    """The topic."""
    text: str
    """The lesson; empty where the attempt teaches nothing."""
    helpful: frozenset[int] = frozenset()
    """Ids of items that helped."""
    harmful: frozenset[int] = frozenset()
    """Ids of items that misled."""


def parse_insight(text: str, words: PromptSet, playbook: Playbook, similarity: float) -> Insight:
    """The reflector's answer.

    Args:
        text: The answer.
        words: The prompt set; its `lesson_form` says how the answer is written.
        playbook: The one that the attempt acted with. Form `pattern`: an item of the insight's
            section helped where it is similar to the lesson, else it misled.
        similarity: As in `Playbook.merge`.

    Raises:
        Unusable: The answer does not have the form that was asked for.
    """
    if words.lesson_form == "pattern":
        match = re.search(words.lesson_pattern, text)
        if match is None:
            raise Unusable("the answer does not have the form that was asked for")
        section, lesson = match["section"].strip(), _bounded(match["text"])
        about = [i for i in playbook.items if i.section == section]
        same = playbook.most_similar(lesson, similarity)
        helpful = {i.id for i in about if same is not None and i.id == same.id}
        harmful = frozenset(i.id for i in about) - helpful
        return Insight(section, lesson, frozenset(helpful), harmful)
    found = _object(text, "lesson")
    topic, taught = found.get("section", ""), found.get("lesson")
    if not isinstance(taught, str) or not isinstance(topic, str):
        raise Unusable("the answer names no lesson")
    return Insight(
        _bounded(topic),
        _bounded("" if _nothing(taught) else taught),
        _ids(found.get("helpful")),
        _ids(found.get("harmful")),
    )


def parse_delta(text: str) -> Delta | None:
    """The curator's answer; None for NONE, which changes nothing.

    Raises:
        Unusable: The answer does not have the form that was asked for.
    """
    found = _object(text, "operation")
    operation = str(found.get("operation", "")).strip().upper()
    if operation == "NONE":
        return None
    if operation not in ("ADD", "UPDATE", "REMOVE"):
        raise Unusable("the operation is none of ADD, UPDATE, REMOVE, NONE")
    item, section = whole_number(found.get("item", 0)), found.get("section", "")
    new = found.get("text", "")
    if operation != "ADD" and item is None:
        raise Unusable("the item is not a number")
    if operation != "REMOVE" and (not isinstance(new, str) or _nothing(new)):
        raise Unusable("the text is empty")
    return Delta(
        cast(Operation, operation),
        item or 0,
        _bounded(section) if isinstance(section, str) else "",
        _bounded(new) if operation != "REMOVE" else "",
    )


def _object(text: str, key: str) -> dict[str, Any]:
    try:
        return last_object(text, key)
    except Unreadable as error:
        raise Unusable(str(error)) from error


def _bounded(text: str) -> str:
    text = " ".join(text.split())
    if len(text) > MAX_TEXT:
        raise Unusable(f"the text is longer than {MAX_TEXT} characters")
    return text


def _nothing(text: str) -> bool:
    return text.strip().strip(".").lower() in ("", "none")


def _ids(value: object) -> frozenset[int]:
    """Item numbers in a string (`3, 7`), a list or a number; nothing else is one."""
    if isinstance(value, list):
        return frozenset().union(*map(_ids, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return frozenset({value})
    found = re.findall(r"\d{1,9}", value) if isinstance(value, str) else []
    return frozenset(map(int, found))
