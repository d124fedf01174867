"""An OpenEnv server, played: one WebSocket is one session there, an action is a field of JSON or a
tool call, a seed is a task.

OpenEnv has no way back to an earlier state, so rollback is reset and replay, and leafe compares
every answer: this works where the server honours seeds. The protocol (openenv 0.10: `/schema`, then
`reset` and `step` messages over `/ws`) is spoken by aiohttp alone; the package `openenv` is not
needed on this side. A task of its own reads the messages, since a server whose pings go unanswered
hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import aiohttp

from leafe.core import EnvError, Environment, StepResult, Task, UserError
from leafe.envs._options import whole_number
from leafe.envs.adapters._tasks import SPLIT_SIZE, SPLITS, seed_tasks
from leafe.envs.remote import _loop

_MAX_MESSAGE = 100 * 2**20
"""Bytes of one message; OpenEnv's own client allows as much."""
_INVALID_CALL = ("tool_not_found", "invalid_args")
"""OpenEnv's kinds of error for a tool call that nothing took."""


class OpenEnv(Environment):
    """Environments on an OpenEnv server, by its address.

    A server whose action is a tool call (OpenEnv's MCP environments) is asked for its tools. An
    action is then `{"name": ..., "arguments": {...}}`, or just the text where the only tool takes
    one text.

    Args:
        url: The server's address, such as http://localhost:8000.
        action_field: The field of the action that takes the text; default: the only one that is
            required.
        text_field: The field of the observation that is shown; default: its only text.
        actions: Names of the actions, in order from 0, where the action's field is a number.
        reset: Further arguments of every reset.
        success: The least reward of the step that ends the episode, or the name of a field of the
            observation or its metadata that is true on success; default: a last reward above 0.
        instruction: The instruction of every task.
        actions_help: What actions there are; default: made from the server's description.
        horizon: The most steps of an episode.
        tasks: Seeds in a split.
        timeout: Seconds for one answer.
        deterministic: False for a server that does not honour seeds.

    Raises:
        UserError: An option is not usable, or no OpenEnv server answers.
    """

    name = "openenv"
    heavy = True
    splits = SPLITS
    needs: ClassVar[str] = "an OpenEnv server at the option url"

    def __init__(
        self,
        url: str,
        action_field: str = "",
        text_field: str = "",
        actions: Sequence[str] | None = None,
        reset: Mapping[str, Any] | None = None,
        success: float | str | None = None,
        instruction: str = "Reach the goal of this environment.",
        actions_help: str = "",
        horizon: int = 30,
        tasks: int = 1000,
        timeout: float = 60.0,
        deterministic: bool = True,
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise UserError(
                f"The environment 'openenv': url = {url!r} is no web address: write "
                "http://HOST:PORT."
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise UserError(
                f"The environment 'openenv' cannot have timeout = {timeout!r}: give "
                "seconds, more than 0."
            )
        self.url = url.rstrip("/")
        self.reset_arguments, self.success = dict(reset or {}), success
        self.instruction, self.deterministic = instruction, deterministic
        self.horizon = whole_number(self.name, "horizon", horizon)
        self.number = whole_number(self.name, "tasks", tasks, most=SPLIT_SIZE)
        self.connection = Connection(self.url, float(timeout))
        schema = self.connection.schema()
        action, observation = schema["action"], schema["observation"]
        self.actions = tuple(str(name) for name in actions or ())
        self._as_number = False
        self._served_by_leafe = observation.get("title") == "LeafeObservation"
        self._tools: list[Mapping[str, Any]] | None = None
        if not action_field and {"tool_name", "arguments"} <= action.get("properties", {}).keys():
            self._tools = self.connection.tools()
            self.action_field, self.text_field = "tool_name", text_field
            self.actions_help = actions_help or _tools_help(self._tools)
        else:
            self.action_field = action_field or _only_field(action, "action", required=True)
            self.text_field = text_field or _only_field(observation, "observation", required=False)
            self._as_number = _type_of(action, self.action_field) == "integer"
            about = action.get("properties", {}).get(self.action_field, {}).get("description")
            self.actions_help = actions_help or (
                f"Each action is one of these: {', '.join(self.actions)}."
                if self.actions
                else about or "An action is a text."
            )
        if self._as_number and not self.actions:
            raise UserError(
                f"The environment 'openenv': {self.action_field!r} is a number: name the "
                "actions in their order, from 0, in the option actions."
            )
        self._done = True

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Seeds of the split's range in an order drawn by `seed`."""
        where = self.url.split("://")[1].replace("/", "-")
        return seed_tasks(self.name, where, self.instruction, self.number, split, count, seed)

    def reset(self, task: Task, seed: int) -> str:
        """The server gets the task's own seed; `seed` is not used."""
        data = self.connection.ask(
            {"type": "reset", "data": self.reset_arguments | {"seed": int(task.payload["seed"])}},
            opens=True,
        )
        self._done = False
        return self._text(data)

    def step(self, action: str) -> StepResult:
        if self._done:
            return StepResult("The episode is over. Nothing changed.", valid=False, done=True)
        message, problem = self._message(action.strip())
        if not problem:
            try:
                data = self.connection.ask({"type": "step", "data": message})
            except InvalidAction as refused:
                problem = (
                    f"The environment does not take this action ({refused}). {self.actions_help}"
                )
        if problem:
            return StepResult(f"{problem} Nothing changed.", valid=False)
        text, reward = self._text(data), float(data.get("reward") or 0.0)
        self._done = bool(data.get("done"))
        observation = data["observation"]
        if self._served_by_leafe:
            valid, progress = observation.get("valid") is not False, observation.get("progress")
        else:
            error = observation.get("error") if self._tools is not None else None
            kind = error.get("error_type") if isinstance(error, Mapping) else None
            valid, progress = kind not in _INVALID_CALL, None
        won = self._done and self._won(reward, data)
        if self._done:
            text += f"\nThe episode is over. You have {'succeeded' if won else 'failed'}."
        return StepResult(text, reward, self._done, won, valid, progress)

    def close(self) -> None:
        self.connection.close()

    def _message(self, text: str) -> tuple[dict[str, Any], str]:
        """The step's data; or a sentence on why the text is no action."""
        if self._tools is not None:
            call = _tool_call(text, self._tools)
            if call is None:
                return {}, f"This is no tool call. {self.actions_help}"
            return {"type": "call_tool", **call}, ""
        if self.actions:
            wanted = text.lower().strip(" .!'\"`[]")
            found = [i for i, name in enumerate(self.actions) if name.lower() == wanted]
            if not found:
                names = ", ".join(self.actions)
                return {}, f"There is no action {text[:40]!r}: say one of {names}."
            value = found[0] if self._as_number else self.actions[found[0]]
            return {self.action_field: value}, ""
        if not text and not self._served_by_leafe:  # leafe's server has a sentence of its own
            return {}, f"An empty text is no action. {self.actions_help}"
        return {self.action_field: text}, ""

    def _won(self, reward: float, data: Mapping[str, Any]) -> bool:
        if isinstance(self.success, str):
            places = (data["observation"], data.get("metadata") or {})
            return any(bool(place.get(self.success)) for place in places)
        return reward > 0 if self.success is None else reward >= self.success

    def _text(self, data: Mapping[str, Any]) -> str:
        observation = data["observation"]
        if self._tools is not None and self.text_field not in observation:
            return _tool_text(observation, data.get("metadata") or {})
        if self.text_field not in observation:
            there = ", ".join(map(str, observation)) or "nothing"
            raise EnvError(
                f"The observation of {self.url} has no field {self.text_field!r}, only "
                f"{there}: set the option text_field."
            )
        shown = observation[self.text_field]
        text: str = shown if isinstance(shown, str) else json.dumps(shown)
        return text if text.strip() else "(nothing)"


class InvalidAction(Exception):
    """The action does not fit the server's schema: it was not taken."""


class Connection:
    """One session on the server: sends a message and waits for its answer, from any thread."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._answers: asyncio.Queue[str | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    def schema(self) -> Mapping[str, Any]:
        """JSON schemas of action and observation; UserError where no OpenEnv server answers."""
        try:
            found = _loop.run(self._get("/schema"))
            if isinstance(found, dict) and all(
                isinstance(found.get(part), dict) for part in ("action", "observation")
            ):
                return found
            why = "its /schema has no action and observation"
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            why = str(error) or type(error).__name__
        self.close()
        raise UserError(
            f"The environment 'openenv' finds no OpenEnv server at {self.url} ({why}): "
            "start it, or correct the option url."
        )

    def tools(self) -> list[Mapping[str, Any]]:
        """The server's tools; UserError where it lists none."""
        try:
            data = self.ask({"type": "step", "data": {"type": "list_tools"}}, opens=True)
        except (EnvError, InvalidAction) as error:
            raise UserError(f"The environment 'openenv' cannot list its tools: {error}") from error
        listed = data["observation"].get("tools")
        found = [tool for tool in listed or () if isinstance(tool, Mapping) and tool.get("name")]
        if not found:
            raise UserError(
                f"The environment 'openenv': the server at {self.url} takes tool calls and lists "
                "no tools: set the option action_field."
            )
        return found

    def ask(self, message: Mapping[str, Any], opens: bool = False) -> dict[str, Any]:
        """Send a message.

        Args:
            message: As OpenEnv's client sends it.
            opens: It needs nothing of the session, so a new one is opened where there is none or
                the kept one turns out to be closed.

        Returns:
            The data of the answer.

        Raises:
            InvalidAction: The action does not fit its schema.
            EnvError: No usable answer came.
        """
        while True:
            kept = self._socket is not None
            try:
                answer = _loop.run(self._ask(message, opens))
                break
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.close()
                if kept and opens and not isinstance(error, TimeoutError):
                    continue
                why = str(error) or type(error).__name__
                raise EnvError(
                    f"The OpenEnv server at {self.url} gave no answer: {why}."
                ) from error
        kind, data = (
            (answer.get("type"), answer.get("data")) if isinstance(answer, dict) else (None, None)
        )
        if not isinstance(data, dict) or not (
            kind == "error" or (kind == "observation" and isinstance(data.get("observation"), dict))
        ):
            raise EnvError(
                f"The OpenEnv server at {self.url} answered with what its protocol does not have."
            )
        if kind == "observation":
            return data
        if message["type"] == "step" and data.get("code") == "VALIDATION_ERROR":
            errors = [str(e.get("msg")) for e in data.get("errors", ()) if isinstance(e, dict)]
            raise InvalidAction("; ".join(errors) or "it does not fit its schema")
        text = " ".join(str(data.get("message")).split())[:300]
        raise EnvError(f"The OpenEnv server at {self.url} failed: {text} ({data.get('code')}).")

    def close(self) -> None:
        _loop.run(self._close())

    async def _get(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout)) as session,
            session.get(self.url + path) as response,
        ):
            response.raise_for_status()
            return json.loads(await response.text())

    async def _ask(self, message: Mapping[str, Any], opens: bool) -> Any:
        async with asyncio.timeout(self.timeout):
            if self._socket is None:
                if not opens:
                    raise ConnectionError("the session is lost")
                self._session = aiohttp.ClientSession()
                self._socket = await self._session.ws_connect(
                    f"ws{self.url.removeprefix('http')}/ws", max_msg_size=_MAX_MESSAGE
                )
                self._answers = asyncio.Queue()
                self._reader = asyncio.create_task(self._read(self._socket, self._answers))
            await self._socket.send_json(message)
            text = await self._answers.get()
        if text is None:
            raise ConnectionError("the server ended the session")
        return json.loads(text)

    async def _read(
        self, socket: aiohttp.ClientWebSocketResponse, answers: asyncio.Queue[str | None]
    ) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                answers.put_nowait(message.data)
        answers.put_nowait(None)

    async def _close(self) -> None:
        socket, session, reader = self._socket, self._session, self._reader
        self._socket = self._session = self._reader = None
        if reader is not None:
            reader.cancel()
        if socket is not None:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await socket.close()
        if session is not None:
            await session.close()


