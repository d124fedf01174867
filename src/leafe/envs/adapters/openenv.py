"""An OpenEnv server: one WebSocket is one session there, an action is a field of JSON, a seed is a
task.

OpenEnv gives no way back to an earlier state, so rollback is reset and replay, which leafe
compares: it comes out where the server honours seeds.
The protocol (openenv 0.10: `/schema`, then `reset` and `step` messages over `/ws`) is spoken by
aiohttp alone: the package
`openenv` is not needed on this side. Messages are read by a thread of their own, since a server
that pings in vain hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, TypeVar

import aiohttp

from leafe.core import EnvError, Environment, StepResult, Task, UserError
from leafe.envs.adapters._tasks import APART, SPLITS, seed_tasks, whole

T = TypeVar("T")
_LONGEST = 100 * 2**20
"""Bytes of one message; OpenEnv's own client allows as much."""


class OpenEnv(Environment):
    """Environments on an OpenEnv server, by its address.

    Options: `url`, for instance http://localhost:8000; `action_field`, the field of the action that
    takes the text, by default the only one that is required;
    `text_field`, the field of the observation that is shown, by default its only text; `actions`,
    names of the actions where the field is a number, in
    order from 0; `reset`, further arguments of every reset; `success`, the least reward of the step
    that ends the episode, or the name of a field of the
    observation or its metadata that says so: by default a last reward above 0; `instruction`,
    `actions_help`, `horizon`; `tasks`, how
    many seeds a split has; `timeout`, seconds for one answer; `deterministic`, false for a server
    that does not honour seeds.
    """

    name = "openenv"
    heavy = True
    splits: tuple[str, ...] = SPLITS
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
        self.url, self.reset_arguments, self.success, self.instruction = (
            url.rstrip("/"),
            dict(reset or {}),
            success,
            instruction,
        )
        self.horizon, self.number, self.deterministic = (
            whole(self.name, "horizon", horizon),
            whole(self.name, "tasks", tasks, APART),
            deterministic,
        )
        self.line = _Line(self.url, float(timeout))
        schema = self.line.schema()
        self.action_field = action_field or _only(schema["action"], "action", required=True)
        self.text_field = text_field or _only(schema["observation"], "observation", required=False)
        self.actions = tuple(str(action) for action in actions or ())
        self._as_number = _kind(schema["action"], self.action_field) == "integer"
        if self._as_number and not self.actions:
            raise UserError(
                f"The environment 'openenv': {self.action_field!r} is a number: name the "
                "actions in their order, from 0, in the option actions."
            )
        listed = (
            f"Each action is one of these: {', '.join(self.actions)}."
            if self.actions
            else "An action is a text."
        )
        self.actions_help = actions_help or listed
        self._done = True

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Seeds of the split's range in an order drawn by `seed`."""
        return seed_tasks(
            self.name,
            self.url.split("://")[1].replace("/", "-"),
            self.instruction,
            self.number,
            split,
            count,
            seed,
        )

    def reset(self, task: Task, seed: int) -> str:
        """The server is given the task's own seed; `seed` is not used."""
        data = self.line.ask(
            {"type": "reset", "data": self.reset_arguments | {"seed": int(task.payload["seed"])}},
            anew=True,
        )
        self._done = False
        return self._text(data)

    def step(self, action: str) -> StepResult:
        if self._done:
            return StepResult("The episode is over. Nothing changed.", valid=False, done=True)
        value: str | int = action.strip()
        if self.actions:
            said = str(value).lower().strip(" .!'\"`[]")
            found = [i for i, name in enumerate(self.actions) if name.lower() == said]
            if not found:
                return StepResult(
                    (
                        f"There is no action {action.strip()[:40]!r}: say one of "
                        f"{', '.join(self.actions)}. Nothing changed."
                    ),
                    valid=False,
                )
            value = found[0] if self._as_number else self.actions[found[0]]
        elif not value:
            return StepResult(
                f"An empty text is no action. {self.actions_help} Nothing changed.", valid=False
            )
        try:
            data = self.line.ask({"type": "step", "data": {self.action_field: value}})
        except _RefusedAction as refused:
            return StepResult(
                (
                    f"The environment does not take this action ({refused}). "
                    f"{self.actions_help} Nothing changed."
                ),
                valid=False,
            )
        text, self._done, reward = (
            self._text(data),
            bool(data.get("done")),
            float(data.get("reward") or 0.0),
        )
        won = self._done and self._won(reward, data)
        if self._done:
            text = (
                f"{text}\nThe episode is over. "
                f"{'You have succeeded.' if won else 'You have failed.'}"
            )
        return StepResult(text, reward=reward, done=self._done, success=won)

    def close(self) -> None:
        self.line.close()

    def _won(self, reward: float, data: Mapping[str, Any]) -> bool:
        if isinstance(self.success, str):
            return any(
                bool(place.get(self.success))
                for place in (data["observation"], data.get("metadata") or {})
            )
        return reward > 0 if self.success is None else reward >= self.success

    def _text(self, data: Mapping[str, Any]) -> str:
        observation = data["observation"]
        if self.text_field not in observation:
            there = ", ".join(map(str, observation)) or "nothing"
            raise EnvError(
                f"The observation of {self.url} has no field {self.text_field!r}, only "
                f"{there}: set the option text_field."
            )
        shown = observation[self.text_field]
        text: str = shown if isinstance(shown, str) else json.dumps(shown)
        return text if text.strip() else "(nothing)"


