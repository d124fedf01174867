"""Sequences to weights: one loop on accelerate, whose every batch is a pure function of the seed and the step.

That makes a killed training and an unbroken one the same training: the shuffles and the schedule need no stored state. The
start policy, to which the anchors hold the trained one, is a frozen copy, or with LoRA the same weights without the adapter. Several processes
(accelerate launch) each take a share of every batch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from leafe.core import ChatTokens, UserError, derive_seed
from leafe.distill._attention import choose
from leafe.distill._checkpoint import Checkpoints, sync
from leafe.distill._config import PARTS, DistillConfig, Part
from leafe.distill._loss import Piece, collate, part_losses, totals
from leafe.distill._pack import pack
from leafe.distill._result import Progress, TrainResult
from leafe.distill._select import Dataset, require
from leafe.distill._tokens import Encoded, TokenSequence, encode

_SMALL = 20_000_000
"""Parameters below which one CPU thread is as fast as several, and safe where the machine is shared."""
_ROW_TOKENS = 8192
"""Most tokens in one packed row."""
_CPU_PIECE = 32
"""Rows in one forward pass on a CPU: groups of like length waste little padding and stay in the caches."""


def run(model_path: str | Path, out: Path, data: Dataset, valid: Dataset | None, config: DistillConfig, progress: Progress | None) -> TrainResult:
    """See `leafe.distill.train`."""
    notes = require(data, config)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model, tokenizer, stored = _load(model_path, config, accelerator.device)
    chat = ChatTokens(tokenizer, str(model_path))
    longest = min(config.max_length or 1 << 30, int(getattr(model.config, "max_position_embeddings", 1 << 30)))
    encoded = encode(data.samples, chat, longest, too_long=config.too_long)
    held_out = encode(valid.samples, chat, longest, too_long=config.too_long) if valid is not None and config.eval_every is not None else None
    if not any(encoded.parts[p] and config.weight(p) > 0 for p in ("rehearsal", "counterfactual")):
        raise UserError(f"There is nothing to train on: no sample fits {longest} tokens; shorten the prompts or use a model with a longer context.")
    threads = torch.get_num_threads()
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and sum(p.numel() for p in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        return _Training(accelerator, model, tokenizer, stored, str(model_path), out, encoded, held_out, config, progress, notes).run()
    finally:
        torch.set_num_threads(threads)


def _load(model_path: str | Path, config: DistillConfig, device: torch.device) -> tuple[Any, Any, torch.dtype]:
    """(model, tokenizer, the dtype in which the weights are stored)."""
    try:
        stored = AutoConfig.from_pretrained(model_path).dtype or torch.float32
        # the trained weights stay float32: at a rate of 1e-6 bfloat16 would round every update away; under LoRA the base is not trained
        dtype = torch.bfloat16 if config.lora is not None and _arithmetic(config, device) is torch.bfloat16 else torch.float32
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, use_safetensors=True)
        tokenizer = _load_tokenizer(model_path)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model_path} cannot be loaded as a causal language model: {why}") from error
    model.config.use_cache = False
    return model, tokenizer, stored


def _load_tokenizer(model_path: str | Path) -> Any:
    """The tokenizer as its file says: for some architectures (Qwen2) `AutoTokenizer` puts its own pre-tokenizer in the place of a plain one's."""
    described = Path(model_path) / "tokenizer_config.json"
    if described.is_file() and (Path(model_path) / "tokenizer.json").is_file():
        kind = json.loads(described.read_text(encoding="utf-8")).get("tokenizer_class")
        if kind in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast.from_pretrained(model_path)
    return AutoTokenizer.from_pretrained(model_path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bars: ours are shown by the caller."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _arithmetic(config: DistillConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


class Shuffler:
    """Batches of one part: epoch after epoch in a new order. `batch(step)` depends on the seed and the step alone."""

    def __init__(self, items: Sequence[TokenSequence], size: int, seed: int) -> None:
        self.items = items
        self.size = min(size, len(items))
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def batch(self, step: int) -> list[TokenSequence]:
        """The sequences of step 0, 1, 2, ...; a batch may hold the end of one epoch and the start of the next."""
        first = step * self.size
        return [self.items[self._order(k // len(self.items))[k % len(self.items)]] for k in range(first, first + self.size)]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            order = list(range(len(self.items)))
            random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch]


def learning_rate(config: DistillConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1: a linear rise, then constant or half a cosine down towards 0."""
    rise = math.ceil(config.warmup * steps)
    if step < rise:
        return config.learning_rate * (step + 1) / (rise + 1)
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class _Training:
    def __init__(
        self, accelerator: Accelerator, model: Any, tokenizer: Any, stored: torch.dtype, source: str, out: Path, encoded: Encoded,
        held_out: Encoded | None, config: DistillConfig, progress: Progress | None, notes: Sequence[str],
    ) -> None:  # fmt: skip
        self.accelerator, self.tokenizer, self.stored, self.source, self.out = accelerator, tokenizer, stored, source, out
        self.encoded, self.config, self.progress = encoded, config, progress
        self.notes = list(notes)
        self.device = accelerator.device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.fingerprint = _fingerprint(model, encoded, held_out, config)
        torch.manual_seed(config.seed)
        self.shufflers: dict[Part, Shuffler] = {
            p: Shuffler(encoded.parts[p], config.batch(p), derive_seed(config.seed, p)) for p in PARTS if encoded.parts[p] and config.weight(p) > 0
        }
        self.held_out = [s for p in PARTS if config.weight(p) > 0 for s in (held_out.parts[p] if held_out else ())]
        if held_out is not None and not self.held_out:
            self.notes.append("The validation tasks give no samples: no early stopping.")
        self.steps = self._planned_steps()
        everything = [*self.held_out, *(s for shuffler in self.shufflers.values() for s in shuffler.items)]
        taught = any(span.teacher is not None for s in everything for span in s.spans)
        self.start = self._start_policy(model) if taught else None
        if config.lora is not None:
            model = _with_adapter(model, config)
            if self.start is None and taught:
                self.start = _without_adapter(model)
        if config.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name in transformers
            enable({"use_reentrant": False})
            model.enable_input_require_grads()
        self.model = accelerator.prepare(model)
        self.bare = accelerator.unwrap_model(self.model)
        paths = (max(len(s.ids), *(len(span.teacher or ()) + span.end - span.start for span in s.spans)) for s in everything)
        self.attention = choose(self.model, max(paths), config.packing)
        self.notes += self.attention.notes
        trained = {n: p for n, p in self.bare.named_parameters() if p.requires_grad}
        decayed = [p for p in trained.values() if p.ndim >= 2]
        plain = [p for p in trained.values() if p.ndim < 2]  # norms and biases are not decayed
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=config.learning_rate, fused=True
        )
        self.trained = trained
        self.checkpoints = Checkpoints(out / "checkpoints", trained, self.optimizer)

    def run(self) -> TrainResult:
        finished = self._finished()
        if finished is not None:
            return finished
        began = time.monotonic()
        state: dict[str, Any] = {"fingerprint": self.fingerprint, "tokens": 0, "loss": math.nan}
        state |= {"best_step": None, "best": math.inf, "best_parts": {}, "worse": 0}
        loaded = self.checkpoints.load()
        if loaded is not None:
            if loaded["fingerprint"] != self.fingerprint:
                raise UserError(f"{self.out} holds the checkpoints of another training (other data, options or model): choose another folder or delete it.")
            state = loaded
        first: int = state.pop("step", 0)
        main = self.accelerator.is_main_process
        metrics = _Metrics(self.out / "metrics.jsonl", first, self.progress) if main else None
        self.model.train()
        if first == 0 and self.held_out and metrics:
            loss, parts = self._validate()
            metrics.row({"step": 0, "valid_loss": loss} | {f"valid_loss/{p}": v for p, v in parts.items()})
        step = first
        stopped = bool(self.config.patience and state["worse"] >= self.config.patience)
        while step < self.steps and not stopped:
            row = self._step(step, state)
            step += 1
            row |= {"step": step, "steps": self.steps, "tokens": state["tokens"], "seconds": time.monotonic() - began}
            if self.held_out and self.config.eval_every and (step % self.config.eval_every == 0 or step == self.steps):
                loss, parts = self._validate()
                row |= {"valid_loss": loss} | {f"valid_loss/{p}": v for p, v in parts.items()}
                if loss < state["best"]:
                    state |= {"best": loss, "best_step": step, "best_parts": parts, "worse": 0}
                    if main:
                        self.checkpoints.save_best(step)
                else:
                    state["worse"] += 1
                    stopped = self.config.patience is not None and state["worse"] >= self.config.patience
            if main and step % self.config.checkpoint_every == 0 and step < self.steps:
                self.checkpoints.save(step, state)
            if metrics:
                metrics.row(row)
        if metrics:
            metrics.close()
        self.accelerator.wait_for_everyone()
        kept = step if state["best_step"] is None else int(state["best_step"])
        if kept != step:
            self.checkpoints.load_best(kept)
        epochs = {p: step * s.size / len(s.items) for p, s in self.shufflers.items()}
        result = TrainResult(
            path=self.out, steps=step, kept_step=kept, stopped_early=stopped, loss=state["loss"],
            valid_loss=None if state["best_step"] is None else state["best"], valid_parts=state["best_parts"],
            counts=self.encoded.counts | {"epochs": epochs}, notes=tuple(self.notes), seconds=time.monotonic() - began, tokens=state["tokens"],
        )  # fmt: skip
        if main:
            self._write(result)
        self.accelerator.wait_for_everyone()
        return result

    def _planned_steps(self) -> int:
        if self.config.steps is not None:
            return self.config.steps
        main = [s for p, s in self.shufflers.items() if p in ("rehearsal", "counterfactual")]
        epochs = 2.0 if self.config.epochs is None else self.config.epochs
        return max(1, math.ceil(epochs * max(len(s.items) / s.size for s in main)))

    def _start_policy(self, model: Any) -> Callable[[], AbstractContextManager[Any]] | None:
        """A frozen copy of the model as it is now; None under LoRA, where the adapter is switched off instead."""
        if self.config.lora is not None:
            return None
        frozen = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        return lambda: nullcontext(frozen)

    def _step(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        batch = [s for shuffler in self.shufflers.values() for s in shuffler.batch(step)]
        rate = learning_rate(self.config, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pieces = self._pieces(batch)
        losses_P = torch.zeros(len(PARTS), device=self.device)
        for nth, one in enumerate(pieces):
            last = nth == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    part_P = part_losses(self.model, self.start, one.to(self.device))
                # processes' gradients are averaged, but each holds its share of one sum
                self.accelerator.backward((part_P * self._weights_P()).sum() * self.accelerator.num_processes)
            losses_P += part_P.detach()
            state["tokens"] += one.tokens * self.accelerator.num_processes
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip))
        losses_P = self.accelerator.reduce(losses_P, "sum")
        loss = float((losses_P * self._weights_P()).sum())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"The loss is {loss} and the gradient's norm {norm} at step {step + 1}: the training diverged; "
                f"lower learning_rate (it is {self.config.learning_rate:g})."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state["loss"] = loss
        return {"loss": loss, "lr": rate, "grad_norm": norm} | {f"loss/{p}": float(losses_P[PARTS.index(p)]) for p in self.shufflers}

    @torch.no_grad()
    def _validate(self) -> tuple[float, dict[str, float]]:
        self.model.eval()
        losses_P = torch.zeros(len(PARTS), device=self.device)
        for one in self._pieces(self.held_out, most=64):
            with self._autocast():
                losses_P += part_losses(self.model, self.start, one.to(self.device))
        self.model.train()
        losses_P = self.accelerator.reduce(losses_P, "sum")
        parts: dict[str, float] = {p: float(losses_P[PARTS.index(p)]) for p in PARTS if any(s.part == p for s in self.held_out)}
        return float((losses_P * self._weights_P()).sum()), parts

    def _pieces(self, batch: Sequence[TokenSequence], most: int = 1 << 30) -> list[Piece]:
        """This process's share of the batch, as forward passes over rows of like length; every process gets as many passes."""
        total = totals(batch)
        size = self.config.micro_batch or min(most, _CPU_PIECE if self.device.type == "cpu" else most)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        ordered = sorted(pack(batch, self.attention.shape(_ROW_TOKENS)), key=lambda r: r.tokens)
        passes = max(1, math.ceil(len(ordered) / (size * processes)))
        number = passes * processes
        groups = [ordered[len(ordered) * i // number : len(ordered) * (i + 1) // number] for i in range(number)]
        # a process without a row of its own runs one at weight 0, so that all meet at the same reductions
        return [
            collate(group, total, self.pad, self.attention) if group else collate(ordered[:1], dict.fromkeys(total, math.inf), self.pad, self.attention)
            for group in groups[rank::processes]
        ]

    def _weights_P(self) -> torch.Tensor:
        return torch.tensor([self.config.weight(p) for p in PARTS], device=self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _arithmetic(self.config, self.device)
        return nullcontext() if dtype is torch.float32 else torch.autocast(self.device.type, dtype=dtype)

    def _finished(self) -> TrainResult | None:
        path = self.out / "train.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["fingerprint"] != self.fingerprint:
            raise UserError(f"{self.out} holds another training (other data, options or model): choose another folder or delete it.")
        return TrainResult.from_json(found["result"] | {"path": self.out})

    def _write(self, result: TrainResult) -> None:
        """The final weights and the tokenizer, file by file into place, and `train.json` last: it says that all is there."""
        partial = self.out / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model = self.bare
        if self.config.lora is not None and self.config.lora.merge:
            model = model.merge_and_unload()
        if self.config.lora is None or self.config.lora.merge:
            model = model.to(self.stored)
            model.config.dtype = self.stored
            model.config.use_cache = True
        with _quiet():
            model.save_pretrained(partial)
        self.tokenizer.save_pretrained(partial)
        for name in _TOKENIZER_FILES:  # the source's own files, to the byte, where it is a folder
            if (Path(self.source) / name).is_file():
                shutil.copyfile(Path(self.source) / name, partial / name)
        (partial / "train.json").write_text(json.dumps({"fingerprint": self.fingerprint, "result": result.to_json()}, indent=1), encoding="utf-8")
        sync(partial)
        for path in sorted(partial.iterdir(), key=lambda p: p.name == "train.json"):
            path.replace(self.out / path.name)
        partial.rmdir()
        self.checkpoints.remove()


_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


class _Metrics:
    """metrics.jsonl: one line a step. A resumed training drops the lines of steps that it will take again."""

    def __init__(self, path: Path, first: int, progress: Progress | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if first and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # torn by a kill: its step is taken again
                    break
                if row["step"] <= first:
                    kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.progress = progress

    def row(self, values: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(dict(values)) + "\n")
        self.file.flush()
        if self.progress:
            self.progress(values)

    def close(self) -> None:
        self.file.close()


def _with_adapter(model: Any, config: DistillConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    lora = config.lora
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets) or "all-linear", task_type="CAUSAL_LM"
            ),
        )
    except ValueError as error:
        raise UserError(f"distill.lora.targets = {', '.join(lora.targets)}: {error}") from error


def _without_adapter(model: Any) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def start() -> Iterator[Any]:
        was = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was)

    return start


def _fingerprint(model: Any, encoded: Encoded, held_out: Encoded | None, config: DistillConfig) -> str:
    """What a checkpoint must agree with to be gone on with: options, data, and the start weights (the first values of each)."""
    digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=12)
    for data in (encoded, held_out):
        for part in PARTS:
            for sequence in data.parts[part] if data else ():
                digest.update(repr((part, sequence.ids, sequence.spans)).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:8].float().tolist()}".encode())
    return digest.hexdigest()