def _only_field(schema: Mapping[str, Any], what: str, required: bool) -> str:
    """The field to use where the options name none: the only required one, or the only text."""
    fields: dict[str, str] = {
        name: _type_of(schema, name)
        for name in schema.get("properties", {})
        if name not in ("metadata", "done", "reward")
    }
    found = (
        [n for n in fields if n in schema.get("required", ())]
        if required
        else [n for n, kind in fields.items() if kind == "string"]
    )
    if len(found) == 1:
        return found[0]
    option = "action_field" if what == "action" else "text_field"
    raise UserError(
        f"The environment 'openenv' cannot tell which field of the {what} to use: set "
        f"{option} to one of {', '.join(fields) or 'none'}."
    )


def _type_of(schema: Mapping[str, Any], field: str) -> str:
    return str(schema.get("properties", {}).get(field, {}).get("type", ""))


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON schema of a tool's arguments, in either spelling."""
    found = tool.get("input_schema") or tool.get("inputSchema")
    return found if isinstance(found, Mapping) else {}


def _bare_argument(tools: Sequence[Mapping[str, Any]]) -> str | None:
    """The argument that a bare text fills: of the only tool, its only one, a text."""
    schema = _parameters(tools[0])
    names = list(schema.get("properties", {}))
    only = len(tools) == 1 and len(names) == 1 and _type_of(schema, names[0]) == "string"
    return names[0] if only else None


