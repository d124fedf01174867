"""Sequences to weights: one loop, whose every batch is a pure function of the seed and the step.

That makes a killed training and an unbroken one the same training: batches, schedule and dropout
need no stored state. A batch becomes packed
rows, these are dealt to the processes and cut into forward passes under a budget of tokens, and the
gradient is that of the whole batch however it was cut.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
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
from leafe.distill._attention import choose
from leafe.distill._batches import Batches, deal
from leafe.distill._checkpoint import Checkpoints
from leafe.distill._config import PARTS, DistillConfig
from leafe.distill._loss import Piece, collate, part_losses, totals
from leafe.distill._memory import budget, is_shortage, line, peak
from leafe.distill._metrics import Metrics, require_trackers
from leafe.distill._model import SMALL, Source, arithmetic, groups, learner, load, rebuilt, save
from leafe.distill._pack import Row, pack
from leafe.distill._parallel import Parallel, own_name
from leafe.distill._publish import finished, publish, same
from leafe.distill._result import Progress, TrainResult
from leafe.distill._select import Dataset, require
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
    longest = min(
        config.max_length or 1 << 30,
        int(getattr(source.model.config, "max_position_embeddings", 1 << 30)),
    )
    encoded = encode(data.samples, chat, longest, too_long=config.too_long)
    held_out = (
        encode(valid.samples, chat, longest, too_long=config.too_long)
        if valid is not None and config.eval_steps is not None
        else None
    )
    if not any(encoded.parts[p] and config.weight(p) > 0 for p in ("rehearsal", "counterfactual")):
        raise UserError(
            f"There is nothing to train on: no sample fits {longest} tokens; shorten the "
            "prompts or use a model with a longer context."
        )
    again = encoded.skipped.get(TOKENISED_AGAIN, 0)
    if 2 * again > encoded.known:
        notes.append(
            f"The tokenizer of {model_path} seems not to be the one that explored: the ids "
            f"of {again} of {encoded.known} different sampled answers do not "
            "spell their texts with it. These texts were tokenised anew, so that their "
            "tokens are not exactly those that were sampled."
        )
    threads = torch.get_num_threads()
    if (
        parallel.device.type == "cpu"
        and "OMP_NUM_THREADS" not in os.environ
        and sum(p.numel() for p in source.model.parameters()) < SMALL
    ):
        torch.set_num_threads(1)
    try:
        return _Training(parallel, source, out, encoded, held_out, config, progress, notes).run()
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise UserError(
            "Memory does not suffice for the weights, their gradients and the optimiser's "
            f"moments ({line(error)}): train adapters (lora), use a smaller "
            "model, or shard it over several processes (FSDP2 by accelerate's config file)."
        ) from error
    finally:
        torch.set_num_threads(threads)


def learning_rate(config: DistillConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1: a linear rise, then constant or half a cosine down towards
    0."""
    rise = config.warmup(steps)
    if step < rise:
        return config.learning_rate * (step + 1) / (rise + 1)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    return (
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    )


