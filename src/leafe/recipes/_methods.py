"""How an arm is trained: one typed record for each method, read from the arm's own table.

Most arms are distillations (`distill = {...}` over a preset). GRPO samples by itself; Early
Experience samples alternatives at the states of the exploration, and trains twice; ACE builds a
playbook and changes no weights. Each of these has a table of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leafe.baselines.ace import AceConfig
from leafe.baselines.early_experience import EarlyConfig, Variant
from leafe.baselines.grpo import COUNTED, GrpoConfig
from leafe.distill import PRESETS, DistillConfig
from leafe.explore import ExploreConfig

Method = Literal["distill", "grpo", "early", "ace"]
METHODS: Mapping[str, Method] = {
    "grpo": "grpo",
    "early-experience": "early",
    "self-reflection": "early",
    "ace": "ace",
}
"""The method of every preset that is no distillation."""
ARM_PRESETS = (*PRESETS, *METHODS)
EXPLORES: frozenset[Method] = frozenset({"distill", "early"})
"""Methods that learn from an exploration; the others sample by themselves."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GrpoRecipe(_Strict):
    """GRPO, as `leafe.baselines.grpo.GrpoConfig` has it, on the training tasks of the recipe."""

    budget: float = Field(1.0, gt=0)
    """Its budget in explorations of the training tasks (`explore.limits`), where its own table has
    neither `limits` nor `max_steps`."""
    options: dict[str, Any] = {}
    """Fields of `GrpoConfig`."""

    def config(self, explore: ExploreConfig, tasks: int, seed: int) -> GrpoConfig:
        """The trainer's settings.

        Episodes have the horizon and the limit of invalid actions of the exploration, unless the
        arm sets its own.

        Args:
            explore: The exploration whose budget and episodes it shares.
            tasks: Number of training tasks.
            seed: The run's seed.
        """
        limits = explore.limits
        own: dict[str, Any] = {
            "horizon": explore.horizon,
            "max_invalid_actions": explore.max_invalid_actions,
            "seed": seed,
        }
        if not _bounded(self.options):
            own["limits"] = {
                name: limits[name] * self.budget * tasks for name in COUNTED if name in limits
            }
        return GrpoConfig(**(own | self.options))

    @property
    def needs_limits(self) -> bool:
        """Whether it ends by `explore.limits` alone."""
        return not _bounded(self.options)

    @property
    def validates(self) -> bool:
        """Whether its weights are chosen on validation tasks."""
        return self.options.get("eval_steps") is not None


class EarlyRecipe(_Strict):
    """Early Experience: what is sampled at the states of successes, and the two trainings."""

    variant: Variant
    collect: EarlyConfig
    temperature: float | None = Field(None, ge=0)
    """At which other actions are proposed; None: the exploration's."""
    world_model: DistillConfig
    """Of the first phase, on the next observations (variant `world_model`)."""
    expert: DistillConfig
    """Of the phase on the expert's actions."""


Config = DistillConfig | GrpoRecipe | EarlyRecipe | AceConfig


def make_config(
    preset: str, tables: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Any]
) -> Config:
    """The record for an arm.

    Args:
        preset: The arm's preset.
        tables: Its tables by name (`distill`, `grpo`, `early`, `ace`).
        changes: A sweep's changes.

    Raises:
        ValidationError: An option does not exist or does not fit.
    """
    match METHODS.get(preset, "distill"):
        case "grpo":
            options = {**tables["grpo"], **changes}
            budget = {"budget": options.pop("budget")} if "budget" in options else {}
            GrpoConfig(
                **({} if _bounded(options) else {"max_steps": 1}), **options
            )  # its errors name its own fields
            return GrpoRecipe(**budget, options=options)
        case "early":
            own = dict(tables["early"])
            world_model = own.pop("world_model", {})
            phases = {
                "expert": _distill("rehearsal", over(tables["distill"], changes)),
                "world_model": _distill(
                    "rehearsal",
                    ({} if "max_steps" in world_model else {"num_train_epochs": 1.0}) | world_model,
                ),
            }
            heat = {"temperature": own.pop("temperature")} if "temperature" in own else {}
            reflects = preset == "self-reflection"
            collect = EarlyConfig(**({"explanations": 2} if reflects else {}) | own)
            return EarlyRecipe(
                variant="reflection" if reflects else "world_model",
                collect=collect,
                **heat,
                **phases,
            )
        case "ace":
            return AceConfig(**{**tables["ace"], **changes})
        case _:
            return _distill(preset, over(tables["distill"], changes))


def swept(method: Method) -> list[str]:
    """Names of the options that a sweep may list, besides the temperature of sampling."""
    fields: dict[Method, type[BaseModel]] = {
        "distill": DistillConfig,
        "early": DistillConfig,
        "grpo": GrpoConfig,
        "ace": AceConfig,
    }
    return [name for name in fields[method].model_fields if name not in ("seed", "temperature")]


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A table with another laid over it; `max_steps` and `num_train_epochs` replace each other."""
    length = {"max_steps", "num_train_epochs"}
    return {k: v for k, v in below.items() if not (k in length and length & above.keys())} | dict(
        above
    )


def _distill(preset: str, own: Mapping[str, Any]) -> DistillConfig:
    return DistillConfig(**over(PRESETS[preset], own))


def _bounded(options: Mapping[str, Any]) -> bool:
    return bool(options.get("limits")) or options.get("max_steps") is not None