def _tools_help(tools: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for tool in tools:
        schema = _parameters(tool)
        names = (f"{n}: {_type_of(schema, n) or 'any'}" for n in schema.get("properties", {}))
        about = " ".join(str(tool.get("description") or "").split())
        lines.append(f"{tool['name']}({', '.join(names)}): {about}".rstrip(": "))
    form = '{"name": TOOL, "arguments": {...}}'
    if _bare_argument(tools) is not None:
        form += ", or just the text"
    return f"An action is a tool call: {form}. Tools:\n" + "\n".join(lines)


def _tool_call(text: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The call that a text stands for; None where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        arguments = found.get("arguments", {})
        if isinstance(arguments, dict):
            return {"tool_name": found["name"], "arguments": arguments}
        return None
    argument = _bare_argument(tools)
    if argument is None or not text:
        return None
    return {"tool_name": tools[0]["name"], "arguments": {argument: text}}


def _tool_text(observation: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """What a tool answered, as text; of a reset, what the server says about it."""
    error = observation.get("error")
    if isinstance(error, Mapping):
        return str(error.get("message") or "The tool failed.")
    if "result" not in observation:
        found: Any = metadata.get("message") or observation.get("message") or "Ready."
    else:
        found = observation["result"]
        if isinstance(found, Mapping) and found.get("data") is not None:  # FastMCP's result
            found = found["data"]
        elif isinstance(found, Mapping) and isinstance(found.get("content"), Sequence):
            parts = [part for part in found["content"] if isinstance(part, Mapping)]
            found = "\n".join(str(part["text"]) for part in parts if "text" in part)
    text = found if isinstance(found, str) else json.dumps(found)
    return text if text.strip() else "(nothing)"
