"""The settings of Stage 1, all in one place."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from leafe.core import LIMITS, Scope


class ExploreConfig(BaseModel):
    """How a tree grows and what it may cost. The paper leaves K, depth and attempts open
    (docs/method.md, Stage 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str = "tree"
    """tree, independent, refine or reflexion (`leafe.explore.STRATEGIES`)."""
    limits: dict[str, float] = Field(default_factory=lambda: {"policy_calls": 64.0})
    """What one task may cost; names as in `leafe.core.LIMITS`."""
    run_limits: dict[str, float] = {}
    """What the whole stage may cost. With several tasks in flight, which of them it cuts short
    depends on timing."""
    stop_when: Literal["solved", "budget"] = "solved"
    """solved: leave a task at its first success. budget: use its budget up."""
    max_depth: int = Field(6, ge=0)
    """tree: the most rollbacks on the way to one episode."""
    branches_per_reflection: int = Field(1, ge=1)
    """tree: branches sampled from one reflection."""
    reflect_every: int = Field(0, ge=0)
    """tree: K, reflect every K steps; 0: only on failure."""
    reflect_on_failure: bool = True
    """tree: reflect when an episode failed."""
    max_reflection_attempts: int = Field(2, ge=1)
    """Most samples of one reflection: an unusable one is sampled again."""
    scope: Scope = Scope.action
    """Which actions of a branch see the experience."""
    max_attempts_in_prompt: int = Field(3, ge=1)
    """refine, reflexion: how many earlier attempts stand in the first prompt."""
    temperature: float = Field(1.0, ge=0.0)
    """Of actions."""
    reflection_temperature: float | None = Field(None, ge=0.0)
    """None: as `temperature`."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus sampling; 1: off."""
    horizon: int | None = Field(None, ge=1)
    """T: most steps of an episode. None: the environment's own."""
    max_invalid_actions: int = Field(5, ge=1)
    """Invalid actions in a row that end an episode."""
    max_errors: int = Field(3, ge=1)
    """Episodes of one task lost to failures of the policy or the environment, after which the task
    is given up."""
    concurrency: int = Field(128, ge=1)
    """Tasks in flight."""
    seed: int = 0
    """All random draws of the stage derive from it."""

    @field_validator("limits", "run_limits")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name, limit in value.items():
            if name not in LIMITS:
                raise ValueError(f"there is no limit {name!r}; there are {', '.join(LIMITS)}")
            if limit <= 0:
                raise ValueError(f"the limit {name} must be above 0")
        return value
