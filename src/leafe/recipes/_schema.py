"""The schema of recipes, and how they are loaded.

A recipe is one experiment: environment, tasks, policy, strategies that explore, arms that are
trained, evaluation. It is a TOML file, checked before anything runs: an unknown key, a wrong type
or an arm that learns from a strategy which does not explore is one sentence. `key=value` overrides
reach every field (`explore.limits.policy_calls=32`).
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leafe.baselines.attempts import AttemptMethod
from leafe.baselines.grpo import COUNTED
from leafe.core import UserError
from leafe.core.secret import field_holds_secret
from leafe.core.textfile import parsed_toml, read_text
from leafe.explore import STRATEGIES, ExploreConfig
from leafe.recipes._arms import ArmRecipe, RoundsRecipe, ValidationRecipe, check_arms, short_rounds
from leafe.recipes._methods import EXPLORES, GrpoRecipe, over
from leafe.recipes._renames import modernise, refuse_old_names


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvRecipe(_Strict):
    """The environment."""

    name: str
    """A registered environment (`leafe envs`) or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Passed to the environment's class."""
    workers: int = Field(8, ge=1)
    """The most calls at a time into environments that block, and the most environments that hold a
    process or a session; quick environments are not bounded by it."""
    timeout: float = Field(120.0, gt=0)
    """Seconds after which a call to the environment counts as hung."""
    max_observation: int | None = Field(None, ge=100)
    """The most characters of an observation; of a longer one the middle is cut out, and the text
    says by how much. null: there is no bound."""


class TasksRecipe(_Strict):
    """The tasks that train and that test."""

    train: int | None = Field(None, ge=1)
    """How many tasks explore and train; null: all of the split."""
    test: int | None = Field(None, ge=1)
    """How many tasks are evaluated; null: all of the split."""
    train_split: str = "train"
    """The split that explores and trains."""
    test_split: str = "test"
    """The split that is evaluated. Settings are chosen with `tasks.test_split=valid`, never on
    test."""


class PolicyRecipe(_Strict):
    """The base policy."""

    kind: str = "hf"
    """`hf` (in-process transformers), `http` (an OpenAI-compatible server) or a registered
    policy."""
    model: str
    """`embedded`, `smollm2`, a checkpoint folder or a hub id: what acts, reflects and is
    trained."""
    options: dict[str, Any] = {}
    """Passed to the policy: `base_url`, `dtype`, `max_batch`, ..."""
    launch: str | None = None
    """http: the command that starts a server on `{port}` of 127.0.0.1 for the weights in
    `{checkpoint}`; leafe starts one for the model and for every trained arm, and ends it. null: the
    server at `base_url` answers, and trained arms run in-process."""
    launch_timeout: float = Field(900.0, gt=0)
    """Seconds within which the server must answer."""

    @model_validator(mode="after")
    def _launch_fits(self) -> PolicyRecipe:
        if self.launch is not None:
            if self.kind != "http":
                raise ValueError(
                    f'launch starts a server, and kind = {self.kind!r} uses none: set kind = "http"'
                )
            if "base_url" in self.options:
                raise ValueError(
                    "launch starts a server of its own: take options.base_url or launch out"
                )
            lacking = [mark for mark in ("{checkpoint}", "{port}") if mark not in self.launch]
            if lacking:
                raise ValueError(
                    f"launch has no {' and no '.join(lacking)}: write something like vllm "
                    f"serve {{checkpoint}} --port {{port}}"
                )
        return self


class ExtraRecipe(_Strict):
    """One more row of the evaluation: a policy at another temperature, or a scripted reference."""

    policy: str = "base"
    """`base`, an arm's name, or `package.module:Class` of a policy without arguments."""
    temperature: float | None = Field(None, ge=0)
    """Of sampling; null: the evaluation's."""
    role: Literal["control", "ceiling"] = "control"
    """control: the same policy sampled otherwise; ceiling: a reference that knows more."""


class AttemptsRecipe(_Strict):
    """Several attempts at a test task with feedback carried from one to the next
    (`leafe.baselines.attempts`): a policy's rows at a higher cost."""

    policy: str = "base"
    """`base` or an arm's name."""
    method: AttemptMethod = "reflexion"
    """What is carried on: reflections, the earlier attempt, or nothing."""
    attempts: int = Field(4, ge=1)
    """The most attempts of a sample."""
    samples: int = Field(8, ge=1)
    """Of each test task: rows of so many attempts at most."""


