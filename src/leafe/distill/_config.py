"""What Stage 2 can be told: one flat record of options, and the named presets as plain data.

The objective is `L = counterfactual_weight * L_cf + rehearsal_weight * L_reh + anchor_weight * KL +
reflection_weight * L_refl` (docs/method.md, Stage 2; the last two terms are
leafe's own). Each expectation is a mean over the target tokens of its own set within the batch, so
that the sizes of the sets do not weigh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leafe.core import ImprovementRule, UserError

Part = Literal["rehearsal", "counterfactual", "anchor", "reflection"]
PARTS: tuple[Part, ...] = ("rehearsal", "counterfactual", "anchor", "reflection")


class Lora(BaseModel):
    """Train low-rank adapters instead of all weights (peft)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1)
    lora_alpha: float = Field(32.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter; empty: all but the output layer."""
    merge: bool = True
    """Add the adapters to the weights at the end and write a plain checkpoint; False: write the
    adapter alone."""


class OutcomeWeights(BaseModel):
    """Weights of counterfactual samples by what became of their branch; one that won weighs 1. 0
    leaves the samples out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    improved: float = Field(1.0, ge=0)
    """Of a branch that improved and did not win."""
    other: float = Field(1.0, ge=0)
    """Of a branch that did neither."""


class DistillConfig(BaseModel):
    """All options of Stage 2. Batches are counted in sequences (a sequence holds all merged samples
    of one path), or in tasks (`batch_by`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sft", "dpo"] = "sft"
    """sft: the objective above. dpo: TRL's DPO on the pairs (revised action over the original one,
    at the history without the experience) of the branches
    that `counterfactuals` names, and nothing else: no rehearsal, no anchors, no reflections.
    `counterfactual_batch_size` is in pairs; the options of the optimiser,
    `max_length`, `too_long` and `micro_batch_tokens` hold too."""

    # what is selected from the trees
    rehearsal: Literal["none", "successes", "progress_prefix"] = "successes"
    """D_reh: whole successful episodes; or, of every episode, the actions up to the one that its
    own reflection blames."""
    rehearsal_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the episodes that rehearsal may use, drawn at random (paper: 0.2 of the successful
    rollouts)."""
    counterfactuals: Literal["none", "all", "improved", "success_path"] = "all"
    """D_cf: which branch events: all; those that improved on their parent; those through which some
    success of the tree runs."""
    improvement: ImprovementRule = "progress"
    """What says that something went right, for branches and for prefixes of episodes. progress: the
    environment's own progress, where it reports one; else, and
    with blame always, the policy's own reflections: a branch improved when it won or its own next
    reflection blames a later step than its parent's did."""
    counterfactual_scope: Literal["action", "branch"] = "action"
    """The revised action alone; or the branch's own later actions too, all of them where it won,
    else those that are known to be right (as in
    `progress_prefix`)."""
    outcome_weights: OutcomeWeights | None = None
    """Weights of counterfactual samples by what became of their branch; None: all weigh 1."""
    soft_targets: bool = False
    """Counterfactual samples learn the start policy's whole distribution when it reads the
    experience (KL), not the one action that it took."""
    samples_per_task: int | None = Field(None, ge=1)
    """Most branch events of one task, drawn at random (paper: 3); None: all."""
    anchors: bool = False
    """KL to the start policy on prompts that carry another branch's experience: it keeps the policy
    able to follow one."""
    reflections: bool = False
    """Cross-entropy on the reflections whose branch improved: it keeps the policy able to
    reflect."""
    truncated_answers: Literal["skip", "without_eos"] = "skip"
    """Answers that were cut at their limit of tokens. skip: no targets; counted. without_eos:
    targets without an end-of-turn token, which was
    never sampled. Other trainers end every answer, so that exports leave them out in any case."""
    mentioned_advice: Literal["keep", "skip"] = "keep"
    """Actions whose thought mentions an experience (the prompt set's `mentions`) that is not in the
    sample's prompt: they teach to quote what
    was never said. Counted in any case; skip: left out of D_cf and D_reh."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training tasks that `Dataset.split` holds out for validation."""

    # the objective
    counterfactual_weight: float = Field(1.0, ge=0)
    rehearsal_weight: float = Field(0.5, ge=0)
    """Weight of rehearsal. The paper prints none; 0.5 did well in our own miniature
    (docs/results.md)."""
    anchor_weight: float = Field(0.3, ge=0)
    reflection_weight: float = Field(0.1, ge=0)

    # the batches
    batch_by: Literal["sequence", "task"] = "sequence"
    """sequence: so many sequences of each part, each part drawn by itself. task: `tasks_per_batch`
    tasks with all their samples of all parts, which share most of
    their tokens."""
    tasks_per_batch: int = Field(8, ge=1)
    """Tasks in a batch, with batch_by = "task"."""
    rehearsal_batch_size: int = Field(32, ge=1)
    counterfactual_batch_size: int = Field(32, ge=1)
    anchor_batch_size: int = Field(12, ge=1)
    reflection_batch_size: int = Field(8, ge=1)
    micro_batch_tokens: int | None = Field(None, ge=2)
    """Tokens in one forward pass; None: chosen for the device, and halved once where its memory
    does not suffice. Changes memory and speed, never the loss."""
    packing_strategy: Literal["tree", "causal"] = "tree"
    """tree: every token of the samples' common prefixes is computed once, under attention to its
    ancestors alone. causal: merged rows, for models that
    cannot do that. The loss is the same."""
    max_length: int | None = Field(None, ge=2)
    """Longest sequence in tokens; None: the model's context."""
    too_long: Literal["skip", "truncate"] = "skip"
    """What becomes of a longer sample: left out, or without the oldest turns of its prompt. Both
    are counted."""

    # the optimiser
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps, whose batches hold each part in its own number (`rehearsal_batch_size` and
    its kin), however often that passes
    over a small part; give this or `num_train_epochs`."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over each part (paper: 2 to 3), or over the tasks; 2 where neither is given. The
    parts' batch sizes together are then the
    size of a batch, in which each part has its share by the number of its sequences."""
    learning_rate: float = Field(1e-6, gt=0)
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    warmup_steps: float = Field(0.03, ge=0)
    """Steps over which the rate rises from 0; below 1 a share of all steps, as in transformers."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic (the trained weights stay float32). auto: bfloat16 where the GPU has it,
    else float32."""
    gradient_checkpointing: bool = False
    lora: Lora | None = None

    # DPO alone
    dpo_beta: float = Field(0.1, gt=0)
    """How strongly DPO holds the policy to the one it starts from (method = "dpo")."""

    # watching and stopping
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where the metrics go beside metrics.jsonl, through the trackers' own integrations."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between two validations; None: none. With validation the weights with the lowest loss
    are the ones written."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many validations in a row without a new lowest loss; None: take all steps."""
    save_steps: int = Field(100, ge=1)
    """Steps between two checkpoints from which a killed training goes on."""
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("give max_steps or num_train_epochs, not both")
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs eval_steps")
        if self.rehearsal == "none" and self.counterfactuals == "none":
            raise ValueError(
                "there is nothing to train on: rehearsal and counterfactuals are both none"
            )
        if self.method == "dpo" and (
            self.counterfactuals == "none"
            or self.counterfactual_scope == "branch"
            or self.outcome_weights
            or self.soft_targets
        ):
            raise ValueError(
                'method = "dpo" is about revised actions: it needs counterfactuals, and no '
                'scope "branch", outcome_weights or soft_targets'
            )
        return self

    def warmup(self, steps: int) -> int:
        """The warm-up of a training of `steps` optimiser steps, in steps."""
        return math.ceil(self.warmup_steps * steps if self.warmup_steps < 1 else self.warmup_steps)

    def weight(self, part: Part) -> float:
        """The part's factor in the objective."""
        return {
            "rehearsal": self.rehearsal_weight,
            "counterfactual": self.counterfactual_weight,
            "anchor": self.anchor_weight,
            "reflection": self.reflection_weight,
        }[part]

    def batch(self, part: Part) -> int:
        """Sequences of the part in a batch."""
        return {
            "rehearsal": self.rehearsal_batch_size,
            "counterfactual": self.counterfactual_batch_size,
            "anchor": self.anchor_batch_size,
            "reflection": self.reflection_batch_size,
        }[part]


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # the paper's LEAFE: 20 % of the successes, 3 branch events a task, batch 128, 1e-6, 2-3 epochs
    "paper": {
        "rehearsal": "successes",
        "rehearsal_fraction": 0.2,
        "counterfactuals": "all",
        "samples_per_task": 3,
        "rehearsal_weight": 0.5,
        "rehearsal_batch_size": 64,
        "counterfactual_batch_size": 64,
        "num_train_epochs": 2.0,
    },
    # leafe's own: precise labels, what failed episodes did right, anchors against forgetting; whole
    # tasks, since that costs a third (docs/results.md)
    "leafe+": {
        "batch_by": "task",
        "rehearsal": "progress_prefix",
        "counterfactuals": "improved",
        "rehearsal_weight": 1.0,
        "anchors": True,
        "reflections": True,
        "rehearsal_batch_size": 32,
        "counterfactual_batch_size": 16,
        "anchor_batch_size": 12,
        "reflection_batch_size": 8,
        "num_train_epochs": 2.0,
    },
    # rehearsal of the tree's successes alone (the paper's ablation, its Table 4)
    "rehearsal": {
        "rehearsal": "successes",
        "counterfactuals": "none",
        "rehearsal_weight": 1.0,
        "num_train_epochs": 2.0,
    },
    # rejection-sampling fine-tuning: the same code, fed the trees of independent sampling
    "rft": {
        "rehearsal": "successes",
        "counterfactuals": "none",
        "rehearsal_weight": 1.0,
        "num_train_epochs": 2.0,
    },
    # the revised action over the original one, with the policy that the training starts from as the
    # reference
    "dpo": {
        "method": "dpo",
        "rehearsal": "none",
        "counterfactuals": "improved",
        "counterfactual_batch_size": 16,
        "num_train_epochs": 2.0,
    },
    # experience-to-policy distillation alone
    "cf": {
        "rehearsal": "none",
        "counterfactuals": "all",
        "samples_per_task": 3,
        "num_train_epochs": 2.0,
    },
}
"""Named starting points; a recipe overrides single fields."""


def preset(name: str, **overrides: Any) -> DistillConfig:
    """The named preset with single fields replaced; UserError for an unknown name or field, or a
    value that does not fit."""
    if name not in PRESETS:
        raise UserError(
            f"There is no distillation preset {name!r}: take one of {', '.join(PRESETS)}."
        )
    values = dict(PRESETS[name]) | overrides
    if overrides.get("max_steps") is not None and "num_train_epochs" not in overrides:
        values.pop("num_train_epochs", None)
    try:
        return DistillConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or name
        raise UserError(f"distill.{where}: {first['msg']}.") from error
