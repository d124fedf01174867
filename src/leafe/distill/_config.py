"""The options of Stage 2 as one flat record, and the named presets as plain data.

The objective is `L = counterfactual_weight * L_cf + rehearsal_weight * L_reh + anchor_weight * KL +
reflection_weight * L_refl` (docs/method.md, Stage 2; the last two terms are leafe's own). Each
expectation is a mean over the target tokens of its own set within the batch, so that the sizes of
the sets do not count.

Options that TRL, transformers or peft have too carry their names; docs/options.md lists all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leafe.core import ImprovementRule, UserError

Part = Literal["rehearsal", "counterfactual", "anchor", "reflection"]
"""A term of the objective and the samples that it is computed on."""
PARTS: tuple[Part, ...] = ("rehearsal", "counterfactual", "anchor", "reflection")


class Lora(BaseModel):
    """Train low-rank adapters instead of all weights, through peft's `LoraConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter; empty: all but the output layer."""
    merge: bool = True
    """True: merge the adapters into the weights at the end and write a plain checkpoint. False:
    write the adapter alone."""


class OutcomeWeights(BaseModel):
    """Weights of counterfactual samples by the outcome of their branch. A branch that won weighs 1;
    0 leaves the samples out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    improved: float = Field(1.0, ge=0)
    """Of a branch that improved and did not win."""
    other: float = Field(1.0, ge=0)
    """Of a branch that did neither."""


class DistillConfig(BaseModel):
    """All options of Stage 2.

    Batches are counted in sequences (a sequence holds all merged samples of one path) or in tasks
    (`batch_by`). docs/options.md compares the options with TRL's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sft", "dpo"] = "sft"
    """sft: the objective above. dpo: TRL's DPO on pairs (the revised action over the original one,
    at the history without the experience) from the branches that `counterfactuals` selects; no
    rehearsal, anchors or reflections. With dpo `counterfactual_batch_size` counts pairs; the
    optimiser's options, `max_length`, `too_long` and `micro_batch_tokens` apply too."""

    # selection from the trees
    rehearsal: Literal["none", "successes", "progress_prefix"] = "successes"
    """D_reh. successes: whole successful episodes. progress_prefix: of every episode the actions
    before the one that its own reflection blames."""
    rehearsal_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the episodes to rehearse, drawn at random (paper: 0.2 of the successes)."""
    counterfactuals: Literal["none", "all", "improved", "success_path"] = "all"
    """D_cf: which branch events. improved: those that improved on their parent. success_path: those
    on the path to some success of the tree."""
    improvement: ImprovementRule = "progress"
    """How to tell that a branch improved or an episode's prefix was right. progress: by the
    environment's progress where it reports one, else as blame. blame: by the policy's reflections:
    a branch improved if it won or its next reflection blames a later step than its parent's."""
    counterfactual_scope: Literal["action", "branch"] = "action"
    """action: learn the revised action alone. branch: learn the branch's later actions too, all of
    them if it won, else those known to be right (as in `progress_prefix`)."""
    outcome_weights: OutcomeWeights | None = None
    """Weights of counterfactual samples by the outcome of their branch; None: all weigh 1."""
    soft_targets: bool = False
    """Counterfactual samples learn the start policy's whole distribution given the experience (KL)
    instead of the one action that it took."""
    samples_per_task: int | None = Field(None, ge=1)
    """Most branch events of one task, drawn at random (paper: 3); None: all."""
    anchors: bool = False
    """Add KL to the start policy on prompts that carry another branch's experience, so that the
    policy stays able to follow one."""
    reflections: bool = False
    """Add cross-entropy on the reflections whose branch improved, so that the policy stays able to
    reflect."""
    truncated_answers: Literal["skip", "without_eos"] = "skip"
    """Answers that reached their token limit. skip: not trained on; counted. without_eos: trained
    on without an end-of-turn token, since none was sampled. Exports always leave them out."""
    mentioned_advice: Literal["keep", "skip"] = "keep"
    """Actions whose thought mentions an experience (by the prompt set's `mentions`) that the
    sample's prompt does not hold. Counted in any case; skip: left out of D_cf and D_reh."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the training tasks that `Dataset.split` holds out for validation."""

    # the objective
    counterfactual_weight: float = Field(1.0, ge=0)
    """Weight of L_cf."""
    rehearsal_weight: float = Field(0.5, ge=0)
    """Weight of L_reh. The paper gives none; 0.5 did well in our miniature (docs/results.md)."""
    anchor_weight: float = Field(0.3, ge=0)
    """Weight of the anchors' KL."""
    reflection_weight: float = Field(0.1, ge=0)
    """Weight of L_refl."""

    # batches
    batch_by: Literal["sequence", "task"] = "sequence"
    """sequence: a fixed number of sequences of each part, each part drawn by itself. task:
    `tasks_per_batch` tasks with all their samples, which share most of their tokens."""
    tasks_per_batch: int = Field(8, ge=1)
    """Tasks in a batch, with batch_by = "task"."""
    rehearsal_batch_size: int = Field(32, ge=1)
    """Sequences of D_reh in a batch."""
    counterfactual_batch_size: int = Field(32, ge=1)
    """Sequences of D_cf in a batch; with method = "dpo", pairs."""
    anchor_batch_size: int = Field(12, ge=1)
    """Anchors in a batch."""
    reflection_batch_size: int = Field(8, ge=1)
    """Reflections in a batch."""
    micro_batch_tokens: int | None = Field(None, ge=2)
    """Most tokens of one forward pass; None: chosen for the device, and halved once if its memory
    is short. Changes memory and speed, never the loss."""
    packing_strategy: Literal["tree", "causal"] = "tree"
    """tree: compute every token of common prefixes once, under attention to its ancestors alone.
    causal: one path per row, for models that cannot do that. The loss is the same."""
    max_length: int | None = Field(None, ge=2)
    """Longest sequence in tokens; None: the model's context."""
    too_long: Literal["skip", "truncate"] = "skip"
    """Longer samples. skip: left out. truncate: drop the oldest turns of their prompts. Both are
    counted."""

    # the optimiser
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; give this or `num_train_epochs`. Every batch then holds each part in its own
    number (`rehearsal_batch_size`, ...), however often that passes over a small part."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over each part (paper: 2 to 3), or over the tasks; 2 if neither is given. The parts'
    batch sizes together are then the batch size, which the parts share by their numbers of
    sequences."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    """After the warm-up. cosine: half a cosine down to 0."""
    warmup_steps: float = Field(0.03, ge=0)
    """Steps of linear warm-up from 0; below 1 a share of all steps, as in transformers."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, not applied to norms and biases."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of forward and backward passes; the trained weights stay float32. auto: bfloat16 if the GPU
    has it, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    lora: Lora | None = None
    """Train adapters instead of all weights; None: all weights."""

    # DPO
    dpo_beta: float = Field(0.1, gt=0)
    """DPO's beta: how strongly it holds the policy to its start (method = "dpo")."""

    # logging, validation, checkpoints
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics beside metrics.jsonl."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between two validations; None: none. With validation the weights of the lowest
    validation loss are written."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many validations in a row without a new lowest loss; None: take all steps."""
    save_steps: int = Field(100, ge=1)
    """Steps between two checkpoints from which a killed training resumes."""
    seed: int = 0
    """Of batches, dropout and new adapters."""

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
                'method = "dpo" compares revised actions: it needs counterfactuals and excludes '
                'counterfactual_scope = "branch", outcome_weights and soft_targets'
            )
        return self

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a training of `steps` optimiser steps."""
        return math.ceil(self.warmup_steps * steps if self.warmup_steps < 1 else self.warmup_steps)

    def weight(self, part: Part) -> float:
        """The part's factor in the objective."""
        return float(getattr(self, f"{part}_weight"))

    def batch_size(self, part: Part) -> int:
        """Sequences of the part in a batch."""
        return int(getattr(self, f"{part}_batch_size"))


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
    # leafe's own: only branches that improved, what failed episodes did right, anchors against
    # forgetting; whole tasks, since that costs a third (docs/results.md)
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
    # the revised action over the original one; the start policy is the reference
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
"""Named starting points; a recipe overrides single options."""


def preset(name: str, **overrides: Any) -> DistillConfig:
    """A named preset with single options replaced.

    Args:
        name: One of `PRESETS`.
        **overrides: Options of `DistillConfig`. `max_steps` replaces the preset's
            `num_train_epochs`.

    Raises:
        UserError: An unknown preset or option, or a value that does not fit.
    """
    if name not in PRESETS:
        raise UserError(
            f"There is no distillation preset {name!r}: use one of {', '.join(PRESETS)}."
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
