"""The training samples and their file, which stores every message of a task once.

A sample repeats the whole history before it, so samples written one by one would grow with the
square of an episode's turns. Here the prompts of a task are paths in one trie of messages: shared
objects in memory, nodes that name their parents on disk.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from leafe.core import Message, UserError, derive_seed, token_ids
from leafe.distill._config import PARTS, Part

FORMAT = 2
"""Version of the file; raised when older files can no longer be read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair (h, a): a prompt, and the answer whose tokens carry the loss."""

    part: Part
    task_id: str
    turn_id: str
    """The turn whose action or reflection is the answer; of an anchor, the turn of its prompt."""
    messages: tuple[Message, ...]
    """The prompt; the last message is the user's."""
    answer: Message
    """The assistant's message to learn, with its sampled token ids if they are known."""
    weight: float = 1.0
    """Of each of the answer's tokens in the mean over its part."""
    note: str = ""
    """Where it comes from, for people who read the data."""
    teacher: tuple[Message, ...] | None = None
    """None: the loss is the cross-entropy of the answer's tokens. Else it is, per token, the KL
    divergence from the start policy's distribution given these messages and the answer so far to
    the trained policy's at the sample's own prompt. Of an anchor: its own prompt."""
    rejected: Message | None = None
    """For DPO: the action that `answer` should be preferred to."""

    @property
    def cut(self) -> bool:
        """Whether an answer in it was cut at its token limit; formats that end every answer cannot
        hold such a sample."""
        return self.answer.cut or (self.rejected is not None and self.rejected.cut)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of all parts in a fixed order, and what selection counted."""

    samples: tuple[Sample, ...]
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """By part: repeated (task, history, action)."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By reason: records of the trees that gave no sample."""
    agreement: Mapping[str, int] = field(default_factory=dict)
    """Branches by the improvement rules that hold: won (under both), both, progress alone, blame
    alone, neither, or no progress reported."""
    mentions: Mapping[str, int] = field(default_factory=dict)
    """By part: samples whose thought mentions an experience that their prompt does not hold."""

    def part(self, part: Part) -> tuple[Sample, ...]:
        """The samples of one part."""
        return tuple(s for s in self.samples if s.part == part)

    @property
    def counts(self) -> dict[str, Any]:
        """For a table: by part `samples`, `tasks` and `duplicates`; then `skipped`, and `agreement`
        and `mentions` if they are not empty."""
        out: dict[str, Any] = {
            part: {
                "samples": len(self.part(part)),
                "tasks": len({s.task_id for s in self.part(part)}),
                "duplicates": self.duplicates.get(part, 0),
            }
            for part in PARTS
        }
        out["skipped"] = dict(self.skipped)
        optional = {"agreement": self.agreement, "mentions": self.mentions}
        return out | {name: dict(counts) for name, counts in optional.items() if counts}

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Split by task, so that no task is on both sides.

        Args:
            fraction: Share of the tasks for validation. Above 0 it gets at least one task if there
                are two.
            seed: Of the draw.

        Returns:
            (training, validation).
        """
        tasks = sorted({s.task_id for s in self.samples})
        number = 0
        if fraction > 0 and tasks:
            number = min(max(1, round(fraction * len(tasks))), len(tasks) - 1)
        held_out = set(random.Random(derive_seed(seed, "valid")).sample(tasks, number))
        train = tuple(s for s in self.samples if s.task_id not in held_out)
        valid = tuple(s for s in self.samples if s.task_id in held_out)
        return replace(self, samples=train), Dataset(valid)

    def save(self, path: Path) -> None:
        """Write one JSON line of counts and one per task; replaces the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        by_task: dict[str, list[int]] = {}
        for nth, sample in enumerate(self.samples):
            by_task.setdefault(sample.task_id, []).append(nth)
        head = {"dataset": "leafe", "format": FORMAT, "samples": len(self.samples)}
        head |= {name: dict(getattr(self, name)) for name in _COUNTS}
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head) + "\n")
            for task, numbers in by_task.items():
                trie = _MessageTrie()
                rows = [trie.row(nth, self.samples[nth]) for nth in numbers]
                line = {"task": task, "messages": trie.messages, "samples": rows}
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> Dataset:
        """Read what `save` wrote.

        Raises:
            UserError: The file is something else, or damaged.
        """
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
                f"{path} is no dataset of this version of leafe, or damaged "
                f"({type(error).__name__}: {error}): build it again from the trees."
            ) from error


_COUNTS = ("duplicates", "skipped", "agreement", "mentions")


class _MessageTrie:
    """The messages of one task as rows [parent, role, content], [..., tokens] or, of a cut answer,
    [..., tokens or null, true]. The root's children have parent -1."""

    def __init__(self) -> None:
        self.messages: list[list[Any]] = []
        self._known: dict[tuple[int, Message], int] = {}

    def row(self, nth: int, sample: Sample) -> list[Any]:
        """The sample's row: its number, and nodes in the place of messages."""
        prompt = self._path(sample.messages)
        teacher = None if sample.teacher is None else self._path(sample.teacher)
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

    def _path(self, messages: Sequence[Message]) -> int:
        return reduce(self._node, messages, -1)

    def _node(self, parent: int, message: Message) -> int:
        node = self._known.setdefault((parent, message), len(self.messages))
        if node == len(self.messages):
            row: list[Any] = [parent, message.role, message.content]
            if message.cut or message.tokens is not None:
                row.append(message.tokens)
            self.messages.append([*row, True] if message.cut else row)
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
        reads = None if teacher is None else messages if teacher == prompt else path(teacher)
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
                reads,
                None if rejected is None else nodes[rejected][1],
            ),
        )
