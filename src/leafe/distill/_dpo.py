"""DPO on branch events: the revised action is to be preferred to the original one, at the history
without the experience.

The training is TRL's DPOTrainer as it comes; ours are the pairs' exact token ids (as in `encode`,
not TRL's own tokenisation of the texts), the weights'
standard form, and going on after a kill. The policy that the training starts from is DPO's
reference.
"""

from __future__ import annotations

import copy
import hashlib
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
from leafe.distill._metrics import require_trackers
from leafe.distill._model import SMALL, Source, arithmetic, load, quiet, save, with_adapter
from leafe.distill._publish import finished, publish, same
from leafe.distill._result import Progress, TrainResult
from leafe.distill._shorten import Shortener
from leafe.distill._tokens import TokenSequence, encode


def run(
    model_path: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None,
) -> TrainResult:
    """See `leafe.distill.train`: what it promises holds here too, with pairs for samples."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "DPO takes one GPU a process: set CUDA_VISIBLE_DEVICES to one of them, or "
            "start with accelerate launch."
        )
    require_trackers(config.report_to)
    source = load(model_path, config, device)
    model, tokenizer = source.model, source.tokenizer
    chat = ChatTokens(tokenizer, str(model_path))
    longest = min(
        config.max_length or 1 << 30, int(getattr(model.config, "max_position_embeddings", 1 << 30))
    )
    pairs, counts = _pairs(data, chat, longest, config)
    if not pairs:
        raise UserError(
            "There is nothing to train on: the trees give no pairs of actions of at most "
            f"{longest} tokens; explore more or choose wider sets."
        )
    held_out = (
        _pairs(valid, chat, longest, config)[0]
        if valid is not None and config.eval_steps is not None
        else []
    )
    notes = (
        ["The validation tasks give no pairs: no early stopping."]
        if valid is not None and config.eval_steps is not None and not held_out
        else []
    )
    fingerprint = _fingerprint(model, pairs, held_out, config)
    before = _finished(out, fingerprint)
    if before is not None:
        return before
    with PartialState().main_process_first():
        resumed = _newest(out / "checkpoints", fingerprint)

    threads = torch.get_num_threads()
    if (
        device.type == "cpu"
        and "OMP_NUM_THREADS" not in os.environ
        and sum(p.numel() for p in model.parameters()) < SMALL
    ):
        torch.set_num_threads(1)
    try:
        with quiet():
            trainer, watch = _trainer(model, tokenizer, pairs, held_out, out, config, progress)
            trainer.train(resume_from_checkpoint=resumed)
    finally:
        torch.set_num_threads(threads)

    state = trainer.state
    kept = state.best_global_step if held_out and state.best_global_step else state.global_step
    result = TrainResult(
        path=out,
        steps=state.global_step,
        kept_step=kept,
        stopped_early=state.global_step < state.max_steps,
        loss=watch.loss,
        valid_loss=state.best_metric if held_out else None,
        valid_parts={"counterfactual": state.best_metric} if held_out else {},
        counts=counts | {"epochs": {"counterfactual": float(state.epoch or 0)}},
        notes=tuple(notes),
        seconds=time.monotonic() - began,
        tokens=int(trainer._total_train_tokens),
    )
    if trainer.is_world_process_zero():
        _write(
            trainer.accelerator.unwrap_model(trainer.model),
            source,
            out,
            fingerprint,
            result,
            config,
        )
    trainer.accelerator.wait_for_everyone()
    return result


def _pairs(
    data: Dataset, chat: ChatTokens, longest: int, config: DistillConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs as exact token ids in TRL's columns, and what they count."""
    samples = [(s, s.rejected) for s in data.part("counterfactual") if s.rejected is not None]
    shortener = (
        Shortener(chat, longest, list({s.task_id: s.messages for s, _ in samples}.values()))
        if samples and config.too_long == "truncate"
        else None
    )
    rows = []
    skipped: Counter[str] = Counter()
    for sample, rejected in samples:
        both = _encoded(sample, rejected, chat, longest)
        if len(both) < 2 and shortener is not None:
            messages = shortener.shortened(
                sample.messages, max(sample.answer, rejected, key=lambda m: len(chat.answer(m)))
            )
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
    """The prompt with each of its two answers, or fewer where they do not fit."""
    return encode((sample, replace(sample, answer=rejected)), chat, longest, merge=False).parts[
        "counterfactual"
    ]


