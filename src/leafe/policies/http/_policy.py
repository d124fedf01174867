"""A policy that is a served model: chat completions from one or several OpenAI-compatible
endpoints.

A server may support less than a request needs. What it refuses is left out from then on; what it
ignores is found by `check`, or noticed and made up for by further requests, whose seeds derive from
the first one's. So a caller always gets n completions, or one typed error.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from leafe.core import Completion, ContextFull, PolicyError, Request, UserError
from leafe.policies.http._chat import CHAT, ChatModel
from leafe.policies.http._check import check_endpoint
from leafe.policies.http._client import CONNECT_S, HTTPClient
from leafe.policies.http._endpoint import Endpoint, Refused, Unreachable
from leafe.policies.http._pool import EndpointPool


class HTTPPolicy:
    """Samples from `model` at `base_url`, or at each of several servers of the same model.

    Servers have their own defaults for sampling. For exact samples of the model's distribution set
    `extra` to {"top_k": -1, "repetition_penalty": 1.0} for vLLM, {"top_k": 0, "min_p": 0.0} for
    llama.cpp, and {"generation_config": '{"do_sample": true}'} for `transformers serve`.

    `stats` counts requests, retries, given_up; failures (429, 5xx, timeout, connection, garbage,
    aborted, deadline); routing (failed_over, spilled, taken_out, brought_back); what servers did
    not take (fewer_choices, schema_dropped, seed_dropped, n_dropped, stop_dropped,
    temperature_dropped, top_p_dropped, limit_renamed, reasoning_dropped); and what `check` found to
    be ignored (all_alike, n_ignored, seed_ignored, schema_ignored).

    Args:
        base_url: One address or several; each usually ends in /v1.
        model: What the servers call the model.
        name: The policy's name in every turn; default: the model.
        api_key_env: The environment variable that holds the API key; where it is unset no key is
            sent.
        timeout_s: The most seconds that one attempt may take.
        deadline_s: The most seconds that a request may take with all its attempts; None: no limit.
        retries: Further attempts after the first, on another server where there is one.
        backoff_s: Seconds before a server is tried again, doubled each time up to 60 s.
        concurrency: The most requests in flight.
        token_ids: Ask for token ids where `check` finds that the server gives them.
        logprobs: Ask for log-probabilities where `check` finds that the server gives them.
        extra: Further fields of the request body, as the server calls them.
        ready: Awaited before every request to the server that leafe itself started.

    Raises:
        UserError: An option does not fit, or an address is none.
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
        _check_types(
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
            ("concurrency", concurrency, 1),
            ("backoff_s", backoff_s, 0.0),
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
        self.token_ids, self.logprobs = token_ids, logprobs
        self.stats: Counter[str] = Counter()
        self._chat = ChatModel(model, extra or {})
        self._client = HTTPClient(
            api_key_env,
            min(timeout_s, CONNECT_S),
            secure=any(url.lower().startswith("https:") for url in urls),
        )
        self._endpoints = [
            Endpoint(url, self._client, timeout_s, self.stats, ready) for url in urls
        ]
        if len({e.base_url for e in self._endpoints}) < len(urls):
            raise UserError("base_url names the same server twice: name each once.")
        self._pool = EndpointPool(
            self._endpoints,
            self.stats,
            retries=retries,
            concurrency=concurrency,
            backoff_s=backoff_s,
            deadline_s=deadline_s,
        )

    def __repr__(self) -> str:
        return f"HTTPPolicy({', '.join(repr(e.base_url) for e in self._endpoints)}, {self.name!r})"

    def report(self) -> list[dict[str, Any]]:
        """One entry a server: its address, what it understands, requests and failures."""
        return [e.report() for e in self._endpoints]

    async def close(self) -> None:
        """Close the connections. The policy can be used again; it then opens new ones."""
        await self._pool.close()
        await self._client.close()

    async def complete(self, request: Request) -> list[Completion]:
        """Sample `request.n` completions.

        Returns:
            n completions of count 1.

        Raises:
            ContextFull: The prompt does not fit.
            PolicyError: The servers fail, or refuse the request.
        """
        try:
            most = self._most
            samples = await self._sample(request, 0, min(request.n, most or request.n))
            while len(samples) < request.n:
                samples += await self._further(request, len(samples))
        except Refused as refused:
            raise self._error(refused) from refused
        return samples

    @property
    def _most(self) -> int | None:
        """The most choices that one request yields on every server; None: no bound is known."""
        return min(
            (e.dialect.most for e in self._endpoints if e.dialect.most is not None), default=None
        )

    async def _further(self, request: Request, have: int) -> list[Completion]:
        """Samples from number `have` on, at least one, by concurrent requests for as many choices
        as the servers are known to give."""
        most = self._most
        assert most is not None
        starts = range(have, request.n, most)
        tasks = [
            asyncio.ensure_future(self._sample(request, i, min(most, request.n - i)))
            for i in starts
        ]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        samples: list[Completion] = []
        for start, part in zip(starts, parts, strict=True):
            if start != have + len(samples):
                break  # the part before came back short: the rest is sampled again in smaller parts
            samples += part
        return samples

    async def _sample(self, request: Request, first: int, n: int) -> list[Completion]:
        """Samples number `first` to `first + n - 1`, fewer where the server gives fewer."""

        async def attempt(endpoint: Endpoint) -> list[Completion]:
            return await self._chat.attempt(endpoint, request, first, n)

        return await self._pool.call(request.cache_key, attempt, CHAT)

    def _error(self, refused: Refused) -> PolicyError:
        where = refused.endpoint.url_of(CHAT)
        if refused.context_full:
            return ContextFull(
                f"The prompt does not fit the context of {self._chat.model} at {where}: "
                f"{refused.error.text}."
            )
        return PolicyError(
            f"{where} refused the request with status {refused}; {self._chat.remedy(refused)}."
        )

    async def check(self) -> None:
        """Probe every server before a run: does it serve the model, and what does it do with n,
        seeds, schemas and token ids.

        Servers that cannot be reached are taken out, with a warning, until they answer. What a
        server ignores is a warning, and is not relied on.

        Raises:
            UserError: No server can be reached, or one refuses the key or does not serve the model.
        """
        found = await asyncio.gather(
            *(
                check_endpoint(
                    self._chat, self._pool, e, token_ids=self.token_ids, logprobs=self.logprobs
                )
                for e in self._endpoints
            ),
            return_exceptions=True,
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
            self._pool.take_out(endpoint)


def _check_types(**options: Any) -> None:
    """UserError for an option of a wrong type; its value is not shown: it may be an API key."""
    types: dict[str, tuple[type, str]] = {
        "model": (str, "a name"),
        "name": (str, "a name"),
        "api_key_env": (str, "the name of an environment variable"),
        "token_ids": (bool, "true or false"),
        "logprobs": (bool, "true or false"),
        "extra": (Mapping, "a table of fields"),
    }
    for option, value in options.items():
        kind, expected = types[option]
        if value is not None and not isinstance(value, kind):
            raise UserError(
                f"The option {option} of the policy is a {type(value).__name__}: give {expected}."
            )
    try:
        json.dumps(options["extra"] and dict(options["extra"]), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The option extra of the policy is no JSON ({error}): give plain values."
        ) from error
    variable = options["api_key_env"]
    if variable is not None and ("=" in variable or "\0" in variable or variable.startswith("sk-")):
        raise UserError(
            "The option api_key_env of the policy is no name of an environment variable: put the "
            "key into a variable and give its name."
        )
