"""DPO on branch events: prefer the revised action to the original one, at the history without the
experience.

The training is TRL's DPOTrainer as it comes. leafe adds the pairs' exact token ids (as in `encode`,
not TRL's own tokenization), the weights' standard form, and resuming after a kill. The start policy
is DPO's reference.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from accelerate import PartialState
from transformers import EarlyStoppingCallback, TrainerCallback

from leafe.core import ChatTokens, Message, UserError
from leafe.distill._config import DistillConfig
from leafe.distill._dataset import Dataset, Sample
from leafe.distill._metrics import drop_later_steps, require_trackers
from leafe.distill._model import (
    arithmetic,
    cpu_threads,
    load,
    save_model,
    with_adapter,
    without_progress_bars,
)
from leafe.distill._publish import finished_result, publish, require_same
from leafe.distill._result import Progress, TrainResult
from leafe.distill._shorten import Shortener
from leafe.distill._tokens import TokenSequence, encode

_Pair = dict[str, list[int]]
"""`prompt_ids`, `chosen_ids`, `rejected_ids`: TRL's columns."""


def run(
    model_path: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None,
) -> TrainResult:
    """See `leafe.distill.train`; all of it holds, with pairs for samples."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "DPO takes one GPU a process: set CUDA_VISIBLE_DEVICES to one of them, or start with "
            "accelerate launch."
        )
    require_trackers(config.report_to)
    source = load(model_path, config, device)
    chat = ChatTokens(source.tokenizer, str(model_path))
    longest = source.context(config)
    pairs, counts = _pairs(data, chat, longest, config)
    if not pairs:
        raise UserError(
            "There is nothing to train on: the trees give no pairs of actions of at most "
            f"{longest} tokens; explore more or select wider sets."
        )
    held_out: list[_Pair] = []
    notes: tuple[str, ...] = ()
    if valid is not None and config.eval_steps is not None:
        held_out = _pairs(valid, chat, longest, config)[0]
        if not held_out:
            notes = ("The validation tasks give no pairs: no early stopping.",)
    fingerprint = source.fingerprint(
        config.model_dump_json().encode(), [json.dumps([pairs, held_out]).encode()]
    )
    stored = finished_result(out, fingerprint)
    if stored is not None:
        return TrainResult.from_json(stored)
    with PartialState().main_process_first():
        checkpoint = _newest(out / "checkpoints", fingerprint)
    with cpu_threads(source.model, device), without_progress_bars():
        trainer, metrics = _trainer(
            source.model, source.tokenizer, pairs, held_out, out, config, progress
        )
        trainer.train(resume_from_checkpoint=checkpoint)

    state = trainer.state
    kept = state.best_global_step if held_out and state.best_global_step else state.global_step
    result = TrainResult(
        path=out,
        steps=state.global_step,
        kept_step=kept,
        stopped_early=state.global_step < state.max_steps,
        loss=metrics.loss,
        valid_loss=state.best_metric if held_out else None,
        valid_parts={"counterfactual": state.best_metric} if held_out else {},
        counts=counts | {"epochs": {"counterfactual": float(state.epoch or 0)}},
        notes=notes,
        seconds=time.monotonic() - began,
        tokens=int(trainer._total_train_tokens),
    )
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        fill = partial(save_model, model, source.path, source.tokenizer, source.stored, config.lora)
        publish(out, fingerprint, result.to_json(), fill)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return result


def _pairs(
    data: Dataset, chat: ChatTokens, longest: int, config: DistillConfig
) -> tuple[list[_Pair], dict[str, Any]]:
    """The pairs as exact token ids, and their counts."""
    samples = [(s, s.rejected) for s in data.part("counterfactual") if s.rejected is not None]
    shortener = None
    if samples and config.too_long == "truncate":
        one_per_task = list({s.task_id: s.messages for s, _ in samples}.values())
        shortener = Shortener(chat, longest, one_per_task)
    rows = []
    skipped: Counter[str] = Counter()
    for sample, rejected in samples:
        both = _encoded(sample, rejected, chat, longest)
        if len(both) < 2 and shortener is not None:
            longer = max(sample.answer, rejected, key=lambda m: len(chat.answer(m)))
            messages = shortener.shortened(sample.messages, longer)
            if messages is not None:
                both = _encoded(replace(sample, messages=messages), rejected, chat, longest)
                skipped[f"pairs without the oldest turns, to fit {longest} tokens"] += 1
        if len(both) < 2:
            skipped[f"pairs without tokens, or of more than {longest}"] += 1
            continue
        (chosen, other), at = both, both[0].spans[0].start
        rows.append(
            {
                "prompt_ids": list(chosen.ids[:at]),
                "chosen_ids": list(chosen.ids[at:]),
                "rejected_ids": list(other.ids[at:]),
            }
        )
    targets = sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    tokens = targets + 2 * sum(len(r["prompt_ids"]) for r in rows)
    return rows, {
        "counterfactual": {"pairs": len(rows), "tokens": tokens, "target_tokens": targets},
        "skipped": dict(skipped),
    }


def _encoded(
    sample: Sample, rejected: Message, chat: ChatTokens, longest: int
) -> Sequence[TokenSequence]:
    """The prompt with each of its two answers; fewer if they do not fit."""
    both = (sample, replace(sample, answer=rejected))
    return encode(both, chat, longest, merge=False).parts["counterfactual"]


class _Trainer(trl.DPOTrainer):
    def _send_telemetry(self) -> None:
        """Send none."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """The ids are there already."""
        return dataset


def _trainer(
    model: Any,
    tokenizer: Any,
    pairs: list[_Pair],
    held_out: list[_Pair],
    out: Path,
    config: DistillConfig,
    progress: Progress | None,
) -> tuple[Any, _MetricsCallback]:
    cuda = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = max(1, min(config.counterfactual_batch_size, len(pairs)) // processes)
    size = 2 * max(
        len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"]))
        for r in pairs + held_out
    )
    # passes of one size, so that the mean over them is the mean over the batch
    most = math.inf if config.micro_batch_tokens is None else config.micro_batch_tokens
    at_once = max(d for d in range(1, batch + 1) if batch % d == 0 and (d == 1 or d * size <= most))
    epochs = config.num_train_epochs or 2.0
    steps = config.max_steps or max(1, math.ceil(epochs * len(pairs) / (batch * processes)))
    schedule = "cosine" if config.lr_scheduler_type == "cosine" else "constant_with_warmup"
    arguments = trl.DPOConfig(
        output_dir=str(out / "checkpoints"),
        beta=config.dpo_beta,
        max_length=None,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=batch // at_once,
        per_device_eval_batch_size=at_once,
        max_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=schedule,
        warmup_steps=config.warmup(steps),
        bf16=arithmetic(config, torch.device("cuda" if cuda else "cpu")) is torch.bfloat16,
        use_cpu=not cuda,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.eval_steps if held_out else config.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        eval_strategy="steps" if held_out else "no",
        eval_steps=config.eval_steps,
        eval_on_start=bool(held_out),
        load_best_model_at_end=bool(held_out),
        metric_for_best_model="eval_loss" if held_out else None,
        greater_is_better=False if held_out else None,
        report_to=list(config.report_to),
        dataloader_pin_memory=cuda,
    )
    reference = None if config.lora is not None else copy.deepcopy(model)
    if config.lora is not None:
        model = with_adapter(model, config.lora)
    metrics = _MetricsCallback(out / "metrics.jsonl", config, progress)
    callbacks: list[TrainerCallback] = [metrics]
    if held_out and config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    trainer = _Trainer(
        model=model,
        ref_model=reference,
        args=arguments,
        processing_class=tokenizer,
        callbacks=callbacks,
        train_dataset=datasets.Dataset.from_list(pairs),
        eval_dataset=datasets.Dataset.from_list(held_out) if held_out else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, metrics


class _MetricsCallback(TrainerCallback):
    """Writes metrics.jsonl and calls the caller's progress; ends the training if the loss is not
    finite."""

    def __init__(self, path: Path, config: DistillConfig, progress: Progress | None) -> None:
        self.path = path
        self.config = config
        self.progress = progress
        self.loss = math.nan
        self._began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_later_steps(self.path, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        values = {_NAMES[k]: v for k, v in (logs or {}).items() if k in _NAMES}
        self.loss = values.get("loss", self.loss)
        if not all(math.isfinite(values.get(k, 0.0)) for k in ("loss", "grad_norm")):
            raise UserError(
                f"The loss is {values.get('loss')} and the gradient's norm "
                f"{values.get('grad_norm')} at step {state.global_step}: the training diverged; "
                f"lower learning_rate (it is {self.config.learning_rate:g})."
            )
        if not values or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._began
        row = {"step": state.global_step, "steps": state.max_steps, "seconds": seconds} | values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.progress:
            self.progress(row)


_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "eval_loss": "valid_loss",
    "eval_rewards/margins": "valid_margin",
    "eval_rewards/accuracies": "valid_accuracy",
}
"""TRL's metrics and ours. margin: by how much the policy's log-ratio to the reference is larger on
the chosen action than on the rejected one, times dpo_beta. accuracy: share of the pairs with a
margin above 0."""


def _newest(folder: Path, fingerprint: str) -> str | None:
    """The newest complete checkpoint. TRL writes `trainer_state.json` last: a folder without it is
    incomplete and removed."""
    mark = folder / "fingerprint"
    if mark.is_file():
        require_same(folder.parent, mark.read_text(encoding="utf-8"), fingerprint)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(fingerprint, encoding="utf-8")
    complete = []
    for found in folder.glob("checkpoint-*"):
        try:
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(found, ignore_errors=True)
        else:
            complete.append(found)
    newest = max(complete, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)
