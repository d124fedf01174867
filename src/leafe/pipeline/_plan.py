"""A recipe unrolled into stages: what runs, in which folder, after what.

The experiment is a leg: explore, distill, evaluate. Every seed is a leg of its own, and so is every
control; the names of a leg's
stages begin with its prefix. A stage needs only the folders of the stages it names, so that those
that need nothing of each other can run side by side.

Baselines that do more than train on what was explored have a stage before it (`collect`: Early
Experience asks on, ACE grows its playbook, which is all that
it makes) or train by themselves (GRPO). Rows of several attempts at a test task are stages of their
own (`tries`).

An arm is trained once, or in several attempts: its rounds, or the settings of its sweep. Attempts
are sampled on validation tasks (`validate`), and a
stage of its own (`choose`) says which of them the arm is; whatever needs the arm waits for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from leafe.baselines.ace import AceConfig
from leafe.recipes import EXPLORES, Config, EarlyRecipe, Recipe

StageKind = Literal["explore", "collect", "distill", "validate", "choose", "evaluate", "tries"]
KINDS: tuple[StageKind, ...] = (
    "explore",
    "collect",
    "distill",
    "validate",
    "choose",
    "evaluate",
    "tries",
)
HELD_OUT = "base.held-out.tree"
"""The exploration of validation tasks that rows are probed on."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One pass of the experiment: a seed and an environment setting."""

    seed: int
    control: str = ""
    """The control's name; empty for the experiment itself."""
    many_seeds: bool = False

    @property
    def prefix(self) -> str:
        """What its stage folders begin with: `seed1.`, `random.`, `seed1.random.` or nothing."""
        return (f"seed{self.seed}." if self.many_seeds else "") + (
            f"{self.control}." if self.control else ""
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One training of an arm."""

    arm: str
    start: str
    """Whose weights it begins with: `base`, an arm, or an earlier attempt (`ARM.round1`)."""
    config: Config
    explored: tuple[str, ...]
    """The exploration stages whose trees it is trained on."""
    number: int = 0
    """Of the round or of the sweep's combination, from 1; 0 where the arm is trained once."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of work, finished or not as a whole (though what it journals is kept)."""

    kind: StageKind
    variant: Variant
    what: str
    """The strategy that explores; the arm or attempt that is trained, sampled or chosen; the row
    that is evaluated."""
    needs: tuple[str, ...] = ()
    policy: str = "base"
    """Who acts in it: `base`, an arm, an attempt, or `package.module:Class`."""
    round: tuple[int, int] = (1, 1)
    """(which, of how many): explore, which share of the training tasks; else the round that it
    belongs to."""
    parted: bool = False
    """explore: on this round's share alone."""
    attempt: Attempt | None = None
    """distill, collect: what is trained, or grown."""
    temperature: float | None = None
    """At which it samples; None: the recipe's or, for an arm with a sweep, the chosen one."""
    role: Literal["arm", "base", "control", "ceiling"] = "arm"
    """evaluate: what its row is in the comparison."""
    title: str = ""
    """How tables name it; empty: like `what`."""

    @property
    def name(self) -> str:
        """Its folder in the run: `explore/tree`, `distill/leafe+`, `evaluate/random.base`."""
        return stage_name(self.kind, self.variant, self.what)

    @property
    def row(self) -> str:
        """How tables name it."""
        title = self.title or self.what
        return f"{self.variant.control}: {title}" if self.variant.control else title


def stage_name(kind: StageKind, variant: Variant, what: str) -> str:
    """A stage's folder within the run, such as `explore/seed1.tree`."""
    return f"{kind}/{variant.prefix}{what.replace(' ', '-')}"


def variants(recipe: Recipe) -> list[Variant]:
    """The experiment for every seed, then the controls for every seed."""
    many = len(recipe.seeds) > 1
    return [
        Variant(seed, control, many) for control in ("", *recipe.controls) for seed in recipe.seeds
    ]


def plan(recipe: Recipe) -> list[Stage]:
    """All stages, each after what it needs; long ones come early so that parallel jobs end
    together."""
    return _in_order(
        [stage for variant in variants(recipe) for stage in _Unrolled(recipe, variant).stages()]
    )


class _Unrolled:
    """The stages of one leg."""

    def __init__(self, recipe: Recipe, variant: Variant) -> None:
        self.recipe, self.variant = recipe, variant
        self.control = recipe.controls.get(variant.control)
        self.arms = self.control.arms if self.control else tuple(recipe.arms)
        self._found: dict[str, Stage] = {}

    def stages(self) -> list[Stage]:
        for strategy in self.control.strategies if self.control else self.recipe.strategies:
            arms = {arm: self.recipe.arms[arm] for arm in self.arms if self._learns(arm)}
            learners = [
                name
                for name, arm in arms.items()
                if arm.explored == strategy and arm.explorer == "base"
            ]
            # where only arms of several rounds learn from it, it explores in their rounds alone
            if not learners or not all(self._parted(arm) for arm in learners):
                self._explore(strategy)
        for arm in self.arms:
            if self.recipe.rounds_of(arm).number > 1:
                self._rounds(arm)
            elif self.recipe.arms[arm].sweep:
                self._sweep(arm)
            else:
                one = self.recipe.arms[arm]
                self._make(arm, Attempt(arm, one.start, one.config(), self._explored(arm)))
        self._held_out()
        self._add(Stage("evaluate", self.variant, "base", role="base"))
        for arm in self.arms:
            self._rows(arm)
        if not self.control:
            for name, extra in self.recipe.evaluate.extras.items():
                temperature = (
                    self.recipe.evaluate.temperature
                    if extra.temperature is None
                    else extra.temperature
                )
                self._add(
                    Stage(
                        "evaluate",
                        self.variant,
                        name,
                        self._ready(extra.policy),
                        extra.policy,
                        temperature=temperature,
                        role=extra.role,
                    )
                )
            for name, tries in self.recipe.evaluate.tries.items():
                self._add(
                    Stage("tries", self.variant, name, self._ready(tries.policy), tries.policy)
                )
        return list(self._found.values())

    def _add(self, stage: Stage) -> str:
        probed = stage_name("explore", self.variant, HELD_OUT)
        if stage.kind == "evaluate" and stage.role in ("arm", "base") and probed in self._found:
            stage = replace(stage, needs=(*stage.needs, probed))
        self._found.setdefault(stage.name, stage)
        return stage.name

    def _held_out(self) -> None:
        """The trees of the base on validation tasks, on which the base and the arms are probed."""
        if self.recipe.evaluate.probe is not None and not self.control:
            self._add(Stage("explore", self.variant, HELD_OUT, title="tree on validation tasks"))

    def _parted(self, arm: str) -> bool:
        rounds = self.recipe.rounds_of(arm)
        return rounds.number > 1 and rounds.tasks == "parted"

    def _several(self, arm: str) -> bool:
        return bool(self.recipe.arms[arm].sweep) or self.recipe.rounds_of(arm).number > 1

    def _learns(self, arm: str) -> bool:
        return self.recipe.arms[arm].method in EXPLORES

    def _explored(self, arm: str) -> tuple[str, ...]:
        """The exploration that the arm learns from; none for one that acts for itself."""
        one = self.recipe.arms[arm]
        return (self._explore(one.explored, one.explorer),) if self._learns(arm) else ()

    def _ready(self, policy: str) -> tuple[str, ...]:
        """The stage after which the policy can act."""
        if policy in self.recipe.arms and self._several(policy):
            return (stage_name("choose", self.variant, policy),)
        return () if policy == "base" or ":" in policy else (self._made(policy),)

    def _made(self, name: str) -> str:
        """The stage that makes an arm or an attempt: its training, or the growing of its
        playbook."""
        arm = name if name in self.recipe.arms else name.rpartition(".")[0]
        return stage_name(
            "collect" if self.recipe.arms[arm].method == "ace" else "distill", self.variant, name
        )

    def _explore(self, strategy: str, policy: str = "base") -> str:
        if policy == "base":
            return self._add(Stage("explore", self.variant, strategy))
        return self._add(
            Stage(
                "explore",
                self.variant,
                f"{policy}.{strategy}",
                self._ready(policy),
                policy,
                title=f"{strategy} by {policy}",
            )
        )

    def _make(self, name: str, attempt: Attempt, title: str = "") -> str:
        """Train the attempt, or grow its playbook."""
        needs = (*attempt.explored, *self._ready(attempt.start))
        if isinstance(attempt.config, AceConfig):
            return self._add(
                Stage(
                    "collect",
                    self.variant,
                    name,
                    needs,
                    attempt.start,
                    attempt=attempt,
                    title=title,
                )
            )
        if isinstance(attempt.config, EarlyRecipe):
            # who explored is asked, once for all settings of a sweep
            explorer = self.recipe.arms[attempt.arm].explorer
            asked = (*attempt.explored, *self._ready(explorer))
            needs = (
                *needs,
                self._add(
                    Stage("collect", self.variant, attempt.arm, asked, explorer, attempt=attempt)
                ),
            )
        return self._add(
            Stage("distill", self.variant, name, needs, attempt.start, attempt=attempt, title=title)
        )

    def _rounds(self, name: str) -> None:
        arm, rounds = self.recipe.arms[name], self.recipe.rounds_of(name)
        config = arm.config()
        parted = self._parted(name)
        explored: list[str] = []
        validated: list[str] = []
        for number in range(1, rounds.number + 1):
            which = (number, rounds.number)
            if number > 1:
                newest = f"{name}.round{number - 1}"
                needs, title = (
                    (*self._ready(newest), *validated),
                    f"{arm.explored}, {name} round {number}",
                )
                what = f"{name}.round{number}.{arm.explored}"
                explored.append(
                    self._add(
                        Stage(
                            "explore", self.variant, what, needs, newest, which, parted, title=title
                        )
                    )
                )
            elif parted:
                # shared by all arms whose first round is the same
                by = "" if arm.explorer == "base" else f"{arm.explorer}."
                what, title = (
                    f"{by}round1of{rounds.number}.{arm.explored}",
                    f"{arm.explored}{' by ' if by else ''}{by[:-1]}, round 1 of {rounds.number}",
                )
                explored.append(
                    self._add(
                        Stage(
                            "explore",
                            self.variant,
                            what,
                            self._ready(arm.explorer),
                            arm.explorer,
                            which,
                            parted,
                            title=title,
                        )
                    )
                )
            else:
                explored.append(self._explore(arm.explored, arm.explorer))
            start = (
                f"{name}.round{number - 1}"
                if number > 1 and rounds.start == "newest"
                else arm.start
            )
            attempt = Attempt(
                name,
                start,
                config,
                tuple(explored if rounds.data == "all" else explored[-1:]),
                number,
            )
            validated.append(
                self._validate(f"{name}.round{number}", attempt, f"{name} (round {number})")
            )
        self._add(Stage("choose", self.variant, name, tuple(validated)))

    def _sweep(self, name: str) -> None:
        arm = self.recipe.arms[name]
        explored = self._explored(name)
        trained: dict[str, str] = {}
        validated = []
        for number, setting in enumerate(arm.settings(), 1):
            attempt = Attempt(name, arm.start, setting.config, explored, number)
            # settings that differ in the temperature alone are one training
            policy = trained.setdefault(setting.config.model_dump_json(), f"{name}.try{number}")
            validated.append(
                self._validate(
                    f"{name}.try{number}",
                    attempt,
                    f"{name} ({setting.words})",
                    policy,
                    setting.temperature,
                )
            )
        self._add(Stage("choose", self.variant, name, tuple(validated)))

    def _validate(
        self,
        name: str,
        attempt: Attempt,
        title: str,
        policy: str = "",
        temperature: float | None = None,
    ) -> str:
        """Train the attempt, unless it is trained as `policy` already, and sample it on the
        validation tasks."""
        needs = (
            (self._made(policy),)
            if policy not in ("", name)
            else (self._make(name, attempt, title),)
        )
        return self._add(
            Stage(
                "validate",
                self.variant,
                name,
                needs,
                policy or name,
                attempt=attempt,
                temperature=temperature,
                title=title,
            )
        )

    def _rows(self, arm: str) -> None:
        rounds = self.recipe.rounds_of(arm).number
        each = []
        for number in range(1, rounds + 1) if rounds > 1 else ():
            policy = f"{arm}.round{number}"
            row = f"{arm} (round {number})"
            each.append(
                self._add(
                    Stage(
                        "evaluate",
                        self.variant,
                        policy,
                        self._ready(policy),
                        policy,
                        (number, rounds),
                        title=row,
                    )
                )
            )
        self._add(Stage("evaluate", self.variant, arm, (*self._ready(arm), *each), arm))


def _in_order(stages: Sequence[Stage]) -> list[Stage]:
    """Each after what it needs, earlier kinds first where they can."""
    waiting = sorted(stages, key=lambda s: KINDS.index(s.kind))
    placed: dict[str, Stage] = {}
    while waiting:
        stage = next(s for s in waiting if all(need in placed for need in s.needs))
        waiting.remove(stage)
        placed[stage.name] = stage
    return list(placed.values())


def find(recipe: Recipe, name: str) -> Stage:
    """The stage with this folder."""
    return next(s for s in plan(recipe) if s.name == name)


def env_options(recipe: Recipe, variant: Variant) -> dict[str, Any]:
    """The environment's options in this leg."""
    control = recipe.controls.get(variant.control)
    return dict(recipe.env.options) | (dict(control.options) if control else {})


def task_count(recipe: Recipe, variant: Variant, which: Literal["train", "test"]) -> int | None:
    """How many tasks the leg uses of the training or test split; None: all."""
    control = recipe.controls.get(variant.control)
    own: int | None = getattr(control, which) if control else None
    shared: int | None = getattr(recipe.tasks, which)
    return own if own is not None else shared
