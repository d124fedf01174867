"""Trees to training samples: a sample is one pair (h, a), a prompt without the experience and the action to learn in it.

Four parts are drawn from the same trees (METHOD.md, Stage 2): rehearsal (what went right), counterfactual (what the
experience made the policy do, at the history without it), anchor (keep following an experience), reflection (keep reflecting). Nothing is
dropped in silence: every duplicate and every skipped record is counted by reason. Needs no torch and no tokenizer.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from leafe.core import Branch, Episode, Kind, Message, Stop, Tree, Turn, UserError, derive_seed
from leafe.distill._config import PARTS, DistillConfig, Part
from leafe.prompts import Prompts, history_before

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair (h, a): the loss falls on the answer's tokens alone."""

    part: Part
    task_id: str
    turn_id: str
    """The turn whose action or reflection is the answer; for an anchor, the turn whose prompt was taken."""
    messages: tuple[Message, ...]
    """The prompt; the last message is the user's."""
    answer: Message
    """The assistant's message to learn, with the sampled token ids where they are known."""
    weight: float = 1.0
    """Of each of the answer's tokens within the mean over its part."""
    note: str = ""
    """Where it comes from, in words, for people who read the data."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Sample:
        values = dict(data)
        values["messages"] = tuple(_message(m) for m in values["messages"])
        values["answer"] = _message(values["answer"])
        return Sample(**values)


def _message(data: Mapping[str, Any]) -> Message:
    tokens = data.get("tokens")
    return Message(data["role"], data["content"], None if tokens is None else tuple(tokens))


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of all parts, in a fixed order, and how they came about."""

    samples: tuple[Sample, ...]
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """By part: pairs (task, history, action) that were there already."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By reason: records of the trees that gave no sample."""

    def part(self, part: Part) -> tuple[Sample, ...]:
        return tuple(s for s in self.samples if s.part == part)

    @property
    def counts(self) -> dict[str, Any]:
        """For a printed table: by part its samples, tasks and removed duplicates; under `skipped` the reasons with their counts."""
        out: dict[str, Any] = {}
        for part in PARTS:
            mine = self.part(part)
            out[part] = {"samples": len(mine), "tasks": len({s.task_id for s in mine}), "duplicates": self.duplicates.get(part, 0)}
        out["skipped"] = dict(self.skipped)
        return out

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(training, validation), parted by task: no task is in both. Validation gets at least one task where there are two, or none for fraction 0."""
        tasks = sorted({s.task_id for s in self.samples})
        number = min(max(1, round(fraction * len(tasks))), len(tasks) - 1) if fraction > 0 and tasks else 0
        held_out = set(random.Random(derive_seed(seed, "valid")).sample(tasks, number))
        train = tuple(s for s in self.samples if s.task_id not in held_out)
        valid = tuple(s for s in self.samples if s.task_id in held_out)
        return replace(self, samples=train), Dataset(valid)

    def save(self, path: Path) -> None:
        """Write one JSON line of counts and one a sample, in one atomic step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"duplicates": dict(self.duplicates), "skipped": dict(self.skipped)}) + "\n")
            for sample in self.samples:
                file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> Dataset:
        """What `save` wrote."""
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
            return Dataset(tuple(Sample.from_json(json.loads(line)) for line in file), head["duplicates"], head["skipped"])


