"""A server that speaks OpenEnv's protocol (openenv 0.10: /schema, and reset and step over /ws),
with one small game, and faults on demand.

with serving() as url: ...

Nothing of it hangs on the clock: it pings once after each reset, and answers no step before the
pong has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

from aiohttp import WSMsgType, web

SCHEMA = {
    "action": {
        "properties": {
            "metadata": {"type": "object"},
            "guess": {"type": "string", "maxLength": 20},
        },
        "required": ["guess"],
    },
    "observation": {
        "properties": {
            "done": {"type": "boolean"},
            "reward": {},
            "metadata": {"type": "object"},
            "hint": {"type": "string"},
            "left": {"type": "integer"},
        },
        "required": ["hint"],
    },
    "state": {},
}
"""As pydantic writes those of a class with one text of its own."""


class Game:
    def reset(self, data: dict[str, Any]) -> dict[str, Any]:
        self.secret, self.left = (
            random.Random(data.get("seed")).randrange(1, 11),
            data.get("tries", 6),
        )
        return self.seen("Guess a number from 1 to 10.", None, False)

    def step(self, guess: str) -> dict[str, Any]:
        self.left -= 1
        if guess == str(self.secret):
            return self.seen("Right.", 1.0, True)
        low = guess.isdecimal() and int(guess) < self.secret
        return self.seen("Higher." if low else "Lower.", 0.0, self.left == 0)

    def seen(self, hint: str, reward: float | None, done: bool) -> dict[str, Any]:
        metadata = {"solved": done and reward == 1.0}
        return {
            "observation": {"hint": hint, "left": self.left, "metadata": metadata},
            "reward": reward,
            "done": done,
            "metadata": metadata,
        }


PONGS = threading.Semaphore(0)
"""Released with every pong."""


async def schema(_request: web.Request) -> web.Response:
    return web.json_response(SCHEMA)


async def session(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(autoping=False)
    await socket.prepare(request)
    game = Game()
    waiting: list[str] = []  # what has come since the ping that has no pong yet
    pinged = False
    while True:
        if waiting and not pinged:
            text = waiting.pop(0)
        else:
            message = await socket.receive()
            if message.type is WSMsgType.PONG:
                pinged = False
                PONGS.release()
                continue
            if message.type is not WSMsgType.TEXT:
                break
            waiting.append(message.data)
            continue
        asked = json.loads(text)
        data = asked["data"]
        guess = data.get("guess")
        if asked["type"] == "reset":
            answer = {"type": "observation", "data": game.reset(data)}
            await socket.ping()
            pinged = True
        elif guess == "hang":
            await asyncio.sleep(3600)
            continue
        elif guess == "leave":  # once this answer is out
            await socket.send_json({"type": "observation", "data": game.step("0")})
            break
        elif guess == "die":
            break
        elif guess == "babble":
            await socket.send_str('{"type": "state", "data": {}}')
            continue
        elif guess == "boom":
            answer = {"type": "error", "data": {"message": "it broke", "code": "EXECUTION_ERROR"}}
        elif len(guess) > 20:
            errors = [{"msg": "String should have at most 20 characters"}]
            answer = {
                "type": "error",
                "data": {
                    "message": "Invalid message",
                    "code": "VALIDATION_ERROR",
                    "errors": errors,
                },
            }
        else:
            answer = {"type": "observation", "data": game.step(guess)}
        await socket.send_json(answer)
    return socket


TOOL_SCHEMA = {
    "action": {
        "properties": {
            "metadata": {"type": "object"},
            "type": {"type": "string", "const": "call_tool"},
            "tool_name": {"type": "string"},
            "arguments": {"type": "object"},
        },
        "required": ["tool_name"],
    },
    "observation": {"properties": {"tool_name": {"type": "string"}, "result": {}, "error": {}}},
    "state": {},
}
"""Of an MCP environment, whose action is `CallToolAction`."""


def call(tools: list[dict[str, Any]], data: dict[str, Any]) -> dict[str, Any]:
    """The data of the answer to a step of an MCP environment."""
    if data.get("type") == "list_tools":
        return {"observation": {"tools": tools}, "reward": None, "done": False}
    name, arguments = data["tool_name"], data["arguments"]
    result, error = None, None
    if name not in [tool["name"] for tool in tools]:
        error = {"error_type": "tool_not_found", "message": f"There is no tool {name}."}
    elif name == "add":
        content = [{"type": "text", "text": "five"}]
        result = {"content": content, "data": arguments["a"] + arguments["b"]}
    else:
        texts = [f"A {arguments['thing']}.", "Shut."]
        result = {"content": [{"type": "text", "text": t} for t in texts], "data": None}
    over = arguments.get("thing") == "exit"
    return {
        "observation": {"tool_name": name, "result": result, "error": error},
        "reward": 1.0 if over else None,
        "done": over,
    }


@contextlib.contextmanager
def serving_tools(tools: list[dict[str, Any]]) -> Iterator[str]:
    """The address of an MCP environment's server."""

    async def tool_schema(_request: web.Request) -> web.Response:
        return web.json_response(TOOL_SCHEMA)

    async def tool_session(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            asked = json.loads(message.data)
            if asked["type"] == "reset":
                data = {
                    "observation": {},
                    "reward": None,
                    "done": False,
                    "metadata": {"message": "Two tools are here."},
                }
            else:
                data = call(tools, asked["data"])
            await socket.send_json({"type": "observation", "data": data})
        return socket

    with _running([web.get("/schema", tool_schema), web.get("/ws", tool_session)]) as url:
        yield url


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of the game's server, for as long as the block lasts."""
    with _running([web.get("/schema", schema), web.get("/ws", session)]) as url:
        yield url


@contextlib.contextmanager
def _running(routes: list[web.RouteDef]) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    async def stop() -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # what hangs on purpose
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
