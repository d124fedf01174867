"""Continuous batching on one thread: at every iteration sequences join, compute one token each,
and leave.

A sequence stands for all samples of its request that have drawn the same tokens. Every sequence
needs the same two things: the keys and values of its tokens that the cache lacks (the whole prompt
at first, one token later), and a draw from the last token's logits. Where a draw splits a
sequence's samples, the first group goes on in the sequence and each other group becomes a waiting
sequence that holds the KV slots of the tokens they share.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leafe.core import ChatTokens, Completion, Request, Usage
from leafe.policies.hf._jobs import Decoder, Draw, Job, Sequence, StopMatch
from leafe.policies.hf._json_template import JsonTemplate, TemplateState, Vocabulary, compiled
from leafe.policies.hf._kv_cache import KVCache
from leafe.policies.hf._runner import ModelRunner
from leafe.policies.hf._sampling import draw, uniforms
from leafe.policies.hf._sequence_table import PrefixHit, SequenceTable

_PASS_TOKENS = 8192  # padded tokens of one forward pass at most, unless one row alone has more
_CHUNK = 2048  # a sequence's tokens in one forward pass
_IDLE_WAIT = 0.01  # seconds that cold tasks wait for a warm one's next request when all are idle
_BURST = 0.0003  # seconds in which a burst of requests goes on

Finish = Literal["stop", "length"]


class Engine:
    """Owns the model, the cache and the thread.

    Args:
        model: A transformers model in evaluation mode.
        chat: Its chat template, for this thread alone.
        max_batch: Sequences active at once.
        cache_bytes: Memory for keys and values; exceeded only by a single sequence that needs more.
        deliver: Gets the finished jobs of an iteration, on the engine's thread.
        threads: torch threads; None: torch's default.
    """

    def __init__(
        self,
        model: Any,
        chat: ChatTokens,
        max_batch: int,
        cache_bytes: int,
        deliver: Callable[[list[Job]], None],
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.runner = ModelRunner(model)
        self._max_batch = max_batch
        self._cache_bytes = cache_bytes
        self._deliver = deliver
        self._threads = threads
        self._stop_ids = _stop_ids(model, chat)
        self._table = SequenceTable(64)
        self._new: deque[Job] = deque()
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._crowded = False
        """Cold tasks wait for room."""
        self._done: list[Job] = []
        self._decoder = Decoder(chat)
        self._templates: dict[str, JsonTemplate | None] = {}
        words = int(model.get_output_embeddings().weight.shape[0])
        self._vocabulary = Vocabulary(chat, words, self.runner.device)
        # padding costs less than one more forward pass up to about this many tokens
        parameters = sum(p.numel() for p in model.parameters())
        self._slack = int(min(256, max(4, 2e8 / max(1, parameters))))
        self._lock = threading.Condition()
        self._closing = False
        self._stale = False
        """The cache is of earlier weights."""
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def check(self) -> float:
        """How far logits with the cache are from those without, relative to the largest; sizes the
        cache. Call it once, before the first request."""
        difference, bytes_per_token = self.runner.check()
        self._table = SequenceTable(self._cache_bytes // bytes_per_token - 1)
        return difference

    # called from any thread

    def submit(self, job: Job) -> None:
        """Queue a job; the answer comes through `deliver`."""
        with self._lock:
            if self._closing or self._failure is not None:
                raise RuntimeError("the engine is closed") from self._failure
            self._new.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leafe-engine", daemon=True)
                self._thread.start()
            self._lock.notify()

    def invalidate_cache(self) -> None:
        """The weights have changed: no later request uses anything computed before. Only while no
        request is in flight."""
        with self._lock:
            self._stale = True

    def close(self) -> None:
        """Stop after the current iteration and wait for the thread; unanswered requests fail."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()

    # the engine's thread

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._collect():
                    self._iterate()
        except BaseException as error:
            self._failure = error
        finally:
            with self._lock:
                self._closing = True
                begun = (s.job for s in (*self._waiting, *self._active))
                left = {id(j): j for j in (*self._new, *begun)}
                self._new.clear()
            for job in left.values():
                job.error = self._failure or RuntimeError("the engine was closed")
            self._deliver([*self._done, *left.values()])

    def _collect(self) -> bool:
        """Take the new requests, waiting for one when idle. False: closing."""
        with self._lock:
            idle = not self._active and not self._waiting
            while idle and not self._new and not self._closing:
                self._lock.wait()
            if self._crowded and not self._active and not self._new and not self._closing:
                self._lock.wait(_IDLE_WAIT)
        if idle:  # requests come in bursts: wait as long as this one grows
            seen = 0
            while seen < len(self._new) < self._max_batch:
                seen = len(self._new)
                time.sleep(_BURST)
        with self._lock:
            taken = list(self._new)
            self._new.clear()
            closing = self._closing
        self._waiting.extend(map(self._sequence, taken))
        return not closing

    def _sequence(self, job: Job) -> Sequence:
        job.template = self._template(job.request)
        given = job.template.frames[0] if job.template else ()
        tokens = np.asarray((*job.prompt, *given), np.int32)
        return Sequence(
            job,
            tokens,
            np.arange(job.request.n),
            [0.0] * len(given),
            generated=len(given),
            length=len(tokens),
            state=TemplateState() if job.template else None,
        )

    def _template(self, request: Request) -> JsonTemplate | None:
        """The template of the request's schema, if `max_tokens` has room for one."""
        if request.schema is None:
            return None
        key = json.dumps(request.schema)
        if key not in self._templates:
            self._templates[key] = compiled(request.schema, self._vocabulary)
        template = self._templates[key]
        return template if template and template.min_tokens <= request.max_tokens else None

    def _iterate(self) -> None:
        self._drop_abandoned()
        if self._stale:
            self._reset_cache()
        self._admit()
        if self._active:
            self._table.allocate(_int64(s.entry for s in self._active))
        for group, widths in self._groups():
            self._advance(group, widths)
        if self._done:
            done, self._done = self._done, []
            self._deliver(done)

    def _reset_cache(self) -> None:
        with self._lock:
            self._stale = False
        if self._active or any(s.held is not None for s in self._waiting):
            raise RuntimeError("the weights changed while requests were in flight")
        self._table = SequenceTable(self._table.pool.limit)
        self.runner.cache = KVCache()

    def _drop_abandoned(self) -> None:
        for sequence in self._active:
            if sequence.job.abandoned():
                self._table.release(sequence.entry)
                sequence.entry = -1
        self._active = [s for s in self._active if s.entry >= 0]
        waiting, self._waiting = self._waiting, deque()
        for sequence in waiting:
            if not sequence.job.abandoned():
                self._waiting.append(sequence)
            elif sequence.held is not None:
                self._table.release_held(sequence.held)

    def _admit(self) -> None:
        """Activate waiting sequences in order, within the limits.

        A sequence starts only if the cache has room for its longest possible answer. A cold task
        lets others pass until there is room that no task under way needs, or nothing else runs.
        """
        pool = self._table.pool
        reserved = sum(self._unallocated(s) for s in self._active)
        deferred: list[Sequence] = []
        others = any(not self._is_cold(s) for s in self._waiting)
        self._crowded = False
        while self._waiting and len(self._active) < self._max_batch:
            sequence = self._waiting[0]
            key = sequence.job.request.cache_key
            cold = self._is_cold(sequence) and (others or bool(self._active))
            prefix: Any = sequence.held
            if prefix is None and not (cold and self._crowded):
                prefix = self._table.find(sequence.tokens, key)
            if prefix is None:
                deferred.append(self._waiting.popleft())
                continue
            hit = isinstance(prefix, PrefixHit)
            cached, pins = (
                (prefix.length, self._table.newly_pinned(prefix)) if hit else (len(prefix), 0)
            )
            fresh = reserved + self._max_kv(sequence) - cached
            if self._active and pool.pinned + fresh + pins > pool.limit:
                break
            if cold and fresh > pool.free + pool.limit + 1 - pool.count:
                self._crowded = fresh + pins > self._table.evictable()
                if self._crowded:
                    continue
            self._waiting.popleft()
            if hit:
                sequence.job.cached = min(cached, len(sequence.job.prompt))
            sequence.entry = self._table.acquire(sequence.tokens, key, prefix)
            sequence.held = None
            reserved += self._unallocated(sequence)
            self._active.append(sequence)
        self._waiting.extendleft(reversed(deferred))

    def _is_cold(self, sequence: Sequence) -> bool:
        return sequence.held is None and self._table.is_cold(sequence.job.request.cache_key)

    def _max_kv(self, sequence: Sequence) -> int:
        """KV slots that it may need in all: the last token of an answer needs none."""
        return len(sequence.job.prompt) + sequence.job.request.max_tokens - 1

    def _unallocated(self, sequence: Sequence) -> int:
        return self._max_kv(sequence) - int(self._table.allocated[sequence.entry])

    # one forward pass

    def _groups(self) -> list[tuple[list[Sequence], NDArray[np.int64]]]:
        """The active sequences as forward passes, grouped by the number of tokens to compute so
        that little is padded; with those numbers."""
        if not self._active:
            return []
        entries = _int64(s.entry for s in self._active)
        lengths = _int64(s.length for s in self._active)
        todo = np.minimum(lengths - self._table.computed[entries], _CHUNK)
        order = np.lexsort((entries, todo))
        widths = todo[order]
        bounds, real = [0], 0
        for i, width in enumerate(widths.tolist()):
            padded = (i - bounds[-1] + 1) * width
            wasteful = padded - real - width > self._slack + real // 4
            if i > bounds[-1] and (wasteful or padded > _PASS_TOKENS):
                bounds.append(i)
                real = 0
            real += width
        return [
            ([self._active[k] for k in order[a:b]], widths[a:b])
            for a, b in zip(bounds, [*bounds[1:], len(widths)], strict=True)
        ]

    def _advance(self, sequences: list[Sequence], widths: NDArray[np.int64]) -> None:
        """Compute missing tokens; draw the next one for each sequence that lacks none."""
        entries = _int64(s.entry for s in sequences)
        order = np.argsort(entries)
        sequences, entries, widths = [sequences[i] for i in order], entries[order], widths[order]
        start = self._table.computed[entries]
        logits = self.runner.forward(self._table, entries, start, widths)
        self._table.computed[entries] = start + widths
        complete = np.flatnonzero(start + widths == _int64(s.length for s in sequences))
        if len(complete) == len(sequences):
            self._draw(sequences, logits)
        elif len(complete):
            index = torch.from_numpy(complete).to(self.runner.device)
            self._draw([sequences[i] for i in complete], logits[index])

    # drawing

    def _draw(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        requests = [s.job.request for s in sequences]
        logits = self._constrained(sequences, logits)
        counts = _int64(len(s.samples) for s in sequences)
        samples = np.concatenate([s.samples for s in sequences])
        seeds = np.fromiter((s.job.seed for s in sequences), np.uint64)
        steps = _int64(s.length - len(s.job.prompt) for s in sequences)
        drawn = draw(
            logits,
            np.fromiter((r.temperature for r in requests), np.float64),
            np.fromiter((r.top_p for r in requests), np.float64),
            np.repeat(np.arange(len(sequences)), counts),
            uniforms(np.repeat(seeds, counts), samples, np.repeat(steps, counts)),
        )
        first = np.searchsorted(drawn.row, np.arange(len(sequences) + 1)).tolist()
        tokens, logprobs = drawn.token.tolist(), drawn.logprob.tolist()
        start = drawn.start.tolist()
        for i, sequence in enumerate(sequences):
            self._split(
                sequence,
                [
                    Draw(tokens[k], logprobs[k], samples[drawn.order[start[k] : start[k + 1]]])
                    for k in range(first[i], first[i + 1])
                ],
            )
        self._active = [s for s in self._active if s.entry >= 0]

    def _constrained(self, sequences: list[Sequence], logits: torch.Tensor) -> torch.Tensor:
        if all(s.state is None for s in sequences):
            return logits
        logits = logits.float().clone()
        for i, sequence in enumerate(sequences):
            job = sequence.job
            if sequence.state is not None and job.template is not None:
                room = job.request.max_tokens - (sequence.length - len(job.prompt))
                allowed = job.template.allowed(sequence.state, room)
                logits[i].masked_fill_(~allowed, -torch.inf)
        return logits

    def _split(self, sequence: Sequence, draws: list[Draw]) -> None:
        """Apply the draws of one step: each group ends, goes on in the entry (the first that does
        not end), or waits for an entry of its own."""
        job, entry, state = sequence.job, sequence.entry, sequence.state
        length, logprobs, generated = sequence.length, sequence.logprobs, sequence.generated
        drawn = self._table.tokens[entry, len(job.prompt) : length]
        job.sequences += len(draws) - 1
        appended: tuple[int, ...] | None = None
        for one in draws:
            added, after, finish = self._after(job, state, one.token)
            if finish is None and length + len(added) - len(job.prompt) >= job.request.max_tokens:
                finish = "length"
            scores = logprobs if len(draws) == 1 else logprobs.copy()
            scores += [one.logprob] + [0.0] * (len(added) - 1)
            cut = None
            if job.request.stop or finish is not None:
                answer = (*drawn.tolist(), *added)
                cut = self._decoder.stop_match(job.request.stop, answer)
                if cut is not None or finish is not None:
                    usage = Usage(generated=generated + len(added))
                    self._end(job, one.samples, answer, scores, cut, finish or "stop", usage)
            if cut is None and finish is None:
                if appended is None:
                    appended = added
                    sequence.length, sequence.samples = length + len(added), one.samples
                    sequence.logprobs, sequence.generated = scores, generated + len(added)
                    sequence.state = after
                else:
                    tokens = np.array((*job.prompt, *drawn.tolist(), *added), np.int32)
                    self._waiting.appendleft(
                        Sequence(
                            job,
                            tokens,
                            one.samples,
                            scores,
                            generated + len(added),
                            length=len(tokens),
                            held=self._table.fork(entry),
                            state=after,
                        )
                    )
            generated = 0
        if appended is None:
            self._table.release(entry)
            sequence.entry = -1
        else:
            self._table.append(entry, appended)

    def _after(
        self, job: Job, state: TemplateState | None, token: int
    ) -> tuple[tuple[int, ...], TemplateState | None, Finish | None]:
        """(the token and what the template appends to it, the template's state, whether the answer
        is complete)."""
        if state is None or job.template is None:
            return (token,), None, "stop" if token in self._stop_ids else None
        after, frame = job.template.advance(state, token)
        return (token, *frame), after, "stop" if after is None else None

    def _end(
        self,
        job: Job,
        samples: NDArray[np.int64],
        ids: tuple[int, ...],
        logprobs: list[float],
        cut: StopMatch | None,
        finish: Finish,
        usage: Usage,
    ) -> None:
        tokens: tuple[int, ...] | None
        if cut is None:
            text, tokens = self._decoder.text(ids), ids
        else:
            text, tokens, finish = cut.text, cut.tokens, "stop"
        logprob = float(sum(logprobs[: len(tokens)])) if tokens is not None else None
        answer = Completion(text, len(samples), tokens, logprob, finish, usage)
        job.finished.append((int(samples[0]), answer))
        job.sequences -= 1
        if job.sequences == 0:
            self._done.append(job)


def _int64(values: Any) -> NDArray[np.int64]:
    return np.fromiter(values, np.int64)


def _stop_ids(model: Any, chat: ChatTokens) -> frozenset[int]:
    """The end-of-turn token, and whatever else the checkpoint names as the end of a generation."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [] if more is None else more if isinstance(more, list) else [more]
    return frozenset([chat.end_of_turn, *more])
