"""Addresses of pages. They stay the same for as long as the run is there."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from leafe.core import Turn
from leafe.view._text import storable, url_part


def stage_part(stage: str) -> str:
    """A stage's folder as a part of an address."""
    return "/".join(url_part(each) for each in stage.split("/"))


def with_query(path: str, values: Mapping[str, str | int]) -> str:
    """The path with these values as its query; empty ones and the default filter are left out."""
    default = ("", 0)
    kept = {k: v for k, v in values.items() if v not in default and (k, v) != ("show", "all")}
    return path + ("?" + urlencode(kept, errors="replace") if kept else "")


def tasks_link(stage: str) -> str:
    """The address of a stage's tasks."""
    return f"/tasks/{stage_part(stage)}"


def tree_link(stage: str, task: str, ref: str | None = None, **more: str) -> str:
    """The address of a task's tree, at the turn `ref`."""
    values = {"task": task, **({"turn": ref} if ref else {}), **more}
    encoded = urlencode({key: storable(value) for key, value in values.items()})
    return f"/tree/{stage_part(stage)}?{encoded}"


def reference(turn: Turn) -> str:
    """A turn's id without its task's."""
    return storable(turn.id.removeprefix(turn.task_id + "/"))
