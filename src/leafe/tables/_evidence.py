"""What run folders hold for a table: columns (worlds), rows (arms), and for each row what it came to in each of its runs.

A *run* of a row is one seed of one base policy (`Where`); many folders may hold runs of one column, and one folder those of several (its controls are columns
of their own). A folder whose base policy is a checkpoint that another folder trained is evidence on that arm, in another world. What cannot be compared is
refused here, before a figure is made of it: other budgets, other world versions, other test tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leafe.core import Spent, Tree, UserError
from leafe.evaluate import Counts, counts, coverage_curve, measure, spent
from leafe.explore import STRATEGIES
from leafe.pipeline import Stage, plan, recipe_of, stage_name, task_count, world_options
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees
from leafe.tables._define import is_control

SHARES = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}
"""Of the calls that a task is allowed: where the coverage of an exploration is read."""
STEPS = "steps"
"""The same, where a task may take so many world steps as it is allowed calls, steps of a replay charged."""
Kind = Literal["evaluate", "explore"]


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
    """What it took to make an arm, in one run: its explorations and trainings, those of the arms that it builds on and of all settings of a sweep included."""

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
    """Samples of test tasks; of an exploration: one sample a task, which succeeded where the task was solved."""
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
    """Of an exploration: the same, had each task been given this share of its calls (`SHARES`, `STEPS`)."""


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


@dataclass(slots=True)
class Column:
    """One world in one setting."""

    world: str
    options: dict[str, Any]
    split: str
    transfer: bool = False
    """Policies that were trained elsewhere are tested in it."""
    base: str = ""
    """Where base policies stand apart: which one."""
    title: str = ""
    places: dict[tuple[Kind, str], dict[Where, Place]] = field(default_factory=dict)
    absent: dict[tuple[str, Where], str] = field(default_factory=dict)
    """Why a row that was run has no figure."""
    roles: dict[str, str] = field(default_factory=dict)
    recipes: dict[Path, Recipe] = field(default_factory=dict)
    known: dict[Path, Result] = field(default_factory=dict)
    """What was read already, by the stage's folder; columns share it."""

    @property
    def control(self) -> bool:
        return is_control(self.world, self.options)

    def rows(self, kind: Kind = "evaluate") -> list[str]:
        return [row for k, row in self.places if k == kind]

    def runs(self, kind: Kind = "evaluate") -> list[Where]:
        """All runs that any row has."""
        return sorted({where for (k, _), places in self.places.items() if k == kind for where in places})

    def results(self, row: str, kind: Kind = "evaluate") -> dict[Where, Result]:
        """Run by run; read from the journals when first asked for. Runs without a single finished task are left out."""
        out = {}
        for where, place in sorted(self.places.get((kind, row), {}).items(), key=lambda item: item[0]):
            if place.folder not in self.known:
                self.known[place.folder] = _read(place)
            if self.known[place.folder].counts.tasks:
                out[where] = self.known[place.folder]
        return out


@dataclass(slots=True)
class Evidence:
    columns: list[Column]
    notes: list[str]
    runs: list[RunFolder]


def short(base: str) -> str:
    """A base policy's name, where folders have long ones."""
    return Path(base).name if "/" in base and Path(base).exists() else base


def gather(paths: Sequence[Path], *, apart: bool = False, known: dict[Path, Result] | None = None) -> Evidence:
    """All that these folders hold, checked. `apart`: a column for each base policy. `known`: what an earlier call has read, to be read once.

    UserError where what they hold cannot stand in one table.
    """
    found: dict[str, Column] = {}
    notes: list[str] = []
    runs = [RunFolder.read(path) for path in dict.fromkeys(paths)]
    for run in runs:
        if "shard" in run.config:
            raise UserError(f"{run.path} is a shard of a run: put the shards together with `leafe merge` first.")
        recipe = recipe_of(run)
        for place in _places(run, recipe):
            _take(place, found, notes, apart)
    columns = list(found.values())
    _lend_base(columns)
    columns = [c for c in columns if c.places or c.absent]
    known = {} if known is None else known
    for column in columns:
        column.known = known
        _same_budget(column)
        _same_tasks(column)
    _same_worlds(columns)
    _name(columns)
    return Evidence(columns, notes, runs)


def _places(run: RunFolder, recipe: Recipe) -> Iterator[Place]:
    origin = _origin(run, recipe)
    base = origin[1].policy.model if origin else recipe.policy.model
    for stage in plan(recipe):
        explored = stage.kind == "explore" and stage.what in STRATEGIES and stage.policy == "base"
        if not explored and stage.kind != "evaluate":
            continue
        attempt = origin[2].attempt if origin else None
        row = attempt.arm if attempt and stage.role == "base" else stage.what
        yield Place(run, recipe, stage, row, Where(base, origin[2].leg.seed if origin else stage.leg.seed), origin)