class EvaluateRecipe(_Strict):
    """How policies are evaluated: Pass@k from independent samples of each test task."""

    samples: int = Field(128, ge=1)
    """n: independent samples of each test task."""
    k: tuple[int, ...] = (1, 8, 32, 128)
    """The k of Pass@k; none above n."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Of sampling."""
    concurrency: int = Field(64, ge=1)
    """Test tasks in flight."""
    extras: dict[str, ExtraRecipe] = {}
    """More rows, by name."""
    tries: dict[str, AttemptsRecipe] = {}
    """Rows of several attempts at a test task, by name, with their cost."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs (a, b) of rows whose difference a - b is printed with its paired interval."""
    probe: int | None = Field(None, ge=1)
    """How many validation tasks the base policy explores, so that it and every arm are probed on
    these trees: do they follow an experience, and reflect (`leafe.evaluate.probe`, local engine)?
    null: no probe."""


class ControlRecipe(_Strict):
    """The same experiment once more in another environment setting: a control."""

    options: dict[str, Any] = {}
    """Changes to the environment's options."""
    train: int | None = None
    """How many training tasks; null: the recipe's."""
    test: int | None = None
    """How many test tasks; null: the recipe's."""
    strategies: tuple[str, ...] = ("tree",)
    """What explores in it."""
    arms: tuple[str, ...] = ()
    """The recipe's arms that are trained in it."""


class TrainRecipe(_Strict):
    """Where trainings run."""

    launch: str | None = None
    """The command that starts each training's processes, such as `accelerate launch --config_file
    fsdp.yaml`; `-m leafe.distill JOBFILE` is appended. null: the stage's own process."""


class RayRecipe(_Strict):
    """How `engine = "ray"` spreads a stage over a cluster; docs/cluster.md."""

    address: str | None = None
    """HOST:PORT of the cluster's head, or `auto` for the one that this machine belongs to; none:
    RAY_ADDRESS, else one is started on this machine."""
    workers: int = Field(2, ge=1)
    """Actors, each with its own policy client and environments; the tasks in flight (`concurrency`)
    are divided among them, `env.workers` holds for each."""
    cpus: float = Field(1.0, ge=0)
    """Of each actor, as Ray counts them."""
    gpus: float = Field(0.0, ge=0)
    """Of each actor."""
    resources: dict[str, float] = {}
    """Custom resources of each actor, which decide on which nodes it may run."""
    wait: float = Field(300.0, gt=0)
    """Seconds without a single actor at work (a full cluster, one that grows) after which the stage
    ends."""


