"""One chat request on one server, in the dialect that the server understands.

A field that the server refuses (a JSON schema, n, a seed) is left out from then on, with one
warning where that changes what is sampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leafe.core import Completion, ContextFull, Message, Request, UserError, derive_seed
from leafe.policies.http._client import Failed
from leafe.policies.http._endpoint import Endpoint, Refused
from leafe.policies.http._wire import LIMITS, Dialect, body_of, completions_of, has_reasoning

CHAT = "chat/completions"
_PROBE_TOKENS = 16
"""The limit of an answer that is thrown away: some servers refuse a lower one."""
_FIELD_REFUSALS = (400, 422, 501)
"""Statuses under which servers refuse a field."""


class ChatModel:
    """The model `model` on any server.

    Args:
        model: Its name in requests.
        extra: Further fields of the request body.
    """

    def __init__(self, model: str, extra: Mapping[str, Any]) -> None:
        self.model = model
        self.extra = dict(extra)

    def body(
        self, request: Request, dialect: Dialect, n: int = 1, seed: int | None = None
    ) -> bytes:
        """The JSON body for n samples of the request."""
        return body_of(request, self.model, n, seed, dialect, self.extra)

    async def attempt(
        self, endpoint: Endpoint, request: Request, first: int, n: int
    ) -> list[Completion]:
        """Sample on this server; where it refuses a field, drop the field and send again.

        Args:
            endpoint: The server.
            request: What to sample.
            first: The number of the first sample: later ones have seeds derived from the request's.
            n: How many samples.

        Returns:
            At most n samples; fewer where the server gives fewer (its `dialect.most` is set then).

        Raises:
            Failed: Another attempt may succeed.
            Refused: The server refuses the request.
            ContextFull: The answer ended because the context is full.
            UserError: The server never allows an answer as long as `request.max_tokens`.
        """
        seed = (
            request.seed
            if first == 0 or request.seed is None
            else derive_seed(request.seed, "n", first)
        )
        dialect = endpoint.dialect
        while True:
            sent = replace(dialect)  # other requests under way may change what it is now
            body = self.body(request, sent, n, seed)
            try:
                samples = await endpoint.send(
                    CHAT, body, lambda answer: self._read(endpoint, answer, request)
                )
            except Refused as refused:
                if refused.context_full or (
                    refused.error.names_limit and not refused.error.renames_limit
                ):
                    await self._check_limit(endpoint, request, refused)
                    raise
                if refused.status not in _FIELD_REFUSALS:
                    raise
                if n > 1 and refused.error.names_n:
                    self._warn_dropped(
                        endpoint,
                        "n_dropped",
                        "more than one choice a request; it is asked once for each sample",
                        refused,
                    )
                    dialect.most = n = 1
                elif self._adapt(endpoint, sent, request, seed, refused):
                    pass
                elif not await self._drop_schema(endpoint, sent, request, refused):
                    raise
                continue
            dialect.tokens_taken = max(dialect.tokens_taken, request.max_tokens)
            self._check_room(endpoint, request, samples)
            if len(samples) < n:
                endpoint.stats["fewer_choices"] += 1
                dialect.most = min(len(samples), dialect.most or len(samples))
            return samples[:n]

    def _read(self, endpoint: Endpoint, answer: object, request: Request) -> list[Completion]:
        samples = completions_of(answer, request)
        if has_reasoning(answer):
            warn_once(
                endpoint,
                "reasoning_dropped",
                "puts the model's thinking beside its answer: it is in no prompt and no journal, "
                "and without token ids Stage 2 trains on the bare answer (start the server "
                "without a reasoning parser to keep it)",
            )
            endpoint.dialect.reasoning = True
        return samples

    def _check_room(self, endpoint: Endpoint, request: Request, samples: list[Completion]) -> None:
        """ContextFull where an answer ended because the context is full, though the server gives
        the same reason as for the limit."""
        prompt = samples[0].usage.prompt
        limit = min(
            [
                request.max_tokens,
                *(self.extra[key] for key in LIMITS if isinstance(self.extra.get(key), int)),
            ]
        )
        for answer in samples:
            generated = answer.usage.generated
            known = prompt and generated and (len(samples) == 1 or answer.tokens is not None)
            if (
                answer.finish == "length"
                and known
                and generated < limit
                and endpoint.context_ends(prompt, prompt + generated)
            ):
                where = f"the context of {self.model} at {endpoint.url_of(CHAT)}"
                raise ContextFull(
                    f"The prompt of {prompt} tokens leaves no room for an answer in {where}: it "
                    f"was cut after {generated}."
                )

    async def _check_limit(self, endpoint: Endpoint, request: Request, refused: Refused) -> None:
        """UserError where the server refuses the limit on answers whatever the prompt."""
        limit = request.max_tokens
        if limit <= endpoint.dialect.tokens_taken:
            return
        short = Request((Message("user", "hi"),), max_tokens=limit)
        dialect = replace(endpoint.dialect, ids=None, logprobs=False)
        try:
            await endpoint.send(CHAT, self.body(short, dialect), lambda answer: answer)
        except Failed:
            return
        except Refused as again:
            if again.context_full or again.error.names_limit:
                raise UserError(
                    f"An answer of up to {limit} tokens is more than {endpoint.url_of(CHAT)} "
                    f"allows ({again.error.text}): lower max_tokens and reflect_max_tokens in the "
                    "prompt set, or serve the model with a longer context."
                ) from refused
            return
        endpoint.dialect.tokens_taken = max(endpoint.dialect.tokens_taken, limit)

    def _adapt(
        self,
        endpoint: Endpoint,
        sent: Dialect,
        request: Request,
        seed: int | None,
        refused: Refused,
    ) -> bool:
        """Whether the server refuses a field that can be dropped or renamed; its dialect is
        changed then."""
        dialect, error = endpoint.dialect, refused.error
        if sent.limit == LIMITS[0] and error.renames_limit:
            dialect.limit = LIMITS[1]
            endpoint.count("limit_renamed")
        elif sent.top_p and request.top_p == 1.0 and error.names("top_p"):
            dialect.top_p = False  # 1 is the default
            endpoint.count("top_p_dropped")
        elif sent.temperature and request.temperature == 1.0 and error.names("temperature"):
            dialect.temperature = False
            endpoint.count("temperature_dropped")
        elif sent.seed and seed is not None and error.names("seed"):
            self._warn_dropped(
                endpoint, "seed_dropped", "a seed; its samples cannot be drawn again", refused
            )
            dialect.seed = False
        elif sent.stop and request.stop and error.names("stop"):
            self._warn_dropped(
                endpoint,
                "stop_dropped",
                "stop texts; answers are cut at them here, and paid for to their end",
                refused,
            )
            dialect.stop = False
        else:
            return False
        return True

    async def _drop_schema(
        self, endpoint: Endpoint, sent: Dialect, request: Request, refused: Refused
    ) -> bool:
        if not sent.schema or request.schema is None:
            return False
        if not refused.error.names_schema and not await self._answers_without_schema(
            endpoint, request
        ):
            return False
        self._warn_dropped(
            endpoint,
            "schema_dropped",
            "a JSON schema; reflections are parsed from free text",
            refused,
        )
        endpoint.dialect.schema = None
        return True

    def _warn_dropped(self, endpoint: Endpoint, kind: str, what: str, refused: Refused) -> None:
        warn_once(endpoint, kind, f"does not take {what} ({refused})")

    async def _answers_without_schema(self, endpoint: Endpoint, request: Request) -> bool:
        """Whether the server takes the request without its schema."""
        plain = replace(request, schema=None, max_tokens=_PROBE_TOKENS, seed=None)
        dialect = replace(endpoint.dialect, ids=None, logprobs=False)
        try:
            await endpoint.send(
                CHAT, self.body(plain, dialect), lambda answer: completions_of(answer, plain)
            )
        except Refused:
            return False
        return True

    def remedy(self, refused: Refused) -> str:
        """What the user can do about a refusal."""
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


def warn_once(endpoint: Endpoint, kind: str, message: str) -> None:
    """Count `kind`, and warn the first time that it concerns this server."""
    if endpoint.count(kind) == 1:
        warnings.warn(f"{endpoint.url_of(CHAT)} {message}.", stacklevel=2)
