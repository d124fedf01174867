"""A recipe unrolled into stages: what runs, in which folder, after what.

The experiment is a leg: explore, distill, evaluate. Every seed is a leg of its own, and so is every control; the names of a leg's
stages begin with its prefix. A stage needs only the folders of the stages it names, so that those that need nothing of each other can run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from leafe.recipes import Recipe

StageKind = Literal["explore", "distill", "evaluate"]


@dataclass(frozen=True, slots=True)
class Leg:
    """One pass of the experiment: a seed and a world setting."""

    seed: int
    control: str = ""
    """The control's name; empty for the experiment itself."""
    many_seeds: bool = False

    @property
    def prefix(self) -> str:
        """What its stage folders begin with: `seed1.`, `random.`, `seed1.random.` or nothing."""
        return (f"seed{self.seed}." if self.many_seeds else "") + (f"{self.control}." if self.control else "")


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of work, finished or not as a whole (though what it journals is kept)."""

    kind: StageKind
    leg: Leg
    what: str
    """The strategy that explores, the arm that is trained, or the row that is evaluated."""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its folder in the run: `explore/tree`, `distill/leafe+`, `evaluate/random.base`."""
        return stage_name(self.kind, self.leg, self.what)

    @property
    def row(self) -> str:
        """How tables name it."""
        return f"{self.leg.control}: {self.what}" if self.leg.control else self.what


def stage_name(kind: StageKind, leg: Leg, what: str) -> str:
    return f"{kind}/{leg.prefix}{what.replace(' ', '-')}"


def legs(recipe: Recipe) -> list[Leg]:
    """The experiment for every seed, then the controls for every seed."""
    many = len(recipe.seeds) > 1
    return [Leg(seed, control, many) for control in ("", *recipe.controls) for seed in recipe.seeds]


def plan(recipe: Recipe) -> list[Stage]:
    """All stages, each after what it needs; long ones come early so that parallel jobs end together."""
    out: list[Stage] = []
    for leg in legs(recipe):
        control = recipe.controls.get(leg.control)
        strategies = control.strategies if control else recipe.strategies
        arms = control.arms if control else tuple(recipe.arms)
        out += [Stage("explore", leg, strategy) for strategy in strategies]
        out += [Stage("distill", leg, arm, (stage_name("explore", leg, recipe.arms[arm].explored),)) for arm in arms]
        out.append(Stage("evaluate", leg, "base"))
        out += [Stage("evaluate", leg, arm, (stage_name("distill", leg, arm),)) for arm in arms]
        if not control:
            for name, extra in recipe.evaluate.extras.items():
                needs = (stage_name("distill", leg, extra.policy),) if extra.policy in recipe.arms else ()
                out.append(Stage("evaluate", leg, name, needs))
    order: dict[str, int] = {"explore": 0, "distill": 1, "evaluate": 2}
    return sorted(out, key=lambda s: order[s.kind])


def find(recipe: Recipe, name: str) -> Stage:
    """The stage with this folder."""
    return next(s for s in plan(recipe) if s.name == name)


def world_options(recipe: Recipe, leg: Leg) -> dict[str, Any]:
    """The world's options in this leg."""
    control = recipe.controls.get(leg.control)
    return dict(recipe.world.options) | (dict(control.options) if control else {})


def task_count(recipe: Recipe, leg: Leg, which: Literal["train", "test"]) -> int | None:
    """How many tasks the leg uses of the training or test split; None: all."""
    control = recipe.controls.get(leg.control)
    own: int | None = getattr(control, which) if control else None
    shared: int | None = getattr(recipe.tasks, which)
    return own if own is not None else shared
