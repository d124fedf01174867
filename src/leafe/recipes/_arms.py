"""Arms are policies to train: their start, their trees, their rounds, and what validation chooses.

An arm may build on others (`start`, `explorer`), so that any sequence of phases is a list of arms:
rejection sampling after leafe+ is an arm with the preset `rft` that starts from the arm leafe+ and
learns from what that explored. How an arm is trained is in `_methods`.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from leafe.baselines.ace import AceConfig
from leafe.baselines.early_experience import EarlyConfig
from leafe.baselines.grpo import GrpoConfig
from leafe.distill import DistillConfig, Lora
from leafe.recipes._methods import (
    ARM_PRESETS,
    EXPLORES,
    METHODS,
    Config,
    EarlyRecipe,
    GrpoRecipe,
    Method,
    make_config,
    swept,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RoundsRecipe(_Strict):
    """Rounds of exploring with the newest policy, distilling, and sampling on validation tasks.

    `rounds = 3` is short for `rounds = { number = 3 }`. A round whose policy is worse than the best
    so far on validation (the paired 95 % interval of Pass@1 or Pass@k lies below zero) is the last;
    the arm is the best round.
    """

    number: int = Field(1, ge=1)
    """The most rounds."""
    tasks: Literal["parted", "same"] = "parted"
    """parted: each round explores its own share, so that all rounds together cost as much as one.
    same: all training tasks in every round."""
    data: Literal["all", "newest"] = "all"
    """A round is trained on the trees of all rounds so far, or on its own alone."""
    start: Literal["first", "newest"] = "first"
    """first: a round is trained from the arm's `start`, on all trees so far. newest: from the
    weights of the round before, which overfits to what it sees in every round (docs/results.md)."""


class ValidationRecipe(_Strict):
    """How rounds are stopped and chosen, and a sweep's settings chosen: by samples of tasks that
    neither train nor test."""

    split: str = "valid"
    """The split of these tasks."""
    tasks: int = Field(60, ge=1)
    """How many tasks."""
    samples: int = Field(32, ge=1)
    """Of each task."""
    k: int = Field(8, ge=1)
    """Pass@k decides; among equals Pass@1 does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination of a sweep."""

    changes: Mapping[str, Any]
    """What it sets, by name."""
    config: Config
    temperature: float | None
    """At which it is sampled; None: the evaluation's."""

    @property
    def words(self) -> str:
        return ", ".join(
            f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in self.changes.items()
        )