class _Trainer(trl.DPOTrainer):
    def _send_telemetry(self) -> None:
        """Nobody is told that it is used."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """The ids are there already."""
        return dataset


def _trainer(
    model: Any,
    tokenizer: Any,
    pairs: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    out: Path,
    config: DistillConfig,
    progress: Progress | None,
) -> tuple[Any, _Watch]:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = max(1, min(config.counterfactual_batch_size, len(pairs)) // processes)
    size = 2 * max(
        len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"]))
        for r in pairs + held_out
    )
    # passes of one size, so that the mean over them is the mean over the batch
    at_once = max(
        d
        for d in range(1, batch + 1)
        if batch % d == 0
        and (d == 1 or config.micro_batch_tokens is None or d * size <= config.micro_batch_tokens)
    )
    steps = config.max_steps or max(
        1, math.ceil((config.num_train_epochs or 2.0) * len(pairs) / (batch * processes))
    )
    every = config.eval_steps if held_out else config.save_steps
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
        lr_scheduler_type="cosine"
        if config.lr_scheduler_type == "cosine"
        else "constant_with_warmup",
        warmup_steps=config.warmup(steps),
        bf16=arithmetic(config, torch.device("cpu" if not torch.cuda.is_available() else "cuda"))
        is torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=every,
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
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    reference = None if config.lora is not None else copy.deepcopy(model)
    if config.lora is not None:
        model = with_adapter(model, config)
    watch = _Watch(out / "metrics.jsonl", config, progress)
    callbacks: list[TrainerCallback] = [watch]
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
    return trainer, watch


class _Watch(TrainerCallback):
    """metrics.jsonl and the caller's progress; a loss that is not finite ends the training. Rows of
    steps that are taken again are dropped."""

    def __init__(self, path: Path, config: DistillConfig, progress: Progress | None) -> None:
        self.path, self.config, self.progress = path, config, progress
        self.loss = math.nan
        self._began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = (
                self.path.read_text(encoding="utf-8").split("\n")[:-1]
                if state.global_step and self.path.is_file()
                else []
            )
            self.path.write_text(
                "".join(
                    line + "\n" for line in kept if json.loads(line)["step"] <= state.global_step
                ),
                encoding="utf-8",
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        values = {_NAMES[k]: v for k, v in (logs or {}).items() if k in _NAMES}
        self.loss = values.get("loss", self.loss)
        if not all(math.isfinite(values.get(k, 0.0)) for k in ("loss", "grad_norm")):
            raise UserError(
                f"The loss is {values.get('loss')} and the gradient's norm "
                f"{values.get('grad_norm')} at step {state.global_step}: the training "
                "diverged; "
                f"lower learning_rate (it is {self.config.learning_rate:g})."
            )
        if not values or not state.is_world_process_zero:
            return
        row = {
            "step": state.global_step,
            "steps": state.max_steps,
            "seconds": time.monotonic() - self._began,
        } | values
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
"""TRL's names and ours. margin: how much further the policy's log-ratio to the reference is on the
chosen action than on the rejected one, times dpo_beta;
accuracy: share of the pairs where that is above 0."""


def _fingerprint(
    model: Any, pairs: list[dict[str, Any]], held_out: list[dict[str, Any]], config: DistillConfig
) -> str:
    """What a checkpoint must agree with to be gone on with: options, pairs, and the start weights
    (the first values of each)."""
    digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=12)
    digest.update(json.dumps([pairs, held_out]).encode())
    for name, parameter in model.named_parameters():
        digest.update(
            (
                f"{name} {tuple(parameter.shape)} "
                f"{parameter.detach().flatten()[:8].float().tolist()}"
            ).encode()
        )
    return digest.hexdigest()


def _finished(out: Path, fingerprint: str) -> TrainResult | None:
    found = finished(out, fingerprint)
    return None if found is None else TrainResult.from_json(found)


def _newest(folder: Path, fingerprint: str) -> str | None:
    """The newest whole checkpoint; TRL writes `trainer_state.json` last, so that a folder without
    it was cut off and is removed."""
    mark = folder / "fingerprint"
    if mark.is_file():
        same(folder.parent, mark.read_text(encoding="utf-8"), fingerprint)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(fingerprint, encoding="utf-8")
    whole = []
    for found in folder.glob("checkpoint-*"):
        try:
            json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(found, ignore_errors=True)
        else:
            whole.append(found)
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def _write(
    model: Any,
    source: Source,
    out: Path,
    fingerprint: str,
    result: TrainResult,
    config: DistillConfig,
) -> None:
    """The final weights and the tokenizer; then the checkpoints go."""
    publish(
        out,
        fingerprint,
        result.to_json(),
        partial(save, model, source.path, source.tokenizer, source.stored, config.lora),
    )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
