"""TRL's trainer around our rollouts: the loss, the groups' advantages and the optimiser steps are
TRL's; batches and all that happens between steps are ours.

TRL asks `rollout_func` for a batch at every step. It gets the rollouts of the current step,
whatever prompts it names: so a step is a function of the seed, its number and the weights, and a
killed training continues from our own checkpoints (safetensors and JSON). The engine that samples
holds the very module that is trained; before each batch it is told that the weights changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, PrinterCallback, TrainerCallback
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer

from leafe.baselines.grpo._config import GrpoConfig, GrpoResult, Progress, Validate
from leafe.baselines.grpo._rollouts import Batch, Rollouts, counted
from leafe.core import Budget, Environment, Task, UserError, derive_seed
from leafe.distill.training import (
    SMALL,
    Checkpoints,
    Metrics,
    finished_result,
    lora_config,
    parameter_groups,
    publish,
    require_same,
    save_model,
    without_progress_bars,
)
from leafe.explore import EnvPool
from leafe.policies.hf import HFPolicy, adapter_base, load_model, load_tokenizer
from leafe.prompts import Prompts

MAX_FORWARD = 32
"""Most rollouts in one forward pass by default."""


class _BudgetUsedUp(Exception):
    """The budget has no complete group left."""


def run(
    model_path: str | Path,
    out: Path,
    make: Callable[[], Environment],
    tasks: Sequence[Task],
    prompts: Prompts,
    config: GrpoConfig,
    validate: Validate | None,
    workers: int,
    timeout: float,
    max_observation: int | None,
    progress: Progress | None,
) -> GrpoResult:
    """See `leafe.baselines.grpo.train`."""
    if not tasks:
        raise UserError("There are no tasks to train on: check the split and the count.")
    if prompts.window is not None:
        raise UserError(
            "GRPO trains on an episode as one sequence, so its history has to be append-only: use "
            'history = "full".'
        )
    began = time.monotonic()
    # trained weights stay float32: at a rate of 1e-6 bfloat16 would round every update away; with
    # LoRA the base is not trained
    half = _half(config) and config.lora is not None
    model = load_model(model_path, dtype="bfloat16" if half else "float32")
    tokenizer = load_tokenizer(model_path)
    threads = torch.get_num_threads()
    if (
        not torch.cuda.is_available()
        and "OMP_NUM_THREADS" not in os.environ
        and sum(p.numel() for p in model.parameters()) < SMALL
    ):
        torch.set_num_threads(1)  # of this thread; the engine's is told below
    pool = EnvPool.fitting(
        make,
        config.num_generations * min(config.tasks_per_batch, len(tasks)),
        workers,
        timeout,
        max_observation,
    )
    try:
        training = _Training(
            str(model_path),
            model,
            tokenizer,
            out,
            pool,
            tasks,
            prompts,
            config,
            validate,
            progress,
            began,
        )
        found = finished_result(out, training.fingerprint)
        return training.run() if found is None else GrpoResult.from_json(found)
    finally:
        pool.close()
        torch.set_num_threads(threads)


class _Trainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's, without telemetry."""

    def _send_telemetry(self) -> None:
        pass


