"""What a server really does with what it is asked, found out by a dozen short requests before a
run.

A server that ignores a seed, n or a schema says 200 and looks like one that honours them. So each
is put to the test: equal seeds must give equal
samples, four choices must not be one text, and a greeting under a schema must come out as that
schema's JSON. Every field in which servers take a
schema is tried until one works. What is asked for here alone (a temperature of 1.5, an answer of a
few tokens) must not keep out a server that a run could use.
"""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from leafe.core import Completion, Message, PolicyError, Request, UserError
from leafe.policies.http._endpoint import Endpoint, Failed, Refused, Unreachable
from leafe.policies.http._fleet import Fleet
from leafe.policies.http._wire import SCHEMA_FIELDS, Dialect, Garbage, body_of, completions_of

if TYPE_CHECKING:
    from leafe.policies.http._policy import HTTPPolicy

_CHAT = "chat/completions"
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
"""With the keywords that the schemas of reflections have."""
_OBEYS = re.compile(r'\s*\{\s*"(step|experience)"\s*:')
"""How an answer that holds to the schema begins, should it be cut off at the limit; nobody greets
like that unasked."""


async def check_endpoint(policy: HTTPPolicy, fleet: Fleet, endpoint: Endpoint) -> None:
    """Unreachable where nobody answers, UserError where the server refuses or fails; what it
    understands is written to its dialect."""
    served: dict[str, int | None] = {}
    if endpoint.proxy:
        unused = f"{endpoint.proxy} names a proxy, which leafe does not use"
        right = "name the server in NO_PROXY if that is right"
        warnings.warn(f"{endpoint.base_url}: {unused}; {right}.", stacklevel=2)
    try:
        served = await _served(fleet, endpoint)
        endpoint.dialect.context = served.get(policy.model)
        await _must_answer(policy, fleet, endpoint, served)
        if policy.token_ids or policy.logprobs:
            await _try_ids(policy, endpoint)
        await _try_sampling(policy, fleet, endpoint)
        await _try_schema(policy, fleet, endpoint)
    except Refused as refused:
        known = f" (it serves {_listed([*served])})" if served else ""
        raise UserError(
            f"{endpoint.base_url} refuses model {policy.model!r}{known} with status "
            f"{refused}; {policy.remedy(refused)}."
        ) from refused
    except Unreachable:
        raise
    except PolicyError as error:
        raise UserError(
            f"The endpoint of model {policy.model!r} does not work: {str(error).rstrip('.')}."
        ) from error


async def _served(fleet: Fleet, endpoint: Endpoint) -> dict[str, int | None]:
    """The models list, as far as there is one: some servers list only part, or nothing. Each with
    the length of its context, where that is said."""

    async def once(e: Endpoint) -> dict[str, int | None]:
        return await e.send("models", None, _models)

    try:
        return await fleet.on(endpoint, once, "models", once=True)
    except Refused as refused:
        if refused.status not in (404, 405):
            raise
    except Unreachable:
        raise
    except PolicyError:
        pass  # it is there, and its models list fails: still loading, or broken in that one place
    return {}


async def _must_answer(
    policy: HTTPPolicy, fleet: Fleet, endpoint: Endpoint, served: Mapping[str, int | None]
) -> None:
    """A short answer, which teaches what fields the server takes; and it must come from the model
    that was named."""
    await _ask(policy, fleet, endpoint, _HI)
    if not served or policy.model in served:
        return
    body = body_of(_HI, policy.model, 1, None, endpoint.dialect, policy.extra)

    async def once(e: Endpoint) -> str:
        return await e.send(_CHAT, body, _answering_model)

    if await fleet.on(endpoint, once, _CHAT) != policy.model:
        raise UserError(
            f"{endpoint.base_url} does not serve {policy.model!r}: set model to one of "
            f"{_listed([*served])}."
        )


async def _try_ids(policy: HTTPPolicy, endpoint: Endpoint) -> None:
    """Whether token ids and log-probabilities come when asked for; a refusal or any failure means
    no."""
    dialect = endpoint.dialect
    if policy.token_ids and any(
        c.tokens for c in await _asked(policy, endpoint, replace(dialect, ids="return_token_ids"))
    ):
        dialect.ids = "return_token_ids"
    if policy.logprobs or (policy.token_ids and dialect.ids is None):
        got = await _asked(policy, endpoint, replace(dialect, logprobs=True))
        dialect.logprobs = policy.logprobs and any(c.logprob is not None for c in got)
        if policy.token_ids and dialect.ids is None and any(c.tokens for c in got):
            dialect.ids = "logprobs"


