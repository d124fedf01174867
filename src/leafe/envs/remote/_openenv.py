"""OpenEnv's protocol in front of the session table: `/ws` is a session, `/schema` describes it.

Messages are OpenEnv's (`reset`, `step`, `state`, `close`, and tools as steps of the types
`list_tools` and `call_tool`). leafe adds three message types (`snapshot`, `restore`,
`valid_actions`), the query `/ws?session=NAME`, which keeps a session over a lost connection, and
the field `call`, the number under which a call is answered once. A client that knows nothing of
these sees an ordinary OpenEnv server. Written after openenv's
`core/env_server/{http_server,types,mcp_types}.py`, version 0.10; its package is not needed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from secrets import randbelow, token_hex
from typing import Any

from aiohttp import WSMsgType, web

from leafe.core import Environment
from leafe.envs.remote._sessions import CALLS, SessionTable, task_list
from leafe.envs.remote._wire import MAX_BODY, Malformed, Refused, decode, encode, integer, string

TOOL = "act"
"""The one tool that every environment has: it takes an action as text."""
_PIPELINED = 16
"""Messages that are read ahead of the one that is being answered."""
_ERROR_CODES: Mapping[str, str] = {"busy": "CAPACITY_REACHED", "lost": "SESSION_ERROR"}
"""Kind of error -> OpenEnv's code; EXECUTION_ERROR for all others."""


def schema(facts: Environment) -> dict[str, Any]:
    """JSON schemas of action, observation and state, for `GET /schema`."""
    text = {"type": "string"}
    flags = {name: {"type": "boolean"} for name in ("valid", "success", "done")}
    number: dict[str, Any] = {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}
    free = {"type": "object", "default": {}}
    return {
        "action": {
            "title": "Action",
            "type": "object",
            "properties": {"metadata": free, "text": text | {"description": facts.actions_help}},
            "required": ["text"],
        },
        "observation": {
            "title": "LeafeObservation",
            "type": "object",
            "properties": {
                "text": text,
                **flags,
                "progress": number,
                "info": free,
                "reward": number,
                "metadata": free,
            },
            "required": ["text"],
        },
        "state": {
            "title": "State",
            "type": "object",
            "properties": {
                "episode_id": {"anyOf": [text, {"type": "null"}], "default": None},
                "step_count": {"type": "integer", "minimum": 0, "default": 0},
                "task_id": text,
            },
        },
    }


def get(path: str, facts: Environment, versions: Mapping[str, str]) -> Any:
    """The answer to a GET of OpenEnv's; None where it has no such path."""
    splits = tuple(getattr(facts, "splits", ()))
    match path:
        case "health":
            return {"status": "healthy"}
        case "schema":
            return schema(facts)
        case "metadata":
            about = facts.actions_help or f"The environment {facts.name!r}, served by leafe."
            return {"name": facts.name, "description": about, "version": json.dumps(versions)}
        case "state":  # of an environment that nobody has reset: sessions are on /ws
            return {"episode_id": None, "step_count": 0}
        case "list_environments":
            return [facts.name]
        case _ if path == f"{facts.name}/splits":
            known = {"train": "train", "test": "test"}
            return [{"name": name, "type": known.get(name, "validation")} for name in splits]
    return None


TASK_CALLS = ("tasks", "num_tasks", "task", "task_range")


async def post_tasks(what: str, table: SessionTable, body: Mapping[str, Any]) -> bytes:
    """The answer to one of OpenEnv's calls on tasks, `POST /NAME/tasks` and its kin."""
    split = string(body, "split")
    start = 0 if body.get("start") is None else integer(body, "start", least=0)
    stop = None if body.get("stop") is None else integer(body, "stop", least=0)
    index = integer(body, "index", least=0) if what == "task" else 0

    def answer(facts: Environment) -> bytes:
        if what == "task":
            found = task_list(facts, split, index + 1, 0)
            if len(found) <= index:
                raise _no_such_task(split, index, len(found))
            return encode({"task": found[index]})
        found = task_list(facts, split, None if what != "task_range" else stop, 0)
        if what == "num_tasks":
            return encode({"num_tasks": len(found)})
        return encode({"tasks": found[start:], "env_name": facts.name})

    return await table.with_facts(answer)