class _Collector:
    """Keeps each (part, task, history, action) once and counts what it leaves out."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self.samples: list[Sample] = []
        self.duplicates: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._seen: set[tuple[object, ...]] = set()

    def add(self, part: Part, turn: Turn, messages: tuple[Message, ...], answer: Message, note: str) -> None:
        key = (part, turn.task_id, tuple((m.role, m.content) for m in messages), answer.content)
        if key in self._seen:
            self.duplicates[part] += 1
            return
        self._seen.add(key)
        self.samples.append(Sample(part, turn.task_id, turn.id, messages, answer, note=note))

    def add_action(self, part: Part, tree: Tree, turn: Turn, note: str) -> None:
        """The action at its history without experience or preamble."""
        if not turn.valid:
            self.skipped[f"{part}: the world refused the action"] += 1
            return
        messages = self.prompts.act(history_before(tree, turn, with_experience=False))
        self.add(part, turn, messages, _answer(turn), note)


def build(trees: Mapping[str, Tree], prompts: Prompts, config: DistillConfig, seed: int) -> Dataset:
    """D_reh, D_cf and the anchors of these trees, by the config. The same trees, config and seed give the same samples."""
    collector = _Collector(prompts)
    if config.rehearsal != "none":
        _rehearsal(trees, config, seed, collector)
    branches = [(tree, branch) for tree in trees.values() for branch in _sound_branches(tree, collector)]
    if config.counterfactuals != "none":
        _counterfactuals(trees, branches, config, seed, collector)
    if config.anchors:
        _anchors(branches, seed, collector)
    if config.reflections:
        for tree, branch in branches:
            if branch.improved:
                history = history_before(tree, branch.reflection, with_experience=True)
                collector.add("reflection", branch.reflection, prompts.reflect(history), _answer(branch.reflection), f"led to {branch.revised.id}")
    return Dataset(tuple(collector.samples), dict(collector.duplicates), dict(collector.skipped))


def _rehearsal(trees: Mapping[str, Tree], config: DistillConfig, seed: int, collector: _Collector) -> None:
    wholes = config.rehearsal == "successes"
    able: list[tuple[Tree, Episode, list[Turn]]] = []
    for tree in trees.values():
        for episode in tree.episodes:
            trajectory = tree.trajectory(episode)
            if not _sound(tree, trajectory) or episode.stop is Stop.diverged:
                collector.skipped["rehearsal: the episode diverged on replay"] += 1
                continue
            if wholes and not episode.success:
                continue
            kept = trajectory if episode.success else trajectory[: good_prefix(episode, trajectory)]
            if kept:
                able.append((tree, episode, kept))
            else:
                collector.skipped["rehearsal: the episode did nothing that is known to be right"] += 1
    for tree, episode, kept in _sampled(able, config.rehearsal_fraction, derive_seed(seed, "rehearsal")):
        note = f"episode {episode.index}, {episode.stop}" + ("" if episode.success else f", first {len(kept)} actions")
        for turn in kept:
            collector.add_action("rehearsal", tree, turn, note)


def good_prefix(episode: Episode, trajectory: Sequence[Turn]) -> int:
    """How many of a failed episode's first actions may be rehearsed ("progress prefix").

    Up to but without the earliest step that one of its own usable reflections blames, and not past the last rise of the progress that the world
    reports (counted from 0). Without a reflection: up to the last rise. Without either: none.
    """
    blamed = min((t.target for t in episode.turns if t.kind is Kind.reflect and t.valid and t.target is not None), default=None)
    reported = any(t.progress is not None for t in trajectory)
    if not reported:
        return 0 if blamed is None else blamed
    best, end = 0.0, 0
    for nth, turn in enumerate(trajectory):
        if turn.progress is not None and turn.progress > best:
            best, end = turn.progress, nth + 1
    return end if blamed is None else min(blamed, end)


def _counterfactuals(
    trees: Mapping[str, Tree], branches: Sequence[tuple[Tree, Branch]], config: DistillConfig, seed: int, collector: _Collector
) -> None:
    wanted = config.counterfactuals
    by_task: dict[str, list[tuple[Tree, Branch]]] = {}
    for tree, branch in branches:
        if wanted == "all" or (wanted == "improved" and branch.improved) or (wanted == "success_path" and branch.on_success_path):
            by_task.setdefault(branch.task_id, []).append((tree, branch))
    for task_id, mine in by_task.items():
        if config.samples_per_task is not None and len(mine) > config.samples_per_task:
            chosen = sorted(random.Random(derive_seed(seed, "counterfactual", task_id)).sample(range(len(mine)), config.samples_per_task))
            mine = [mine[i] for i in chosen]
        for tree, branch in mine:
            note = f"instead of {branch.original.id}, by {branch.reflection.id}: {branch.reflection.note}"
            collector.add_action("counterfactual", tree, branch.revised, note)


def _anchors(branches: Sequence[tuple[Tree, Branch]], seed: int, collector: _Collector) -> None:
    """The prompt of each revised action, its experience exchanged for that of another branch drawn at random.

    The start policy's distribution has to be read along some answer: it is the other branch's own revised action, which is what following
    the exchanged experience would mostly say. That needs no further sampling, and the first token's distribution does not depend on it.
    """
    draw = random.Random(derive_seed(seed, "anchor"))
    by_note: dict[str, list[Branch]] = {}
    for _, branch in branches:
        by_note.setdefault(branch.reflection.note, []).append(branch)
    notes = sorted(by_note)
    for tree, branch in branches:
        if len(notes) < 2:
            collector.skipped["anchor: there is no other experience to exchange with"] += 1
            continue
        others = [n for n in notes if n != branch.reflection.note]
        donor = draw.choice(by_note[draw.choice(others)])
        history = history_before(tree, branch.revised, with_experience=True)
        history = replace(history, notes={**history.notes, branch.revised.step: donor.reflection.note})
        collector.add("anchor", branch.revised, collector.prompts.act(history), _answer(donor.revised), f"experience of {donor.reflection.id}")


def _sound_branches(tree: Tree, collector: _Collector) -> Iterator[Branch]:
    diverged = sum(e.experience is not None and e.stop is Stop.diverged for e in tree.episodes)
    if diverged:
        collector.skipped["branch: it diverged on replay"] += diverged
    for branch in tree.branches():
        if _sound(tree, tree.path(branch.revised.id)):
            yield branch
        else:
            collector.skipped["branch: it grew on one that diverged on replay"] += 1


def _sound(tree: Tree, turns: Iterable[Turn]) -> bool:
    return not any(tree.episode_of(t.id).stop is Stop.diverged for t in turns)


def _answer(turn: Turn) -> Message:
    return Message("assistant", turn.action_text, turn.tokens)


def _sampled(items: Sequence[_T], fraction: float, seed: int) -> Sequence[_T]:
    """`fraction` of the items, at least one, in their order."""
    if fraction >= 1 or not items:
        return items
    number = max(1, round(fraction * len(items)))
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), number))]


def require(dataset: Dataset, config: DistillConfig) -> list[str]:
    """Sentences about wanted parts that are empty; UserError where both D_cf and D_reh are, so that nothing is left to train on."""
    wanted: dict[Part, str] = {}
    if config.rehearsal != "none" and config.beta > 0:
        wanted["rehearsal"] = f"rehearsal ({config.rehearsal})"
    if config.counterfactuals != "none" and config.counterfactual_weight > 0:
        wanted["counterfactual"] = f"counterfactuals ({config.counterfactuals})"
    empty = [p for p in wanted if not dataset.part(p)]
    if len(empty) == len(wanted):
        names = " and ".join(wanted.values()) or "any part with a weight above 0"
        raise UserError(f"There is nothing to train on: the trees give no samples for {names}; explore more tasks or choose wider sets.")
    return [f"No samples for {wanted[p]}: training on the other part alone." for p in empty]