def _origin(run: RunFolder, recipe: Recipe) -> tuple[RunFolder, Recipe, Stage] | None:
    """Who trained the policy that this run calls its base; None where no run folder did."""
    model = Path(recipe.policy.model)
    if model.name != "checkpoint" or model.parent.parent.name != "distill":
        return None
    for path in (model.parents[2], run.path.parent / model.parents[2].name):
        if (path / "manifest.json").is_file() and path.resolve() != run.path.resolve():
            trained = RunFolder.read(path)
            theirs = recipe_of(trained)
            stage = next((s for s in plan(theirs) if s.kind == "distill" and Path(s.name).name == model.parent.name), None)
            if stage is not None:
                return trained, theirs, stage
    return None


def _take(place: Place, found: dict[str, Column], notes: list[str], apart: bool) -> None:
    stage, recipe = place.stage, place.recipe
    options = world_options(recipe, stage.leg)
    transfer = place.origin is not None and world_of(place.origin[1], place.origin[2]) != world_of(recipe, stage)
    key = json.dumps([*world_of(recipe, stage), recipe.tasks.test_split, place.where.base if apart else "", transfer], sort_keys=True)
    column = found.setdefault(key, Column(recipe.world.name, options, recipe.tasks.test_split, transfer, place.where.base if apart else ""))
    column.recipes.setdefault(place.run.path, recipe)
    column.roles.setdefault(place.row, stage.role if place.origin is None else "arm")
    kind: Kind = "explore" if stage.kind == "explore" else "evaluate"
    done = place.done
    why = next(((done or {})[reason] for reason in ("empty", "stopped") if reason in (done or {})), None)
    if why is not None:
        column.absent[place.row, place.where] = str(why)
        return
    if not (place.folder / "tasks.jsonl").is_file():
        return
    places = column.places.setdefault((kind, place.row), {})
    before = places.get(place.where)
    if before is None:
        places[place.where] = place
        return
    _same_arm(before, place)
    if before.done is None and done is not None:
        before, places[place.where] = place, place
    notes.append(f"{place.row} ({place.where.words}) is in {before.run.path} and in another folder too; the table takes one of them.")


def world_of(recipe: Recipe, stage: Stage) -> tuple[str, dict[str, Any]]:
    return recipe.world.name, world_options(recipe, stage.leg)


def _lend_base(columns: list[Column]) -> None:
    """The base policy of a transfer column is sampled in a run of its own, or in any other run of that world."""

    def world(c: Column) -> list[Any]:
        return [c.world, c.options, c.split, c.base]

    for column in [c for c in columns if c.transfer]:
        for other in [c for c in columns if not c.transfer and world(c) == world(column)]:
            mine, theirs = (c.places.get(("evaluate", "base"), {}) for c in (column, other))
            column.places[("evaluate", "base")] = {**theirs, **mine}
            column.roles["base"] = "base"
            if set(other.places) <= {("evaluate", "base")} and not other.absent:
                columns.remove(other)


def _same_arm(a: Place, b: Place) -> None:
    one, other = (p.recipe.arms.get(p.row) for p in (a, b))
    if one != other:
        raise UserError(f"{a.row} was trained by other settings in {a.run.path} than in {b.run.path}: rename one of the two arms, or leave one folder out.")


