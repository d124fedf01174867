"""A sample as one row of another trainer's data: the same messages under that trainer's names, with
a mark on the message that bears the loss. Texts are not changed."""

from __future__ import annotations

from typing import Any

from leafe.core import Message
from leafe.distill import Sample

FROM = {"user": "human", "assistant": "gpt"}
"""ShareGPT's names of the roles."""


def sharegpt(sample: Sample) -> dict[str, Any] | None:
    """LLaMA-Factory's ShareGPT row; None if user and assistant do not alternate."""
    row = _conversation(sample)
    if row is None:
        return None
    row["conversations"].append(_turn(sample.answer))
    return row | _provenance(sample)


def ranking(sample: Sample) -> dict[str, Any] | None:
    """LLaMA-Factory's row of a pair; None if user and assistant do not alternate."""
    assert sample.rejected is not None
    row = _conversation(sample)
    if row is None:
        return None
    answers = {"chosen": _turn(sample.answer), "rejected": _turn(sample.rejected)}
    return row | answers | _provenance(sample)


def axolotl(sample: Sample) -> dict[str, Any]:
    """Messages with the flag `train`, true for the answer alone."""
    return _flagged(sample, "train")


def verl(sample: Sample) -> dict[str, Any]:
    """Messages with the flag `trainable`, true for the answer alone."""
    return _flagged(sample, "trainable")


def _provenance(sample: Sample) -> dict[str, Any]:
    """Columns that trainers ignore."""
    return {
        "part": sample.part,
        "task_id": sample.task_id,
        "turn_id": sample.turn_id,
        "weight": sample.weight,
        "note": sample.note,
    }


def _flagged(sample: Sample, flag: str) -> dict[str, Any]:
    rows = [{"role": m.role, "content": m.content, flag: False} for m in sample.messages]
    rows.append({"role": "assistant", "content": sample.answer.content, flag: True})
    return {"messages": rows} | _provenance(sample)


def _conversation(sample: Sample) -> dict[str, Any] | None:
    """The prompt in ShareGPT's form: a system text, then user and assistant in turn."""
    system, rest = "", sample.messages
    if rest and rest[0].role == "system":
        system, rest = rest[0].content, rest[1:]
    roles = [message.role for message in rest]
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        return None
    return {"system": system, "conversations": [*map(_turn, rest)]}


def _turn(message: Message) -> dict[str, str]:
    return {"from": FROM[message.role], "value": message.content}
