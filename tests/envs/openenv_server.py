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


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The server's address, for as long as the block lasts."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.add_routes([web.get("/schema", schema), web.get("/ws", session)])
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