def settings(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """How policies are tested. Not the number of samples, which Pass@k allows for."""
    return {
        "prompts": recipe.prompts, "history": recipe.history, "explore.horizon": recipe.explore.horizon, "explore.invalid_limit": recipe.explore.invalid_limit,
        "evaluate.temperature": recipe.evaluate.temperature, "evaluate.top_p": recipe.evaluate.top_p, "tasks.test": task_count(recipe, stage.leg, "test"),
    }  # fmt: skip


def budget_of(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The budget that every exploration has."""
    limits: dict[str, Any] = {f"explore.limits.{name}": value for name, value in recipe.explore.limits.items()}
    limits |= {f"explore.run_limits.{name}": value for name, value in recipe.explore.run_limits.items()}
    return limits | {"tasks.train": task_count(recipe, stage.leg, "train"), "tasks.train_split": recipe.tasks.train_split}


def _same_budget(column: Column) -> None:
    first: dict[str, tuple[Place, dict[str, Any]]] = {}
    for place in _every(column):
        here = budget_of(place.recipe, place.stage) if place.recipe.strategies or place.recipe.arms else {}
        there = budget_of(place.origin[1], place.origin[2]) if place.origin else {}
        for what, mine in (("tested", settings(place.recipe, place.stage)), ("here", here if not column.transfer else {}), ("there", there)):
            if not mine:
                continue
            other, before = first.setdefault(what, (place, mine))
            different = next((name for name in {**before, **mine} if before.get(name) != mine.get(name)), None)
            if different is not None:
                a, b = (p.origin[0].path if what == "there" and p.origin else p.run.path for p in (other, place))
                raise UserError(
                    f"{a} and {b} cannot stand in one table: {different} is {_said(before.get(different))} in the one and {_said(mine.get(different))} in the "
                    "other; give folders of one budget and one way of testing."
                )


def _said(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _same_tasks(column: Column) -> None:
    first: dict[tuple[Kind, Where], tuple[Place, str]] = {}
    for (kind, _), places in column.places.items():
        for where, place in places.items():
            tasks = place.tasks
            other, before = first.setdefault((kind, where), (place, tasks))
            if tasks != before:
                what = "training" if kind == "explore" else "test"
                raise UserError(
                    f"{other.folder} and {place.folder} hold other {what} tasks, though both are {where.words}: rows of one table are compared task by task; "
                    "leave one of the two folders out."
                )


def _same_worlds(columns: Sequence[Column]) -> None:
    """One version of every world throughout a table."""
    first: dict[str, tuple[Place, dict[str, Any]]] = {}
    for column in columns:
        for place in _every(column):
            versions = (place.done or {}).get("world") or {}
            if not versions:
                continue
            other, before = first.setdefault(column.world, (place, versions))
            different = next((name for name in {**before, **versions} if before.get(name) != versions.get(name)), None)
            if different is not None:
                raise UserError(
                    f"{other.run.path} and {place.run.path} were made in other versions of the world {column.world!r} ({different} {before.get(different)!r} "
                    f"and {versions.get(different)!r}): figures of the two cannot be compared; run one of them anew."
                )


def _every(column: Column) -> list[Place]:
    return [place for places in column.places.values() for place in places.values()]


def _name(columns: Sequence[Column]) -> None:
    """The world, and of its options those in which columns differ, or its setting."""
    for column in columns:
        alike = [c for c in columns if c.world == column.world]
        names = [n for n in column.options if n in ("setting", "rules") or any(c.options.get(n) != column.options[n] for c in alike)]
        words = [str(column.options[n]) if n in ("setting", "rules") else f"{n} {column.options[n]}" for n in names]
        words += [column.split] if column.split != "test" else []
        column.title = " ".join([column.world, *words, *([short(column.base)] if column.base else []), *(["(transfer)"] if column.transfer else [])])
    for nth, column in enumerate(columns):
        if any(c.title == column.title for c in columns[:nth]):
            column.title += f" ({nth + 1})"


def _read(place: Place) -> Result:
    trees = [tree for tree in load_trees(place.folder).values() if tree.episodes]
    of = sum(1 for line in (place.folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines() if line.strip())
    done = place.done
    seconds = float((done or {}).get("seconds", 0.0))
    cost = cost_of_arm(place)
    if place.stage.kind == "explore":
        within = {"all": _solved(trees)}
        calls = place.recipe.explore.limits.get("policy_calls")
        if calls:
            within = {name: _within(trees, "policy_calls", calls * share) for name, share in SHARES.items()} | {STEPS: _within(trees, "env_steps", calls)}
        return Result(_solved(trees), of, done is not None, 1, None, float("nan"), seconds, cost, within)
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


def _temperature(place: Place) -> float | None:
    value = (place.done or {}).get("temperature", place.stage.temperature)
    return place.recipe.evaluate.temperature if value is None else float(value)


def _solved(trees: Sequence[Tree]) -> Counts:
    return _as_counts(trees, [tree.solved for tree in trees])


def _within(trees: Sequence[Tree], cost: Literal["policy_calls", "env_steps"], budget: float) -> Counts:
    """Solved, had every task this budget: what came first in a tree would have come first with less."""
    return _as_counts(trees, [coverage_curve([tree], cost).at(int(budget)) == 1.0 for tree in trees])


def _as_counts(trees: Sequence[Tree], solved: Sequence[bool]) -> Counts:
    n = np.ones(len(trees), dtype=np.int64)
    return Counts(tuple(t.task.id for t in trees), n, np.asarray(solved, dtype=np.int64), np.zeros_like(n))


def cost_of_arm(place: Place) -> Cost:
    """What the row's policy took to make; of an exploration what it spent itself."""
    run, recipe, stage = (place.run, place.recipe, place.stage) if place.origin is None else place.origin
    stages = {s.name: s for s in plan(recipe)}
    needed: dict[str, Stage] = {}
    choice = stage_name("choose", stage.leg, stage.attempt.arm) if stage.attempt else ""
    waiting = [stage.name, choice]  # what was chosen from several attempts cost all of them
    while waiting:
        name = waiting.pop()
        if name not in needed and name in stages:
            needed[name] = stages[name]
            waiting += [need for need in stages[name].needs if stages[name].kind != "evaluate" or "held-out" not in need]
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