class WebSocketSession:
    """One `/ws` connection: it reads messages and answers each in turn."""

    def __init__(self, table: SessionTable, request: web.BaseRequest) -> None:
        self._table, self._request = table, request
        named = request.query.get("session", "")
        self._named, self._name = bool(named), named or token_hex(16)
        self._episode_id: str | None = None

    async def serve(self) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_BODY)
        await socket.prepare(self._request)
        messages: asyncio.Queue[str | None] = asyncio.Queue(_PIPELINED)
        reader = asyncio.create_task(self._read(socket, messages))
        try:
            while (raw := await messages.get()) is not None:
                answer = await self._answer(raw)
                if answer is None:
                    break
                await socket.send_str(encode(answer).decode())
        except ConnectionError:  # the client has gone
            pass
        finally:
            reader.cancel()
            self._end()
        await asyncio.wait({reader})
        await socket.close()
        return socket

    async def _read(
        self, socket: web.WebSocketResponse, messages: asyncio.Queue[str | None]
    ) -> None:
        """Reads while a call runs too, so that pings are answered and a lost client is noticed."""
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            await messages.put(message.data)
        self._end()  # a call that hangs in a process of its own ends now
        await messages.put(None)

    def _end(self) -> None:
        if not self._named:
            self._table.close(self._name)

    async def _answer(self, raw: str) -> dict[str, Any] | None:
        """The answer to one message; None where the client closes the session."""
        try:
            message = decode(raw.encode())
        except (ValueError, RecursionError) as error:
            return _error("INVALID_JSON", f"The message is no JSON object ({error}).")
        kind, data = message.get("type"), message.get("data", {})
        try:
            if not isinstance(data, dict):
                raise Malformed("'data' is no object")
            match kind:
                case "close":
                    self._table.close(self._name)
                    return None
                case "state":
                    return {"type": "state", "data": self._state()}
                case "step" if data.get("type") == "list_tools":
                    return _observation({"tools": [self._tool()]}, {"reward": None, "done": False})
                case "reset":
                    return await self._reset(message, data, raw)
                case "step":
                    return await self._step(message, data, raw)
                case str() if kind in CALLS:  # leafe's own
                    answer = await self._call(message, kind, data, raw)
                    return {"type": kind, "data": answer}
            return _error("UNKNOWN_TYPE", f"Unknown message type: {str(kind)[:40]}")
        except Malformed as error:
            errors = [{"type": "value_error", "loc": [], "msg": f"{error}"}]
            return _error("VALIDATION_ERROR", f"Invalid message: {error}.", errors=errors)
        except Refused as refused:
            code = _ERROR_CODES.get(refused.kind, "EXECUTION_ERROR")
            return _error(code, str(refused), kind=refused.kind)

    async def _reset(
        self, message: Mapping[str, Any], data: Mapping[str, Any], raw: str
    ) -> dict[str, Any]:
        """`task` (an object) is played as given; else `seed` draws a task of `split`, the one at
        `index` (default 0). The seed is also the reset's; without one it is random."""
        facts = self._table.facts
        given = data.get("seed") is not None
        seed = integer(data, "seed", least=0) if given else randbelow(2**31)
        task = data.get("task")
        if task is None:
            splits = tuple(getattr(facts, "splits", ()))
            split = string(data, "split", splits[0] if splits else "train")
            index = integer(data, "index", 0, least=0)
            found = await self._table.with_facts(lambda env: task_list(env, split, index + 1, seed))
            if len(found) <= index:
                raise _no_such_task(split, index, len(found))
            task = found[index]
        answer = await self._call(message, "reset", {"task": task, "seed": seed}, raw)
        episode_id = data.get("episode_id")
        self._episode_id = episode_id if isinstance(episode_id, str) else token_hex(8)
        start: dict[str, Any] = {"valid": True, "success": False, "progress": None, "info": {}}
        return _observation(
            {"text": answer["observation"], **start},
            {"reward": None, "done": False, "metadata": {"task": task, "seed": seed}},
        )

    async def _step(
        self, message: Mapping[str, Any], data: Mapping[str, Any], raw: str
    ) -> dict[str, Any]:
        is_tool = data.get("type") == "call_tool"
        if is_tool:
            name, arguments = string(data, "tool_name"), data.get("arguments", {})
            error = _tool_error(name, arguments)
            if error is not None:
                observation = {"tool_name": name, "result": None, "error": error}
                return _observation(observation, {"reward": None, "done": False})
            data = arguments
        result = await self._call(message, "step", {"action": string(data, "text")}, raw)
        outcome = {"reward": result.pop("reward"), "done": result.pop("done")}
        text = result.pop("observation")
        if is_tool:
            observation = {"tool_name": TOOL, "result": text, "error": None}
            return _observation(observation, outcome | {"metadata": result})
        return _observation({"text": text, **result}, outcome)

    async def _call(
        self, message: Mapping[str, Any], what: str, body: Mapping[str, Any], raw: str
    ) -> dict[str, Any]:
        session = self._table.sessions.get(self._name)
        number = integer(message, "call", 1 if session is None else session.calls + 1, least=1)
        _, answer = await self._table.call(
            self._name,
            number,
            what,
            body,
            raw.encode(),
            self._request.transport,
        )
        found = decode(answer)
        error = found.get("error")
        if error is not None:
            raise Refused(error["kind"], error["message"])
        return found

    def _state(self) -> dict[str, Any]:
        session = self._table.sessions.get(self._name)
        return {
            "episode_id": self._episode_id,
            "step_count": 0 if session is None else session.steps,
            "task_id": "" if session is None else session.task_id,
        }

    def _tool(self) -> dict[str, Any]:
        text = {"type": "string", "description": "The action, as the environment takes it."}
        return {
            "name": TOOL,
            "description": self._table.facts.actions_help or "Take one action.",
            "input_schema": {"type": "object", "properties": {"text": text}, "required": ["text"]},
        }


def _tool_error(name: str, arguments: object) -> dict[str, str] | None:
    """OpenEnv's `ToolError` for a call that no tool takes; None for a call of `TOOL`."""
    if name != TOOL:
        message = f"There is no tool {name[:40]!r}: the only one is {TOOL!r}."
        return {"error_type": "tool_not_found", "message": message}
    if not isinstance(arguments, dict) or not isinstance(arguments.get("text"), str):
        return {"error_type": "invalid_args", "message": f"The tool {TOOL!r} takes a 'text'."}
    return None


def _no_such_task(split: str, index: int, count: int) -> Refused:
    return Refused("user", f"The split {split!r} has {count} tasks: there is no index {index}.")


def _observation(observation: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": observation, **outcome}}


def _error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code, **more}}
