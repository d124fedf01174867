"""What one stage came to, in one run: its samples as counts, or what an exploration had solved by
when; and what it took to make the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leafe.core import Spent, Tree
from leafe.evaluate import Counts, counts, coverage_curve, measure, spent
from leafe.pipeline import Stage, Variant, plan, stage_name
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees

SHARES = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}
"""Of the calls that a task is allowed: where the coverage of an exploration is read."""
STEPS = "steps"
"""The same, where a task may take so many environment steps as it is allowed calls, steps of a
replay charged."""
Kind = Literal["evaluate", "explore"]


def short(base: str) -> str:
    """A base policy's name, where folders have long ones."""
    return Path(base).name if "/" in base and Path(base).exists() else base


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """One run: a seed of a base policy."""

    base: str
    seed: int

    @property
    def words(self) -> str:
        return f"{short(self.base)}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to make an arm, in one run: its explorations and trainings, those of the arms
    that it builds on and of all settings of a sweep included."""

    phases: int = 0
    """Explorations and trainings that sample for themselves."""
    spent: Spent = field(default_factory=Spent)
    trained_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the stages, one after another."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to in one run."""

    counts: Counts
    """Samples of test tasks; of an exploration: one sample a task, which succeeded where the task
    was solved."""
    of: int
    """Tasks that the stage has when it is finished: more than `counts` holds where it is not."""
    finished: bool
    samples: int
    temperature: float | None
    tokens: float
    """Mean generated tokens of a sample."""
    seconds: float
    cost: Cost
    within: Mapping[str, Counts] = field(default_factory=dict)
    """Of an exploration: the same, had each task been given this share of its calls (`SHARES`,
    `STEPS`)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stage that was begun, in its run folder."""

    run: RunFolder
    recipe: Recipe
    stage: Stage
    row: str
    where: Where
    origin: tuple[RunFolder, Recipe, Stage] | None
    """Folder, recipe and training of the policy, where another folder trained it."""

    @property
    def folder(self) -> Path:
        return self.run.path / self.stage.name

    @property
    def done(self) -> dict[str, Any] | None:
        return self.run.done(self.stage.name)

    @property
    def samples(self) -> int:
        return int((self.done or {}).get("samples", self.recipe.evaluate.samples))

    @property
    def tasks(self) -> str:
        """The tasks file: two stages with equal ones played the same tasks."""
        return hashlib.sha256((self.folder / "tasks.jsonl").read_bytes()).hexdigest()


def read(place: Place) -> Result:
    trees = [tree for tree in load_trees(place.folder).values() if tree.episodes]
    of = sum(
        1
        for line in (place.folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
        if line.strip()
    )
    done = place.done
    seconds = float((done or {}).get("seconds", 0.0))
    cost = cost_of_arm(place)
    if place.stage.kind == "explore":
        within = {"all": _solved(trees)}
        calls = place.recipe.explore.limits.get("policy_calls")
        if calls:
            within = {
                name: _within(trees, "policy_calls", calls * share)
                for name, share in SHARES.items()
            } | {STEPS: _within(trees, "env_steps", calls)}
        return Result(
            _solved(trees), of, done is not None, 1, None, float("nan"), seconds, cost, within
        )
    return Result(
        counts(trees),
        of,
        done is not None and len(trees) == of,
        place.samples,
        _temperature(place),
        measure(trees).tokens,
        seconds,
        cost,
    )


def chosen_temperature(run: RunFolder, variant: Variant, arm: str) -> float | None:
    """At which the arm is sampled where its sweep was over temperatures too; None: at the
    recipe's."""
    value = (run.done(stage_name("choose", variant, arm)) or {}).get("temperature")
    return None if value is None else float(value)


def _temperature(place: Place) -> float | None:
    value = (place.done or {}).get("temperature", place.stage.temperature)
    return place.recipe.evaluate.temperature if value is None else float(value)


def _solved(trees: Sequence[Tree]) -> Counts:
    return _as_counts(trees, [tree.solved for tree in trees])


def _within(
    trees: Sequence[Tree], cost: Literal["policy_calls", "env_steps"], budget: float
) -> Counts:
    """Solved, had every task this budget: what came first in a tree would have come first with
    less."""
    return _as_counts(
        trees, [coverage_curve([tree], cost).at(int(budget)) == 1.0 for tree in trees]
    )


def _as_counts(trees: Sequence[Tree], solved: Sequence[bool]) -> Counts:
    n = np.ones(len(trees), dtype=np.int64)
    return Counts(
        tuple(t.task.id for t in trees), n, np.asarray(solved, dtype=np.int64), np.zeros_like(n)
    )


def cost_of_arm(place: Place) -> Cost:
    """What the row's policy took to make; of an exploration what it spent itself."""
    run, recipe, stage = (
        (place.run, place.recipe, place.stage) if place.origin is None else place.origin
    )
    stages = {s.name: s for s in plan(recipe)}
    needed: dict[str, Stage] = {}
    choice = stage_name("choose", stage.variant, stage.attempt.arm) if stage.attempt else ""
    waiting = [stage.name, choice]  # what was chosen from several attempts cost all of them
    while waiting:
        name = waiting.pop()
        if name not in needed and name in stages:
            needed[name] = stages[name]
            waiting += [
                need
                for need in stages[name].needs
                if stages[name].kind != "evaluate" or "held-out" not in need
            ]
    total, phases, tokens, seconds = Spent(), 0, 0, 0.0
    for s in needed.values():
        done = run.done(s.name) or {}
        if s.kind == "evaluate":
            continue
        own = done.get("spent") or (done.get("train") or {}).get("spent")
        if own is None and s.kind == "explore" and (run.path / s.name / "tasks.jsonl").is_file():
            own = spent(list(load_trees(run.path / s.name).values())).to_json()
        if own:
            phases += 1
            for name, amount in own.items():
                setattr(total, name, getattr(total, name) + amount)
        tokens += int((done.get("train") or {}).get("tokens") or 0)
        seconds += float(done.get("seconds", 0.0))
    return Cost(phases, total, tokens, seconds)
