"""The HTTP policy against an endpoint that fails on demand."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from leafe.core import Completion, ContextFull, Message, Policy, PolicyError, Request, UserError
from leafe.policies import http
from leafe.policies.http import HTTPPolicy, _endpoint, _pool
from tests.faulty_server import FaultyServer, hasty, until

T = TypeVar("T")
ASK = Request((Message("user", "hello there"),), seed=11)


def run(
    work: Callable[[HTTPPolicy], Awaitable[T]], base_url: str, model: str = "mock", **options: Any
) -> tuple[T, HTTPPolicy]:
    async def go() -> tuple[T, HTTPPolicy]:
        policy = HTTPPolicy(base_url, model, **({"backoff_s": 0.005, "retries": 3} | options))
        try:
            return await work(policy), policy
        finally:
            await policy.close()

    return asyncio.run(go())


def ask(
    server: FaultyServer, request: Request = ASK, **options: Any
) -> tuple[list[Completion], HTTPPolicy]:
    return run(lambda p: p.complete(request), server.base_url, **options)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_it_is_a_policy_and_answers() -> None:
    with FaultyServer() as server:
        got, policy = ask(server)
        assert isinstance(policy, Policy)
        assert [c.count for c in got] == [1]
        assert got[0].text.startswith("Thought: none.")
        assert (got[0].usage.prompt, got[0].usage.cached) == (2, 1)
        assert policy.stats == {"requests": 1}
        assert policy.name == "mock"


# --- what passes by itself is tried again


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "429"),
        ("429-date", "429"),
        ("500", "5xx"),
        ("503", "5xx"),
        ("garbage", "garbage"),
        ("html", "garbage"),
        ("empty", "garbage"),
        ("no-message", "garbage"),
        ("error-200", "garbage"),
        ("partial", "connection"),
        ("reset", "connection"),
    ],
)
def test_a_passing_fault_costs_a_retry_and_no_more(fault: str, kind: str) -> None:
    with FaultyServer(script=[fault]) as server, FaultyServer() as calm:
        got, policy = ask(server)
        assert got == ask(calm)[0]
        assert policy.stats == {"requests": 2, "retries": 1, kind: 1}
        assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_hanging_answer_is_cut_off_and_asked_for_again(fault: str) -> None:
    with FaultyServer(script=[fault]) as server:

        async def go(policy: HTTPPolicy) -> list[Completion]:
            hasty(policy._endpoints[0], 1)
            return await policy.complete(ASK)

        got, policy = run(go, server.base_url)
        assert len(got) == 1
        assert policy.stats == {"requests": 2, "retries": 1, "timeout": 1}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", "status 500: internal error"),
        ("429", "status 429: slow down"),
        ("garbage", "not JSON"),
        ("reset", "connection"),
        ("hang", "0.2 s"),
        ("error-200", "upstream overloaded"),
    ],
)
def test_a_fault_that_stays_ends_in_one_sentence_that_names_address_and_cause(
    fault: str, cause: str
) -> None:
    with FaultyServer(script=[fault] * 9) as server:
        with pytest.raises(PolicyError) as raised:
            ask(server, retries=2, **({"timeout_s": 0.2} if fault == "hang" else {}))
        text = str(raised.value)
        assert text.startswith(f"{server.base_url}/chat/completions gave no answer after 3 tries: ")
        assert cause in text
        assert (
            len(server.bodies) == 3 or fault == "hang"
        )  # which may be given up before it has been read
        assert text.endswith(".")
        assert "\n" not in text


def test_an_endpoint_that_is_down() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(PolicyError, match="2 tries: the connection failed"):
        run(lambda p: p.complete(ASK), url, retries=1)


def waits(monkeypatch: pytest.MonkeyPatch, script: list[str], **options: Any) -> list[float]:
    """The waits between tries, not waited for."""
    real, seen = asyncio.sleep, []

    async def sleep(seconds: float) -> None:
        seen.append(seconds)
        await real(0)

    with FaultyServer(script=script) as server, monkeypatch.context() as patch:
        patch.setattr(_pool.asyncio, "sleep", sleep)
        ask(server, **options)
    return seen


def test_retry_after_is_waited_for_and_else_the_wait_doubles_with_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_wish = waits(monkeypatch, ["429"], backoff_s=1000.0)
    assert 0.05 in with_wish
    assert max(with_wish) < 1.0
    plain = [s for s in waits(monkeypatch, ["500"] * 6, backoff_s=8.0, retries=6) if s > 1]
    assert len(plain) == 6
    for wait, full in zip(plain, (8, 16, 32, 60, 60, 60), strict=True):
        assert full / 2 <= wait <= full


def test_the_jitter_is_seeded_by_the_address() -> None:
    def draw(url: str) -> list[float]:
        policy = HTTPPolicy(url, "m", backoff_s=1.0)
        return [policy._pool._wait(i, None) for i in range(4)]

    assert draw("http://a:1/v1") == draw("http://a:1/v1")
    assert draw("http://a:1/v1") != draw("http://b:1/v1")


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("-4", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)],
)
def test_retry_after_in_seconds_and_as_a_date(header: str, low: float, high: float) -> None:
    wait = _endpoint._retry_after(header)
    assert wait is not None
    assert low <= wait <= high


@pytest.mark.parametrize("header", [None, "", "soon", "nan", "inf"])
def test_a_retry_after_that_says_nothing_is_no_wish(header: str | None) -> None:
    assert _endpoint._retry_after(header) is None


def test_clocks_that_jump_cost_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _endpoint.time, "time", lambda: -1e10
    )  # ours, or the server's the other way
    asked = _endpoint._retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    assert asked is not None
    assert asked > 1e9
    with FaultyServer(script=["hang"]) as server:

        async def go(policy: HTTPPolicy) -> list[Completion]:
            hasty(policy._endpoints[0], 1)  # time-outs are counted by another clock
            return await policy.complete(ASK)

        got, policy = run(go, server.base_url)
        assert len(got) == 1
        assert policy._pool._wait(0, asked) == 60.0


# --- what does not pass is said at once


def test_a_full_context_is_its_own_error_and_not_tried_again() -> None:
    with FaultyServer(script=["context"]) as server:
        with pytest.raises(ContextFull, match="maximum context length is 16"):
            ask(server)
        # whether the limit on the answer alone is too much for it, as long as no answer has shown
        # that it is not
        assert [b["messages"][0]["content"] for b in server.bodies] == ["hello there", "hi"]
    with FaultyServer(script=["ok", "context"]) as server:

        async def twice(policy: HTTPPolicy) -> None:
            await policy.complete(ASK)
            with pytest.raises(ContextFull):
                await policy.complete(ASK)

        run(twice, server.base_url)
        assert len(server.bodies) == 2


@pytest.mark.parametrize("fault", ["400", "401", "404", "redirect"])
def test_other_refusals_are_not_tried_again(fault: str) -> None:
    with FaultyServer(script=[fault]) as server:
        with pytest.raises(
            PolicyError, match=r"refused the request with status .*; .*\.$"
        ) as raised:
            ask(server)
        assert not isinstance(raised.value, ContextFull)
        assert len(server.bodies) == 1


def test_an_unknown_model_says_what_to_do() -> None:
    with FaultyServer() as server, pytest.raises(PolicyError, match="check that base_url is right"):
        ask(server, model="other")


# --- servers that know less


@pytest.mark.parametrize(("limit", "n", "requests"), [(1, 5, 5), (2, 5, 3), (4, 5, 2), (8, 5, 1)])
def test_fewer_choices_than_asked_for_are_made_up_with_derived_seeds(
    limit: int, n: int, requests: int
) -> None:
    with FaultyServer(limit_n=limit) as server:
        many = Request(ASK.messages, n=n, seed=3)
        first, policy = ask(server, many)
        assert len(first) == n
        assert len({c.text for c in first}) == n
        assert len(server.bodies) == requests
        assert len({b["seed"] for b in server.bodies}) == requests
        assert policy.stats["fewer_choices"] == (1 if limit < n else 0)
        assert ask(server, many)[0] == first


def test_the_limit_is_remembered_and_changes_no_sample() -> None:
    with FaultyServer(limit_n=2) as server:
        many = Request(ASK.messages, n=5, seed=3)

        async def twice(policy: HTTPPolicy) -> tuple[list[Completion], list[Completion]]:
            return await policy.complete(many), await policy.complete(many)

        (one, two), policy = run(twice, server.base_url)
        assert one == two
        assert policy.stats["fewer_choices"] == 1
        assert [b.get("n") for b in server.bodies[:1]] == [5]
        assert max(b.get("n", 1) for b in server.bodies[1:]) == 2


def test_more_choices_than_asked_for_are_cut() -> None:
    with FaultyServer() as server:
        assert len(ask(server, ASK, extra={"n": 3})[0]) == 1


@pytest.mark.parametrize("says_why", [True, False])
def test_a_server_without_schemas_is_asked_without_from_then_on(says_why: bool) -> None:
    with FaultyServer(forbidden=["response_format"], says_why=says_why) as server:
        request = Request(ASK.messages, schema={"type": "object"}, seed=1)

        async def thrice(policy: HTTPPolicy) -> list[Completion]:
            return [c for _ in range(3) for c in await policy.complete(request)]

        with pytest.warns(UserWarning, match="does not take a JSON schema") as seen:
            got, policy = run(thrice, server.base_url)
        assert len(got) == 3
        assert len(seen) == 1
        assert policy.stats["schema_dropped"] == 1
        assert sum("response_format" in b for b in server.bodies) == 1


def test_a_bad_request_with_a_schema_is_not_blamed_on_the_schema() -> None:
    with FaultyServer(forbidden=["messages"], says_why=False) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PolicyError, match="bad request"):
            ask(server, Request(ASK.messages, schema={"type": "object"}))


def test_a_server_that_refuses_n_or_seeds() -> None:
    with FaultyServer(forbidden=["n"]) as server:
        with pytest.warns(UserWarning, match="more than one choice"):
            got, policy = ask(server, Request(ASK.messages, n=3, seed=1))
        assert len({c.text for c in got}) == 3
        assert policy.stats["n_dropped"] == 1
    with FaultyServer(forbidden=["seed"]) as server:
        with pytest.warns(UserWarning, match="does not take a seed"):
            got, policy = ask(server)
        assert len(got) == 1
        assert "seed" not in server.bodies[-1]


# --- the key

KEY = "sk-very-secret-123"


def test_the_key_comes_from_the_environment_and_shows_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FaultyServer(key=KEY) as server:
        with pytest.raises(PolicyError, match="set the environment variable MY_KEY to a valid key"):
            ask(server, api_key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", KEY + "\n")
        got, policy = ask(server, api_key_env="MY_KEY")
        assert len(got) == 1
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        shown = repr(policy) + str(vars(policy)) + str(policy.stats)
        assert "secret" not in shown
    with FaultyServer(key="another") as server:  # this server repeats the key that it was sent
        with pytest.raises(PolicyError) as raised:
            ask(server, api_key_env="MY_KEY")
        assert "Incorrect API key provided: ***" in str(raised.value)
        assert "secret" not in str(raised.value) + repr(raised.value.__cause__)
        with pytest.raises(UserError) as user:
            run(lambda p: p.check(), server.base_url, api_key_env="MY_KEY")
        assert "secret" not in str(user.value) + repr(user.value.__cause__)


def test_no_key_is_sent_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultyServer() as server:
        ask(server, api_key_env=None)
        assert "Authorization" not in server.headers[-1]


def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sécret\x07")
    with FaultyServer() as server, pytest.raises(UserError, match="OPENAI_API_KEY") as raised:
        ask(server)
    assert "cret" not in str(raised.value)


def test_keys_in_the_address_are_not_shown() -> None:
    with pytest.raises(UserError) as raised:
        HTTPPolicy("http://me:hunter2@host/v1", "m")
    assert "hunter2" not in str(raised.value)
    url = f"http://127.0.0.1:{free_port()}/v1?key=hunter2"
    with pytest.raises(PolicyError) as failed:
        run(lambda p: p.complete(ASK), url, retries=0)
    assert "hunter2" not in str(failed.value)


# --- before a run


def test_check_passes_where_all_is_well() -> None:
    with FaultyServer() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        _, policy = run(lambda p: p.check(), server.base_url)
        assert set(policy.stats) == {"requests"}


def test_check_says_that_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(
        UserError,
        match=r"1 try: the connection failed \(.*\): start the server or correct base_url\.$",
    ):
        run(lambda p: p.check(), url)


def test_check_names_the_models_that_there_are() -> None:
    with (
        FaultyServer(models=["a", "b"]) as server,
        pytest.raises(UserError, match=r"'nosuch' .it serves 'a', 'b'. with status 404"),
    ):
        run(lambda p: p.check(), server.base_url, model="nosuch")


def test_check_asks_for_one_token_where_there_is_no_list() -> None:
    with FaultyServer(lists_models=False) as server:
        run(lambda p: p.check(), server.base_url)
        assert server.bodies[0]["max_tokens"] == 16
        with pytest.raises(UserError, match="refuses model 'nosuch' with status 404"):
            run(lambda p: p.check(), server.base_url, model="nosuch")


def test_check_says_that_the_address_is_wrong() -> None:
    with FaultyServer() as server, pytest.raises(UserError, match="it usually ends in /v1"):
        run(lambda p: p.check(), server.base_url.removesuffix("/v1"))


def test_check_says_that_the_server_fails() -> None:
    with (
        FaultyServer(script=["500"] * 99) as server,
        pytest.raises(UserError, match=r"does not work: .* after 4 tries: status 500"),
    ):
        run(lambda p: p.check(), server.base_url)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://x/v1"},
        {"base_url": "http:///v1"},
        {"base_url": "http://x:99999/v1"},
        {"model": ""},
        {"timeout_s": 0},
        {"retries": -1},
        {"concurrency": 0},
        {"backoff_s": float("nan")},
        {"deadline_s": 0},
        {"base_url": []},
        {"base_url": ["http://x/v1", "http://x/v1/"]},
        {"base_url": ["http://x/v1", "y"]},
        {"base_url": "http://ex ample/v1"},
        {"base_url": 3},
        {"base_url": [None]},
        {"timeout_s": "long"},
        {"retries": True},
    ],
)
def test_bad_options_are_the_users_mistake(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        HTTPPolicy(**({"base_url": "http://x/v1", "model": "m"} | options))


# --- connections


def test_many_requests_share_few_connections_and_keep_the_limit() -> None:
    with FaultyServer(latency_s=0.002) as server:

        async def many(policy: HTTPPolicy) -> list[list[Completion]]:
            return await asyncio.gather(
                *(policy.complete(Request((Message("user", str(i)),), seed=i)) for i in range(100))
            )

        got, _ = run(many, server.base_url, concurrency=4)
        assert len({c.text for one in got for c in one}) == 100
        assert 1 <= len(server.connections) <= 4


def test_it_works_again_after_close_and_in_another_event_loop() -> None:
    with FaultyServer() as server:
        policy = HTTPPolicy(server.base_url, "mock")

        async def once() -> list[Completion]:
            try:
                return await policy.complete(ASK)
            finally:
                await policy.close()
                await policy.close()

        assert asyncio.run(once()) == asyncio.run(once())


def test_a_cancelled_request_frees_its_slot() -> None:
    with FaultyServer(script=["hang"]) as server:

        async def go(policy: HTTPPolicy) -> list[Completion]:
            going = asyncio.ensure_future(policy.complete(ASK))
            await until(lambda: server.bodies)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            return await policy.complete(ASK)

        assert len(run(go, server.base_url, concurrency=1)[0]) == 1


def test_faults_by_chance_change_no_sample() -> None:
    rates = {"429": 0.08, "500": 0.08, "garbage": 0.08, "reset": 0.08, "partial": 0.08}

    async def many(policy: HTTPPolicy) -> list[list[Completion]]:
        return await asyncio.gather(
            *(policy.complete(Request((Message("user", str(i)),), n=2, seed=i)) for i in range(40))
        )

    with FaultyServer(rates=rates, seed=5) as faulty, FaultyServer() as calm:
        got, policy = run(many, faulty.base_url, retries=12)
        assert got == run(many, calm.base_url)[0]
        renewed = policy.report()[0][
            "renewed"
        ]  # a reset that came on a kept connection costs no try
        assert policy.stats["retries"] + renewed == sum(faulty.faults[f] for f in rates) > 10
        assert policy.stats["given_up"] == 0


def test_the_mock_endpoint_runs_as_a_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faulty_server", "--rates", '{"500": 1.0}'],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            url = child.stdout.readline().strip()
            with pytest.raises(PolicyError, match="status 500"):
                run(lambda p: p.complete(ASK), url, retries=0)
        finally:
            child.kill()


def test_a_recipe_with_hedge_is_told_that_it_was_removed_and_a_stored_one_opens() -> None:
    from leafe.recipes import load_recipe
    from leafe.recipes._schema import parse_stored_recipe

    small = str(Path(__file__).parents[1] / "pipeline" / "small.toml")
    url = "policy.options.base_url=http://127.0.0.1:1/v1"
    with pytest.raises(UserError, match=r"policy\.options\.hedge was removed in leafe 0\.2"):
        load_recipe(small, ["policy.kind=http", url, "policy.options.hedge=4.0"])
    data = load_recipe(small, ["policy.kind=http", url]).model_dump(mode="json", exclude_none=True)
    data["policy"]["options"]["hedge"] = 4.0
    assert "hedge" not in parse_stored_recipe(data, "The run").policy.options


def test_the_face_of_the_package() -> None:
    assert http.__all__ == ["HTTPPolicy"]
