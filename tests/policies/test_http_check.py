"""What a server ignores or refuses is found out before the run, said, and not relied on."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from leafe.core import Completion, Message, Request
from leafe.policies.http import HTTPPolicy
from leafe.policies.http._wire import SCHEMA_FIELDS
from tests.faulty_server import FaultyServer

T = TypeVar("T")
SCHEMA = {"type": "object", "properties": {"step": {"type": "integer"}}, "required": ["step"]}
ASK = Request((Message("user", "hello there"),), seed=11)


def checked(
    server: FaultyServer, then: Callable[[HTTPPolicy], Awaitable[T]], **options: Any
) -> tuple[T, HTTPPolicy, list[str]]:
    """What `then` gives after a check, and the warnings of both."""

    async def go() -> tuple[T, HTTPPolicy]:
        policy = HTTPPolicy(server.base_url, "mock", api_key_env=None, backoff_s=0.005, **options)
        try:
            await policy.check()
            return await then(policy), policy
        finally:
            await policy.close()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got, policy = asyncio.run(go())
    return got, policy, [str(w.message) for w in seen]


def ask(request: Request) -> Callable[[HTTPPolicy], Awaitable[list[Completion]]]:
    return lambda policy: policy.complete(request)


@pytest.mark.parametrize("field", SCHEMA_FIELDS)
def test_a_schema_goes_into_the_field_that_the_server_holds_to(field: str) -> None:
    with FaultyServer(holds=field) as server:
        (answer,), policy, said = checked(server, ask(Request(ASK.messages, schema=SCHEMA, seed=1)))
        assert answer.text.startswith('{"step"')
        assert [f for f in SCHEMA_FIELDS if f in server.bodies[-1]] == [field]
        assert policy.report()[0]["schema"] == field
        assert said == []


def test_a_schema_that_is_ignored_is_said_once_and_no_longer_sent() -> None:
    with FaultyServer(holds=None) as server:
        _, policy, said = checked(server, ask(Request(ASK.messages, schema=SCHEMA)))
        assert not any(f in server.bodies[-1] for f in SCHEMA_FIELDS)
        assert [s for s in said if "holds to no JSON schema" in s] == said != []
        assert (policy.report()[0]["schema"], policy.stats["schema_ignored"]) == (None, 1)


def test_a_field_that_is_refused_does_not_hide_one_that_works() -> None:
    with FaultyServer(
        holds="json_schema", forbidden=["response_format", "structured_outputs"]
    ) as server:
        _, policy, said = checked(server, ask(Request(ASK.messages, schema=SCHEMA)))
        assert policy.report()[0]["schema"] == "json_schema"
        assert said == []


def test_a_talkative_model_is_not_taken_for_an_obedient_one() -> None:
    for text in (
        "{} hello",
        '["step"]',
        '{"greeting": "hello"}',
        '```json\n{"step": 1}\n```',
        'hello {"step": 1}',
    ):
        with FaultyServer(
            reply=lambda body, i, text=text: text + str(body.get("seed")) + str(i)
        ) as server:
            _, policy, _ = checked(server, ask(ASK))
            assert policy.report()[0]["schema"] is None


def test_seeds_that_are_ignored_are_noticed_and_others_are_not() -> None:
    with FaultyServer(ignores=["seed"]) as server:
        _, policy, said = checked(server, ask(ASK))
        assert policy.stats["seed_ignored"] == 1
        assert policy.report()[0]["seed"] is False
        assert [s for s in said if "seems to ignore seeds" in s] == said != []
        assert "seed" in server.bodies[-1]  # it does no harm, and the probe may have been wrong
    with FaultyServer() as server:
        _, policy, said = checked(server, ask(ASK))
        assert policy.report()[0]["seed"] is True
        assert said == []


def test_n_that_is_ignored_is_made_up_for() -> None:
    many = Request(ASK.messages, n=4, seed=3)
    with FaultyServer(ignores=["n"]) as server:
        got, policy, said = checked(server, ask(many))
        assert len({c.text for c in got}) == 4
        assert policy.stats["n_ignored"] == 1
        assert [s for s in said if "asked once for each sample" in s] == said != []
    with FaultyServer(limit_n=1) as server:
        got, policy, said = checked(server, ask(many))
        assert len({c.text for c in got}) == 4
        assert policy.report()[0]["choices"] == 1


def test_a_server_that_does_not_sample() -> None:
    with FaultyServer(reply=lambda body, i: "always this") as server:
        _, policy, said = checked(server, ask(ASK))
        assert any("seems not to sample" in s for s in said)
        assert (
            policy.stats["all_alike"],
            policy.stats["seed_ignored"],
            policy.stats["n_ignored"],
        ) == (1, 0, 0)


@pytest.mark.parametrize("field", ["token_ids", "response_token_ids"])
def test_token_ids_are_asked_for_where_they_are_given(field: str) -> None:
    with FaultyServer(gives=[field, "logprobs"]) as server:
        (answer,), policy, _ = checked(server, ask(ASK), logprobs=True)
        assert answer.tokens == tuple(len(w) for w in answer.text.split())
        assert answer.logprob == -0.5 * len(answer.text.split())
        assert (policy.report()[0]["token_ids"], policy.report()[0]["logprobs"]) == (
            "return_token_ids",
            True,
        )
        (answer,), policy, _ = checked(
            server, ask(Request(ASK.messages, temperature=0.5)), token_ids=False, logprobs=True
        )
        assert (answer.tokens, answer.logprob) == (
            None,
            None,
        )  # what servers give is from before the temperature


def test_token_ids_that_come_beside_log_probabilities_alone() -> None:
    with FaultyServer(gives=["logprobs", "ids in logprobs"]) as server:
        (answer,), policy, _ = checked(server, ask(ASK))
        assert answer.tokens == tuple(len(w) for w in answer.text.split())
        assert policy.report()[0]["token_ids"] == "logprobs"
        (answer,), policy, _ = checked(server, ask(ASK), token_ids=False)
        assert "logprobs" not in server.bodies[-1]


def test_token_ids_are_not_asked_for_where_they_are_not_given_or_refused() -> None:
    with FaultyServer() as server:
        (answer,), _, _ = checked(server, ask(ASK), logprobs=True)
        assert (answer.tokens, answer.logprob) == (None, None)
        assert "return_token_ids" not in server.bodies[-1]
        assert "logprobs" not in server.bodies[-1]
    with FaultyServer(forbidden=["return_token_ids", "logprobs"]) as server:
        (answer,), _, said = checked(server, ask(ASK), logprobs=True)
        assert len(answer.text) > 0
        assert said == []


def test_every_server_is_asked_what_it_understands() -> None:
    with FaultyServer(holds="guided_json") as old, FaultyServer() as new:

        async def go() -> list[dict[str, Any]]:
            policy = HTTPPolicy([old.base_url, new.base_url], "mock", api_key_env=None)
            try:
                await policy.check()
                await asyncio.gather(
                    *(
                        policy.complete(Request(ASK.messages, schema=SCHEMA, cache_key=str(i)))
                        for i in range(20)
                    )
                )
                return policy.report()
            finally:
                await policy.close()

        report = asyncio.run(go())
        assert [r["schema"] for r in report] == ["guided_json", "response_format"]
        assert "guided_json" in old.bodies[-1]
        assert "response_format" in new.bodies[-1]
