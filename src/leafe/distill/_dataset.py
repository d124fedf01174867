"""The training samples and their file, in which every message of a task stands once.

A sample repeats the whole history before it, so that samples written out one by one grow with the
square of an episode's turns. Here the
prompts of a task are paths in one trie of messages, in memory (shared objects) as on disk (each
node names its parent).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leafe.core import Message, UserError, derive_seed, token_ids
from leafe.distill._config import PARTS, Part

FORMAT = 2
"""Of the file; grows when older ones can no longer be read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair (h, a): the loss falls on the answer's tokens alone."""

    part: Part
    task_id: str
    turn_id: str
    """The turn whose action or reflection is the answer; for an anchor, the turn whose prompt was
    taken."""
    messages: tuple[Message, ...]
    """The prompt; the last message is the user's."""
    answer: Message
    """The assistant's message to learn, with the sampled token ids where they are known."""
    weight: float = 1.0
    """Of each of the answer's tokens within the mean over its part."""
    note: str = ""
    """Where it comes from, in words, for people who read the data."""
    teacher: tuple[Message, ...] | None = None
    """None: the loss is the cross-entropy of the answer's tokens. Else it is, on each of them, the
    KL divergence from the start policy's distribution when it
    reads these messages and the answer so far, to the trained policy's at the sample's own prompt.
    For an anchor: its own prompt."""
    rejected: Message | None = None
    """For DPO: the action that `answer` is to be preferred to."""

    @property
    def cut(self) -> bool:
        """Whether an answer in it was cut at its limit of tokens: a format that ends every answer
        cannot hold it."""
        return self.answer.cut or (self.rejected is not None and self.rejected.cut)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of all parts, in a fixed order, and how they came about."""

    samples: tuple[Sample, ...]
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """By part: pairs (task, history, action) that were there already."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By reason: records of the trees that gave no sample."""
    agreement: Mapping[str, int] = field(default_factory=dict)
    """What the rules of improvement say of the branches: won (under both), else both, progress
    alone, blame alone, neither; or no progress reported."""
    mentions: Mapping[str, int] = field(default_factory=dict)
    """By part: samples whose thought mentions an experience that their prompt does not hold."""

    def part(self, part: Part) -> tuple[Sample, ...]:
        return tuple(s for s in self.samples if s.part == part)

    @property
    def counts(self) -> dict[str, Any]:
        """For a printed table: by part its samples, tasks and removed duplicates; under `skipped`
        the reasons with their counts, and `agreement`
        and `mentions` where there are any."""
        out: dict[str, Any] = {}
        for part in PARTS:
            mine = self.part(part)
            out[part] = {
                "samples": len(mine),
                "tasks": len({s.task_id for s in mine}),
                "duplicates": self.duplicates.get(part, 0),
            }
        out["skipped"] = dict(self.skipped)
        if self.agreement:
            out["agreement"] = dict(self.agreement)
        if self.mentions:
            out["mentions"] = dict(self.mentions)
        return out

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(training, validation), parted by task: no task is in both. Validation gets at least one
        task where there are two, or none for fraction 0."""
        tasks = sorted({s.task_id for s in self.samples})
        number = (
            min(max(1, round(fraction * len(tasks))), len(tasks) - 1)
            if fraction > 0 and tasks
            else 0
        )
        held_out = set(random.Random(derive_seed(seed, "valid")).sample(tasks, number))
        train = tuple(s for s in self.samples if s.task_id not in held_out)
        valid = tuple(s for s in self.samples if s.task_id in held_out)
        return replace(self, samples=train), Dataset(valid)

    def save(self, path: Path) -> None:
        """Write one JSON line of counts and one a task, in one atomic step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        by_task: dict[str, list[int]] = {}
        for nth, sample in enumerate(self.samples):
            by_task.setdefault(sample.task_id, []).append(nth)
        head = {"dataset": "leafe", "format": FORMAT, "samples": len(self.samples)}
        with partial.open("w", encoding="utf-8") as file:
            file.write(
                json.dumps(head | {name: dict(getattr(self, name)) for name in _COUNTS}) + "\n"
            )
            for task, numbers in by_task.items():
                nodes = _Nodes()
                rows = [nodes.row(nth, self.samples[nth]) for nth in numbers]
                file.write(
                    json.dumps(
                        {"task": task, "messages": nodes.messages, "samples": rows},
                        separators=(",", ":"),
                    )
                    + "\n"
                )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> Dataset:
        """What `save` wrote. UserError where it is something else, or a part of it."""
        try:
            with path.open(encoding="utf-8") as file:
                head = json.loads(file.readline())
                if (head["dataset"], head["format"]) != ("leafe", FORMAT):
                    raise ValueError(f"format {head['format']}")
                samples = dict(pair for line in file for pair in _read_task(json.loads(line)))
            return Dataset(
                tuple(samples[nth] for nth in range(head["samples"])),
                *(head.get(name, {}) for name in _COUNTS),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path} is no dataset of this leafe, or damaged ({type(error).__name__}: "
                f"{error}): make it again from the trees."
            ) from error


_COUNTS = ("duplicates", "skipped", "agreement", "mentions")


class _Nodes:
    """The trie of one task's messages, as rows [parent, role, content], [..., tokens] or, of an
    answer that was cut, [..., tokens or null, true]; a parent
    of -1 is the root."""

    def __init__(self) -> None:
        self.messages: list[list[Any]] = []
        self._known: dict[tuple[int, Message], int] = {}

    def row(self, nth: int, sample: Sample) -> list[Any]:
        prompt = self._last(sample.messages)
        teacher = None if sample.teacher is None else self._last(sample.teacher)
        rejected = None if sample.rejected is None else self._node(prompt, sample.rejected)
        return [
            nth,
            sample.part,
            sample.turn_id,
            prompt,
            self._node(prompt, sample.answer),
            sample.weight,
            sample.note,
            teacher,
            rejected,
        ]

    def _last(self, messages: Sequence[Message]) -> int:
        node = -1
        for message in messages:
            node = self._node(node, message)
        return node

    def _node(self, parent: int, message: Message) -> int:
        node = self._known.setdefault((parent, message), len(self.messages))
        if node == len(self.messages):
            more: list[Any] = (
                [message.tokens, True]
                if message.cut
                else []
                if message.tokens is None
                else [message.tokens]
            )
            self.messages.append([parent, message.role, message.content, *more])
        return node


def _read_task(data: Mapping[str, Any]) -> Iterator[tuple[int, Sample]]:
    known: dict[Message, Message] = {}
    nodes: list[tuple[int, Message]] = []
    for parent, role, content, *more in data["messages"]:
        tokens, cut = (*more, None, False)[0], len(more) == 2
        message = Message(role, content, None if tokens is None else token_ids(tokens), cut)
        nodes.append((parent, known.setdefault(message, message)))

    def path(node: int) -> tuple[Message, ...]:
        out = []
        while node >= 0:
            node, message = nodes[node]
            out.append(message)
        return tuple(reversed(out))

    for nth, part, turn, prompt, answer, weight, note, teacher, rejected in data["samples"]:
        messages = path(prompt)
        read = None if teacher is None else messages if teacher == prompt else path(teacher)
        yield (
            nth,
            Sample(
                part,
                data["task"],
                turn,
                messages,
                nodes[answer][1],
                weight,
                note,
                read,
                None if rejected is None else nodes[rejected][1],
            ),
        )
