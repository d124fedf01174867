"""What one stage came to in one run: its samples as counts, or what an exploration had solved by
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
from leafe.pipeline import Stage, Variant, env_options, plan, stage_name, task_count
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees

SHARES = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}
"""Shares of a task's policy calls at which the coverage of an exploration is read."""
STEPS = "steps"
"""The same with a bound on environment steps: as many as a task may make calls, steps of a replay
charged."""
RowKind = Literal["evaluate", "explore"]


def base_name(base: str) -> str:
    """A base policy's name: the last part of a folder's path."""
    return Path(base).name if "/" in base and Path(base).exists() else base


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """One run: a seed of a base policy."""

    base: str
    seed: int

    @property
    def label(self) -> str:
        """As tables write it."""
        return f"{base_name(self.base)}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to make an arm in one run: its explorations and trainings, those of the arms
    that it builds on and of all settings of a sweep included."""

    phases: int = 0
    """Explorations and trainings that sample for themselves."""
    spent: Spent = field(default_factory=Spent)
    trained_tokens: int = 0
    seconds: float = 0.0
    """Wall time of the stages, one after another."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a row came to in one run."""

    counts: Counts
    """Samples of test tasks; of an exploration: one sample a task, which succeeded where the task
    was solved."""
    total: int
    """Tasks of the finished stage: more than `counts` holds where it is unfinished."""
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
class Origin:
    """A stage of a run folder and the recipe that it follows."""

    run: RunFolder
    recipe: Recipe
    stage: Stage

    @property
    def env(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the environment."""
        return self.recipe.env.name, env_options(self.recipe, self.stage.variant)

    def tasks(self, what: Literal["train", "test"]) -> int | None:
        """How many tasks explore and train, or test; None: all of the split."""
        return task_count(self.recipe, self.stage.variant, what)


@dataclass(frozen=True, slots=True)
class StoredStage(Origin):
    """A stage that was begun, as a row of a table."""

    row: str
    run_key: RunKey
    origin: Origin | None
    """The training of the policy, where another folder trained it."""

    @property
    def made(self) -> Origin:
        """What made the row's policy: the training elsewhere, or the stage itself."""
        return self.origin or self

    @property
    def folder(self) -> Path:
        """Where the stage is stored."""
        return self.run.path / self.stage.name

    @property
    def done(self) -> dict[str, Any]:
        """The stage's marker; empty while it is unfinished."""
        return self.run.done(self.stage.name) or {}

    @property
    def samples(self) -> int:
        """Samples of a test task."""
        return int(self.done.get("samples", self.recipe.evaluate.samples))

    @property
    def tasks_hash(self) -> str:
        """Of the tasks file: two stages with equal ones played the same tasks."""
        return hashlib.sha256((self.folder / "tasks.jsonl").read_bytes()).hexdigest()


def read_result(stored: StoredStage) -> RowResult:
    """Read a stage's journal and marker."""
    trees = [tree for tree in load_trees(stored.folder).values() if tree.episodes]
    lines = (stored.folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    total = sum(1 for line in lines if line.strip())
    done = stored.done
    seconds = float(done.get("seconds", 0.0))
    cost = arm_cost(stored)
    if stored.stage.kind == "explore":
        solved = _as_counts(trees, [tree.solved for tree in trees])
        within = {"all": solved}
        calls = stored.recipe.explore.limits.get("policy_calls")
        if calls:
            within = {n: _within(trees, "policy_calls", calls * s) for n, s in SHARES.items()}
            within[STEPS] = _within(trees, "env_steps", calls)
        return RowResult(solved, total, bool(done), 1, None, float("nan"), seconds, cost, within)
    temperature = done.get("temperature", stored.stage.temperature)
    return RowResult(
        counts(trees),
        total,
        bool(done) and len(trees) == total,
        stored.samples,
        stored.recipe.evaluate.temperature if temperature is None else float(temperature),
        measure(trees).tokens,
        seconds,
        cost,
    )


def chosen_temperature(run: RunFolder, variant: Variant, arm: str) -> float | None:
    """At which the arm is sampled where its sweep was over temperatures too; None: at the
    recipe's."""
    value = (run.done(stage_name("choose", variant, arm)) or {}).get("temperature")
    return None if value is None else float(value)


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


def arm_cost(stored: StoredStage) -> Cost:
    """What the row's policy took to make; of an exploration what it spent itself."""
    run, recipe, stage = stored.made.run, stored.made.recipe, stored.made.stage
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
        if s.kind == "evaluate":
            continue
        done = run.done(s.name) or {}
        train = done.get("train") or {}
        own = done.get("spent") or train.get("spent")
        if own is None and s.kind == "explore" and (run.path / s.name / "tasks.jsonl").is_file():
            own = spent(list(load_trees(run.path / s.name).values())).to_json()
        if own:
            phases += 1
            for name, amount in own.items():
                setattr(total, name, getattr(total, name) + amount)
        tokens += int(train.get("tokens") or 0)
        seconds += float(done.get("seconds", 0.0))
    return Cost(phases, total, tokens, seconds)