class ArmRecipe(_Strict):
    """One policy to train: from what, on which exploration, and how."""

    preset: str
    """A preset of Stage 2 (`leafe.distill.PRESETS`), or `grpo`, `early-experience`,
    `self-reflection` or `ace`."""
    explored: str = "tree"
    """The strategy whose trees it is trained on."""
    start: str = "base"
    """Whose weights the training begins with: `base` or another arm. Anchors and soft targets take
    this policy for their teacher."""
    explorer: str = "base"
    """Who explored the trees: `base` or another arm, whose exploration is a stage of its own, on
    the same training tasks."""
    distill: dict[str, Any] = {}
    """Changes to the preset (fields of `DistillConfig`); of Early Experience: to its training on
    the expert's actions."""
    grpo: dict[str, Any] = {}
    """Fields of `GrpoConfig`, and `budget`: how many explorations' budget it has (1)."""
    early: dict[str, Any] = {}
    """Fields of `EarlyConfig`; `temperature` of the proposals; `world_model`: changes to the
    training on next observations."""
    ace: dict[str, Any] = {}
    """Fields of `AceConfig`."""
    rounds: RoundsRecipe | None = None
    """None: the recipe's."""
    sweep: dict[str, list[Any]] = {}
    """Lists of values for the method's options (fields of `DistillConfig`, `GrpoConfig` or
    `AceConfig`) and for `temperature` (of sampling). Every combination is trained and sampled on
    validation tasks, the best one is the arm, and the weights of all others are deleted."""

    @field_validator("rounds", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return short_rounds(value)

    @property
    def method(self) -> Method:
        return METHODS.get(self.preset, "distill")

    def config(self) -> Config:
        return self._config({})

    def settings(self) -> list[Setting]:
        """The combinations of the sweep, in the order of the recipe; one without changes where
        there is no sweep."""
        out = []
        for values in itertools.product(*self.sweep.values()):
            changes = dict(zip(self.sweep, values, strict=True))
            trained = {name: value for name, value in changes.items() if name != TEMPERATURE}
            out.append(Setting(changes, self._config(trained), changes.get(TEMPERATURE)))
        return out

    @property
    def builds_on(self) -> list[str]:
        """The arms that must be trained before it."""
        return [arm for arm in dict.fromkeys((self.start, self.explorer)) if arm != "base"]

    def _config(self, changes: Mapping[str, Any]) -> Config:
        return make_config(
            self.preset,
            {"distill": self.distill, "grpo": self.grpo, "early": self.early, "ace": self.ace},
            changes,
        )


TEMPERATURE = "temperature"


def short_rounds(value: Any) -> Any:
    """`rounds = 3` as the table that it stands for."""
    return {"number": value} if isinstance(value, int) and not isinstance(value, bool) else value


def check_arms(arms: Mapping[str, ArmRecipe], rounds: RoundsRecipe) -> None:
    """ValueError with a sentence where an arm cannot be trained; `rounds` are those of arms without
    their own."""
    for name, arm in arms.items():
        if name == "base" or "/" in name or "." in name or name.strip() != name or not name:
            raise ValueError(f"{name!r} cannot name an arm: 'base', '/' and '.' are taken")
        if arm.preset not in ARM_PRESETS:
            raise ValueError(
                f"arms.{name}: there is no preset {arm.preset!r}; there are "
                f"{', '.join(ARM_PRESETS)}"
            )
        _check_method(name, arm, rounds)
        _check_settings(name, arm)
        for role, other in (("start", arm.start), ("explorer", arm.explorer)):
            if other != "base" and other not in arms:
                raise ValueError(
                    f"arms.{name}.{role}: there is no arm {other!r}; there are base, "
                    f"{', '.join(n for n in arms if n != name) or 'and no other'}"
                )
            if other != "base" and arms[other].method == "ace":
                raise ValueError(
                    f"arms.{name}.{role} = {other!r}: that arm is a playbook and has no "
                    "weights of its own; name the policy that it stands before"
                )
        if arm.sweep and (arm.rounds or rounds).number > 1:
            raise ValueError(
                f"arms.{name} has a sweep and several rounds: choose the settings with one "
                "round, then write them under distill"
            )
    for name in arms:
        circle = _circle(name, arms, ())
        if circle:
            raise ValueError(
                f"arms.{circle[0]} builds on itself ({' -> '.join(circle)}): let one of "
                "them start from base, explored by base"
            )
    for name, arm in arms.items():
        lora = _lora(arms[arm.start].config()) if arm.start != "base" else None
        if lora is not None and not lora.merge:
            where = f"arms.{arm.start}.{_TABLES[arms[arm.start].method]}"
            raise ValueError(
                f"arms.{name} starts from {arm.start!r}, which is an adapter alone: set "
                f"{where}.lora.merge = true"
            )


_TABLES: Mapping[Method, str] = {
    "distill": "distill",
    "early": "distill",
    "grpo": "grpo",
    "ace": "ace",
}
"""Where the options of a method's (last) training stand."""


def _lora(config: Config) -> Lora | None:
    if isinstance(config, GrpoRecipe):
        lora = config.options.get("lora")
        return Lora(**lora) if lora is not None else None
    return (
        config.lora
        if isinstance(config, DistillConfig)
        else config.expert.lora
        if isinstance(config, EarlyRecipe)
        else None
    )


def _check_method(name: str, arm: ArmRecipe, rounds: RoundsRecipe) -> None:
    """ValueError where the arm has a setting that its method does not use."""
    uses = {_TABLES[arm.method], *(("early",) if arm.method == "early" else ())}
    for table in ("distill", "grpo", "early", "ace"):
        if getattr(arm, table) and table not in uses:
            raise ValueError(
                f"arms.{name}.{table}: the preset {arm.preset!r} has no use for it; its "
                f"options stand under {' and '.join(sorted(uses))}"
            )
    if arm.method not in EXPLORES and (arm.explored != "tree" or arm.explorer != "base"):
        raise ValueError(
            f"arms.{name}: {arm.preset} acts for itself and learns from no exploration: "
            "take explored and explorer out"
        )
    if arm.method != "distill" and (arm.rounds or rounds).number > 1:
        raise ValueError(
            f"arms.{name}: rounds are of distillation, and {arm.preset!r} is none: set "
            f"arms.{name}.rounds = 1"
        )


_WORDS: Mapping[Method, str] = {
    "distill": "distillation",
    "early": "distillation",
    "grpo": "GRPO",
    "ace": "ACE",
}


def _check_settings(name: str, arm: ArmRecipe) -> None:
    for where, keys in (("distill", arm.distill), ("grpo", arm.grpo), ("sweep", arm.sweep)):
        if "seed" in keys:
            raise ValueError(
                f"arms.{name}.{where}.seed: a training takes the run's seed, so write "
                "seeds = [...] at the head of the recipe instead"
            )
    for field, values in arm.sweep.items():
        known = [*swept(arm.method), TEMPERATURE]
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f": did you mean {near[0]!r}?" if near else f", and not {TEMPERATURE!r}"
            raise ValueError(
                f"arms.{name}.sweep: {field!r} is no option of {_WORDS[arm.method]}{hint}"
            )
        if not values:
            raise ValueError(
                f"arms.{name}.sweep.{field} is an empty list: give it values, or take it out"
            )
        if field == TEMPERATURE and not all(
            isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in values
        ):
            raise ValueError(
                f"arms.{name}.sweep.{TEMPERATURE} = {values}: temperatures are numbers, 0 or above"
            )
        if len({str(v) for v in values}) < len(values):
            raise ValueError(f"arms.{name}.sweep.{field} = {values} names a value twice")
    try:
        arm.config()
    except ValidationError as error:
        table = "early or distill" if arm.method == "early" else _TABLES[arm.method]
        raise ValueError(f"arms.{name}.{table}{_where(error)}") from error
    try:
        arm.settings()
    except ValidationError as error:
        raise ValueError(f"arms.{name}.sweep{_where(error)}") from error


def _where(error: ValidationError) -> str:
    first = error.errors()[0]
    where = "".join(f".{part}" for part in first["loc"] if part != "options")
    if first["type"] == "extra_forbidden":
        known = next(
            (
                list(c.model_fields)
                for c in (DistillConfig, GrpoConfig, EarlyConfig, AceConfig)
                if c.__name__ == error.title
            ),
            [],
        )
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.7)
        return f"{where}: there is no such option" + (
            f"; did you mean {near[0]!r}?"
            if near
            else f"; there are {', '.join(known)}"
            if known
            else ""
        )
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _circle(name: str, arms: Mapping[str, ArmRecipe], above: tuple[str, ...]) -> tuple[str, ...]:
    """The arms on the way from `name` back to itself; empty where there is none."""
    if name in above:
        return (*above[above.index(name) :], name)
    for other in arms[name].builds_on:
        found = _circle(other, arms, (*above, name))
        if found:
            return found
    return ()
