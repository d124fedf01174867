"""Continuous batching on one thread: at every iteration rows join, take one token each, and leave;
nobody waits for anybody.

A row is a token sequence in a slot, and stands for all samples of its request that have drawn those
tokens. What a row needs next is always the
same: the keys and values of its tokens that the cache lacks (the whole prompt at first, one token
later), and a draw from the last one's logits. Where a draw
splits a row's samples, the first part stays in the slot and each other part becomes a waiting row,
which holds the cells of what they have in common.
Axes: B rows of a forward pass, W new tokens of a row (padded on the left, so that the last column
is the last token), L positions, V vocabulary.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leafe.core import ChatTokens, Completion, Request, Usage
from leafe.policies.hf._cache import CellCache
from leafe.policies.hf._json_template import FilledSlot, JsonTemplate, Vocabulary, make_form
from leafe.policies.hf._sampling import draw, uniforms
from leafe.policies.hf._slots import Found, HeldCells, Slots

_PASS_TOKENS = 8192  # padded tokens of one forward pass at most, unless one row alone has more
_CHUNK = 2048  # a row's tokens in one forward pass
_AWAY = 0.01  # seconds that cold tasks wait for a warm one to come again where nothing is going on
_SHORT = 16  # tokens of an answer whose text is remembered


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way. `deliver` is called on the engine's thread, for many jobs at once, by
    the policy's batch hand-over."""

    request: Request
    prompt: tuple[int, ...]
    seed: int
    receiver: Any
    """What the answer goes to; the engine hands it back untouched."""
    abandoned: Callable[[], bool]
    rows: int = 1
    """How many rows still stand for its samples."""
    cached: int = 0
    form: JsonTemplate | None = None
    finished: list[tuple[int, Completion]] = field(default_factory=list)
    """(first sample, completion) of the rows that ended."""
    error: BaseException | None = None


@dataclass(eq=False, slots=True)
class _Row:
    job: Job
    tokens: NDArray[np.int32]
    """Prompt and drawn tokens while the row waits for a slot; in a slot the slot's own record goes
    on."""
    samples: NDArray[np.int64]
    logprobs: list[float]
    own: int = 0
    """Drawn tokens that no other row of the request counts."""
    slot: int = -1
    total: int = 0
    """Prompt and drawn tokens."""
    held: HeldCells | None = None
    """A row that was split off waits with the cells of its first tokens; None: a new request, or a
    row in a slot."""
    filled: FilledSlot | None = None
    """How far the request's form is filled in."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The samples of a row that drew the same token."""

    token: int
    logprob: float
    samples: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Cut:
    """An answer that a stop string ended. `tokens` is None where the text ends within a token."""

    text: str
    tokens: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """`rows` active at once, `cache_bytes` of keys and values (passed only by a single row that
    needs more)."""

    rows: int
    cache_bytes: int


