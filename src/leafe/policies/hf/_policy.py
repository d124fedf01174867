"""A standard transformers checkpoint as a policy, in this process.

The event loop turns messages to token ids and waits; the engine's thread does the rest. Answers
come back in one call for each iteration of the engine,
not one for each request.
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
from leafe.policies.hf._engine import Engine, Job, Limits, answer
from leafe.policies.hf.loading import check_architecture, load_model, load_tokenizer

_SCORED_TOKENS = 8192  # padded tokens of one forward pass of `score`, unless one row alone has more
_SCORED_LOGITS = 2**26  # logits that such a pass may give


class HFPolicy:
    """Answers requests with continuous batching, reuse of keys and values between turns and
    branches, and counted sampling.

    `model`: a checkpoint folder (or hub name, or a PEFT adapter folder). `name`: which weights, for
    the journal; by default the model's path.
    `dtype`, `device`, `adapter`: as `load_model` has them. `max_batch`: rows computed at once.
    `max_context`: tokens of prompt and answer, by default
    what the model was built for. `threads`: torch threads of the engine. `cache_gib`: memory for
    keys and values, passed only where a single answer
    needs more; what sequences have in common is stored once. Beside it, a forward pass gathers one
    layer's keys and values of its rows. Where it is used
    up, what is no longer of use goes, and then requests wait.

    With n > 1 the answer is the distinct completions with their counts: exactly the n samples that
    n streams of the request's seed give, each token
    computed once for all samples that share it. Temperature 0 is greedy. `request.stop` strings end
    the text before them. `request.cache_key` says which
    task a request is of: it decides whose keys and values go and who waits where memory is short,
    and changes no answer. UserError for a model that
    cannot be run; ContextFull from `complete` where prompt + max_tokens do not fit.
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
        self._take(
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
        """A policy on a model in memory, a PEFT model too, whose weights its holder may change:
        `changed` says so. It has to be in evaluation mode
        while requests are in flight."""
        policy = cls.__new__(cls)
        policy._take(model, tokenizer, name, name, max_batch, max_context, threads, cache_gib)
        return policy

    def _take(
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
            raise UserError(f"{label} does not say how long its context is: set max_context.")
        self.max_context = min(x for x in (max_context, built_for) if x)
        check_architecture(loaded.config, self.max_context, label)
        # the engine's thread decodes with its own copy: a tokenizer is not made for two threads
        self.engine = Engine(
            loaded,
            ChatTokens(copy.deepcopy(tokenizer), label),
            Limits(max_batch, int(cache_gib * 2**30)),
            _hand_over,
            threads,
        )
        off = self.engine.check()
        if not off < (1e-3 if "float32" in str(loaded.dtype) else 0.1):
            raise UserError(
                f"{label} ({type(loaded).__name__}) gives other logits with the in-process "
                f"engine's cache than without (relative difference {off:.2g}): "
                "serve it over HTTP instead (vLLM, SGLang, llama.cpp)."
            )

    def changed(self, name: str) -> None:
        """The weights are others now and are called `name`: nothing that was computed with the old
        ones is used any more. Not while requests are in flight."""
        self.name = name
        self.engine.forget()

    async def complete(self, request: Request) -> list[Completion]:
        """See `leafe.core.Policy`. Usage: the first completion carries the prompt; `generated`
        counts each computed token once."""
        if request.n < 1 or request.max_tokens < 1:
            raise ValueError("n and max_tokens must be at least 1")
        prompt = self.chat.prompt(request.messages)
        if len(prompt) + request.max_tokens > self.max_context:
            raise ContextFull(
                f"{len(prompt)} prompt tokens and {request.max_tokens} for the answer do "
                f"not fit {self.name}'s context of {self.max_context}."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Completion]] = loop.create_future()
        seed = request.seed if request.seed is not None else secrets.randbits(63)
        self.engine.submit(Job(request, prompt, seed % 2**64, (loop, future), future.cancelled))
        return await future

    async def score(self, asked: Sequence[tuple[Sequence[Message], Message]]) -> list[float | None]:
        """The log-probability of each whole answer (end-of-turn token included) to its prompt, in
        nats at temperature 1; None where the context is too short.

        Plain forward passes beside the engine. Of an answer with sampled ids these are scored, of
        another its text as the tokenizer cuts it.
        """
        return await asyncio.to_thread(
            self._score,
            [
                (self.chat.prompt(tuple(prompt)), self.chat.answer(answer))
                for prompt, answer in asked
            ],
        )

    def _score(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[float | None]:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        model = self.engine.model
        device = next(model.parameters()).device
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        out: list[float | None] = [None] * len(pairs)
        for batch in _alike(pairs, self.max_context, vocabulary):
            rows = [pairs[i][0] + pairs[i][1] for i in batch]
            longest, kept = max(map(len, rows)), max(len(pairs[i][1]) for i in batch)
            ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
            mask_BL = torch.zeros(len(rows), longest, dtype=torch.long)
            for b, row in enumerate(
                rows
            ):  # padded on the left, so that the answers stand at the end
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


def _alike(
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], context: int, vocabulary: int
) -> Iterator[list[int]]:
    """Indices of the (prompt, answer) pairs that fit the context, in batches of like length."""
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


def _hand_over(jobs: list[Job]) -> None:
    """On the engine's thread: each event loop gets its answers in one call."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Job]] = defaultdict(list)
    for job in jobs:
        by_loop[job.receiver[0]].append(job)
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, mine)


def _deliver(jobs: list[Job]) -> None:
    for job in jobs:
        future = job.receiver[1]
        if future.done():
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(answer(job))