class _Training:
    def __init__(
        self,
        source: str,
        model: Any,
        tokenizer: Any,
        out: Path,
        pool: EnvPool,
        tasks: Sequence[Task],
        prompts: Prompts,
        config: GrpoConfig,
        validate: Validate | None,
        progress: Progress | None,
        began: float,
    ) -> None:
        self.source, self.model, self.tokenizer, self.out = source, model, tokenizer, out
        self.pool, self.tasks, self.prompts, self.config = pool, tasks, prompts, config
        self.validate, self.progress, self.began = validate, progress, began
        self.stored = (
            AutoConfig.from_pretrained(adapter_base(source) or source).dtype or torch.float32
        )
        self.fingerprint = _fingerprint(model, tasks, prompts, config)
        self.measuring = validate is not None and config.eval_steps is not None
        self.budget = Budget(config.limits)
        self.notes: list[str] = []
        self.batch: Batch | None = None
        self.state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "best_step": None,
            "best": -1.0,
            "reward": None,
            "stops": {},
        }
        self.first = 0
        """Steps taken before this process began."""

    def run(self) -> GrpoResult:
        with asyncio.Runner() as self.runner, _quiet():
            self.trainer = self._trainer()
            bare = self.trainer.accelerator.unwrap_model(self.trainer.model)
            bare.eval()
            self.policy = HFPolicy.around(
                bare,
                self.tokenizer,
                name=f"{self.source}@0",
                max_batch=self.config.max_batch,
                threads=torch.get_num_threads(),
                cache_gib=self.config.cache_gib,
            )
            try:
                self.rollouts = Rollouts(
                    self.policy,
                    self.policy.chat,
                    self.pool,
                    self.tasks,
                    self.prompts,
                    self.config,
                    self.budget,
                )
                return self._train(bare)
            finally:
                self.runner.run(self.policy.close())

    def _trainer(self) -> _Trainer:
        config = self.config
        size = config.num_generations * min(config.tasks_per_batch, len(self.tasks))
        micro = config.per_device_train_batch_size or max(
            n for n in range(1, MAX_FORWARD + 1) if size % n == 0
        )
        if size % micro:
            raise UserError(
                f"grpo.per_device_train_batch_size = {micro} does not divide the batch of "
                f"{size} rollouts."
            )
        args = TrlConfig(
            output_dir=str(self.out / "checkpoints"),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            seed=config.seed % 2**32,
            use_cpu=not torch.cuda.is_available(),
            bf16=_half(config),
            max_steps=self._most_steps() * config.num_iterations,
            max_grad_norm=config.max_grad_norm,
            shuffle_dataset=False,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=size // micro,
            steps_per_generation=size // micro,
            num_generations=config.num_generations,
            num_iterations=config.num_iterations,
            temperature=config.temperature,
            beta=config.beta,
            epsilon=config.epsilon,
            loss_type=config.loss_type,
            scale_rewards="group",
            use_bias_correction_kl=True,
            disable_dropout=True,
            gradient_checkpointing=config.gradient_checkpointing,
            dataloader_pin_memory=False,
            learning_rate=config.learning_rate,
        )
        # one row a task, for TRL to count; which tasks a batch has, `Rollouts` decides
        rows = size // config.num_generations * 64
        trainer = _Trainer(
            model=self.model,
            args=args,
            reward_funcs=_reward,
            processing_class=self.tokenizer,
            rollout_func=self._rollouts,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(rows)]}),
            callbacks=[_Watch(self)],
            peft_config=None if config.lora is None else lora_config(config.lora),
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.accelerator.num_processes > 1:
            raise UserError("GRPO runs in one process: start it without accelerate launch.")
        # TRL loads it by the model's name, which need not be where these weights are from
        if trainer.ref_model is not None:
            trainer.ref_model.load_state_dict(self.model.state_dict())
        return trainer

    def _train(self, bare: Any) -> GrpoResult:
        config, trainer = self.config, self.trainer
        trained = {n: p for n, p in bare.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            parameter_groups(trained.values(), config.weight_decay), lr=config.learning_rate
        )
        self.checkpoints = Checkpoints(self.out / "checkpoints", trained, optimizer)
        loaded = self.checkpoints.load()
        self.notes += self.checkpoints.notes
        if loaded is not None:
            require_same(
                self.out,
                loaded["fingerprint"],
                self.fingerprint,
                "the checkpoints of another training",
            )
            self.first = int(loaded["step"])
            self.budget.charge(**loaded["spent"])
            self.state |= {name: loaded[name] for name in self.state}
        self.step = self.first
        trainer.optimizer = optimizer
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: self._share(self.first + k // config.num_iterations)
        )
        self.metrics = Metrics(
            self.out / "metrics.jsonl", self.first, self.progress, trainer.accelerator
        )
        try:
            if not self.first and self.measuring:
                self.metrics.row({"step": 0, "valid_success": self._validate()})
            if self.step < self._most_steps() and self.budget.reached() is None:
                bare.train()
                try:
                    trainer.train()
                except _BudgetUsedUp:
                    if self.measuring:
                        self.metrics.row({"step": self.step, "valid_success": self._validate()})
        finally:
            self.metrics.close()
        return self._result(bare)

    def _most_steps(self) -> int:
        """Of the whole training: every rollout costs one of each limit at least."""
        size = self.config.num_generations * min(self.config.tasks_per_batch, len(self.tasks))
        bounds = [math.ceil(limit / size) for limit in self.config.limits.values()]
        return min(
            [*bounds, *([self.config.max_steps] if self.config.max_steps is not None else [])]
        )

    def _share(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.config.warmup_steps + 1))

    # what TRL calls

    def _rollouts(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """The batch of this step, for TRL. Raises `_BudgetUsedUp`."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        # TRL shuffles the rows
        torch.manual_seed(derive_seed(self.config.seed, "order", self.step))
        self._sampling(model)
        began = time.monotonic()
        try:
            self.batch = self.runner.run(self.rollouts.batch(self.step))
        finally:
            model.train()
        self.sampled = time.monotonic() - began
        for name, number in self.batch.stops.items():
            self.state["stops"][name] = self.state["stops"].get(name, 0) + number
        if not self.batch.complete:
            raise _BudgetUsedUp
        rollouts = self.batch.rollouts
        assert len(rollouts) == len(prompts)
        return {
            "prompt_ids": [list(r.prompt) for r in rollouts],
            "completion_ids": [list(r.completion) for r in rollouts],
            "logprobs": None,  # the weights that sampled are the ones that are trained
            "env_mask": [list(r.mask) for r in rollouts],
            "reward": [r.reward for r in rollouts],
        }

    def _sampling(self, model: Any) -> None:
        model.eval()
        self.policy.weights_changed(f"{self.source}@{self.step}")

    def after_step(self) -> bool:
        """Called after the last optimiser step on a batch. Whether the training is over."""
        self.step += 1
        over = self.budget.reached() is not None or self.step >= self._most_steps()
        self.measured = {}
        if self.measuring and (over or self.step % (self.config.eval_steps or 1) == 0):
            self.measured["valid_success"] = self._validate()
        return over

    def after_log(self, logs: Mapping[str, Any]) -> None:
        """The metrics of the step just taken, and its checkpoint."""
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])):
            raise UserError(
                f"The training diverged: at step {self.step} the loss is {logs['loss']} and the "
                f"gradient's norm {logs['grad_norm']}. Lower learning_rate (it is "
                f"{self.config.learning_rate:g})."
            )
        assert self.batch is not None
        rewards = [r.reward for r in self.batch.rollouts if r.reward is not None]
        self.state["reward"] = statistics.fmean(rewards) if rewards else None
        size = self.config.num_generations
        mixed = sum(
            len({r.reward for r in self.batch.rollouts[i : i + size] if r.reward is not None}) > 1
            for i in range(0, len(self.batch.rollouts), size)
        )
        spent = self.budget.snapshot()
        self.metrics.row(
            {
                "step": self.step,
                "loss": logs["loss"],
                "reward": self.state["reward"],
                "groups": self.batch.complete,
                "mixed_groups": mixed,
            }
            | {name: logs[key] for name, key in _LOGGED.items() if key in logs}
            | {
                "turns": self.batch.turns,
                "policy_calls": spent.policy_calls,
                "env_steps": spent.env_steps,
                "episodes": spent.episodes,
                "stops": dict(self.batch.stops),
                "rollout_seconds": round(self.sampled, 3),
                "seconds": round(time.monotonic() - self.began, 3),
            }
            | self.measured
        )
        if self.step % self.config.save_steps == 0:
            self.checkpoints.save(
                self.step,
                self.state
                | {"spent": counted(spent), "updates": self.step * self.config.num_iterations},
            )

    # validation and result

    def _validate(self) -> float:
        """Success rate on the validation tasks. The weights are kept where none before them were
        as good."""
        assert self.validate is not None
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was = model.training
        self._sampling(model)
        try:
            rate = self.runner.run(self.validate(self.policy))
        finally:
            model.train(was)
        if rate > self.state["best"]:
            self.state |= {"best": rate, "best_step": self.step}
            self.checkpoints.save_best(self.step)
        return rate

    def _result(self, bare: Any) -> GrpoResult:
        best = self.state["best_step"]
        kept = self.step if best is None else int(best)
        if kept != self.step:
            self.checkpoints.load_best(kept)
        if self.step == 0:
            self.notes.append("The budget covers no complete batch: no step was taken.")
        result = GrpoResult(
            path=self.out,
            steps=self.step,
            kept_step=kept,
            spent=counted(self.budget.snapshot()),
            reward=self.state["reward"],
            valid_success=None if best is None else self.state["best"],
            stops=dict(self.state["stops"]),
            notes=tuple(self.notes),
            seconds=time.monotonic() - self.began,
        )
        publish(
            self.out,
            self.fingerprint,
            result.to_json(),
            partial(save_model, bare, self.source, self.tokenizer, self.stored, self.config.lora),
        )
        self.checkpoints.remove()
        return result


_LOGGED = {
    "kl": "kl",
    "entropy": "entropy",
    "clipped": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}
"""Names in metrics.jsonl, and TRL's."""


def _reward(
    completions: Sequence[Any], reward: Sequence[float | None], **_: Any
) -> list[float | None]:
    """The rewards that came with the rollouts."""
    return list(reward)


def _half(config: GrpoConfig) -> bool:
    """Whether the updates compute in bfloat16."""
    return config.dtype == "bfloat16" or (
        config.dtype == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )


class _Watch(TrainerCallback):  # type: ignore[misc]
    def __init__(self, training: _Training) -> None:
        self.training = training

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (
            state.global_step % self.training.config.num_iterations == 0
            and self.training.after_step()
        ):
            control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if (
            logs is not None
            and "grad_norm" in logs
            and state.global_step % self.training.config.num_iterations == 0
        ):
            self.training.after_log(logs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and TRL's warnings about an experimental function and about rollouts
    without a reward."""
    logger = logging.getLogger("trl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), without_progress_bars():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        warnings.filterwarnings(
            "ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning
        )
        try:
            yield
        finally:
            logger.setLevel(level)


def _fingerprint(model: Any, tasks: Sequence[Task], prompts: Prompts, config: GrpoConfig) -> str:
    """What a checkpoint must agree with to be continued: options, tasks, wording, and the start
    weights (the first values of each)."""
    digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=12)
    for task in tasks:
        digest.update(json.dumps(task.to_json(), sort_keys=True).encode())
    digest.update(repr((prompts.set, prompts.actions_help)).encode())
    for name, parameter in model.named_parameters():
        digest.update(
            (
                f"{name} {tuple(parameter.shape)} "
                f"{parameter.detach().flatten()[:8].float().tolist()}"
            ).encode()
        )
    return digest.hexdigest()