class _RefusedAction(Exception):
    """The action does not fit the environment's schema: it was not taken."""


class _Line:
    """One session on the server: asks and waits for the answer, from any thread."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._answers: asyncio.Queue[str | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    def schema(self) -> Mapping[str, Any]:
        """JSON schemas of action and observation; UserError where no OpenEnv server answers."""
        try:
            found = self._run(self._get("/schema"))
            if (
                isinstance(found, dict)
                and isinstance(found.get("action"), dict)
                and isinstance(found.get("observation"), dict)
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

    def ask(self, message: Mapping[str, Any], anew: bool = False) -> dict[str, Any]:
        """The data of the answer. `anew`: the message needs nothing of the session, and opens
        another where there is none or the kept one turns out to be closed. EnvError where no good
        answer comes, after which the session is gone."""
        while True:
            kept = self._socket is not None
            try:
                answer = self._run(self._ask(message, anew))
                break
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self._run(self._hang_up())
                if kept and anew and not isinstance(error, TimeoutError):
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
        if kind == "error":
            if message["type"] == "step" and data.get("code") == "VALIDATION_ERROR":
                raise _RefusedAction(
                    "; ".join(
                        str(e.get("msg")) for e in data.get("errors", ()) if isinstance(e, dict)
                    )
                    or "it does not fit its schema"
                )
            raise EnvError(
                f"The OpenEnv server at {self.url} failed: "
                f"{' '.join(str(data.get('message')).split())[:300]} ({data.get('code')})."
            )
        return data

    def close(self) -> None:
        self._run(self._hang_up())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, _loop()).result()

    async def _get(self, path: str) -> Any:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout)) as session,
            session.get(self.url + path) as response,
        ):
            response.raise_for_status()
            return json.loads(await response.text())

    async def _ask(self, message: Mapping[str, Any], anew: bool) -> Any:
        async with asyncio.timeout(self.timeout):
            if self._socket is None:
                if not anew:
                    raise ConnectionError("the session is lost")
                self._session = aiohttp.ClientSession()
                self._socket = await self._session.ws_connect(
                    f"ws{self.url.removeprefix('http')}/ws", max_msg_size=_LONGEST
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

    async def _hang_up(self) -> None:
        socket, session, reader = self._socket, self._session, self._reader
        self._socket = self._session = self._reader = None
        if reader is not None:
            reader.cancel()
        if socket is not None and session is not None:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await socket.close()
            await session.close()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all sessions, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="openenv", daemon=True).start()
    return loop


def _only(schema: Mapping[str, Any], what: str, required: bool) -> str:
    """The one field that is meant where none is named."""
    fields: dict[str, str] = {
        name: _kind(schema, name)
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


def _kind(schema: Mapping[str, Any], field: str) -> str:
    return str(schema.get("properties", {}).get(field, {}).get("type", ""))
