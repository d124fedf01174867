"""What a server really does with a request: a dozen short probes before a run.

A server that ignores a seed, n or a schema still answers 200. So equal seeds must give equal
samples, four choices must not be one text, and a greeting under a schema must be that schema's
JSON; every field in which servers take a schema is tried until one works. A server that refuses the
probe's own settings (temperature 1.5, short answers) still passes.
"""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

from leafe.core import Completion, Message, PolicyError, Request, UserError
from leafe.policies.http._chat import CHAT, ChatModel
from leafe.policies.http._client import Failed
from leafe.policies.http._endpoint import Endpoint, Refused, Unreachable
from leafe.policies.http._pool import EndpointPool
from leafe.policies.http._wire import SCHEMA_FIELDS, Dialect, Garbage, completions_of

_HI = Request((Message("user", "hi"),), max_tokens=16)
_STORY = Request((Message("user", "Tell me a story."),), temperature=1.5, max_tokens=16)
_GREETING = Request(
    (Message("user", "Say hello to me in one short sentence."),),
    temperature=1.0,
    max_tokens=40,
    seed=1,
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "step": {"type": "integer", "minimum": 0, "maximum": 3},
        "experience": {"type": "string", "minLength": 1, "maxLength": 20},
    },
    "required": ["step", "experience"],
    "additionalProperties": False,
}
"""With the keywords that the schemas of reflections use."""
_CUT_JSON = re.compile(r'\s*\{\s*"(step|experience)"\s*:')
"""The start of an answer that follows the schema, for answers that are cut at the limit."""


async def check_endpoint(
    chat: ChatModel, pool: EndpointPool, endpoint: Endpoint, *, token_ids: bool, logprobs: bool
) -> None:
    """Probe a server, and write what it understands to its dialect.

    Raises:
        Unreachable: Nobody answers.
        UserError: The server refuses or fails.
    """
    served: dict[str, int | None] = {}
    try:
        served = await _served(pool, endpoint)
        endpoint.dialect.context = served.get(chat.model)
        await _require_model(chat, pool, endpoint, served)
        await _probe_tokens(chat, endpoint, token_ids=token_ids, logprobs=logprobs)
        await _probe_sampling(chat, pool, endpoint)
        await _probe_schema(chat, pool, endpoint)
    except Refused as refused:
        known = f" (it serves {_listed([*served])})" if served else ""
        raise UserError(
            f"{endpoint.base_url} refuses model {chat.model!r}{known} with status "
            f"{refused}; {chat.remedy(refused)}."
        ) from refused
    except Unreachable:
        raise
    except PolicyError as error:
        raise UserError(
            f"The endpoint of model {chat.model!r} does not work: {str(error).rstrip('.')}."
        ) from error


async def _served(pool: EndpointPool, endpoint: Endpoint) -> dict[str, int | None]:
    """The models list, each with its context's length where that is given; some servers list only
    part, or nothing."""

    async def once(e: Endpoint) -> dict[str, int | None]:
        return await e.send("models", None, _models)

    try:
        return await pool.on(endpoint, once, "models", once=True)
    except Refused as refused:
        if refused.status not in (404, 405):
            raise
    except Unreachable:
        raise
    except PolicyError:
        pass  # the server is there, and only its models list fails
    return {}


async def _require_model(
    chat: ChatModel, pool: EndpointPool, endpoint: Endpoint, served: Mapping[str, int | None]
) -> None:
    """UserError where another model answers; the request also finds out which fields are taken."""
    await _sample(chat, pool, endpoint, _HI)
    if not served or chat.model in served:
        return
    body = chat.body(_HI, endpoint.dialect)

    async def once(e: Endpoint) -> str:
        return await e.send(CHAT, body, _answering_model)

    if await pool.on(endpoint, once, CHAT) != chat.model:
        raise UserError(
            f"{endpoint.base_url} does not serve {chat.model!r}: set model to one of "
            f"{_listed([*served])}."
        )


async def _probe_tokens(
    chat: ChatModel, endpoint: Endpoint, *, token_ids: bool, logprobs: bool
) -> None:
    """Whether token ids and log-probabilities come when asked for; any failure means no."""
    dialect = endpoint.dialect
    if token_ids:
        samples = await _try_dialect(chat, endpoint, replace(dialect, ids="return_token_ids"))
        if any(c.tokens for c in samples):
            dialect.ids = "return_token_ids"
    if logprobs or (token_ids and dialect.ids is None):
        samples = await _try_dialect(chat, endpoint, replace(dialect, logprobs=True))
        dialect.logprobs = logprobs and any(c.logprob is not None for c in samples)
        if token_ids and dialect.ids is None and any(c.tokens for c in samples):
            dialect.ids = "logprobs"