class _Training:
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
        self.parallel, self.source, self.out, self.encoded, self.config, self.progress = (
            parallel,
            source,
            out,
            encoded,
            config,
            progress,
        )
        self.notes = list(notes)
        self.pad = source.tokenizer.pad_token_id if source.tokenizer.pad_token_id is not None else 0
        self.fingerprint: str = parallel.agreed(
            _fingerprint(source.model, encoded, held_out, config)
        )
        self.batches = Batches(encoded, config)
        self.steps = config.max_steps or self.batches.steps(
            2.0 if config.num_train_epochs is None else config.num_train_epochs
        )
        self.held_out = [
            s
            for p in PARTS
            if config.weight(p) > 0
            for s in (held_out.parts[p] if held_out else ())
        ]
        if held_out is not None and not self.held_out:
            self.notes.append("The validation tasks give no samples: no early stopping.")
        spans = [
            (s, span)
            for s in (*self.held_out, *(s for p in self.batches.parts for s in encoded.parts[p]))
            for span in s.spans
        ]
        self.longest = max(
            max(span.end, len(span.teacher or ()) + span.end - span.start) for _, span in spans
        )
        torch.manual_seed(config.seed)  # of new adapters
        taught = any(span.teacher is not None for _, span in spans)
        model, self.start = learner(source.model, config, parallel, taught)
        optimizer = torch.optim.AdamW(
            groups((p for p in model.parameters() if p.requires_grad), config.weight_decay),
            lr=config.learning_rate,
            fused=True,
        )
        self.model, self.optimizer = parallel.prepare(model, optimizer)
        self.bare = parallel.accelerator.unwrap_model(self.model).model
        self.trained = {own_name(n): p for n, p in self.bare.named_parameters() if p.requires_grad}
        with torch.no_grad():
            self.attention = self.model(choose, self.longest, config.packing_strategy)
        self.notes += self.attention.notes
        self.budget = config.micro_batch_tokens or budget(self.bare, config, parallel.device)
        self.halved = False
        self.checkpoints = Checkpoints(
            out / "checkpoints", self.trained, self.optimizer, parallel, self.model
        )
        self._valid: list[Piece] | None = None

    def run(self) -> TrainResult:
        before = self._finished()
        if before is not None:
            return before
        began = time.monotonic()
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "tokens": 0,
            "given": 0,
            "loss": math.nan,
            "notes": [],
        }
        state |= {"best_step": None, "best": math.inf, "best_parts": {}, "worse": 0}
        loaded = self.checkpoints.load()
        self.notes += self.checkpoints.notes
        if loaded is not None:
            same(
                self.out,
                loaded["fingerprint"],
                self.fingerprint,
                "the checkpoints of another training",
            )
            state = loaded
        first: int = state.pop("step", 0)
        settings, path = self.config.model_dump(mode="json"), self.out / "metrics.jsonl"
        metrics = (
            Metrics(
                path, first, self.progress, self.parallel.accelerator, settings, self.fingerprint
            )
            if self.parallel.main
            else None
        )
        try:
            step, stopped = self._loop(first, state, metrics, began)
        finally:
            if metrics:
                metrics.close()
        self.parallel.wait()
        kept = step if state["best_step"] is None else int(state["best_step"])
        result = TrainResult(
            path=self.out,
            steps=step,
            kept_step=kept,
            stopped_early=stopped,
            loss=state["loss"],
            valid_loss=None if state["best_step"] is None else state["best"],
            valid_parts=state["best_parts"],
            counts=self.encoded.counts | {"epochs": self.batches.epochs(step)},
            notes=(*self.notes, *state["notes"]),
            seconds=time.monotonic() - began,
            tokens=state["tokens"],
            given=state["given"],
            peak_bytes=peak(self.parallel.device),
        )
        self._write(result, None if kept == step else kept)
        self.parallel.wait()
        return result

    def _loop(
        self, first: int, state: dict[str, Any], metrics: Metrics | None, began: float
    ) -> tuple[int, bool]:
        """(steps that are done, whether it stopped early)."""
        config = self.config
        self.model.train()
        if first == 0 and self.held_out:
            loss, parts = self._validate()
            if metrics:
                metrics.row(
                    {"step": 0, "valid_loss": loss}
                    | {f"valid_loss/{p}": v for p, v in parts.items()}
                )
        step = first
        stopped = bool(
            config.early_stopping_patience and state["worse"] >= config.early_stopping_patience
        )
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
            if (
                self.held_out
                and config.eval_steps
                and (step % config.eval_steps == 0 or step == self.steps)
            ):
                loss, parts = self._validate()
                row |= {"valid_loss": loss} | {f"valid_loss/{p}": v for p, v in parts.items()}
                if loss < state["best"]:
                    state |= {"best": loss, "best_step": step, "best_parts": parts, "worse": 0}
                    self.checkpoints.save_best(step)
                else:
                    state["worse"] += 1
                    stopped = (
                        config.early_stopping_patience is not None
                        and state["worse"] >= config.early_stopping_patience
                    )
            if step % config.save_steps == 0 and step < self.steps:
                self.checkpoints.save(step, state)
            if metrics:
                metrics.row(row)
        return step, stopped

    def _step(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        batch = self.batches.batch(step)
        rate = learning_rate(self.config, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        row: dict[str, Any] = {}
        found = self._gradient(step, batch)
        if isinstance(found, str):
            row = self._halve(step, batch, found, state)
            found = self._gradient(step, batch)
            if isinstance(found, str):
                self._no_memory(step, found)
        losses_P, tokens, given = found
        norm = self.parallel.clip(self.trained.values(), self.config.max_grad_norm)
        losses_P = self.parallel.sum(losses_P)
        loss = float((losses_P * self._scaled_P()).sum())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(step, batch, loss, norm)
        self.optimizer.step()
        self._forget()
        state["loss"] = loss
        state["tokens"] += int(
            self.parallel.sum(torch.tensor([tokens], device=self.parallel.device))
        )
        state["given"] += given
        return (
            {"loss": loss, "lr": rate, "grad_norm": norm}
            | {
                f"loss/{p}": float(losses_P[PARTS.index(p)])
                for p in sorted({s.part for s in batch}, key=PARTS.index)
            }
            | row
        )

    def _gradient(self, step: int, batch: Sequence[TokenSequence]) -> tuple[Tensor, int, int] | str:
        """This process's part of the batch's gradient, into the parameters: (its loss_P, the tokens
        it ran, the tokens of all samples one by one); or why
        memory did not suffice, with no gradient left."""
        losses_P = torch.zeros(len(PARTS), device=self.parallel.device)
        tokens = 0
        number, given, pieces = self._pieces(batch)
        try:
            for nth, one in enumerate(pieces):
                torch.manual_seed(
                    derive_seed(self.config.seed, "dropout", step, nth, self.parallel.rank)
                )
                losses_P += self.parallel.backward(
                    self.model, nth == number - 1, partial(self._losses, one), self._scaled_P()
                )
                tokens += one.tokens
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            why = line(error)
        else:
            return losses_P, tokens, given
        self._forget()
        gc.collect()
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
        return why

    @torch.no_grad()
    def _validate(self) -> tuple[float, dict[str, float]]:
        self.model.eval()
        if self._valid is None:
            self._valid = list(self._pieces(self.held_out)[2])
        losses_P = torch.zeros(len(PARTS), device=self.parallel.device)
        for one in self._valid:
            losses_P += self._losses(one)
        self.model.train()
        losses_P = self.parallel.sum(losses_P)
        parts: dict[str, float] = {
            p: float(losses_P[PARTS.index(p)])
            for p in PARTS
            if any(s.part == p for s in self.held_out)
        }
        return float((losses_P * self._weights_P()).sum()), parts

    def _losses(self, piece: Piece) -> Tensor:
        dtype = arithmetic(self.config, self.parallel.device)
        with (
            nullcontext()
            if dtype is torch.float32
            else torch.autocast(self.parallel.device.type, dtype=dtype)
        ):
            out: Tensor = self.model(part_losses, self.start, piece.to(self.parallel.device))
        return out.float()

    def _pieces(self, batch: Sequence[TokenSequence]) -> tuple[int, int, Iterator[Piece]]:
        """(how many forward passes this process makes, tokens of the samples one by one, the
        passes): every process makes as many.

        One that has no row of its own for a pass runs one that counts nothing, so that all meet at
        the same exchanges; and so does one that has no teacher
        where others have, if the start policy is sharded.
        """
        rows = pack(batch, self.attention.shape(self.budget))
        costs = [row.tokens + row.teacher_tokens for row in rows]
        dealt = deal(costs, [row.tokens for row in rows], self.budget, self.parallel.processes)
        mine = dealt[self.parallel.rank]
        cheap = sorted(range(len(rows)), key=lambda i: costs[i])

        def pieces() -> Iterator[Piece]:
            total = totals(batch)
            for nth, numbers in enumerate(mine):
                chosen = [rows[i] for i in numbers]
                needs = self.parallel.sharded and any(
                    rows[i].teachers for one in dealt for i in one[nth]
                )
                if needs and not any(row.teachers for row in chosen):
                    chosen.append(_silent(next(rows[i] for i in cheap if rows[i].teachers)))
                yield collate(chosen or [_silent(rows[cheap[0]])], total, self.pad, self.attention)

        return len(mine), sum(row.given for row in rows), pieces()

    def _halve(
        self, step: int, batch: Sequence[TokenSequence], why: str, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Half the tokens of the largest pass from here on; once, and on one process, since others
        would be waiting in an exchange."""
        largest = max(one.tokens for one in self._pieces(batch)[2])
        if self.halved or self.parallel.processes > 1 or largest < 2:
            self._no_memory(step, why)
        self.halved = True
        self.budget = min(self.budget, largest) // 2
        self._valid = None
        state["notes"].append(
            f"Memory did not suffice for {largest} tokens in a forward pass at step "
            f"{step + 1} ({why}): from there on passes had at most {self.budget} tokens, "
            "with the same gradient."
        )
        return {"out_of_memory": 1, "micro_batch_tokens": self.budget}

    def _no_memory(self, step: int, why: str) -> NoReturn:
        raise UserError(
            f"Memory does not suffice at step {step + 1} for forward passes of "
            f"{self.budget} tokens ({why}): set distill.micro_batch_tokens below "
            f"{self.budget}"
            f"{' (one sample has ' + str(self.longest) + ': then lower max_length too)' if self.longest > self.budget // 2 else ''}"
            ", gradient_checkpointing = true, or lora; the training goes on from its last "
            "checkpoint."
        )

    def _diverged(
        self, step: int, batch: Sequence[TokenSequence], loss: float, norm: float
    ) -> NoReturn:
        """Save the batch with the loss of each of its sequences, and stop."""
        self._forget()
        self.model.eval()
        rows = []
        for sequence in batch:
            one = collate(
                pack([sequence], self.attention.shape(self.budget)),
                totals([sequence]),
                self.pad,
                self.attention,
            )
            with torch.no_grad():
                alone = float(self._losses(one).sum())
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
            head = {
                "step": step + 1,
                "loss": _plain(loss),
                "grad_norm": _plain(norm),
                "weights_finite": all(bool(p.isfinite().all()) for p in self._local()),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head | {"sequences": rows}), encoding="utf-8")
        self.parallel.wait()
        raise UserError(
            f"The loss is {loss} and the gradient's norm {norm} at step {step + 1}: the "
            "training diverged; "
            f"lower learning_rate (it is {self.config.learning_rate:g}). The batch is in "
            f"{path}, with each sequence's own loss."
        )

    def _local(self) -> Iterator[Tensor]:
        for parameter in self.trained.values():
            yield parameter.to_local() if hasattr(parameter, "to_local") else parameter

    def _forget(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def _weights_P(self) -> Tensor:
        return torch.tensor([self.config.weight(p) for p in PARTS], device=self.parallel.device)

    def _scaled_P(self) -> Tensor:
        """The weights of the parts' means in a batch."""
        scales = [self.batches.scale(p) for p in PARTS]
        return self._weights_P() * torch.tensor(scales, device=self.parallel.device)

    def _finished(self) -> TrainResult | None:
        found = finished(self.out, self.fingerprint)
        return None if found is None else TrainResult.from_json(found)

    def _write(self, result: TrainResult, best: int | None) -> None:
        """The final weights (of the step `best`, or the present ones) and the tokenizer, file by
        file into place, and `train.json` last: it says that all
        is there."""
        if self.parallel.sharded:
            weights = (
                self.checkpoints.best(best)
                if best is not None
                else self.parallel.weights(self.model, self.trained)
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
        fill = partial(
            save,
            model,
            self.source.path,
            self.source.tokenizer,
            self.source.stored,
            self.config.lora,
        )
        publish(self.out, self.fingerprint, result.to_json(), fill)
        self.checkpoints.remove()


def _silent(row: Row) -> Row:
    """The row with all its targets at weight 0."""
    return replace(row, targets=[target._replace(weight=0.0) for target in row.targets])


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


_IRRELEVANT = {
    "micro_batch_tokens",
    "report_to",
    "save_steps",
    "gradient_checkpointing",
    "packing_strategy",
}
"""Options that change how a training is done and not what it does: a broken one may go on with
others."""


def _fingerprint(
    model: Any, encoded: Encoded, held_out: Encoded | None, config: DistillConfig
) -> str:
    """What a checkpoint must agree with to be gone on with: options, data, and the start weights
    (the first values of each)."""
    digest = hashlib.blake2b(config.model_dump_json(exclude=_IRRELEVANT).encode(), digest_size=12)
    for data in (encoded, held_out):
        for part in PARTS:
            for sequence in data.parts[part] if data else ():
                digest.update(repr((part, sequence.ids, sequence.spans)).encode())
    for name, parameter in model.named_parameters():
        digest.update(
            (
                f"{name} {tuple(parameter.shape)} "
                f"{parameter.detach().flatten()[:8].float().tolist()}"
            ).encode()
        )
    return digest.hexdigest()
