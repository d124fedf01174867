"""Unroll a recipe into stages: what runs, in which folder, after what.

One pass of the experiment (explore, distill, evaluate) is a variant. Every seed is a variant, and
so is every control; the names of a variant's stages begin with its prefix. A stage reads only the
folders of the stages it needs, so that independent stages can run side by side.

Baselines that do more than train on an exploration have a `collect` stage before their training
(Early Experience samples alternatives; ACE builds its playbook, and that is all it makes), or train
by themselves (GRPO). Several attempts at a test task are stages of the kind `tries`.

An arm is trained once, or in several attempts: its rounds, or the settings of its sweep. Attempts
are sampled on validation tasks (`validate`), and a `choose` stage picks the one that is the arm;
whatever needs the arm waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from leafe.baselines.ace import AceConfig
from leafe.pipeline._policy_ref import BASE, PolicyRef
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
    start: PolicyRef
    """Whose weights it begins with."""
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
    """What the folder is named by: the exploration; the arm or attempt that is trained, sampled or
    chosen; the row that is evaluated."""
    needs: tuple[str, ...] = ()
    """Names of the stages that must be finished before it."""
    policy: PolicyRef = BASE
    """Who acts in it."""
    round: tuple[int, int] = (1, 1)
    """(which, of how many): explore, which share of the training tasks; else the round that it
    belongs to."""
    parted: bool = False
    """explore: on this round's share alone."""
    attempt: Attempt | None = None
    """distill, collect: what is trained or collected."""
    temperature: float | None = None
    """Sampling temperature; None: the recipe's or, for an arm with a sweep, the chosen one."""
    role: Literal["arm", "base", "control", "ceiling"] = "arm"
    """evaluate: what its row is in the comparison."""
    title: str = ""
    """Its name in tables; empty: `what`."""
    strategy: str = ""
    """explore: the strategy's name."""

    @property
    def name(self) -> str:
        """Its folder in the run: `explore/tree`, `distill/leafe+`, `evaluate/random.base`."""
        return stage_name(self.kind, self.variant, self.what)

    @property
    def row(self) -> str:
        """Its name in tables."""
        title = self.title or self.what
        return f"{self.variant.control}: {title}" if self.variant.control else title


def stage_name(kind: StageKind, variant: Variant, what: str | PolicyRef) -> str:
    """A stage's folder within the run, such as `explore/seed1.tree`."""
    return f"{kind}/{variant.prefix}{str(what).replace(' ', '-')}"


def kind_of(stage_name: str) -> StageKind:
    """The kind of the stage with this name."""
    return next(kind for kind in KINDS if kind == stage_name.partition("/")[0])


def variants(recipe: Recipe) -> list[Variant]:
    """The experiment for every seed, then the controls for every seed."""
    many = len(recipe.seeds) > 1
    return [
        Variant(seed, control, many) for control in ("", *recipe.controls) for seed in recipe.seeds
    ]


