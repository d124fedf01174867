"""A sample as one row of another trainer's data: the same messages under that trainer's names, and
a mark on the message that bears the loss.

No text is changed. A format that cannot hold a sample gives None: the caller counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leafe.core import Message
from leafe.distill import Sample

FROM = {"user": "human", "assistant": "gpt"}
"""ShareGPT's names of the roles."""


def about(sample: Sample) -> dict[str, Any]:
    """Where the sample comes from: columns that trainers pass over."""
    return {
        "part": sample.part,
        "task_id": sample.task_id,
        "turn_id": sample.turn_id,
        "weight": sample.weight,
        "note": sample.note,
    }


def sharegpt(sample: Sample) -> dict[str, Any] | None:
    """LLaMA-Factory's ShareGPT row. None where user and assistant do not take turns."""
    system, rest = _apart(sample.messages)
    if not _take_turns(rest):
        return None
    return {"system": system, "conversations": [*map(_turn, rest), _turn(sample.answer)]} | about(
        sample
    )


def ranking(sample: Sample) -> dict[str, Any] | None:
    """LLaMA-Factory's row of a pair. None where user and assistant do not take turns."""
    system, rest = _apart(sample.messages)
    if not _take_turns(rest):
        return None
    assert sample.rejected is not None
    return {
        "system": system,
        "conversations": list(map(_turn, rest)),
        "chosen": _turn(sample.answer),
        "rejected": _turn(sample.rejected),
    } | about(sample)


def axolotl(sample: Sample) -> dict[str, Any]:
    """Messages with a flag `train`, which is true for the answer alone."""
    return {"messages": _flagged(sample, "train")} | about(sample)


def verl(sample: Sample) -> dict[str, Any]:
    """Messages with a flag `trainable`, which is true for the answer alone."""
    return {"messages": _flagged(sample, "trainable")} | about(sample)


def _flagged(sample: Sample, flag: str) -> list[dict[str, Any]]:
    before = [{"role": m.role, "content": m.content, flag: False} for m in sample.messages]
    return [*before, {"role": "assistant", "content": sample.answer.content, flag: True}]


def _apart(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


def _take_turns(messages: Sequence[Message]) -> bool:
    return len(messages) % 2 == 1 and all(
        m.role == ("user", "assistant")[nth % 2] for nth, m in enumerate(messages)
    )


def _turn(message: Message) -> dict[str, str]:
    return {"from": FROM[message.role], "value": message.content}