async def _try_dialect(chat: ChatModel, endpoint: Endpoint, dialect: Dialect) -> list[Completion]:
    request = replace(_STORY, temperature=1.0)
    try:
        return await endpoint.send(CHAT, chat.body(request, dialect), _reader(request))
    except Refused as refused:
        if refused.status in (401, 403, 404):
            raise
    except Failed:
        pass
    return []


async def _probe_sampling(chat: ChatModel, pool: EndpointPool, endpoint: Endpoint) -> None:
    """Sample four seeds, the first two of them again, and four choices at once."""
    story = _STORY
    try:
        first = await _sample(chat, pool, endpoint, replace(story, seed=0))
    except Refused:  # some take no temperature above 1
        story = replace(story, temperature=1.0)
        first = await _sample(chat, pool, endpoint, replace(story, seed=0))

    async def texts_of(*seeds: int) -> list[str]:
        requests = (replace(story, seed=seed) for seed in seeds)
        found = await asyncio.gather(*(_sample(chat, pool, endpoint, r) for r in requests))
        return [samples[0].text for samples in found]

    texts = [first[0].text, *await texts_of(1, 2, 3)]
    again = await texts_of(0, 1)
    if len(set(texts)) == 1:
        _warn_ignored(
            endpoint,
            "all_alike",
            f"gave four equal samples at temperature {story.temperature:g}: it seems not to sample "
            "(see `extra`)",
        )
        return
    if endpoint.dialect.seed and again[0] != texts[0] and again[1] != texts[1]:
        endpoint.dialect.seed_holds = False
        _warn_ignored(
            endpoint,
            "seed_ignored",
            "gave two samples for one seed: it seems to ignore seeds, so that its samples cannot "
            "be drawn again",
        )
    choices = await _sample(chat, pool, endpoint, replace(story, seed=5, n=4))
    if len(choices) == 4 and len({c.text for c in choices}) == 1 and len(set(texts)) > 2:
        endpoint.dialect.most = 1
        _warn_ignored(
            endpoint,
            "n_ignored",
            "gave one text four times for n = 4: it is asked once for each sample",
        )


async def _probe_schema(chat: ChatModel, pool: EndpointPool, endpoint: Endpoint) -> None:
    """Try the fields for a schema until the server follows one."""
    dialect = endpoint.dialect
    request = replace(_GREETING, schema=_SCHEMA)
    refusals = []
    for field in SCHEMA_FIELDS:
        plain = replace(dialect, schema=field, ids=None, logprobs=False)
        body = chat.body(request, plain, seed=request.seed)

        async def once(e: Endpoint, body: bytes = body) -> list[Completion]:
            return await e.send(CHAT, body, _reader(request))

        try:
            (answer, *_) = await pool.on(endpoint, once, CHAT)
        except Refused as refused:
            refusals.append(f"{field}: {refused}")
            continue
        if _follows_schema(answer):
            dialect.schema = field
            return
    dialect.schema = None
    refusal = f" ({refusals[0]})" if refusals else ""
    _warn_ignored(
        endpoint,
        "schema_ignored",
        f"holds to no JSON schema, in whichever field it is given{refusal}: reflections are parsed "
        "from free text",
    )


def _follows_schema(answer: Completion) -> bool:
    if _CUT_JSON.match(answer.text) is None:
        return False
    if answer.finish == "length":
        return True
    try:
        found = json.loads(answer.text)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and found.keys() == {"step", "experience"}
        and isinstance(found["step"], int)
    )


async def _sample(
    chat: ChatModel, pool: EndpointPool, endpoint: Endpoint, request: Request
) -> list[Completion]:
    async def once(e: Endpoint) -> list[Completion]:
        return await chat.attempt(e, request, 0, request.n)

    return await pool.on(endpoint, once, CHAT)


def _warn_ignored(endpoint: Endpoint, kind: str, message: str) -> None:
    endpoint.count(kind)
    warnings.warn(f"{endpoint.base_url} {message}.", stacklevel=2)


def _reader(request: Request) -> Callable[[object], list[Completion]]:
    return lambda answer: completions_of(answer, request)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )


_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""In the models list: of vLLM and SGLang, OpenRouter and Together, Groq, LM Studio and Mistral."""


def _models(answer: object) -> dict[str, int | None]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise Garbage("the models list has no data")
    found = {}
    for model in data:
        if isinstance(model, dict) and "id" in model:
            lengths = [
                model[field]
                for field in _CONTEXT_FIELDS
                if type(model.get(field)) is int and model[field] > 0
            ]
            found[str(model["id"])] = lengths[0] if lengths else None
    return found


def _answering_model(answer: object) -> str:
    completions_of(answer, Request(()))
    assert isinstance(answer, dict)
    return str(answer.get("model", ""))