async def _asked(policy: HTTPPolicy, endpoint: Endpoint, dialect: Dialect) -> list[Completion]:
    request = replace(_STORY, temperature=1.0)
    try:
        return await endpoint.send(
            _CHAT, body_of(request, policy.model, 1, None, dialect, policy.extra), _reading(request)
        )
    except Refused as refused:
        if refused.status in (401, 403, 404):
            raise
    except Failed:
        pass
    return []


async def _try_sampling(policy: HTTPPolicy, fleet: Fleet, endpoint: Endpoint) -> None:
    """Four seeds, the first two of them once more, and four choices at once."""
    story = _STORY
    try:
        first = await _ask(policy, fleet, endpoint, replace(story, seed=0))
    except Refused:  # some take no temperature above 1
        story = replace(story, temperature=1.0)
        first = await _ask(policy, fleet, endpoint, replace(story, seed=0))
    alone = [
        first,
        *await asyncio.gather(
            *(_ask(policy, fleet, endpoint, replace(story, seed=seed)) for seed in range(1, 4))
        ),
    ]
    again = await asyncio.gather(
        *(_ask(policy, fleet, endpoint, replace(story, seed=seed)) for seed in range(2))
    )
    texts = [got[0].text for got in alone]
    if len(set(texts)) == 1:
        alike = f"gave four equal samples at temperature {story.temperature:g}"
        _ignored(policy, endpoint, "all_alike", f"{alike}: it seems not to sample (see `extra`)")
        return
    if endpoint.dialect.seed and all(
        got[0].text != text for got, text in zip(again, texts, strict=False)
    ):
        endpoint.dialect.seed_holds = False
        _ignored(
            policy,
            endpoint,
            "seed_ignored",
            (
                "gave two samples for one seed: it seems to ignore seeds, so that its samples "
                "cannot be drawn again"
            ),
        )
    choices = await _ask(policy, fleet, endpoint, replace(story, seed=5, n=4))
    if len(choices) == 4 and len({c.text for c in choices}) == 1 and len(set(texts)) > 2:
        endpoint.dialect.most = 1
        _ignored(
            policy,
            endpoint,
            "n_ignored",
            "gave one text four times for n = 4: it is asked once for each sample",
        )


async def _try_schema(policy: HTTPPolicy, fleet: Fleet, endpoint: Endpoint) -> None:
    dialect = endpoint.dialect
    request = replace(_GREETING, schema=_SCHEMA)
    refusals = []
    for field in SCHEMA_FIELDS:
        body = body_of(
            request,
            policy.model,
            1,
            request.seed,
            replace(dialect, schema=field, ids=None, logprobs=False),
            policy.extra,
        )

        async def once(e: Endpoint, body: bytes = body) -> list[Completion]:
            return await e.send(_CHAT, body, _reading(request))

        try:
            (answer, *_) = await fleet.on(endpoint, once, _CHAT)
        except Refused as refused:
            refusals.append(f"{field}: {refused}")
            continue
        if _holds(answer):
            dialect.schema = field
            return
    dialect.schema = None
    refused_all = f" ({refusals[0]})" if refusals else ""
    words = (
        f"holds to no JSON schema, in whichever field it is given{refused_all}: reflections "
        "are parsed from free text"
    )
    _ignored(policy, endpoint, "schema_ignored", words)


def _holds(answer: Completion) -> bool:
    if _OBEYS.match(answer.text) is None:
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


async def _ask(
    policy: HTTPPolicy, fleet: Fleet, endpoint: Endpoint, request: Request
) -> list[Completion]:
    async def once(e: Endpoint) -> list[Completion]:
        return await policy.try_on(e, request, 0, request.n)

    return await fleet.on(endpoint, once, _CHAT)


def _ignored(policy: HTTPPolicy, endpoint: Endpoint, kind: str, words: str) -> None:
    policy.stats[kind] += 1
    endpoint.own[kind] += 1
    warnings.warn(f"{endpoint.base_url} {words}.", stacklevel=2)


def _reading(request: Request) -> Callable[[object], list[Completion]]:
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
