"""A policy that is a served model: chat completions from one or several OpenAI-compatible
endpoints.

A server may know less than it is asked for. What it refuses (a JSON schema, n, a seed) is left out
from then on, with one
warning; what it ignores in silence `check` finds out, or is noticed and made up for by further
requests, whose seeds derive from the first one's.
So a caller always gets n completions, or one typed error.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leafe.core import (
    Completion,
    ContextFull,
    Message,
    PolicyError,
    Request,
    Usage,
    UserError,
    derive_seed,
)
from leafe.policies.http._check import check_endpoint
from leafe.policies.http._endpoint import Endpoint, Failed, Refused, Unreachable
from leafe.policies.http._fleet import Fleet
from leafe.policies.http._wire import LIMITS, Dialect, body_of, completions_of, has_reasoning

CHAT = "chat/completions"
FEW = 16
"""Tokens of an answer that is thrown away: some servers make none that are shorter."""
_HI = (Message("user", "hi"),)
_ASK_AGAIN = (400, 422, 501)
"""Statuses under which servers refuse a field."""


class HTTPPolicy:
    """Samples from `model` at `base_url` (it usually ends in /v1), or at each of several that serve
    the same model.

    `name`: what stands in every turn, by default the model. `api_key_env`: the environment variable
    that holds the key; where it is unset no key is
    sent, as local servers want it. `timeout_s`: the longest that one try may take; `deadline_s`:
    the longest that a request may take with all its
    tries; `retries`: further tries after the first, on another server where there is one;
    `backoff_s`: the wait before a server is tried again,
    doubled each time up to 60 s. `concurrency`: the most requests in flight. `hedge`: a request
    that has had no answer for so many times the median
    is sent to a second server too, the first answer counts, and the turn is charged for both; it
    wants servers that honour seeds.
    `token_ids`, `logprobs`: ask for them where `check` finds that the server gives them.
    `extra`: further fields of the request body, as the server calls them. Servers have their own
    ideas of plain sampling; for exact
    samples of the model's distribution pass {"top_k": -1, "repetition_penalty": 1.0} to vLLM,
    {"top_k": 0, "min_p": 0.0} to llama.cpp, and
    {"generation_config": '{"do_sample": true}'} to `transformers serve`.
    `ready`: awaited before every request to the server that leafe itself started.

    `stats` counts requests, retries, given_up, each kind of failure (429, 5xx, timeout, connection,
    garbage, aborted, deadline), what became of requests
    (failed_over, spilled, hedged, hedge_won), of servers (taken_out, brought_back), each makeshift
    (fewer_choices, schema_dropped, seed_dropped,
    n_dropped, stop_dropped, temperature_dropped, top_p_dropped, limit_renamed), answers with the
    thinking put aside (reasoning_dropped), and what `check` found to be ignored (all_alike,
    n_ignored, seed_ignored, schema_ignored).
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        *,
        name: str | None = None,
        api_key_env: str | None = "OPENAI_API_KEY",
        timeout_s: float = 300.0,
        deadline_s: float | None = None,
        retries: int = 5,
        backoff_s: float = 0.5,
        concurrency: int = 1024,
        hedge: float | None = None,
        token_ids: bool = True,
        logprobs: bool = False,
        extra: Mapping[str, Any] | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        if not isinstance(base_url, str | list | tuple) or not all(
            isinstance(url, str) for url in base_url
        ):
            raise UserError(
                f"base_url = {base_url!r} is neither an address nor a list of addresses: "
                "write http://HOST:PORT/v1."
            )
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        _check_kinds(
            model=model,
            name=name,
            api_key_env=api_key_env,
            token_ids=token_ids,
            logprobs=logprobs,
            extra=extra,
        )
        shown = urls[0] if len(urls) == 1 else f"{len(urls)} endpoints"
        bounds: list[tuple[str, float | None, float]] = [
            ("timeout_s", timeout_s, 0.001),
            ("deadline_s", deadline_s, 0.001),
            ("retries", retries, 0),
        ]
        bounds += [
            ("concurrency", concurrency, 1),
            ("backoff_s", backoff_s, 0.0),
            ("hedge", hedge, 1.0),
        ]
        for option, value, least in bounds:
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not value >= least
            ):
                raise UserError(
                    f"{option} = {value!r} for {shown!r} does not fit: give a number, at "
                    f"least {least}."
                )
        if not model:
            raise UserError(
                f"The endpoint {shown!r} needs a model name: set model to one that it serves."
            )
        if not urls:
            raise UserError("base_url is an empty list: give the address of at least one server.")
        self.model = model
        self.name = name or model
        self.extra = dict(extra or {})
        self.token_ids, self.logprobs = token_ids, logprobs
        self.stats: Counter[str] = Counter()
        self._endpoints = [Endpoint(url, api_key_env, timeout_s, self.stats, ready) for url in urls]
        if len({e.base_url for e in self._endpoints}) < len(urls):
            raise UserError("base_url names the same server twice: name each once.")
        limits = {"retries": retries, "concurrency": concurrency}
        self._fleet = Fleet(
            self._endpoints,
            self.stats,
            **limits,
            backoff_s=backoff_s,
            deadline_s=deadline_s,
            hedge=hedge,
        )

    def __repr__(self) -> str:
        return f"HTTPPolicy({', '.join(repr(e.base_url) for e in self._endpoints)}, {self.name!r})"

    def report(self) -> list[dict[str, Any]]:
        """One entry a server, plain values: its address, what it understands, requests and
        failures."""
        return [e.report() for e in self._endpoints]

    async def close(self) -> None:
        """Close the connections. The policy can be used again; it then opens new ones."""
        await self._fleet.close()

    async def complete(self, request: Request) -> list[Completion]:
        """n completions of count 1. ContextFull where the prompt does not fit, PolicyError where
        the endpoint fails or refuses."""
        try:
            most = self._most
            got = await self._ask(request, 0, request.n if most is None else min(request.n, most))
            while len(got) < request.n:
                got += await self._rest(request, len(got))
        except Refused as refused:
            raise self._error(refused) from refused
        return got

    @property
    def _most(self) -> int | None:
        """The most choices that one request yields on every server; None: no bound is known."""
        if len(self._endpoints) == 1:
            return self._endpoints[0].dialect.most
        return min(
            (e.dialect.most for e in self._endpoints if e.dialect.most is not None), default=None
        )

    async def _rest(self, request: Request, have: int) -> list[Completion]:
        """Samples from number `have` on, at least one, asked for together in parts that the servers
        are known to give."""
        most = self._most
        assert most is not None
        starts = range(have, request.n, most)
        tasks = [
            asyncio.ensure_future(self._ask(request, i, min(most, request.n - i))) for i in starts
        ]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        got: list[Completion] = []
        for start, part in zip(starts, parts, strict=True):
            if start != have + len(got):
                # the part before came back short: what follows it is asked for again, in smaller
                # parts
                break
            got += part
        return got

    async def _ask(self, request: Request, first: int, n: int) -> list[Completion]:
        """Samples number `first` to `first + n - 1`, fewer where the server gives fewer (then its
        `dialect.most` is set)."""

        async def once(endpoint: Endpoint) -> list[Completion]:
            return await self.try_on(endpoint, request, first, n)

        return await self._fleet.call(
            request.cache_key, once, CHAT, _charged_twice if n == 1 and self._may_hedge else None
        )

    @property
    def _may_hedge(self) -> bool:
        """Of two servers that ignore seeds the faster would often be the one with the shorter
        answer: that is another distribution."""
        return all(e.dialect.seed and e.dialect.seed_holds for e in self._endpoints)

    async def try_on(
        self, endpoint: Endpoint, request: Request, first: int, n: int
    ) -> list[Completion]:
        """One try on this server, in its own dialect; what it refuses for a field that it does not
        know is asked again without that field."""
        seed = (
            request.seed
            if first == 0 or request.seed is None
            else derive_seed(request.seed, "n", first)
        )
        dialect = endpoint.dialect
        while True:
            sent = replace(dialect)  # other requests under way may change what it is now
            body = body_of(request, self.model, n, seed, sent, self.extra)
            try:
                got = await endpoint.send(
                    CHAT, body, lambda answer: self._read(endpoint, answer, request)
                )
            except Refused as refused:
                if refused.context_full or (
                    refused.words.names_limit and not refused.words.renames_limit
                ):
                    await self._must_take_limit(endpoint, request, refused)
                    raise
                if refused.status not in _ASK_AGAIN:
                    raise
                if n > 1 and refused.words.names_n:
                    self._leave_out(
                        endpoint,
                        "n_dropped",
                        "more than one choice a request; it is asked once for each sample",
                        refused,
                    )
                    dialect.most = n = 1
                elif self._spoken_otherwise(endpoint, sent, request, seed, refused):
                    pass
                elif not await self._without_schema(endpoint, sent, request, refused):
                    raise
                continue
            dialect.tokens_taken = max(dialect.tokens_taken, request.max_tokens)
            self._must_have_room(endpoint, request, got)
            if len(got) < n:
                self.stats["fewer_choices"] += 1
                dialect.most = min(len(got), dialect.most or len(got))
            return got[:n]

    def _read(self, endpoint: Endpoint, answer: object, request: Request) -> list[Completion]:
        got = completions_of(answer, request)
        if has_reasoning(answer):
            words = (
                "puts the model's thinking beside its answer: it is in no prompt and no journal, "
                "and without token ids Stage 2 trains on the bare answer"
            )
            self._count(
                endpoint,
                "reasoning_dropped",
                f"{words} (start the server without a reasoning parser to keep it)",
            )
            endpoint.dialect.reasoning = True
        return got

    def _must_have_room(self, endpoint: Endpoint, request: Request, got: list[Completion]) -> None:
        """ContextFull where an answer ended because prompt and answer filled the context, which
        some servers tell apart from the limit by the numbers alone."""
        prompt = got[0].usage.prompt
        limit = min(
            [
                request.max_tokens,
                *(self.extra[key] for key in LIMITS if isinstance(self.extra.get(key), int)),
            ]
        )
        for answer in got:
            generated = answer.usage.generated
            known = prompt and generated and (len(got) == 1 or answer.tokens is not None)
            if (
                answer.finish == "length"
                and known
                and generated < limit
                and endpoint.ends_here(prompt, prompt + generated)
            ):
                where = f"the context of {self.model} at {endpoint.at(CHAT)}"
                raise ContextFull(
                    f"The prompt of {prompt} tokens leaves no room for an answer in {where}: it "
                    f"was cut after {generated}."
                )

    async def _must_take_limit(
        self, endpoint: Endpoint, request: Request, refused: Refused
    ) -> None:
        """UserError where the server refuses the limit on the answer's tokens whatever the prompt:
        then no request of the run fits."""
        limit = request.max_tokens
        if limit <= endpoint.dialect.tokens_taken:
            return
        short = Request(_HI, max_tokens=limit)
        try:
            await endpoint.send(
                CHAT,
                body_of(
                    short,
                    self.model,
                    1,
                    None,
                    replace(endpoint.dialect, ids=None, logprobs=False),
                    self.extra,
                ),
                lambda answer: answer,
            )
        except Failed:
            return
        except Refused as again:
            if again.context_full or again.words.names_limit:
                raise UserError(
                    f"An answer of up to {limit} tokens is more than {endpoint.at(CHAT)} allows "
                    f"({again.text}): lower max_tokens and reflect_max_tokens in the prompt "
                    "set, or serve the model with a longer context."
                ) from refused
            return
        endpoint.dialect.tokens_taken = max(endpoint.dialect.tokens_taken, limit)

    def _spoken_otherwise(
        self,
        endpoint: Endpoint,
        sent: Dialect,
        request: Request,
        seed: int | None,
        refused: Refused,
    ) -> bool:
        """Whether the server refuses a field of the request that can be left out or has another
        name; its dialect is without it then."""
        dialect, words = endpoint.dialect, refused.words
        if sent.limit == LIMITS[0] and words.renames_limit:
            dialect.limit = LIMITS[1]
            self._count(endpoint, "limit_renamed")
        elif sent.top_p and request.top_p == 1.0 and words.names("top_p"):
            dialect.top_p = False  # 1 is what it means not to say it
            self._count(endpoint, "top_p_dropped")
        elif sent.temperature and request.temperature == 1.0 and words.names("temperature"):
            dialect.temperature = False
            self._count(endpoint, "temperature_dropped")
        elif sent.seed and seed is not None and words.names("seed"):
            self._leave_out(
                endpoint, "seed_dropped", "a seed; its samples cannot be drawn again", refused
            )
            dialect.seed = False
        elif sent.stop and request.stop and words.names("stop"):
            self._leave_out(
                endpoint,
                "stop_dropped",
                "stop texts; answers are cut at them here, and paid for to their end",
                refused,
            )
            dialect.stop = False
        else:
            return False
        return True

    async def _without_schema(
        self, endpoint: Endpoint, sent: Dialect, request: Request, refused: Refused
    ) -> bool:
        if not sent.schema or request.schema is None:
            return False
        if not refused.words.names_schema and not await self._answers_without_schema(
            endpoint, request
        ):
            return False
        self._leave_out(
            endpoint,
            "schema_dropped",
            "a JSON schema; reflections are parsed from free text",
            refused,
        )
        endpoint.dialect.schema = None
        return True

    def _leave_out(self, endpoint: Endpoint, kind: str, what: str, refused: Refused) -> None:
        self._count(endpoint, kind, f"does not take {what} ({refused})")

    def _count(self, endpoint: Endpoint, kind: str, said: str = "") -> None:
        """Count it, and say it of a server once."""
        endpoint.own[kind] += 1
        self.stats[kind] += 1
        if said and endpoint.own[kind] == 1:
            warnings.warn(f"{endpoint.at(CHAT)} {said}.", stacklevel=2)

    async def _answers_without_schema(self, endpoint: Endpoint, request: Request) -> bool:
        """Whether the schema was what the server refused, where its sentence does not say so: the
        same request without it, one token."""
        plain = replace(request, schema=None, max_tokens=FEW, seed=None)
        dialect = replace(endpoint.dialect, ids=None, logprobs=False)
        try:
            await endpoint.send(
                CHAT,
                body_of(plain, self.model, 1, None, dialect, self.extra),
                lambda answer: completions_of(answer, plain),
            )
        except Refused:
            return False
        return True

    def _error(self, refused: Refused) -> PolicyError:
        where = refused.endpoint.at(CHAT)
        if refused.context_full:
            return ContextFull(
                f"The prompt does not fit the context of {self.model} at {where}: {refused.text}."
            )
        return PolicyError(
            f"{where} refused the request with status {refused}; {self.remedy(refused)}."
        )

    def remedy(self, refused: Refused) -> str:
        """What the user can do about it."""
        status = refused.status
        if status in (401, 403):
            key = refused.endpoint.key_env
            return (
                f"set the environment variable {key} to a valid key"
                if key
                else "name the environment variable that holds the key with api_key_env"
            )
        if status == 404:
            return (
                "check that base_url is right (it usually ends in /v1) and that "
                f"{self.model!r} is served there"
            )
        if 300 <= status < 400:
            target = refused.location.rstrip("/").removesuffix(f"/{CHAT}").removesuffix("/models")
            same = not target or target == refused.endpoint.base_url
            remedy = "let the server answer there itself" if same else f"set base_url to {target}"
            return f"redirects are not followed: {remedy}"
        return "check the model's name and the fields in extra"

    async def check(self) -> None:
        """Probe every server before a run: is it there, does it serve the model, and what does it
        do with n, seeds, schemas and token ids.

        UserError where none can be reached, or one refuses the key or does not serve the model.
        Where some are there and some are not, those are
        taken out, with a warning, until they come. What a server ignores is a warning, and is not
        relied on.
        """
        found = await asyncio.gather(
            *(check_endpoint(self, self._fleet, e) for e in self._endpoints), return_exceptions=True
        )
        absent = [
            (e, error)
            for e, error in zip(self._endpoints, found, strict=True)
            if isinstance(error, Unreachable)
        ]
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, Unreachable):
                raise error
        if len(absent) == len(self._endpoints):
            raise UserError(
                f"{str(absent[0][1]).rstrip('.')}: start the server or correct base_url."
            ) from absent[0][1]
        for endpoint, error in absent:
            warnings.warn(f"{error} It is left out until it answers.", stacklevel=2)
            self._fleet.take_out(endpoint)
        if self._fleet.hedge is not None and not self._may_hedge:
            warnings.warn(
                (
                    "hedge is off: a server ignores seeds, and the faster of two answers would "
                    "often be the shorter one."
                ),
                stacklevel=2,
            )