class Recipe(_Strict):
    """The whole experiment."""

    name: str
    about: str = ""
    """The question it answers: stands at the head of the report."""
    seeds: tuple[int, ...] = (0,)
    """Each seed draws its own tasks and samples, and trains anew."""
    env: EnvRecipe
    tasks: TasksRecipe = TasksRecipe()
    policy: PolicyRecipe
    prompts: str = "plain"
    """A built-in prompt set or a TOML file."""
    history: str = "full"
    strategies: tuple[str, ...] = ("tree",)
    explore: ExploreConfig = ExploreConfig()
    arms: dict[str, ArmRecipe] = {}
    rounds: RoundsRecipe = RoundsRecipe()
    """Of every arm without its own."""
    validation: ValidationRecipe = ValidationRecipe()
    train: TrainRecipe = TrainRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    controls: dict[str, ControlRecipe] = {}
    jobs: int = Field(1, ge=1)
    """Stages that run at the same time, each in its own process with one thread."""
    engine: Literal["local", "ray"] = "local"
    """Where tasks are explored and evaluated: in this process, or by actors on a Ray cluster."""
    ray: RayRecipe = RayRecipe()

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, data: Any) -> Any:
        _refuse_secrets(data, ())
        return data

    @field_validator("rounds", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return short_rounds(value)

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        check_arms(self.arms, self.rounds)
        self._check_variants()
        rows = {"base", *self.arms, *self.evaluate.extras}
        for name, extra in self.evaluate.extras.items():
            if extra.policy not in rows and ":" not in extra.policy:
                raise ValueError(f"evaluate.extras.{name}: there is no policy {extra.policy!r}")
        for name, tries in self.evaluate.tries.items():
            if tries.policy not in ("base", *self.arms):
                raise ValueError(
                    f"evaluate.tries.{name}: there is no policy {tries.policy!r}; there "
                    f"are {', '.join(('base', *self.arms))}"
                )
        for pair in self.evaluate.compare:
            for row in pair:
                if row not in rows:
                    raise ValueError(
                        f"evaluate.compare: there is no row {row!r}; there are "
                        f"{', '.join(sorted(rows))}"
                    )
        if self.engine == "ray" and self.explore.run_limits:
            raise ValueError(
                "explore.run_limits bound a whole stage, which actors cannot share "
                'exactly: take them out, or set engine = "local"'
            )
        if max(self.evaluate.k) > self.evaluate.samples:
            raise ValueError(
                f"evaluate.k asks for Pass@{max(self.evaluate.k)} of "
                f"{self.evaluate.samples} samples"
            )
        if self.validation.k > self.validation.samples:
            raise ValueError(
                f"validation.k asks for Pass@{self.validation.k} of "
                f"{self.validation.samples} samples"
            )
        return self

    def _check_variants(self) -> None:
        variants: list[tuple[str, Sequence[str], Sequence[str], int | None]] = [
            ("", self.strategies, tuple(self.arms), self.tasks.train)
        ]
        variants += [
            (f"controls.{n}: ", variant.strategies, variant.arms, variant.train or self.tasks.train)
            for n, variant in self.controls.items()
        ]
        for where, strategies, arms, tasks in variants:
            for strategy in strategies:
                if strategy not in STRATEGIES:
                    raise ValueError(
                        f"{where}there is no strategy {strategy!r}; there are "
                        f"{', '.join(STRATEGIES)}"
                    )
            for name in arms:
                if name not in self.arms:
                    raise ValueError(
                        f"{where}there is no arm {name!r}; there are "
                        f"{', '.join(self.arms) or 'none'}"
                    )
                arm = self.arms[name]
                if arm.explored not in STRATEGIES:
                    raise ValueError(
                        f"arms.{name}.explored: there is no strategy {arm.explored!r}; "
                        f"there are {', '.join(STRATEGIES)}"
                    )
                if (
                    arm.method in EXPLORES
                    and arm.explorer == "base"
                    and arm.explored not in strategies
                ):
                    raise ValueError(
                        f"{where}the arm {name!r} learns from {arm.explored!r}, which is "
                        f"not among the strategies {', '.join(strategies)}"
                    )
                lacking = [other for other in arm.builds_on if other not in arms]
                if lacking:
                    raise ValueError(
                        f"{where}the arm {name!r} builds on {lacking[0]!r}, which is not "
                        f"among its arms {', '.join(arms)}: add it"
                    )
                config = arm.config()
                if (
                    isinstance(config, GrpoRecipe)
                    and config.needs_limits
                    and not set(COUNTED) & set(self.explore.limits)
                ):
                    raise ValueError(
                        f"{where}arms.{name} has no end: give arms.{name}.grpo.limits or "
                        ".steps, or bound every method by explore.limits.policy_calls"
                    )
                rounds = self.rounds_of(name)
                if rounds.tasks == "parted" and tasks is not None and rounds.number > tasks:
                    raise ValueError(
                        f"{where}arms.{name} has {rounds.number} rounds for {tasks} "
                        "training tasks: every round needs one of its own"
                    )
        for name in self.controls:
            if name in self.arms or "/" in name or "." in name:
                raise ValueError(
                    f"{name!r} cannot name a control: the names of arms, '/' and '.' are taken"
                )

    def rounds_of(self, arm: str) -> RoundsRecipe:
        """The rounds of an arm: its own or the recipe's."""
        return self.arms[arm].rounds or self.rounds


def recipe_names() -> list[str]:
    """The built-in recipes."""
    return sorted(
        p.name.removesuffix(".toml")
        for p in resources.files("leafe.recipes").iterdir()
        if p.name.endswith(".toml")
    )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        name_or_path: A built-in recipe's name, or the path of a TOML file.
        overrides: `key=value` texts; values are TOML, or words.

    Raises:
        UserError: There is none, or something in it does not fit.
    """
    data = _read(name_or_path)
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, f"The recipe {name_or_path}")


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` texts as overrides are read (`horizon=20 kwargs.size=4`).

    Raises:
        UserError: A text has no key or no value.
    """
    data: dict[str, Any] = {}
    for text in texts:
        _override(data, text)
    return data


def _read(
    name_or_path: str, above: tuple[str, ...] = (), folder: Path | None = None
) -> dict[str, Any]:
    """The data of a recipe file; with `extends = "NAME"` it is that recipe, less the keys
    that `without` lists, with this one's values laid over it, table by table. NAME is a built-in
    recipe, or a file, which is looked for beside the extending one (`folder`) first."""
    builtin = resources.files("leafe.recipes") / f"{name_or_path}.toml"
    if folder is not None and not builtin.is_file() and (folder / name_or_path).is_file():
        name_or_path = str(folder / name_or_path)
    if name_or_path in above:
        raise UserError(
            f"The recipe {name_or_path} extends itself "
            f"({' -> '.join([*above, name_or_path])}): take one `extends` out."
        )
    if builtin.is_file():
        text = builtin.read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = read_text(name_or_path)
    else:
        raise UserError(
            f"There is no recipe {name_or_path!r}: give a TOML file or one of "
            f"{', '.join(recipe_names())}."
        )
    data = parsed_toml(text, f"The recipe {name_or_path}")
    below = data.pop("extends", None)
    if below is None:
        return data
    within = None if builtin.is_file() else Path(name_or_path).parent
    under = _read(str(below), (*above, name_or_path), within)
    for key in data.pop("without", []):
        _take_out(under, str(key), f"The recipe {name_or_path}: without", str(below))
    return _laid_over(under, data)


def _take_out(data: dict[str, Any], key: str, where: str, below: str) -> None:
    *parents, last = _split(key)
    place: Any = data
    for part in parents:
        place = place.get(part) if isinstance(place, Mapping) else None
    if not isinstance(place, dict) or last not in place:
        nested: Any = None
        for part in (last, *reversed(parents)):
            nested = {part: nested}
        refuse_old_names(nested, where)
        raise UserError(f"{where} names {key!r}, which {below} does not have: take it out.")
    del place[last]


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = over(old, value) if key == "distill" else _laid_over(old, value)
        else:
            out[key] = value
    return out


def parse_recipe(data: Mapping[str, Any], what: str = "The recipe") -> Recipe:
    """Check plain data and make a recipe of them.

    Args:
        data: The tables of a recipe file.
        what: Names the recipe in errors.

    Raises:
        UserError: Something does not fit, or has its name of leafe 0.1.
    """
    refuse_old_names(data, what)
    try:
        return Recipe(**data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
            raise UserError(f"{what} has an unknown key {where!r}: {hint}") from error
        if first["type"] == "missing":
            raise UserError(f"{what} lacks {where!r}: give it.") from error
        message = first["msg"].removeprefix("Value error, ")
        got = (
            ""
            if first["type"] == "value_error"
            else f" (got {json.dumps(first['input'], default=str)[:80]})"
        )
        raise UserError(f"{what}: {where + ': ' if where else ''}{message}{got}.") from error


def parse_stored_recipe(data: Mapping[str, Any], what: str) -> Recipe:
    """Make a recipe of the settings that a run keeps, also one of leafe 0.1.

    Args:
        data: The settings.
        what: Names the recipe in errors.

    Raises:
        UserError: They are no valid recipe.
    """
    return parse_recipe(modernise(data), what)


def _refuse_secrets(value: Any, path: tuple[str, ...]) -> None:
    """UserError where a setting holds a secret: a recipe is written into every run folder."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if field_holds_secret(str(name)) and isinstance(inner, str) and inner:
                where = ".".join((*path, str(name)))
                raise UserError(
                    f"The recipe holds a secret in {where!r}, which would be kept with the run: "
                    "put it into an environment variable and give the variable's name "
                    "(api_key_env, token_env, env_vars)."
                )
            _refuse_secrets(inner, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_secrets(inner, path)


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    nested = {
        "arms": ArmRecipe,
        "controls": ControlRecipe,
        "extras": ExtraRecipe,
        "tries": AttemptsRecipe,
        "rounds": RoundsRecipe,
    }
    for part in path:
        field = model.model_fields.get(part)
        if part in nested:
            model = nested[str(part)]
        elif (
            field is not None
            and isinstance(field.annotation, type)
            and issubclass(field.annotation, BaseModel)
        ):
            model = field.annotation
    fields: dict[str, Any] = model.model_fields
    return list(fields)


def _override(data: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(
            f"{override!r} is not an override: write key=value, for example "
            "explore.limits.policy_calls=32."
        )
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except (ValueError, RecursionError):
        value = text.strip()
    *parents, last = _split(key.strip())
    place = data
    for part in parents:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UserError(
                f"The override {override!r} goes through {part!r}, which is a value and "
                "not a table."
            )
    if parents[-1:] == ["distill"]:
        for key in [k for k in place if k not in over(place, {last: value})]:
            del place[key]
    place[last] = value


def _split(key: str) -> list[str]:
    return [part.strip('"') for part in key.split(".")]