class Engine:
    """Owns the model, the cache and the thread. `hand_over` gets the finished jobs of an iteration,
    on the engine's thread."""

    def __init__(
        self,
        model: Any,
        chat: ChatTokens,
        limits: Limits,
        hand_over: Callable[[list[Job]], None],
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.limits = limits
        self.passes = 0
        """Forward passes so far."""
        self.computed = 0
        """Tokens computed so far, padding left out."""
        self._hand_over = hand_over
        self._threads = threads
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        self._stops = _stop_ids(model, chat)
        self._cache = CellCache()
        self._slots = Slots(64)
        self._new: deque[Job] = deque()
        self._waiting: deque[_Row] = deque()
        self._active: list[_Row] = []
        self._crowded = False
        """Cold tasks wait for room."""
        self._done: list[Job] = []
        self._texts: OrderedDict[tuple[int, ...], str] = OrderedDict()
        self._forms: dict[str, JsonTemplate | None] = {}
        self._vocabulary = Vocabulary(
            chat, int(model.get_output_embeddings().weight.shape[0]), self._device
        )
        # padding is cheaper than one more forward pass up to about this many tokens
        self._slack = int(
            min(256, max(4, 2e8 / max(1, sum(p.numel() for p in model.parameters()))))
        )
        self._lock = threading.Condition()
        self._closing = False
        self._stale = False
        """What is stored is of weights that are no more."""
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    # the asking side

    def submit(self, job: Job) -> None:
        """From any thread; the answer comes through `hand_over`."""
        with self._lock:
            if self._closing or self._failure is not None:
                raise RuntimeError("the engine is closed") from self._failure
            self._new.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leafe-engine", daemon=True)
                self._thread.start()
            self._lock.notify()

    def forget(self) -> None:
        """The weights have changed: no later request is answered with anything that was computed
        before. For when no request is in flight."""
        with self._lock:
            self._stale = True

    def close(self) -> None:
        """Stop after the iteration in flight; requests that are not answered fail. Blocks until the
        thread has ended."""
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
                left = {
                    id(j): j
                    for j in (*self._new, *(r.job for r in (*self._waiting, *self._active)))
                }
                self._new.clear()
            for job in left.values():
                job.error = self._failure or RuntimeError("the engine was closed")
            self._hand_over([*self._done, *left.values()])

    def _collect(self) -> bool:
        """Take the new requests; waits for one where nothing is going on. False: closing."""
        with self._lock:
            idle = not self._active and not self._waiting
            while idle and not self._new and not self._closing:
                self._lock.wait()
            if self._crowded and not self._active and not self._new and not self._closing:
                self._lock.wait(_AWAY)
        if idle:  # requests come in bursts: let the burst arrive, as long as it grows
            seen = 0
            while seen < len(self._new) < self.limits.rows:
                seen = len(self._new)
                time.sleep(0.0003)
        with self._lock:
            taken = list(self._new)
            self._new.clear()
            closing = self._closing
        for job in taken:
            self._waiting.append(self._first_row(job))
        return not closing

    def _first_row(self, job: Job) -> _Row:
        job.form = self._form(job.request)
        given = job.form.frame[0] if job.form else ()
        tokens = np.asarray((*job.prompt, *given), np.int32)
        return _Row(
            job,
            tokens,
            np.arange(job.request.n),
            [0.0] * len(given),
            own=len(given),
            total=len(tokens),
            filled=FilledSlot() if job.form else None,
        )

    def _form(self, request: Request) -> JsonTemplate | None:
        """The form of the request's schema, where there is one and the answer's limit has room for
        it."""
        if request.schema is None:
            return None
        key = json.dumps(request.schema)
        if key not in self._forms:
            self._forms[key] = make_form(request.schema, self._vocabulary)
        form = self._forms[key]
        return form if form is not None and form.least <= request.max_tokens else None

    def _iterate(self) -> None:
        self._drop_abandoned()
        if self._stale:
            self._start_afresh()
        self._admit()
        if self._active:
            self._slots.fill(np.fromiter((r.slot for r in self._active), np.int64))
        for group, widths in self._groups():
            self._advance(group, widths)
        if self._done:
            done, self._done = self._done, []
            self._hand_over(done)

    def _start_afresh(self) -> None:
        with self._lock:
            self._stale = False
        if self._active or any(row.held is not None for row in self._waiting):
            raise RuntimeError("the weights changed while requests were in flight")
        self._slots = Slots(self._slots.pool.limit)
        self._cache = CellCache()

    def _drop_abandoned(self) -> None:
        for row in self._active:
            if row.job.abandoned():
                self._slots.release(row.slot)
                row.slot = -1
        self._active = [r for r in self._active if r.slot >= 0]
        gone = [r for r in self._waiting if r.job.abandoned()]
        for row in gone:
            if row.held is not None:
                self._slots.forget(row.held)
        if gone:
            self._waiting = deque(r for r in self._waiting if not r.job.abandoned())

    def _admit(self) -> None:
        """Give slots to waiting rows, in order, as far as the limits allow: a row begins only if
        there is room for the longest answer that it may give.
        A cold task lets others pass it until there is room that no task under way needs, or nothing
        is going on."""
        pool = self._slots.pool
        promised = sum(self._need(r) - int(self._slots.stored[r.slot]) for r in self._active)
        deferred: list[_Row] = []
        others = any(not self._cold(r) for r in self._waiting)
        self._crowded = False
        while self._waiting and len(self._active) < self.limits.rows:
            row = self._waiting[0]
            cold = self._cold(row) and (others or bool(self._active))
            if cold and self._crowded:
                deferred.append(self._waiting.popleft())
                continue
            prefix = (
                self._slots.find(row.tokens, row.job.request.cache_key)
                if row.held is None
                else row.held
            )
            if prefix is None:
                deferred.append(self._waiting.popleft())
                continue
            cached, pins = (
                (prefix.cached, self._slots.pins(prefix))
                if isinstance(prefix, Found)
                else (len(prefix), 0)
            )
            if (
                self._active
                and pool.pinned + promised + pins + self._need(row) - cached > pool.limit
            ):
                break
            fresh = promised + self._need(row) - cached
            if cold and fresh > pool.free + pool.limit + 1 - pool.count:
                self._crowded = fresh + pins > self._slots.quiet()
                if self._crowded:
                    continue
            self._waiting.popleft()
            if isinstance(prefix, Found):
                row.job.cached = min(cached, len(row.job.prompt))
            row.slot, row.held = (
                self._slots.claim(row.tokens, row.job.request.cache_key, prefix),
                None,
            )
            promised += self._need(row) - int(self._slots.stored[row.slot])
            self._active.append(row)
        self._waiting.extendleft(reversed(deferred))

    def _cold(self, row: _Row) -> bool:
        return row.held is None and self._slots.cold(row.job.request.cache_key)

    def _need(self, row: _Row) -> int:
        """Tokens that will have a cell at most: the last one of an answer needs none."""
        return len(row.job.prompt) + row.job.request.max_tokens - 1

    # one forward pass

    def _groups(self) -> list[tuple[list[_Row], NDArray[np.int64]]]:
        """The active rows by how many tokens each has to compute, so that little is padding; with
        those numbers."""
        if not self._active:
            return []
        slots = np.fromiter((r.slot for r in self._active), np.int64)
        todo = np.minimum(
            np.fromiter((r.total for r in self._active), np.int64) - self._slots.ready[slots],
            _CHUNK,
        )
        order = np.lexsort((slots, todo))
        widths = todo[order]
        out = []
        begin, real = 0, 0
        for i, width in enumerate(widths.tolist()):
            padded = (i - begin + 1) * width
            wasteful = padded - real - width > self._slack + real // 4
            if i > begin and (wasteful or padded > _PASS_TOKENS):
                out.append((begin, i))
                begin, real = i, 0
            real += width
        out.append((begin, len(widths)))
        return [([self._active[k] for k in order[a:b]], widths[a:b]) for a, b in out]

    def _advance(self, rows: list[_Row], widths: NDArray[np.int64]) -> None:
        """Compute the rows' missing tokens and draw the next one where none is missing any more."""
        slots = np.fromiter((r.slot for r in rows), np.int64)
        by_slot = np.argsort(slots)
        rows, slots, widths = [rows[i] for i in by_slot], slots[by_slot], widths[by_slot]
        start = self._slots.ready[slots]
        logits = self._forward(slots, start, widths)
        self._slots.ready[slots] = start + widths
        totals = np.fromiter((r.total for r in rows), np.int64)
        whole = np.flatnonzero(start + widths == totals)
        if len(whole) < len(rows):
            if not len(whole):
                return
            rows, logits = (
                [rows[i] for i in whole],
                logits[torch.from_numpy(whole).to(self._device)],
            )
        self._draw(rows, logits)

    def _forward(
        self, slots: NDArray[np.int64], start: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> torch.Tensor:
        """The logits (B, V) after the tokens start .. start + width of each slot; their keys and
        values are stored."""
        if self._cache.count < self._slots.pool.count:
            self._cache.resize(self._slots.pool.count)
        ends = start + widths
        wide, longest = int(widths.max()), int(ends.max())
        column = np.arange(wide) - (wide - widths)[:, None]
        position = start[:, None] + column
        real = column >= 0
        position = np.where(real, position, 0)
        ids = np.where(real, self._slots.tokens[slots[:, None], position], 0)
        read = np.where(np.arange(longest) < ends[:, None], self._slots.cells[slots, :longest], 0)
        write = np.where(real, self._slots.cells[slots[:, None], position], 0)
        device = self._device
        position_BW = torch.from_numpy(position).to(device)
        self._cache.plan(torch.from_numpy(read).to(device), torch.from_numpy(write).to(device))
        hidden_BWL = torch.arange(longest, device=device) > position_BW[:, :, None]
        mask = torch.zeros(hidden_BWL.shape, dtype=self._dtype, device=device).masked_fill_(
            hidden_BWL, torch.finfo(self._dtype).min
        )
        out = self.model(
            input_ids=torch.from_numpy(ids.astype(np.int64)).to(device),
            position_ids=position_BW,
            attention_mask=mask[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.passes += 1
        self.computed += int(widths.sum())
        return out.logits[:, -1]

    # drawing

    def _draw(self, rows: list[_Row], logits: torch.Tensor) -> None:
        requests = [r.job.request for r in rows]
        logits = self._held_to_forms(rows, logits)
        counts = np.fromiter((len(r.samples) for r in rows), np.int64)
        samples = np.concatenate([r.samples for r in rows])
        seeds = np.repeat(np.fromiter((r.job.seed for r in rows), np.uint64), counts)
        steps = np.repeat(
            np.fromiter((r.total - len(r.job.prompt) for r in rows), np.int64), counts
        )
        drawn = draw(
            logits,
            np.fromiter((q.temperature for q in requests), np.float64),
            np.fromiter((q.top_p for q in requests), np.float64),
            np.repeat(np.arange(len(rows)), counts),
            uniforms(seeds, samples, steps),
        )
        parts_of = np.searchsorted(drawn.row, np.arange(len(rows) + 1)).tolist()
        token_of, logprob_of, start = (
            drawn.token.tolist(),
            drawn.logprob.tolist(),
            drawn.start.tolist(),
        )
        ended = False
        for i, row in enumerate(rows):
            parts = [
                _Part(token_of[k], logprob_of[k], samples[drawn.order[start[k] : start[k + 1]]])
                for k in range(parts_of[i], parts_of[i + 1])
            ]
            ended |= not self._split(row, parts)
        if ended:
            self._active = [r for r in self._active if r.slot >= 0]

    def _held_to_forms(self, rows: list[_Row], logits: torch.Tensor) -> torch.Tensor:
        """Tokens that a row's form does not allow next get no probability."""
        held = [i for i, r in enumerate(rows) if r.filled is not None]
        if not held:
            return logits
        logits = logits.float().clone()
        for i in held:
            row, job = rows[i], rows[i].job
            assert job.form is not None
            assert row.filled is not None
            allowed = job.form.allowed(
                row.filled, job.request.max_tokens - (row.total - len(job.prompt))
            )
            logits[i].masked_fill_(~allowed, -torch.inf)
        return logits

    def _split(self, row: _Row, parts: list[_Part]) -> bool:
        """Each part ends, stays in the row's slot (the first that does not end), or waits for a
        slot. True: one stayed."""
        job, slot, total, logprobs, own, filled = (
            row.job,
            row.slot,
            row.total,
            row.logprobs,
            row.own,
            row.filled,
        )
        drawn_before = (
            tuple(self._slots.tokens[slot, len(job.prompt) : total].tolist())
            if len(parts) > 1 or job.request.stop
            else None
        )
        job.rows += len(parts) - 1
        stayed = False
        more: tuple[int, ...] = ()
        for part in parts:
            added: tuple[int, ...] = (part.token,)
            finish: Literal["stop", "length"] | None = None
            after: FilledSlot | None = None
            if filled is not None and job.form is not None:
                after, frame = job.form.advance(filled, part.token)
                added += frame
                finish = "stop" if after is None else None
            elif part.token in self._stops:
                finish = "stop"
            if finish is None and total + len(added) - len(job.prompt) >= job.request.max_tokens:
                finish = "length"
            so_far = logprobs if len(parts) == 1 else logprobs.copy()
            so_far += [part.logprob] + [0.0] * (len(added) - 1)
            cut = None
            if job.request.stop or finish is not None:
                answer = (
                    *(drawn_before or self._slots.tokens[slot, len(job.prompt) : total].tolist()),
                    *added,
                )
                cut = self._cut(job.request.stop, answer) if job.request.stop else None
                if cut is not None or finish is not None:
                    self._end(
                        job, part.samples, answer, so_far, cut, finish or "stop", own + len(added)
                    )
            if cut is None and finish is None:
                if stayed:
                    tokens = np.append(
                        np.asarray(job.prompt, np.int32),
                        np.asarray((*(drawn_before or ()), *added), np.int32),
                    )
                    held = self._slots.fork(slot)
                    self._waiting.appendleft(
                        _Row(
                            job,
                            tokens,
                            part.samples,
                            so_far,
                            own + len(added),
                            total=len(tokens),
                            held=held,
                            filled=after,
                        )
                    )
                else:
                    more = added
                    row.total = total + len(added)
                    row.samples, row.logprobs, row.own, row.filled = (
                        part.samples,
                        so_far,
                        own + len(added),
                        after,
                    )
                    stayed = True
            own = 0
        if stayed:
            self._slots.append(slot, more)
        else:
            self._slots.release(slot)
            row.slot = -1
        return stayed

    def _end(
        self,
        job: Job,
        samples: NDArray[np.int64],
        ids: tuple[int, ...],
        logprobs: list[float],
        cut: _Cut | None,
        finish: Literal["stop", "length"],
        own: int,
    ) -> None:
        text, tokens, finish = (
            (self._text(ids), ids, finish) if cut is None else (cut.text, cut.tokens, "stop")
        )
        logprob = float(sum(logprobs[: len(tokens)])) if tokens is not None else None
        job.finished.append(
            (
                int(samples[0]),
                Completion(text, len(samples), tokens, logprob, finish, Usage(generated=own)),
            )
        )
        job.rows -= 1
        if job.rows == 0:
            self._done.append(job)

    def _cut(self, stops: tuple[str, ...], ids: tuple[int, ...]) -> _Cut | None:
        """Where the text holds a stop string: what comes before it, and the ids of exactly that, if
        there are such."""
        text = self._text(ids)
        at = min((i for i in (text.find(s) for s in stops if s) if i >= 0), default=None)
        if at is None:
            return None
        for k in range(len(ids) - 1, -1, -1):
            shorter = self._text(ids[:k])
            if shorter == text[:at]:
                return _Cut(text[:at], ids[:k])
            if len(shorter) < at:
                break
        return _Cut(text[:at], None)

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text of an answer; short ones (the actions of a small environment, over and over) are
        remembered."""
        found = self._texts.get(ids)
        if found is None:
            found = self.chat.decode(ids)
            if len(ids) <= _SHORT:
                self._texts[ids] = found
                if len(self._texts) > 20_000:
                    self._texts.popitem(last=False)
        return found

    # at the start

    def check(self) -> float:
        """How far this cache's logits are from those of a plain forward pass over the same tokens,
        relative to the largest. Before the first request only."""
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        ids = (np.arange(24) * 7919 % vocabulary).astype(np.int32)
        with torch.inference_mode():
            plain = (
                self.model(
                    input_ids=torch.from_numpy(ids[None].astype(np.int64)).to(self._device),
                    use_cache=False,
                )
                .logits[0]
                .float()
            )
            slots = np.array(
                [
                    self._slots.claim(ids[:20], "", Found(0, 0)),
                    self._slots.claim(ids[:15], "", Found(0, 0)),
                ]
            )
            self._forward(slots, np.array([0, 0]), np.array([20, 9]))
            self._slots.append(int(slots[0]), ids[20:21])
            self._slots.fill(slots)
            branch = self._slots.claim(ids[:19], "", Found(int(slots[0]), 12))
            later = self._forward(
                np.append(slots, branch), np.array([20, 9, 12]), np.array([1, 6, 7])
            ).float()
        difference = (later - plain[[20, 14, 18]]).abs().max() / plain.abs().max().clamp(min=1e-6)
        self._slots = Slots(self.limits.cache_bytes // self._cache.bytes_per_token - 1)
        self._cache = CellCache()
        return float(difference)


def answer(job: Job) -> list[Completion]:
    """The completions of a finished job, in the order of their first samples; equal ones are one.
    The first carries the prompt's usage."""
    merged: dict[tuple[str, tuple[int, ...] | None], Completion] = {}
    for _, new in sorted(job.finished, key=lambda f: f[0]):
        key = (new.text, new.tokens)
        old = merged.get(key)
        merged[key] = (
            new
            if old is None
            else replace(old, count=old.count + new.count, usage=old.usage + new.usage)
        )
    out = list(merged.values())
    out[0] = replace(out[0], usage=out[0].usage + Usage(prompt=len(job.prompt), cached=job.cached))
    return out


def _stop_ids(model: Any, chat: ChatTokens) -> frozenset[int]:
    """The end-of-turn token, and whatever else the checkpoint says ends a generation."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset(
        [
            chat.end_of_turn,
            *(more if isinstance(more, list) else [more] if more is not None else []),
        ]
    )