def _check_kinds(**options: Any) -> None:
    """UserError for an option of another type than it is to have; its value is not shown: it may be
    a key in the wrong place."""
    kinds: dict[str, tuple[type, str]] = {
        "model": (str, "a name"),
        "name": (str, "a name"),
        "api_key_env": (str, "the name of an environment variable"),
        "token_ids": (bool, "true or false"),
        "logprobs": (bool, "true or false"),
        "extra": (Mapping, "a table of fields"),
    }
    for option, value in options.items():
        kind, words = kinds[option]
        if value is not None and not isinstance(value, kind):
            raise UserError(
                f"The option {option} of the policy is a {type(value).__name__}: give {words}."
            )
    try:
        json.dumps(options["extra"] and dict(options["extra"]), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The option extra of the policy holds what JSON cannot say ({error}): give plain "
            f"values."
        ) from error
    variable = options["api_key_env"]
    if variable is not None and ("=" in variable or "\0" in variable or variable.startswith("sk-")):
        raise UserError(
            "The option api_key_env of the policy is no name of an environment variable: put the "
            "key into a variable and give its name."
        )


def _charged_twice(got: list[Completion]) -> list[Completion]:
    """The answer with the cost of a twin that was cut off: at most the same again, since it had the
    same seed, and nothing of it from the cache."""
    first, *others = got
    twin = Usage(first.usage.prompt, 0, sum(c.usage.generated for c in got))
    return [replace(first, usage=first.usage + twin), *others]