def plan(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe.

    Returns:
        Each stage after those it needs, earlier kinds first, so that long ones begin early.
    """
    waiting = [stage for variant in variants(recipe) for stage in _Unrolled(recipe, variant).all()]
    waiting.sort(key=lambda stage: KINDS.index(stage.kind))
    placed: dict[str, Stage] = {}
    while waiting:
        stage = next(s for s in waiting if all(need in placed for need in s.needs))
        waiting.remove(stage)
        placed[stage.name] = stage
    return list(placed.values())


class _Unrolled:
    """The stages of one variant."""

    def __init__(self, recipe: Recipe, variant: Variant) -> None:
        self.recipe, self.variant = recipe, variant
        self.control = recipe.controls.get(variant.control)
        self.arms = self.control.arms if self.control else tuple(recipe.arms)
        self._found: dict[str, Stage] = {}

    def all(self) -> list[Stage]:
        recipe = self.recipe
        for strategy in self.control.strategies if self.control else recipe.strategies:
            learners = [
                arm
                for arm in self.arms
                if self._learns(arm)
                and recipe.arms[arm].explored == strategy
                and recipe.arms[arm].explorer == "base"
            ]
            # where only arms of several rounds learn from it, it explores in their rounds alone
            if not learners or not all(self._parted(arm) for arm in learners):
                self._explore(strategy)
        for name in self.arms:
            arm = recipe.arms[name]
            if recipe.rounds_of(name).number > 1:
                self._rounds(name)
            elif arm.sweep:
                self._sweep(name)
            else:
                start = PolicyRef.parse(arm.start)
                self._make(name, Attempt(name, start, arm.config(), self._explored(name)))
        if recipe.evaluate.probe is not None and not self.control:
            # the base's trees on validation tasks, on which the base and the arms are probed
            self._add("explore", HELD_OUT, title="tree on validation tasks", strategy="tree")
        self._add("evaluate", "base", role="base")
        for name in self.arms:
            self._rows(name)
        if not self.control:
            self._extra_rows()
        return list(self._found.values())

    def _extra_rows(self) -> None:
        settings = self.recipe.evaluate
        for name, extra in settings.extras.items():
            policy = PolicyRef.parse(extra.policy)
            heat = settings.temperature if extra.temperature is None else extra.temperature
            self._add(
                "evaluate", name, self._ready(policy), policy, temperature=heat, role=extra.role
            )
        for name, tries in settings.tries.items():
            policy = PolicyRef.parse(tries.policy)
            self._add("tries", name, self._ready(policy), policy)

    def _add(
        self,
        kind: StageKind,
        what: str | PolicyRef,
        needs: tuple[str, ...] = (),
        policy: PolicyRef = BASE,
        **more: Any,
    ) -> str:
        """Add a stage, unless one of that name is there; returns its name."""
        stage = Stage(kind, self.variant, str(what), needs, policy, **more)
        probed = stage_name("explore", self.variant, HELD_OUT)
        if kind == "evaluate" and stage.role in ("arm", "base") and probed in self._found:
            stage = replace(stage, needs=(*needs, probed))
        self._found.setdefault(stage.name, stage)
        return stage.name

    def _parted(self, arm: str) -> bool:
        rounds = self.recipe.rounds_of(arm)
        return rounds.number > 1 and rounds.tasks == "parted"

    def _learns(self, arm: str) -> bool:
        return self.recipe.arms[arm].method in EXPLORES

    def _explored(self, arm: str) -> tuple[str, ...]:
        """The exploration that the arm learns from; none for one that acts for itself."""
        one = self.recipe.arms[arm]
        if not self._learns(arm):
            return ()
        return (self._explore(one.explored, PolicyRef.parse(one.explorer)),)

    def _ready(self, policy: PolicyRef) -> tuple[str, ...]:
        """The stages after which the policy can act."""
        if policy.kind in ("base", "imported"):
            return ()
        chosen = policy.kind == "arm" and (
            self.recipe.arms[policy.name].sweep or self.recipe.rounds_of(policy.name).number > 1
        )
        return (stage_name("choose", self.variant, policy) if chosen else self._made(policy),)

    def _made(self, policy: PolicyRef) -> str:
        """The stage that makes an arm or an attempt: its training, or its playbook."""
        kind: StageKind = "collect" if self.recipe.arms[policy.name].method == "ace" else "distill"
        return stage_name(kind, self.variant, policy)

    def _explore(self, strategy: str, policy: PolicyRef = BASE) -> str:
        if policy == BASE:
            return self._add("explore", strategy, strategy=strategy)
        return self._add(
            "explore",
            f"{policy}.{strategy}",
            self._ready(policy),
            policy,
            title=f"{strategy} by {policy}",
            strategy=strategy,
        )

    def _make(self, name: str | PolicyRef, attempt: Attempt, title: str = "") -> str:
        """Train the attempt, or build its playbook."""
        needs = (*attempt.explored, *self._ready(attempt.start))
        if isinstance(attempt.config, EarlyRecipe):
            # the explorer is asked for alternatives, once for all settings of a sweep
            explorer = PolicyRef.parse(self.recipe.arms[attempt.arm].explorer)
            before = (*attempt.explored, *self._ready(explorer))
            needs += (self._add("collect", attempt.arm, before, explorer, attempt=attempt),)
        kind: StageKind = "collect" if isinstance(attempt.config, AceConfig) else "distill"
        return self._add(kind, name, needs, attempt.start, attempt=attempt, title=title)

    def _rounds(self, name: str) -> None:
        arm, rounds = self.recipe.arms[name], self.recipe.rounds_of(name)
        config, explorer, parted = arm.config(), PolicyRef.parse(arm.explorer), self._parted(name)
        explored: list[str] = []
        validated: list[str] = []
        start = PolicyRef.parse(arm.start)
        newest = BASE
        for number in range(1, rounds.number + 1):
            share = {
                "round": (number, rounds.number),
                "parted": parted,
                "strategy": arm.explored,
            }
            this = PolicyRef("attempt", name, f"round{number}")
            if number > 1:
                stage = self._add(
                    "explore",
                    f"{this}.{arm.explored}",
                    (*self._ready(newest), *validated),
                    newest,
                    title=f"{arm.explored}, {name} round {number}",
                    **share,
                )
                start = newest if rounds.start == "newest" else start
            elif parted:
                # shared by all arms whose first round is the same
                by = "" if explorer == BASE else f"{explorer}"
                stage = self._add(
                    "explore",
                    f"{by}{'.' if by else ''}round1of{rounds.number}.{arm.explored}",
                    self._ready(explorer),
                    explorer,
                    title=f"{arm.explored}{' by ' if by else ''}{by}, round 1 of {rounds.number}",
                    **share,
                )
            else:
                stage = self._explore(arm.explored, explorer)
            explored.append(stage)
            data = tuple(explored if rounds.data == "all" else explored[-1:])
            attempt, title = Attempt(name, start, config, data, number), f"{name} (round {number})"
            made = self._make(this, attempt, title)
            validated.append(
                self._add("validate", this, (made,), this, attempt=attempt, title=title)
            )
            newest = this
        self._add("choose", name, tuple(validated))

    def _sweep(self, name: str) -> None:
        arm = self.recipe.arms[name]
        explored, start = self._explored(name), PolicyRef.parse(arm.start)
        trained: dict[str, PolicyRef] = {}
        validated = []
        for number, setting in enumerate(arm.settings(), 1):
            this = PolicyRef("attempt", name, f"try{number}")
            attempt = Attempt(name, start, setting.config, explored, number)
            title = f"{name} ({setting.words})"
            # settings that differ in the temperature alone are one training
            policy = trained.setdefault(setting.config.model_dump_json(), this)
            made = self._make(this, attempt, title) if policy == this else self._made(policy)
            validated.append(
                self._add(
                    "validate",
                    this,
                    (made,),
                    policy,
                    attempt=attempt,
                    temperature=setting.temperature,
                    title=title,
                )
            )
        self._add("choose", name, tuple(validated))

    def _rows(self, arm: str) -> None:
        rounds = self.recipe.rounds_of(arm).number
        each = []
        for number in range(1, rounds + 1) if rounds > 1 else ():
            policy = PolicyRef("attempt", arm, f"round{number}")
            each.append(
                self._add(
                    "evaluate",
                    policy,
                    self._ready(policy),
                    policy,
                    round=(number, rounds),
                    title=f"{arm} (round {number})",
                )
            )
        policy = PolicyRef("arm", arm)
        self._add("evaluate", arm, (*self._ready(policy), *each), policy)


def find(recipe: Recipe, name: str) -> Stage:
    """The stage with this name."""
    return next(s for s in plan(recipe) if s.name == name)


def env_options(recipe: Recipe, variant: Variant) -> dict[str, Any]:
    """The environment's options in this variant."""
    control = recipe.controls.get(variant.control)
    return dict(recipe.env.options) | (dict(control.options) if control else {})


def task_count(recipe: Recipe, variant: Variant, which: Literal["train", "test"]) -> int | None:
    """How many tasks the variant uses of the training or test split; None: all."""
    control = recipe.controls.get(variant.control)
    own = (control.train if which == "train" else control.test) if control else None
    shared = recipe.tasks.train if which == "train" else recipe.tasks.test
    return shared if own is None else own
