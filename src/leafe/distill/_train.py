"""Sequences to weights: one loop, whose every batch is a pure function of the seed and the step.

So a killed training and an unbroken one are the same: batches, schedule and dropout need no stored
state. A batch becomes packed rows; these are distributed to the processes and split into forward
passes under a token budget. The gradient is that of the whole batch however it was split.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from leafe.core import ChatTokens, UserError, derive_seed
from leafe.distill._attention import select_attention
from leafe.distill._batches import Batches, distribute
from leafe.distill._checkpoint import Checkpoints
from leafe.distill._config import PARTS, DistillConfig
from leafe.distill._dataset import Dataset
from leafe.distill._loss import MicroBatch, collate, part_losses, totals
from leafe.distill._memory import (
    default_micro_batch_tokens,
    is_out_of_memory,
    peak_bytes,
    short_message,
)
from leafe.distill._metrics import Metrics, require_trackers
from leafe.distill._model import (
    Source,
    arithmetic,
    cpu_threads,
    load,
    parameter_groups,
    rebuilt,
    save_model,
    trainable,
)
from leafe.distill._pack import Row, pack
from leafe.distill._parallel import Parallel, bare_name
from leafe.distill._publish import finished_result, publish, require_same
from leafe.distill._result import Progress, TrainResult
from leafe.distill._select import require
from leafe.distill._tokens import TOKENISED_AGAIN, Encoded, TokenSequence, encode


def run(
    model_path: str | Path,
    out: Path,
    data: Dataset,
    valid: Dataset | None,
    config: DistillConfig,
    progress: Progress | None,
) -> TrainResult:
    """See `leafe.distill.train`."""
    notes = require(data, config)
    require_trackers(config.report_to)
    parallel = Parallel(
        log_with=list(config.report_to) or None,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "logs")),
    )
    source = load(model_path, config, parallel.device)
    chat = ChatTokens(source.tokenizer, str(model_path))
    longest = source.context(config)
    encoded = encode(data.samples, chat, longest, too_long=config.too_long)
    held_out = None
    if valid is not None and config.eval_steps is not None:
        held_out = encode(valid.samples, chat, longest, too_long=config.too_long)
    if not any(encoded.parts[p] and config.weight(p) > 0 for p in ("rehearsal", "counterfactual")):
        raise UserError(
            f"There is nothing to train on: no sample fits {longest} tokens; shorten the prompts "
            "or use a model with a longer context."
        )
    again = encoded.skipped.get(TOKENISED_AGAIN, 0)
    if 2 * again > encoded.known:
        notes.append(
            f"The tokenizer of {model_path} seems not to be the one that explored: the ids of "
            f"{again} of {encoded.known} different sampled answers do not spell their texts with "
            "it. These texts were tokenized anew, so that their tokens are not exactly those that "
            "were sampled."
        )
    with cpu_threads(source.model, parallel.device):
        try:
            trainer = _Trainer(parallel, source, out, encoded, held_out, config, progress, notes)
            return trainer.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "Out of memory: the weights, their gradients and the optimiser's moments do not "
                f"fit ({short_message(error)}). Train adapters (lora), use a smaller model, or "
                "shard it over several processes (FSDP2 by accelerate's config file)."
            ) from error


def learning_rate(config: DistillConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1: a linear warm-up, then constant or half a cosine down to
    0."""
    warmup = config.warmup(steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    angle = math.pi * (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(angle))


class _Trainer:
    def __init__(
        self,
        parallel: Parallel,
        source: Source,
        out: Path,
        encoded: Encoded,
        held_out: Encoded | None,
        config: DistillConfig,
        progress: Progress | None,
        notes: Sequence[str],
    ) -> None:
        self.parallel = parallel
        self.source = source
        self.out = out
        self.encoded = encoded
        self.config = config
        self.progress = progress
        self.notes = list(notes)
        self.pad: int = source.tokenizer.pad_token_id or 0
        self.fingerprint: str = parallel.broadcast(_fingerprint(source, encoded, held_out, config))
        self.batches = Batches(encoded, config)
        epochs = 2.0 if config.num_train_epochs is None else config.num_train_epochs
        self.steps = config.max_steps or self.batches.steps(epochs)
        self.held_out = [
            s
            for p in PARTS
            if config.weight(p) > 0
            for s in (held_out.parts[p] if held_out else ())
        ]
        if held_out is not None and not self.held_out:
            self.notes.append("The validation tasks give no samples: no early stopping.")
        trained_on = [s for p in self.batches.parts for s in encoded.parts[p]]
        spans = [span for s in (*self.held_out, *trained_on) for span in s.spans]
        self.longest = max(max(s.end, len(s.teacher or ()) + s.end - s.start) for s in spans)
        torch.manual_seed(config.seed)  # of new adapters
        taught = any(span.teacher is not None for span in spans)
        model, self.start = trainable(source.model, config, parallel, taught)
        optimizer = torch.optim.AdamW(
            parameter_groups(
                (p for p in model.parameters() if p.requires_grad), config.weight_decay
            ),
            lr=config.learning_rate,
            fused=True,
        )
        self.model, self.optimizer = parallel.prepare(model, optimizer)
        self.bare = parallel.accelerator.unwrap_model(self.model).model
        self.trained = {bare_name(n): p for n, p in self.bare.named_parameters() if p.requires_grad}
        with torch.no_grad():
            self.attention = self.model(select_attention, self.longest, config.packing_strategy)
        self.notes += self.attention.notes
        self.budget = config.micro_batch_tokens or default_micro_batch_tokens(
            self.bare, config, parallel.device
        )
        self.halved = False
        self.checkpoints = Checkpoints(
            out / "checkpoints", self.trained, self.optimizer, parallel, self.model
        )
        self._valid: list[MicroBatch] | None = None

    def run(self) -> TrainResult:
        stored = finished_result(self.out, self.fingerprint)
        if stored is not None:
            return TrainResult.from_json(stored)
        began = time.monotonic()
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "tokens": 0,
            "given": 0,
            "loss": math.nan,
            "notes": [],
            "best_step": None,
            "best": math.inf,
            "best_parts": {},
            "worse": 0,
        }
        loaded = self.checkpoints.load()
        self.notes += self.checkpoints.notes
        if loaded is not None:
            what = "the checkpoints of another training"
            require_same(self.out, loaded["fingerprint"], self.fingerprint, what)
            state = loaded
        first: int = state.pop("step", 0)
        metrics = None
        if self.parallel.main:
            metrics = Metrics(
                self.out / "metrics.jsonl",
                first,
                self.progress,
                self.parallel.accelerator,
                self.config.model_dump(mode="json"),
                self.fingerprint,
            )
        try:
            step, stopped = self._loop(first, state, metrics, began)
        finally:
            if metrics:
                metrics.close()
        self.parallel.wait()
        best = state["best_step"]
        result = TrainResult(
            path=self.out,
            steps=step,
            kept_step=step if best is None else int(best),
            stopped_early=stopped,
            loss=state["loss"],
            valid_loss=None if best is None else state["best"],
            valid_parts=state["best_parts"],
            counts=self.encoded.counts | {"epochs": self.batches.epochs(step)},
            notes=(*self.notes, *state["notes"]),
            seconds=time.monotonic() - began,
            tokens=state["tokens"],
            given=state["given"],
            peak_bytes=peak_bytes(self.parallel.device),
        )
        self._publish(result)
        self.parallel.wait()
        return result

    def _loop(
        self, first: int, state: dict[str, Any], metrics: Metrics | None, began: float
    ) -> tuple[int, bool]:
        """(steps that are done, whether it stopped early)."""
        config = self.config
        patience = config.early_stopping_patience
        self.model.train()
        if first == 0 and self.held_out:
            row = {"step": 0} | self._validate()[1]
            if metrics:
                metrics.row(row)
        step = first
        stopped = patience is not None and state["worse"] >= patience
        while step < self.steps and not stopped:
            row = self._step(step, state)
            step += 1
            row |= {
                "step": step,
                "steps": self.steps,
                "tokens": state["tokens"],
                "given": state["given"],
                "seconds": time.monotonic() - began,
            }
            every = config.eval_steps
            if self.held_out and every and (step % every == 0 or step == self.steps):
                parts, losses = self._validate()
                row |= losses
                if losses["valid_loss"] < state["best"]:
                    best = losses["valid_loss"]
                    state |= {"best": best, "best_step": step, "best_parts": parts, "worse": 0}
                    self.checkpoints.save_best(step)
                else:
                    state["worse"] += 1
                    stopped = patience is not None and state["worse"] >= patience
            if step % config.save_steps == 0 and step < self.steps:
                self.checkpoints.save(step, state)
            if metrics:
                metrics.row(row)
        return step, stopped

    def _step(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        """Take one optimiser step; its metrics."""
        batch = self.batches.batch(step)
        rate = learning_rate(self.config, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        extra: dict[str, Any] = {}
        done = self._gradient(step, batch)
        if isinstance(done, str):
            extra = self._halve_micro_batch(step, batch, done, state)
            done = self._gradient(step, batch)
            if isinstance(done, str):
                self._raise_out_of_memory(step, done)
        losses_P, tokens, given = done
        norm = self.parallel.clip(self.trained.values(), self.config.max_grad_norm)
        losses_P = self.parallel.sum(losses_P)
        loss = float((losses_P * self._scaled_P()).sum())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._raise_diverged(step, batch, loss, norm)
        self.optimizer.step()
        self._zero_grad()
        state["loss"] = loss
        own = torch.tensor([tokens], device=self.parallel.device)
        state["tokens"] += int(self.parallel.sum(own))
        state["given"] += given
        by_part = {
            f"loss/{p}": float(losses_P[PARTS.index(p)])
            for p in sorted({s.part for s in batch}, key=PARTS.index)
        }
        return {"loss": loss, "lr": rate, "grad_norm": norm} | by_part | extra

    def _gradient(self, step: int, batch: Sequence[TokenSequence]) -> tuple[Tensor, int, int] | str:
        """Compute this process's share of the batch's gradient.

        Returns:
            (its loss_P, the tokens it computed, the tokens of all samples without sharing); or,
            with no gradient left, the message of an out-of-memory error.
        """
        losses_P = torch.zeros(len(PARTS), device=self.parallel.device)
        tokens = 0
        number, given, micro_batches = self._micro_batches(batch)
        try:
            for nth, micro in enumerate(micro_batches):
                torch.manual_seed(
                    derive_seed(self.config.seed, "dropout", step, nth, self.parallel.rank)
                )
                losses_P += self.parallel.backward(
                    self.model, nth == number - 1, partial(self._losses, micro), self._scaled_P()
                )
                tokens += micro.tokens
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = short_message(error)
        else:
            return losses_P, tokens, given
        self._zero_grad()
        gc.collect()
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
        return why

    @torch.no_grad()
    def _validate(self) -> tuple[dict[str, float], dict[str, float]]:
        """(loss by part, the metrics)."""
        self.model.eval()
        if self._valid is None:
            self._valid = list(self._micro_batches(self.held_out)[2])
        losses_P = torch.zeros(len(PARTS), device=self.parallel.device)
        for micro in self._valid:
            losses_P += self._losses(micro)
        self.model.train()
        losses_P = self.parallel.sum(losses_P)
        present = {s.part for s in self.held_out}
        parts: dict[str, float] = {
            p: float(loss) for p, loss in zip(PARTS, losses_P, strict=True) if p in present
        }
        metrics = {"valid_loss": float((losses_P * self._weights_P()).sum())}
        return parts, metrics | {f"valid_loss/{p}": loss for p, loss in parts.items()}

    def _losses(self, micro: MicroBatch) -> Tensor:
        dtype, device = arithmetic(self.config, self.parallel.device), self.parallel.device
        low = dtype is not torch.float32
        with torch.autocast(device.type, dtype=dtype) if low else nullcontext():
            out: Tensor = self.model(part_losses, self.start, micro.to(device))
        return out.float()

    def _micro_batches(
        self, batch: Sequence[TokenSequence]
    ) -> tuple[int, int, Iterator[MicroBatch]]:
        """(how many forward passes this process makes, tokens of the samples without sharing, the
        passes).

        Every process makes as many, so that all meet at the same exchanges. A process without rows
        for a pass runs one whose targets weigh 0; so does a process without a teacher where others
        have one, if the start policy is sharded.
        """
        rows = pack(batch, self.attention.limits(self.budget))
        costs = [row.tokens + row.teacher_tokens for row in rows]
        passes = distribute(
            costs, [row.tokens for row in rows], self.budget, self.parallel.processes
        )
        own = passes[self.parallel.rank]
        cheapest = sorted(range(len(rows)), key=lambda i: costs[i])

        def micro_batches() -> Iterator[MicroBatch]:
            total = totals(batch)
            for nth, numbers in enumerate(own):
                chosen = [rows[i] for i in numbers]
                needs_teacher = self.parallel.sharded and any(
                    rows[i].teachers for of_rank in passes for i in of_rank[nth]
                )
                if needs_teacher and not any(row.teachers for row in chosen):
                    chosen.append(_masked(next(rows[i] for i in cheapest if rows[i].teachers)))
                chosen = chosen or [_masked(rows[cheapest[0]])]
                yield collate(chosen, total, self.pad, self.attention)

        return len(own), sum(row.given for row in rows), micro_batches()

    def _halve_micro_batch(
        self, step: int, batch: Sequence[TokenSequence], why: str, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Halve the tokens of the largest pass from here on. Only once, and only on one process:
        others would be waiting in an exchange."""
        largest = max(micro.tokens for micro in self._micro_batches(batch)[2])
        if self.halved or self.parallel.processes > 1 or largest < 2:
            self._raise_out_of_memory(step, why)
        self.halved = True
        self.budget = min(self.budget, largest) // 2
        self._valid = None
        state["notes"].append(
            f"Memory did not suffice for {largest} tokens in a forward pass at step {step + 1} "
            f"({why}): from there on passes had at most {self.budget} tokens, with the same "
            "gradient."
        )
        return {"out_of_memory": 1, "micro_batch_tokens": self.budget}

    def _raise_out_of_memory(self, step: int, why: str) -> NoReturn:
        one = f" (one sample has {self.longest}: then lower max_length too)"
        raise UserError(
            f"Memory does not suffice at step {step + 1} for forward passes of {self.budget} "
            f"tokens ({why}): set distill.micro_batch_tokens below {self.budget}"
            f"{one if self.longest > self.budget // 2 else ''}, gradient_checkpointing = true, or "
            "lora; the training resumes from its last checkpoint."
        )

    def _raise_diverged(
        self, step: int, batch: Sequence[TokenSequence], loss: float, norm: float
    ) -> NoReturn:
        """Save the batch with the loss of each of its sequences, and stop."""
        self._zero_grad()
        self.model.eval()
        rows = []
        for sequence in batch:
            packed = pack([sequence], self.attention.limits(self.budget))
            micro = collate(packed, totals([sequence]), self.pad, self.attention)
            with torch.no_grad():
                alone = float(self._losses(micro).sum())
            spans = [
                {"start": s.start, "end": s.end, "weight": s.weight, "teacher": s.teacher}
                for s in sequence.spans
            ]
            rows.append(
                {
                    "part": sequence.part,
                    "task_id": sequence.task_id,
                    "loss": _plain(alone),
                    "spans": spans,
                    "ids": sequence.ids,
                }
            )
        path = self.out / "bad-batch.json"
        if self.parallel.main:
            local = (p.to_local() if hasattr(p, "to_local") else p for p in self.trained.values())
            head = {
                "step": step + 1,
                "loss": _plain(loss),
                "grad_norm": _plain(norm),
                "weights_finite": all(bool(p.isfinite().all()) for p in local),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head | {"sequences": rows}), encoding="utf-8")
        self.parallel.wait()
        raise UserError(
            f"The loss is {loss} and the gradient's norm {norm} at step {step + 1}: the training "
            f"diverged; lower learning_rate (it is {self.config.learning_rate:g}). The batch is in "
            f"{path}, with each sequence's own loss."
        )

    def _zero_grad(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def _weights_P(self) -> Tensor:
        return torch.tensor([self.config.weight(p) for p in PARTS], device=self.parallel.device)

    def _scaled_P(self) -> Tensor:
        """The weights of the parts' means in a batch."""
        scales = [self.batches.scale(p) for p in PARTS]
        return self._weights_P() * torch.tensor(scales, device=self.parallel.device)

    def _publish(self, result: TrainResult) -> None:
        """Publish the weights of the kept step with the tokenizer, then delete the checkpoints."""
        best = None if result.kept_step == result.steps else result.kept_step
        if self.parallel.sharded:
            weights = (
                self.parallel.weights(self.model, self.trained)
                if best is None
                else self.checkpoints.best(best)
            )
            whole = ((name, tensor.cpu()) for name, tensor in weights)
            if not self.parallel.main:
                for _ in whole:  # every process gives its shards
                    pass
                return
            model = rebuilt(self.source, self.config, self.parallel.device, whole)
        else:
            if best is not None:
                self.checkpoints.load_best(best)
            model = self.bare
        if not self.parallel.main:
            return
        source, lora = self.source, self.config.lora
        fill = partial(save_model, model, source.path, source.tokenizer, source.stored, lora)
        publish(self.out, self.fingerprint, result.to_json(), fill)
        self.checkpoints.remove()


def _masked(row: Row) -> Row:
    return replace(row, targets=[target._replace(weight=0.0) for target in row.targets])


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


_RESUMABLE = {
    "micro_batch_tokens",
    "report_to",
    "save_steps",
    "gradient_checkpointing",
    "packing_strategy",
}
"""Options that change how a training runs and not its result: it may resume with other values."""


def _fingerprint(
    source: Source, encoded: Encoded, held_out: Encoded | None, config: DistillConfig
) -> str:
    sequences = (
        repr((part, sequence.ids, sequence.spans)).encode()
        for data in (encoded, held_out)
        for part in PARTS
        for sequence in (data.parts[part] if data else ())
    )
    return source.fingerprint(config.model_dump_json(exclude=_RESUMABLE).encode(), sequences)
