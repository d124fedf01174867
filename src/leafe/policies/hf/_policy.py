"""A standard transformers checkpoint as a policy, in this process.

The event loop turns messages into token ids and waits; the engine's thread does the rest. Answers
return in one call for each iteration of the engine, not one for each request.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from leafe.core import ChatTokens, Completion, ContextFull, Message, Request, UserError
from leafe.policies.hf._engine import Engine
from leafe.policies.hf._jobs import Job, completions
from leafe.policies.hf.loading import check_architecture, load_model, load_tokenizer

_SCORED_TOKENS = 8192  # padded tokens of one forward pass of `score`, unless one row alone has more
_SCORED_LOGITS = 2**26  # logits that such a pass may give


class HFPolicy:
    """Samples from a checkpoint with continuous batching, KV reuse between turns and branches, and
    counted sampling.

    With n > 1 the answer is the distinct completions with their counts. They are exactly the n
    samples of the request's seed; samples with equal tokens so far share one computation.
    Temperature 0 is greedy. `request.stop` strings end the text before them. `request.cache_key`
    names the task: it decides which keys and values are evicted and which requests wait when
    memory is short, and changes no answer.

    Args:
        model: A checkpoint folder, a hub name, or the folder of a PEFT adapter.
        name: Which weights these are, for the journal; by default the model's path.
        dtype: As `load_model`.
        device: As `load_model`.
        max_batch: Sequences computed at once.
        max_context: Tokens of prompt and answer; by default the model's `max_position_embeddings`.
        threads: torch threads of the engine; None: torch's default.
        adapter: A PEFT adapter folder to merge into the weights.
        cache_gib: Memory for keys and values, in GiB; exceeded only where one answer alone needs
            more. Shared prefixes are stored once. When it is full, unused entries are evicted,
            then requests wait. Each forward pass needs one layer's keys and values beside it.

    Raises:
        UserError: The model cannot be loaded, or not run by this engine.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str = "",
        dtype: str = "auto",
        device: str = "auto",
        max_batch: int = 64,
        max_context: int | None = None,
        threads: int | None = None,
        adapter: str | Path | None = None,
        cache_gib: float = 2.0,
    ) -> None:
        loaded = load_model(model, dtype=dtype, device=device, adapter=adapter)
        self._set_up(
            loaded,
            load_tokenizer(model),
            str(model),
            name or str(adapter or model),
            max_batch,
            max_context,
            threads,
            cache_gib,
        )

    @classmethod
    def around(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_batch: int = 64,
        max_context: int | None = None,
        threads: int | None = None,
        cache_gib: float = 2.0,
    ) -> HFPolicy:
        """A policy on a model in memory (a PEFT model too) whose weights the caller may change.

        Call `weights_changed` after each change. The model must be in evaluation mode while
        requests are in flight.

        Args:
            model: A transformers causal language model.
            tokenizer: Its tokenizer with a chat template.
            name: Which weights these are, for the journal.
            max_batch: As `HFPolicy`.
            max_context: As `HFPolicy`.
            threads: As `HFPolicy`.
            cache_gib: As `HFPolicy`.
        """
        policy = cls.__new__(cls)
        policy._set_up(model, tokenizer, name, name, max_batch, max_context, threads, cache_gib)
        return policy

    def _set_up(
        self,
        loaded: Any,
        tokenizer: Any,
        label: str,
        name: str,
        max_batch: int,
        max_context: int | None,
        threads: int | None,
        cache_gib: float,
    ) -> None:
        if max_batch < 1:
            raise UserError(f"max_batch = {max_batch} must be at least 1.")
        self.name = name
        self._threads = threads
        self.chat = ChatTokens(tokenizer, label)
        built_for = int(getattr(loaded.config, "max_position_embeddings", 0) or 0)
        if max_context is None and not built_for:
            raise UserError(f"The config of {label} names no context length: set max_context.")
        self.max_context = min(x for x in (max_context, built_for) if x)
        check_architecture(loaded.config, self.max_context, label)
        # the engine's thread gets its own copy: tokenizers are not thread-safe
        self.engine = Engine(
            loaded,
            ChatTokens(copy.deepcopy(tokenizer), label),
            max_batch,
            int(cache_gib * 2**30),
            _deliver,
            threads,
        )
        off = self.engine.check()
        if not off < (1e-3 if "float32" in str(loaded.dtype) else 0.1):
            raise UserError(
                f"{label} ({type(loaded).__name__}) gives other logits with the in-process "
                f"engine's cache than without it (relative difference {off:.2g}): serve it over "
                "HTTP instead (vLLM, SGLang, llama.cpp)."
            )

    def weights_changed(self, name: str) -> None:
        """The model has other weights now, called `name`: drop everything computed with the old
        ones. Only while no request is in flight."""
        self.name = name
        self.engine.invalidate_cache()

    async def complete(self, request: Request) -> list[Completion]:
        """Sample the request's answers; see `leafe.core.Policy`.

        Returns:
            Distinct completions with counts. The first one's usage carries the prompt; `generated`
            counts each computed token once.

        Raises:
            ContextFull: The prompt and `max_tokens` do not fit the context.
        """
        if request.n < 1 or request.max_tokens < 1:
            raise ValueError("n and max_tokens must be at least 1")
        prompt = self.chat.prompt(request.messages)
        if len(prompt) + request.max_tokens > self.max_context:
            raise ContextFull(
                f"{len(prompt)} prompt tokens and {request.max_tokens} for the answer do not fit "
                f"{self.name}'s context of {self.max_context}."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Completion]] = loop.create_future()
        seed = request.seed if request.seed is not None else secrets.randbits(63)
        self.engine.submit(Job(request, prompt, seed % 2**64, (loop, future), future.cancelled))
        return await future

    async def score(self, pairs: Sequence[tuple[Sequence[Message], Message]]) -> list[float | None]:
        """Log-probabilities of given answers, by plain forward passes beside the engine.

        Args:
            pairs: (prompt, answer). Sampled token ids of an answer are scored as they are; other
                text is tokenized.

        Returns:
            For each pair the log-probability of the whole answer, end-of-turn token included, in
            nats at temperature 1; None where it does not fit the context.
        """
        ids = [(self.chat.prompt(tuple(prompt)), self.chat.answer(text)) for prompt, text in pairs]
        return await asyncio.to_thread(self._score, ids)

    def _score(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[float | None]:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        model = self.engine.model
        device = next(model.parameters()).device
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        out: list[float | None] = [None] * len(pairs)
        for batch in _similar_lengths(pairs, self.max_context, vocabulary):
            rows = [pairs[i][0] + pairs[i][1] for i in batch]
            longest, kept = max(map(len, rows)), max(len(pairs[i][1]) for i in batch)
            ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
            mask_BL = torch.zeros(len(rows), longest, dtype=torch.long)
            for b, row in enumerate(rows):  # padded on the left: the answers end the rows
                ids_BL[b, longest - len(row) :] = torch.tensor(row)
                mask_BL[b, longest - len(row) :] = 1
            places_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits_BAV = model(
                    input_ids=ids_BL.to(device),
                    attention_mask=mask_BL.to(device),
                    position_ids=places_BL.to(device),
                    use_cache=False,
                    logits_to_keep=kept + 1,
                ).logits
                for b, i in enumerate(batch):
                    answer = torch.tensor(pairs[i][1], device=device)
                    logp_AV = logits_BAV[b, -len(answer) - 1 : -1].float().log_softmax(-1)
                    out[i] = float(logp_AV.gather(1, answer[:, None]).double().sum())
        return out

    async def close(self) -> None:
        """Stop the engine; requests in flight fail."""
        await asyncio.to_thread(self.engine.close)


def _similar_lengths(
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], context: int, vocabulary: int
) -> Iterator[list[int]]:
    """Indices of the (prompt, answer) pairs that fit the context, in batches of similar length."""
    batch: list[int] = []
    kept = 0
    for i in sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]) + len(pairs[i][1]), i)):
        length = len(pairs[i][0]) + len(pairs[i][1])
        if length > context:
            continue
        most = max(kept, len(pairs[i][1]) + 1)
        rows = len(batch) + 1
        if batch and (rows * length > _SCORED_TOKENS or rows * most * vocabulary > _SCORED_LOGITS):
            yield batch
            batch, most = [], len(pairs[i][1]) + 1
        batch.append(i)
        kept = most
    if batch:
        yield batch


def _deliver(jobs: list[Job]) -> None:
    """On the engine's thread: each event loop gets its answers in one call."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Job]] = defaultdict(list)
    for job in jobs:
        by_loop[job.receiver[0]].append(job)
    for loop, own in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set_results, own)


def _set_results(jobs: list[Job]) -> None:
    for job in jobs:
        future = job.receiver[1]
        if future.done():
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(completions(job))
