"""The options of GRPO, and its result: plain values, no torch."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leafe.core import Policy
from leafe.distill import Lora

Progress = Callable[[Mapping[str, Any]], None]
"""Called with each line of metrics.jsonl."""

Validate = Callable[[Policy], Coroutine[Any, Any, float]]
"""Gives the success rate of the policy on held-out tasks, such as by `leafe.evaluate.evaluate`.
Charged to no budget."""

COUNTED = ("policy_calls", "env_steps", "episodes")
"""Limits that can be met exactly."""


class GrpoConfig(BaseModel):
    """All options of GRPO. A step is one batch of rollouts and the `num_iterations` optimiser steps
    on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # how long
    limits: dict[str, float] = {}
    """What all rollouts of the training may cost: policy_calls, env_steps, episodes. Met exactly. A
    group that a limit cuts short is not trained on."""
    max_steps: int | None = Field(None, ge=1)
    """Most steps; None: until a limit is reached."""

    # the rollouts
    num_generations: int = Field(8, ge=2)
    """G: rollouts of a task."""
    tasks_per_batch: int = Field(16, ge=1)
    """Tasks in a batch; no more than there are."""
    reward: Literal["success", "env"] = "success"
    """success: 1 where the environment reports success, else 0. env: the sum of the environment's
    rewards over the episode."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollouts."""
    horizon: int | None = Field(None, ge=1)
    """T: most steps of an episode. None: the environment's own. In a recipe this and
    `max_invalid_actions` are `explore`'s, unless the arm has its own."""
    max_invalid_actions: int = Field(5, ge=1)
    """Invalid actions in a row that end an episode."""
    max_batch: int = Field(256, ge=1)
    """Sequences that the in-process engine computes at once."""
    cache_gib: float = Field(0.5, gt=0)
    """The engine's memory for keys and values."""

    # the objective
    epsilon: float = Field(0.2, gt=0)
    """The ratio of the new to the old probability is clipped to 1 - epsilon .. 1 + epsilon. With
    one iteration the ratio is 1 and nothing is clipped."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence to the start policy, estimated at the sampled tokens (TRL's
    unbiased form: times the ratio)."""
    num_iterations: int = Field(1, ge=1)
    """Optimiser steps on one batch."""
    loss_type: Literal["grpo", "dapo"] = "grpo"
    """grpo: the mean over rollouts of the mean over a rollout's tokens. dapo: the mean over all
    tokens."""

    # the optimiser
    learning_rate: float = Field(1e-6, gt=0)
    """AdamW's, after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises from 0. Then it is constant, since the number of steps
    depends on what the rollouts cost."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    per_device_train_batch_size: int | None = Field(None, ge=1)
    """Rollouts in one forward pass, a divisor of the batch. None: the largest divisor up to 32.
    Changes memory and speed, never the loss."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic of the updates. The trained weights stay float32, and rollouts use them as
    they are; with LoRA the base weights are kept in this type. auto: bfloat16 where the GPU has it,
    else float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    lora: Lora | None = None
    """Train an adapter; None: all weights."""

    # watching and stopping
    eval_steps: int | None = Field(None, ge=1)
    """Steps between two validations. None: no validation; the last weights are written."""
    save_steps: int = Field(10, ge=1)
    """Steps between two checkpoints, from which a killed training continues."""
    seed: int = 0
    """All random draws derive from it."""

    @field_validator("limits")
    @classmethod
    def _countable(cls, value: dict[str, float]) -> dict[str, float]:
        for name, limit in value.items():
            if name not in COUNTED:
                raise ValueError(f"GRPO knows no limit {name!r}; there are {', '.join(COUNTED)}")
            if limit <= 0:
                raise ValueError(f"the limit {name} must be above 0")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.limits and self.max_steps is None:
            raise ValueError("the training has no end: give limits or max_steps")
        return self


@dataclass(frozen=True, slots=True)
class GrpoResult:
    """Where the weights are and how the training went. Rewards are means over rollouts."""

    path: Path
    """The folder with the checkpoint, or with the adapter where it was not merged."""
    steps: int
    kept_step: int
    """The step whose weights were written: that of the best validation, or the last. 0: no step
    improved on the start."""
    spent: Mapping[str, float]
    """What the rollouts cost; fields of `leafe.core.Spent`."""
    reward: float | None
    """Of the last batch; None: there was none."""
    valid_success: float | None
    """Success rate on the validation tasks of the weights that were kept."""
    stops: Mapping[str, int]
    """Rollouts by how they ended."""
    notes: tuple[str, ...]
    """Sentences that the user should see."""
    seconds: float
    """Of the process that finished."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> GrpoResult:
        """What `to_json` gave."""
        return GrpoResult(
            **(dict(data) | {"path": Path(data["path"]), "notes": tuple(data["notes"])})
        )
