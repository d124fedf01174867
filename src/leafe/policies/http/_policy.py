"""A policy that is a served model: chat completions from any OpenAI-compatible endpoint.

The server may know less than it is asked for. What it refuses (a JSON schema, n, a seed) is left out from then on, with one
warning; what it ignores in silence (n) is noticed and made up for by further requests, whose seeds derive from the first one's. So a caller
always gets n completions, or one typed error.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leafe.core import Completion, ContextFull, Message, PolicyError, Request, UserError, derive_seed
from leafe.policies.http._transport import Refused, Transport, Unreachable
from leafe.policies.http._wire import Garbage, body_of, completions_of, is_context_full, names_n, names_schema, names_seed

_CHAT = "chat/completions"


class HTTPPolicy:
    """Samples from `model` at `base_url` (it usually ends in /v1).

    `api_key_env`: the environment variable that holds the key; where it is unset no key is sent, as local servers want it.
    `timeout_s`: the longest that one try may take; `retries`: further tries after the first; `backoff_s`: the wait before the first of them,
    doubled each time up to 60 s. `concurrency`: the most requests in flight.
    `extra`: further fields of the request body, as the server calls them. Servers have their own ideas of plain sampling; for exact
    samples of the model's distribution pass {"top_k": -1, "repetition_penalty": 1.0} to vLLM, {"top_k": 0, "min_p": 0.0} to llama.cpp, and
    {"generation_config": '{"do_sample": true}'} to `transformers serve`. With {"return_token_ids": true} vLLM gives the sampled ids as well.

    `stats` counts requests, retries, given_up, each kind of failure (429, 5xx, timeout, connection, garbage) and each makeshift
    (fewer_choices, schema_dropped, seed_dropped, n_dropped), and all_alike where `check` found a server that does not sample.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = "OPENAI_API_KEY",
        timeout_s: float = 300.0,
        retries: int = 5,
        backoff_s: float = 0.5,
        concurrency: int = 64,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (("timeout_s", timeout_s, 0.001), ("retries", retries, 0), ("concurrency", concurrency, 1), ("backoff_s", backoff_s, 0.0)):
            if not value >= least:
                raise UserError(f"{name} = {value} for the endpoint {base_url!r} is too small: give at least {least}.")
        if not model:
            raise UserError(f"The endpoint {base_url!r} needs a model name: set model to one that it serves.")
        self.name = model
        self.extra = dict(extra or {})
        self._transport = Transport(base_url, api_key_env, timeout_s=timeout_s, retries=retries, concurrency=concurrency, backoff_s=backoff_s)
        self._schema = True
        self._seed = True
        self._most: int | None = None
        """The most choices that one request yields, where the server was seen to give fewer than it was asked for."""

    def __repr__(self) -> str:
        return f"HTTPPolicy({self._transport.at('')!r}, {self.name!r})"

    @property
    def stats(self) -> Counter[str]:
        return self._transport.stats

    async def close(self) -> None:
        """Close the connections. The policy can be used again; it then opens new ones."""
        await self._transport.close()

    async def complete(self, request: Request) -> list[Completion]:
        """n completions of count 1. ContextFull where the prompt does not fit, PolicyError where the endpoint fails or refuses."""
        try:
            got = await self._ask(request, 0, min(request.n, self._most or request.n))
            while len(got) < request.n:
                got += await self._rest(request, len(got))
        except Refused as refused:
            raise self._error(refused) from refused
        return got

    async def _rest(self, request: Request, have: int) -> list[Completion]:
        """Samples from number `have` on, at least one, asked for together in parts that the server is known to give."""
        assert self._most is not None
        starts = range(have, request.n, self._most)
        tasks = [asyncio.ensure_future(self._ask(request, i, min(self._most, request.n - i))) for i in starts]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        got: list[Completion] = []
        for start, part in zip(starts, parts, strict=True):
            if start != have + len(got):
                break  # the part before came back short: what follows it is asked for again, in smaller parts
            got += part
        return got

    async def _ask(self, request: Request, first: int, n: int) -> list[Completion]:
        """Samples number `first` to `first + n - 1`, fewer where the server gives fewer (then `_most` is set)."""
        seed = request.seed if first == 0 or request.seed is None else derive_seed(request.seed, "n", first)
        while True:
            with_schema = self._schema and request.schema is not None
            with_seed = self._seed and seed is not None
            body = body_of(request, self.name, n, seed if with_seed else None, schema=with_schema, extra=self.extra)
            try:
                got = await self._transport.call(_CHAT, body, lambda answer: completions_of(answer, request))
            except Refused as refused:
                if refused.status not in (400, 422, 501) or is_context_full(refused.text):
                    raise
                if n > 1 and names_n(refused.text):
                    self._leave_out("n_dropped", "more than one choice a request; it is asked once for each sample", refused)
                    self._most = n = 1
                elif with_seed and names_seed(refused.text):
                    self._leave_out("seed_dropped", "a seed; its samples cannot be drawn again", refused)
                    self._seed = False
                elif with_schema and (not self._schema or names_schema(refused.text) or await self._answers_without_schema(request)):
                    self._leave_out("schema_dropped", "a JSON schema; reflections are parsed from free text", refused)
                    self._schema = False
                else:
                    raise
                continue
            if len(got) < n:
                self.stats["fewer_choices"] += 1
                self._most = min(len(got), self._most or len(got))
            return got[:n]

    def _leave_out(self, kind: str, what: str, refused: Refused) -> None:
        self.stats[kind] += 1
        if self.stats[kind] == 1:
            warnings.warn(f"{self._transport.at(_CHAT)} does not take {what} ({refused}).", stacklevel=2)

    async def _answers_without_schema(self, request: Request) -> bool:
        """Whether the schema was what the server refused, where its sentence does not say so: the same request without it, one token."""
        body = body_of(request, self.name, 1, None, schema=False, extra=self.extra) | {"max_tokens": 1}
        try:
            await self._transport.call(_CHAT, body, lambda answer: completions_of(answer, request))
        except Refused:
            return False
        return True

    def _error(self, refused: Refused) -> PolicyError:
        where = self._transport.at(_CHAT)
        if is_context_full(refused.text):
            return ContextFull(f"The prompt does not fit the context of {self.name} at {where}: {refused.text}.")
        return PolicyError(f"{where} refused the request with status {refused}; {self._remedy(refused.status)}.")

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            key = self._transport.api_key_env
            return f"set the environment variable {key} to a valid key" if key else "name the environment variable that holds the key with api_key_env"
        if status == 404:
            return f"check that base_url is right (it usually ends in /v1) and that {self.name!r} is served there"
        if 300 <= status < 400:
            return "set base_url to the address it redirects to"
        return "check the model's name and the fields in extra"

    async def check(self) -> None:
        """A few cheap probes before a run: UserError where the server cannot be reached, refuses the key or does not serve the model.

        The models list settles it where it names the model. Where it does not (some servers list only part, or nothing), one token is
        asked for, and the answer must come from the model that was named. Then four short samples at a high temperature: should they be all
        alike, a warning says that the server seems not to sample, which would make every Pass@k equal to Pass@1.
        """
        served: list[str] = []
        try:
            try:
                served = await self._transport.call("models", None, _model_names, once=True)
            except Refused as refused:
                if refused.status not in (404, 405):
                    raise
            except Unreachable:
                raise
            except PolicyError:
                pass  # it is there, and its models list fails: still loading, or broken in that one place
            if self.name not in served:
                body = body_of(Request((Message("user", "hi"),), max_tokens=1), self.name, 1, None, schema=False, extra=self.extra)
                answered_by = await self._transport.call(_CHAT, body, _answering_model)
                if served and answered_by != self.name:
                    raise UserError(f"{self._transport.at('')} does not serve {self.name!r}: set model to one of {_listed(served)}.")
            story = Request((Message("user", "Tell me a story."),), temperature=1.5, max_tokens=8)
            samples = [c for seed in range(4) for c in await self.complete(replace(story, seed=seed))]
        except Refused as refused:
            known = f" (it serves {_listed(served)})" if served else ""
            raise UserError(f"{self._transport.at('')} refuses model {self.name!r}{known} with status {refused}; {self._remedy(refused.status)}.") from refused
        except Unreachable as error:
            raise UserError(f"{str(error).rstrip('.')}: start the server or correct base_url.") from error
        except PolicyError as error:
            raise UserError(f"The endpoint of model {self.name!r} does not work: {str(error).rstrip('.')}.") from error
        if len({c.text for c in samples}) == 1:
            self.stats["all_alike"] += 1
            warnings.warn(f"{self._transport.at('')} gave four equal samples at temperature 1.5: it seems not to sample (see `extra`).", stacklevel=2)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _model_names(answer: object) -> list[str]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise Garbage("the models list has no data")
    return [str(m["id"]) for m in data if isinstance(m, dict) and "id" in m]


def _answering_model(answer: object) -> str:
    completions_of(answer, Request(()))
    assert isinstance(answer, dict)
    return str(answer.get("model", ""))
