"""A chat-completions endpoint on 127.0.0.1 that fails on demand, for tests and benchmarks.

Faults come from a script (one entry a request, then none) or by chance from a seed. The text of a
sample is a pure function of
(messages, seed, index) unless `reply` is given. Use it in this process (a thread of its own):

    with FaultyServer(script=["429", "500"]) as server:
        policy = HTTPPolicy(server.base_url, "mock")

or as a process: `python -m tests.faulty_server --rates '{"500": 0.1}'` prints its base_url and
serves until it is killed.
Faults: ok, 429 (Retry-After: 0.05), 429-date, 500, 503, 400, 401, 404, context, garbage, html,
empty (no choices), no-message, error-200, hang,
partial (half a body, then the connection closes), reset (closed before any answer), drip (a byte
now and then, for ever), redirect, slow (half a second),
held (until `released` is set),
leak-400, leak-500, leak-200, leak-garbage (an answer that holds the key it was sent, as a careless
gateway's does).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from hashlib import blake2b
from typing import Any

from aiohttp import web

Reply = Callable[[Mapping[str, Any], int], str]
"""(request body, index of the sample) -> text."""


def plain_reply(body: Mapping[str, Any], index: int) -> str:
    text = json.dumps([body["messages"], body.get("seed"), index])
    return f"Thought: none.\nAction: act {blake2b(text.encode(), digest_size=3).hexdigest()}"


class FaultyServer:
    """`limit_n`: the most choices an answer holds. `forbidden`: body fields that are answered by
    400, whose sentence names the field
    if `says_why`. `key`: what the Authorization header must bear. `latency_s`: the time before an
    answer. `holds`: the body field in which it takes a
    schema, None: it ignores all. `ignores`: `seed` (every answer is another) and `n` (all choices
    are one text) may stand there.
    `told`: what it answers to a request's body instead of all this, a body with the status 200, a
    status and a body, or a whole response; None: as ever.
    `gives`: `token_ids`,
    `response_token_ids` and `logprobs` (with `ids in logprobs`, these too) are in its answers where
    they are asked for. `healthy`: what /health says.
    """

    def __init__(
        self,
        *,
        script: Sequence[str] = (),
        rates: Mapping[str, float] | None = None,
        seed: int = 0,
        reply: Reply = plain_reply,
        models: Sequence[str] = ("mock",),
        lists_models: bool = True,
        limit_n: int | None = None,
        forbidden: Sequence[str] = (),
        says_why: bool = True,
        key: str | None = None,
        latency_s: float = 0.0,
        holds: str | None = "response_format",
        ignores: Sequence[str] = (),
        gives: Sequence[str] = (),
        healthy: bool = True,
        told: Callable[[Mapping[str, Any]], Any] = lambda body: None,
        port: int = 0,
    ) -> None:
        self.script = list(script)
        self.rates = dict(rates or {})
        self.chance = random.Random(seed)
        self.reply = reply
        self.models = list(models)
        self.lists_models = lists_models
        self.limit_n = limit_n
        self.forbidden = tuple(forbidden)
        self.says_why = says_why
        self.key = key
        self.latency_s = latency_s
        self.holds = holds
        self.ignores = tuple(ignores)
        self.gives = tuple(gives)
        self.healthy = healthy
        self.told = told
        self.port = port
        self.bodies: list[dict[str, Any]] = []
        """Every chat request's body, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.cancelled = 0
        """Chat requests whose client went away before the answer."""
        self.connections: set[int] = set()
        self.released = threading.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultyServer:
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10), "the mock endpoint did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        if self._thread.is_alive():  # a test may have ended it
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def serve(self) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def _refuses_key(self, request: web.Request) -> web.Response | None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            sent = request.headers.get("Authorization", "none").removeprefix("Bearer ")
            return web.json_response(
                {"error": {"message": f"Incorrect API key provided: {sent}"}}, status=401
            )
        return None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if not self.lists_models:
            raise web.HTTPNotFound
        return self._refuses_key(request) or web.json_response(
            {"object": "list", "data": [{"id": m} for m in self.models]}
        )

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"}, status=200 if self.healthy else 503)

    def _next_fault(self) -> str:
        if self.script:
            return self.script.pop(0)
        dice = self.chance.random()
        for fault, rate in self.rates.items():
            dice -= rate
            if dice < 0:
                return fault
        return "ok"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(id(request.transport))
        fault = self._next_fault()
        self.faults[fault] += 1
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if fault != "ok":
                return await self._fail(request, fault, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        refused = self._refuses_key(request)
        if refused is not None:
            return refused
        told = self.told(body)
        if told is not None:
            if isinstance(told, web.StreamResponse):
                return told
            status, value = told if isinstance(told, tuple) else (200, told)
            return web.json_response(value, status=status)
        if body["model"] not in self.models:
            return web.json_response(
                {"error": {"message": f"The model `{body['model']}` does not exist."}}, status=404
            )
        for name in self.forbidden:
            if name in body:
                why = f"'{name}' is not supported" if self.says_why else "bad request"
                return web.json_response({"error": {"message": why}}, status=400)
        return web.json_response(self._answer(body))

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        n = min(body.get("n", 1), self.limit_n or 10**9)
        seen = {**body, "seed": len(self.bodies)} if "seed" in self.ignores else body
        texts = [self.reply(seen, 0 if "n" in self.ignores else i) for i in range(n)]
        if self.holds in body and self.reply is plain_reply:
            texts = [json.dumps({"step": 0, "experience": t[-6:]}) for t in texts]
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        choices: list[dict[str, Any]] = [
            {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": "stop"}
            for i, t in enumerate(texts)
        ]
        for choice, text in zip(choices, texts, strict=True):
            words = text.split()

            def ids(word: str) -> dict[str, int]:
                return {"id": len(word)} if "ids in logprobs" in self.gives else {}

            for field in ("token_ids", "response_token_ids"):
                if field in self.gives and body.get("return_token_ids"):
                    choice[field] = [len(w) for w in words]
            if "logprobs" in self.gives and body.get("logprobs"):
                choice["logprobs"] = {
                    "content": [{"token": w, "logprob": -0.5} | ids(w) for w in words]
                }
        return {
            "model": body["model"],
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": sum(len(t.split()) for t in texts),
                "prompt_tokens_details": {"cached_tokens": prompt // 2},
            },
        }

    async def _fail(
        self, request: web.Request, fault: str, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        good = json.dumps(self._answer(body)).encode()
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        match fault:
            case "slow":
                await asyncio.sleep(0.5)
                return web.Response(body=good, content_type="application/json")
            case "held":
                while not self.released.is_set():
                    await asyncio.sleep(0.01)
                return web.Response(body=good, content_type="application/json")
            case "leak-400" | "leak-500":
                long = "x" * 285  # the sentence is cut at 300 characters: in the midst of the key
                return web.json_response(
                    {"error": {"message": f"bad key {sent}; {long}{sent}"}}, status=int(fault[-3:])
                )
            case "leak-200":
                return web.json_response({"error": {"message": f"upstream refused {sent}"}})
            case "leak-garbage":
                return web.Response(text=f"Bearer {sent} was not accepted")
            case "429":
                return web.json_response(
                    {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.05"}
                )
            case "429-date":
                return web.Response(status=429, headers={"Retry-After": formatdate(usegmt=True)})
            case "500" | "503":
                return web.Response(status=int(fault), text="internal error")
            case "400" | "401" | "404":
                return web.json_response({"error": {"message": "no such thing"}}, status=int(fault))
            case "context":
                text = (
                    "This model's maximum context length is 16 tokens. However, you requested "
                    "99 tokens."
                )
                return web.json_response(
                    {"error": {"message": text, "code": "context_length_exceeded"}}, status=400
                )
            case "garbage":
                return web.Response(body=b'{"choices": [{"mess', content_type="application/json")
            case "html":
                return web.Response(text="<html>gateway</html>", content_type="text/html")
            case "empty":
                return web.json_response({"choices": []})
            case "no-message":
                return web.json_response({"choices": [{"index": 0, "text": "old style"}]})
            case "error-200":
                return web.json_response({"error": {"message": "upstream overloaded"}})
            case "redirect":
                return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
            case "hang":
                await asyncio.sleep(3600)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case "partial" | "drip":
                response = web.StreamResponse(headers={"Content-Length": str(len(good))})
                await response.prepare(request)
                if fault == "partial":
                    await response.write(good[: len(good) // 2])
                    assert request.transport is not None
                    request.transport.close()
                for byte in good[:-1] if fault == "drip" else b"":
                    await response.write(bytes([byte]))
                    await asyncio.sleep(0.2)
                return response
            case _:
                raise ValueError(f"no such fault: {fault}")
        return web.Response()


def hasty(endpoint: Any, tries: int, seconds: float = 0.3) -> None:
    """Cut off the next tries of a policy's endpoint early.

    All later ones have their time: what is to fail by a time-out does, and nothing else.
    """
    send, usual = endpoint.send, endpoint.timeout_s

    async def timed(*args: Any) -> Any:
        nonlocal tries
        endpoint.timeout_s = seconds if tries > 0 else usual  # it is read before anything waits
        tries -= 1
        return await send(*args)

    endpoint.send = timed


async def until(condition: Callable[[], object]) -> None:
    """Waits for what will come, however long the machine needs: the test's own time limit bounds
    it."""
    while not condition():
        await asyncio.sleep(0.005)


async def _main() -> None:
    parser = argparse.ArgumentParser(
        description="A chat-completions endpoint that fails on demand."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rates",
        type=json.loads,
        default={},
        help='chance of each fault, as JSON: {"500": 0.1, "hang": 0.01}',
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    given = parser.parse_args()
    server = FaultyServer(
        port=given.port, seed=given.seed, rates=given.rates, latency_s=given.latency
    )
    serving = asyncio.ensure_future(server.serve())
    while not server._ready.is_set():
        await asyncio.sleep(0.01)
    print(server.base_url, flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(_main())
