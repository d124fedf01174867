"""What run folders hold for a table: columns (environments), rows (arms), and for each row what it
came to in each of its runs.

A *run* of a row is one seed of one base policy (`Where`); many folders may hold runs of one column,
and one folder those of several (its controls are columns
of their own). A folder whose base policy is a checkpoint that another folder trained is evidence on
that arm, in another environment. What cannot be compared is
refused here, before a figure is made of it: other budgets, other environment versions, other test
tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.explore import STRATEGIES
from leafe.pipeline import Stage, StageResult, env_options, plan, recipe_of
from leafe.recipes import Recipe
from leafe.runs import RunFolder
from leafe.tables._commands import resume
from leafe.tables._define import trains_for_transfer, why_control
from leafe.tables._refuse import same_arm, same_budget, same_envs, same_tasks
from leafe.tables._results import Kind, Place, Result, Where, read, short


@dataclass(slots=True)
class Column:
    """One environment in one setting."""

    env: str
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
    def why_control(self) -> str:
        """Why no claim speaks of it; '' where claims do."""
        return why_control(self.env, self.options, self.transfer)

    @property
    def for_transfer(self) -> bool:
        return trains_for_transfer(self.env, self.options)

    @property
    def origins(self) -> list[tuple[str, dict[str, Any]]]:
        """Of a transfer column: the environments in which its policies were trained."""
        return [
            env_of(p.origin[1], p.origin[2])
            for places in self.places.values()
            for p in places.values()
            if p.origin is not None
        ]

    def rows(self, kind: Kind = "evaluate") -> list[str]:
        return [row for k, row in self.places if k == kind]

    def runs(self, kind: Kind = "evaluate") -> list[Where]:
        """All runs that any row has."""
        return sorted(
            {where for (k, _), places in self.places.items() if k == kind for where in places}
        )

    def results(self, row: str, kind: Kind = "evaluate") -> dict[Where, Result]:
        """Run by run; read from the journals when first asked for. Runs without a single finished
        task are left out."""
        out = {}
        for where, place in sorted(
            self.places.get((kind, row), {}).items(), key=lambda item: item[0]
        ):
            if place.folder not in self.known:
                self.known[place.folder] = read(place)
            if self.known[place.folder].counts.tasks:
                out[where] = self.known[place.folder]
        return out


@dataclass(slots=True)
class Evidence:
    columns: list[Column]
    notes: list[str]
    runs: list[RunFolder]


def gather(
    paths: Sequence[Path], *, apart: bool = False, known: dict[Path, Result] | None = None
) -> Evidence:
    """All that these folders hold, checked. `apart`: a column for each base policy. `known`: what
    an earlier call has read, to be read once.

    UserError where what they hold cannot stand in one table.
    """
    found: dict[str, Column] = {}
    notes: list[str] = []
    runs = [RunFolder.read(path) for path in dict.fromkeys(paths)]
    for run in runs:
        if "shard" in run.config:
            raise UserError(
                f"{run.path} is a shard of a run: put the shards together with `leafe merge` first."
            )
        recipe = recipe_of(run)
        for place in _places(run, recipe):
            _take(place, found, notes, apart)
    columns = list(found.values())
    _lend_base(columns)
    _lend_reasons(columns)
    columns = [c for c in columns if c.places or c.absent]
    known = {} if known is None else known
    for column in columns:
        column.known = known
        same_budget(column)
        same_tasks(column)
    same_envs(columns)
    _name(columns)
    return Evidence(columns, notes, runs)


def _places(run: RunFolder, recipe: Recipe) -> Iterator[Place]:
    origin = _origin(run, recipe)
    base = origin[1].policy.model if origin else recipe.policy.model
    for stage in plan(recipe):
        explored = stage.kind == "explore" and stage.what in STRATEGIES and str(stage.policy) == "base"
        if not explored and stage.kind != "evaluate":
            continue
        attempt = origin[2].attempt if origin else None
        row = attempt.arm if attempt and stage.role == "base" else stage.what
        yield Place(
            run,
            recipe,
            stage,
            row,
            Where(base, origin[2].variant.seed if origin else stage.variant.seed),
            origin,
        )


def _origin(run: RunFolder, recipe: Recipe) -> tuple[RunFolder, Recipe, Stage] | None:
    """Who trained the policy that this run calls its base; None where no run folder did."""
    model = Path(recipe.policy.model)
    if model.name != "checkpoint" or model.parent.parent.name != "distill":
        return None
    for path in (model.parents[2], run.path.parent / model.parents[2].name):
        if (path / "manifest.json").is_file() and path.resolve() != run.path.resolve():
            trained = RunFolder.read(path)
            theirs = recipe_of(trained)
            stage = next(
                (
                    s
                    for s in plan(theirs)
                    if s.kind == "distill" and Path(s.name).name == model.parent.name
                ),
                None,
            )
            if stage is not None:
                return trained, theirs, stage
    return None


def _take(place: Place, found: dict[str, Column], notes: list[str], apart: bool) -> None:
    stage, recipe = place.stage, place.recipe
    options = env_options(recipe, stage.variant)
    transfer = place.origin is not None and env_of(place.origin[1], place.origin[2]) != env_of(
        recipe, stage
    )
    key = json.dumps(
        [
            *env_of(recipe, stage),
            recipe.tasks.test_split,
            place.where.base if apart else "",
            transfer,
        ],
        sort_keys=True,
    )
    column = found.setdefault(
        key,
        Column(
            recipe.env.name,
            options,
            recipe.tasks.test_split,
            transfer,
            place.where.base if apart else "",
        ),
    )
    column.recipes.setdefault(place.run.path, recipe)
    column.roles.setdefault(place.row, stage.role if place.origin is None else "arm")
    kind: Kind = "explore" if stage.kind == "explore" else "evaluate"
    done = place.done
    why = "" if done is None else StageResult.parse(done).reason
    if why:
        column.absent[place.row, place.where] = why
        return
    if not (place.folder / "tasks.jsonl").is_file():
        if done is not None:
            command = resume(place.run)
            raise UserError(
                f"{place.folder} is marked as finished and has no tasks.jsonl: restore it, "
                f"or delete the folder and go on with `{command}`."
            )
        return
    places = column.places.setdefault((kind, place.row), {})
    before = places.get(place.where)
    if before is None:
        places[place.where] = place
        return
    same_arm(before, place)
    if before.done is None and done is not None:
        before, places[place.where] = place, place
    notes.append(
        f"{place.row} ({place.where.words}) is in {before.run.path} and in another folder "
        "too; the table takes one of them."
    )


def env_of(recipe: Recipe, stage: Stage) -> tuple[str, dict[str, Any]]:
    return recipe.env.name, env_options(recipe, stage.variant)


def _lend_base(columns: list[Column]) -> None:
    """The base policy of a transfer column is sampled in a run of its own, or in any other run of
    that environment."""

    def env(c: Column) -> list[Any]:
        return [c.env, c.options, c.split, c.base]

    for column in [c for c in columns if c.transfer]:
        for other in [c for c in columns if not c.transfer and env(c) == env(column)]:
            mine, theirs = (c.places.get(("evaluate", "base"), {}) for c in (column, other))
            column.places[("evaluate", "base")] = {**theirs, **mine}
            column.roles["base"] = "base"
            if set(other.places) <= {("evaluate", "base")} and not other.absent:
                columns.remove(other)


def _lend_reasons(columns: Sequence[Column]) -> None:
    """Why an arm has no weights where it was trained is why it has no figure where it was to be
    tested."""
    for column in [c for c in columns if c.transfer]:
        for other in [
            c for c in columns if not c.transfer and (c.env, c.options) in column.origins
        ]:
            for (row, where), why in other.absent.items():
                if where in column.runs() and where not in column.places.get(("evaluate", row), {}):
                    column.absent[row, where] = why


_PLAIN = ("setting", "rules", "words")
"""Options that name a column by their value alone."""


def _name(columns: Sequence[Column]) -> None:
    """The environment, and of its options those in which columns differ, or its setting."""
    for column in columns:
        alike = [c for c in columns if c.env == column.env]
        names = [
            n
            for n in column.options
            if n in _PLAIN or any(c.options.get(n) != column.options[n] for c in alike)
        ]
        words = [
            str(column.options[n]) if n in _PLAIN else f"{n} {column.options[n]}" for n in names
        ]
        words += [column.split] if column.split != "test" else []
        column.title = " ".join(
            [
                column.env,
                *words,
                *([short(column.base)] if column.base else []),
                *(["(transfer)"] if column.transfer else []),
            ]
        )
    for nth, column in enumerate(columns):
        if any(c.title == column.title for c in columns[:nth]):
            column.title += f" ({nth + 1})"
