"""Servers that take less than others: what they refuse is left out, said in a sentence, or a typed
end."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import pytest
from aiohttp import web

from leafe.core import Completion, ContextFull, Message, PolicyError, Request, UserError
from leafe.policies.http import HTTPPolicy
from tests.faulty_server import FaultyServer

T = TypeVar("T")
Body = Mapping[str, Any]
ASK = Request((Message("user", "hello there"),), max_tokens=64, seed=11)


def no(text: str, status: int = 400) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": text}}


def chat(
    text: str, finish: str | None = "stop", *, prompt: int = 9, generated: int = 5, **more: Any
) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": prompt, "completion_tokens": generated}
    return {"model": "mock", "choices": [choice], "usage": usage} | more


def run(
    told: Callable[[Body], Any],
    work: Callable[[HTTPPolicy], Awaitable[T]],
    server: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[T, HTTPPolicy, list[str], list[dict[str, Any]]]:
    """What `work` gives, the policy, what was warned of, and the bodies that the server was
    sent."""

    async def go(url: str) -> tuple[T, HTTPPolicy]:
        policy = HTTPPolicy(
            url, "mock", api_key_env=None, **{"backoff_s": 0.001, "retries": 2} | options
        )
        try:
            return await work(policy), policy
        finally:
            await policy.close()

    with (
        FaultyServer(told=told, **server or {}) as there,
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        got, policy = asyncio.run(go(there.base_url))
        return (
            got,
            policy,
            [str(w.message) for w in seen if w.category is UserWarning],
            there.bodies,
        )


def ask(request: Request = ASK) -> Callable[[HTTPPolicy], Awaitable[list[Completion]]]:
    return lambda policy: policy.complete(request)


async def check_and_ask(policy: HTTPPolicy) -> list[Completion]:
    await policy.check()
    return await policy.complete(ASK)


STRICT: dict[str, Callable[[Body], Any]] = {
    "no temperature above 1": lambda b: (
        no("temperature: Input should be less than or equal to 1") if b["temperature"] > 1 else None
    ),
    "temperature 1 alone": lambda b: (
        no("'temperature' does not support 1.5 with this model. Only 1.")
        if b["temperature"] != 1
        else None
    ),
    "no temperature at all": lambda b: (
        no("Unsupported parameter: 'temperature'") if "temperature" in b else None
    ),
    "max_completion_tokens": lambda b: (
        no("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "max_tokens" in b
        else None
    ),
    "max_tokens is extra": lambda b: (
        no("max_tokens: Extra inputs are not permitted", 422) if "max_tokens" in b else None
    ),
    "not both": lambda b: (
        no("`temperature` and `top_p` cannot both be specified for this model.")
        if "top_p" in b
        else None
    ),
    "16 tokens at least": lambda b: (
        no("Expected a value >= 16, but got 1 instead.") if b["max_tokens"] < 16 else None
    ),
    "no seed": lambda b: no("seed is not supported") if "seed" in b else None,
    "o-series": lambda b: (
        no(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead."
        )
        if "max_tokens" in b
        else no(
            "'temperature' does not support 1.5 with this model. Only the default (1) value is "
            "supported."
        )
        if b.get("temperature", 1) != 1
        else no("Unsupported parameter: 'top_p' is not supported with this model.")
        if "top_p" in b
        else no("Expected a value >= 16, but got 1 instead.")
        if b["max_completion_tokens"] < 16
        else None
    ),
}


@pytest.mark.parametrize("kind", STRICT)
def test_a_server_that_a_run_can_use_passes_the_check_and_answers(kind: str) -> None:
    (answer,), policy, _, bodies = run(STRICT[kind], check_and_ask)
    assert answer.text.startswith("Thought: none.")
    assert bodies[-1].get("max_tokens", bodies[-1].get("max_completion_tokens")) == 64
    assert policy.stats["given_up"] == 0


@pytest.mark.parametrize("kind", [k for k in STRICT if "above" not in k and "16" not in k])
def test_what_a_server_refuses_is_learnt_once_by_all_that_are_under_way(kind: str) -> None:
    async def many(policy: HTTPPolicy) -> list[list[Completion]]:
        requests = [Request((Message("user", str(i)),), seed=i, max_tokens=64) for i in range(24)]
        return await asyncio.gather(*map(policy.complete, requests))

    async def twice(policy: HTTPPolicy) -> tuple[list[list[Completion]], int]:
        first = await many(policy)
        before = policy.stats["requests"]
        assert await many(policy) == first or "seed" in kind
        return first, policy.stats["requests"] - before

    (got, later), _, said, _ = run(STRICT[kind], twice, {"latency_s": 0.02})
    assert len({one[0].text for one in got}) == 24
    assert later == 24
    assert len(said) <= 1


def test_a_temperature_that_is_not_the_default_is_never_left_out() -> None:
    with pytest.raises(PolicyError, match=r"does not support 0\.7"):
        run(
            lambda b: (
                no("'temperature' does not support 0.7 with this model")
                if b.get("temperature", 1) != 1
                else None
            ),
            ask(Request(ASK.messages, temperature=0.7)),
        )


def test_stop_texts_that_are_refused_are_cut_off_here() -> None:
    def told(body: Body) -> Any:
        return (
            no("Unsupported parameter: 'stop' is not supported with this model.")
            if "stop" in body
            else chat("go on END more")
        )

    (answer,), policy, said, _ = run(told, ask(Request(ASK.messages, stop=("END",))))
    assert answer.text == "go on "
    assert policy.stats["stop_dropped"] == 1
    assert any("stop texts" in words for words in said)


# --- the limit on an answer


def limited(most: int, words: str) -> Callable[[Body], Any]:
    return lambda body: (
        no(words.format(asked=body["max_tokens"], most=most)) if body["max_tokens"] > most else None
    )


@pytest.mark.parametrize(
    "words",
    [
        (
            "max_tokens is too large: {asked}. This model supports at most {most} completion "
            "tokens, whereas you provided {asked}."
        ),
        (
            "max_tokens: {asked} > {most}, which is the maximum allowed number of output tokens "
            "for this model"
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum "
            "context length is {most} tokens and your request has 10 input tokens."
        ),
        (
            "The sum of prompt length (10), query length (0) and max_tokens ({asked}) should not "
            "exceed max_seq_len ({most})"
        ),
        "Range of max_tokens should be [1, {most}]",
    ],
)
def test_a_limit_that_no_prompt_would_fit_is_the_users_to_lower(words: str) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"An answer of up to 64 tokens is more than .* allows .*: lower max_tokens and "
            r"reflect_max_tokens"
        ),
    ) as raised:
        run(limited(32, words), ask())
    assert "\n" not in str(raised.value)
    assert len(run(limited(64, words), ask())[0]) == 1


def test_a_prompt_that_leaves_no_room_for_the_limit_is_a_full_context() -> None:
    def told(body: Body) -> Any:
        length = sum(len(m["content"].split()) for m in body["messages"])
        if length + body["max_tokens"] > 100:
            return no("This model's maximum context length is 100 tokens. You requested more.")
        return None

    with pytest.raises(ContextFull, match="maximum context length is 100"):
        run(told, ask(Request((Message("user", "word " * 60),), max_tokens=64)))


# --- a context that fills up while the answer is written


def context_of(length: int, *, models: bool = False) -> Callable[[Body], Any]:
    """A server that stops where prompt and answer fill its context, and says `length` as of any
    limit."""

    def told(body: Body) -> Any:
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        room = min(length - prompt, body["max_tokens"])
        return chat("x " * room, "length", prompt=prompt, generated=room)

    return told


def prompt_of(words: int) -> Request:
    return Request((Message("user", "word " * words),), max_tokens=64)


def test_an_answer_that_ends_with_the_context_is_told_from_one_that_ends_with_its_limit() -> None:
    async def go(policy: HTTPPolicy) -> list[str]:
        ends = []
        for words in (10, 30, 80, 90, 80, 95, 20):
            try:
                (answer,) = await policy.complete(prompt_of(words))
                ends.append(answer.finish)
            except ContextFull:
                ends.append("full")
        return ends

    # the first that is cut before its limit could have met any bound; another prompt with the same
    # sum cannot
    assert run(context_of(100), go)[0] == [
        "length",
        "length",
        "length",
        "full",
        "length",
        "full",
        "length",
    ]


def test_a_context_that_the_models_list_tells_is_known_from_the_first_answer_on() -> None:
    async def go(policy: HTTPPolicy) -> None:
        policy._endpoints[0].dialect.context = 100
        assert (await policy.complete(prompt_of(30)))[0].finish == "length"
        with pytest.raises(ContextFull, match="The prompt of 80 tokens leaves no room"):
            await policy.complete(prompt_of(80))

    run(context_of(100), go)


def test_a_bound_of_the_servers_own_on_answers_is_no_full_context() -> None:
    def told(body: Body) -> Any:
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        return chat("x " * 8, "length", prompt=prompt, generated=8)

    async def go(policy: HTTPPolicy) -> list[str]:
        return [
            (await policy.complete(prompt_of(words)))[0].finish for words in (10, 20, 30, 20, 10)
        ]

    assert run(told, go)[0] == ["length"] * 5


@pytest.mark.parametrize(
    "field", ["max_model_len", "context_length", "context_window", "max_context_length"]
)
def test_the_check_reads_the_context_from_the_models_list(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def models(server: FaultyServer, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "data": [
                    {"id": "mock", field: 4096},
                    {"id": "other", field: 1},
                    {"id": "odd", field: "many"},
                ]
            }
        )

    monkeypatch.setattr(FaultyServer, "_models", models)
    _, policy, _, _ = run(lambda b: None, check_and_ask)
    assert policy._endpoints[0].dialect.context == 4096


# --- answers that are none


@pytest.mark.parametrize("finish", ["abort", "error", "cancelled", None])
def test_an_answer_given_up_half_way_is_asked_for_again_and_counted(finish: str | None) -> None:
    left = [finish, finish]
    (answer,), policy, _, bodies = run(
        lambda b: chat("half", left.pop()) if left else chat("whole"), ask()
    )
    assert answer.text == "whole"
    assert (policy.stats["aborted"], policy.stats["retries"], len(bodies)) == (2, 2, 3)
    with pytest.raises(
        PolicyError,
        match=r"no answer after 3 tries: the answer was given up half-way \(finish_reason",
    ):
        run(lambda b: chat("half", finish), ask())


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_full_context_under_any_status_is_one(status: int) -> None:
    left = ["it is full"]
    with pytest.raises(ContextFull):
        run(
            lambda b: (
                no(
                    (
                        "The input token count (5000) exceeds the maximum number of tokens allowed "
                        "(4096)."
                    ),
                    status,
                )
                if left and left.pop()
                else None
            ),
            ask(),
        )


def test_a_gateway_that_takes_no_such_body_is_a_full_context() -> None:
    with pytest.raises(ContextFull):
        run(
            lambda b: (
                web.Response(status=413, text="<html>Request Entity Too Large</html>")
                if b["messages"][0]["content"] != "hi"
                else None
            ),
            ask(),
        )
    with pytest.raises(PolicyError) as raised:
        run(lambda b: no("Request too large on tokens per minute (TPM): Limit 6000", 413), ask())
    assert not isinstance(raised.value, ContextFull)


def test_an_error_that_comes_as_an_answer_is_read_by_its_own_status() -> None:
    left = [
        {"error": {"code": 503, "message": "overloaded"}},
        {"error": {"code": 429, "message": "slow down"}},
    ]
    _, policy, _, _ = run(lambda b: left.pop() if left else None, ask())
    assert (policy.stats["5xx"], policy.stats["429"]) == (1, 1)
    with pytest.raises(PolicyError, match="refused the request with status 400: no such field"):
        run(lambda b: {"error": {"code": 400, "message": "no such field"}}, ask())
    with pytest.raises(ContextFull):
        run(
            lambda b: (
                {"error": {"message": "maximum context length is 4096"}}
                if b["messages"][0]["content"] != "hi"
                else None
            ),
            ask(),
        )


def test_thinking_that_is_put_aside_is_said_once_and_counted() -> None:
    def told(body: Body) -> Any:
        answer = chat(f"Action: {body.get('seed')}")
        answer["choices"][0]["message"]["reasoning_content"] = "I think of the red door."
        return answer

    async def go(policy: HTTPPolicy) -> None:
        await check_and_ask(policy)
        await policy.complete(ASK)

    _, policy, said, _ = run(told, go)
    assert len([words for words in said if "thinking beside its answer" in words]) == 1
    assert policy.stats["reasoning_dropped"] >= 2
    assert policy.report()[0]["reasoning_dropped"] == policy.stats["reasoning_dropped"]


def test_a_redirect_says_where_to() -> None:
    def to(where: str, path: str = "chat/completions") -> str:
        with pytest.raises(PolicyError) as raised:
            run(
                lambda b: web.Response(status=307, headers={"Location": where} if where else {}),
                ask(),
                retries=0,
            )
        return str(raised.value)

    assert (
        "it redirects to https://other.example/v1/chat/completions; redirects are not followed: "
        "set base_url to https://other.example/v1."
        in to("https://other.example/v1/chat/completions?token=hush")
    )
    assert "set base_url to https://other.example/api" in to(
        "//other.example/api/chat/completions"
    ).replace("http://", "https://")
    slash = to("/v1/chat/completions/")
    assert (
        "/v1/chat/completions/; redirects are not followed: let the server answer there itself."
        in slash
    )
    assert "it redirects to no address" in to("")
    for odd in ("http://[", "http://x:port/", "\x1b]0;"):
        assert "redirects are not followed" in to(odd.replace("\x1b", "%1b"))


@pytest.mark.parametrize(
    "options",
    [
        {"extra": "x"},
        {"extra": [1]},
        {"extra": {"a": {1}}},
        {"extra": {"a": float("nan")}},
        {"model": 3},
        {"name": []},
        {"token_ids": "yes"},
        {"logprobs": 1},
        {"api_key_env": 3},
        {"api_key_env": "sk-0123456789abcdef"},
        {"api_key_env": "A=b"},
    ],
)
def test_options_of_another_kind_are_one_sentence_that_shows_no_value(
    options: dict[str, Any],
) -> None:
    with pytest.raises(UserError) as raised:
        HTTPPolicy(**{"base_url": "http://x/v1", "model": "m"} | options)
    assert next(iter(options)) in str(raised.value)
    assert "0123456789" not in str(raised.value)
