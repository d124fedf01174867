"""An environment over HTTP: a session on a server is one environment there, and every call in it
has a number.

A call that is sent again with the same number gets the recorded answer, so that a lost answer never
steps twice. `reset` and `restore` do
not depend on what the session was, hence a lost session is simply opened again for them; for any
other call it is a `EnvError`, after which
the caller resets and replays. What the server says about its environment is asked once, and again
for every session but the first: a server that
meanwhile offers something else is not played on. The instances of one address share that answer for
as long as one of them is there, so that a fresh
one in mid-run finds a server that is being started again a failure that may pass, and not the
user's mistake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, ClassVar, NoReturn, TypeVar
from weakref import WeakValueDictionary

from leafe.core import EnvError, Environment, SnapshotGone, StepResult, Task, UserError
from leafe.envs.remote._transport import Transport, Unreachable
from leafe.envs.remote._wire import (
    PROTOCOL,
    Malformed,
    Refused,
    actions_from_json,
    boolean,
    result_from_json,
    string,
    task_from_json,
)

T = TypeVar("T")

_PARTING_S = 1.0
"""How long the server may take to hear that a session is over; if it does not, the session expires
there."""


class _Server:
    """What the instances of one address have in common."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.released: deque[str] = deque()
        """Snapshots to be freed with the next reset of any of them: whoever is told to release one
        may be in the middle of a call."""


_servers: WeakValueDictionary[tuple[str, str | None], _Server] = WeakValueDictionary()
"""By address and token_env."""


class Remote(Environment):
    """An environment on a server, in another process or on another machine, played over HTTP.

    Options: `url` of the server; `timeout`, seconds a call may take, its repetitions included;
    `retries`, further tries after a lost connection
    or a 5xx; `token_env`, the environment variable that holds the bearer token, where the server
    wants one. Name, horizon, splits and
    the rest are the server's to say.
    """

    name = "remote"
    heavy = True
    splits: tuple[str, ...] = ()
    needs: ClassVar[str] = "a server: leafe envs serve NAME, or one of your own (docs/remote.md)"

    def __init__(
        self, url: str, timeout: float = 60.0, retries: int = 5, token_env: str | None = None
    ) -> None:
        self._transport = Transport(url, timeout, retries, token_env)
        self._session: str | None = None
        self._calls = 0
        key = (self._transport.url, token_env)
        known = _servers.get(key)
        self._asked = known is None
        """What the server says has been asked for the session that comes next."""
        self._server = (
            _servers.setdefault(key, _Server(self._describe_at_first())) if known is None else known
        )
        facts = self._server.facts
        self.name, self.deterministic, self.horizon = (
            facts["name"],
            facts["deterministic"],
            facts["horizon"],
        )
        self.actions_help, self.splits, self.can_snapshot = (
            facts["actions_help"],
            facts["splits"],
            facts["snapshots"],
        )

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The server's tasks; NotImplementedError where it has no list."""
        try:
            answer = self._transport.call("tasks", {"split": split, "count": count, "seed": seed})
            tasks = answer.get("tasks")
            if not isinstance(tasks, list):
                raise Malformed("'tasks' is no list")
            return [task_from_json(task) for task in tasks]
        except Refused as refused:
            if refused.kind == "absent":
                raise NotImplementedError(
                    f"the server at {self._transport.url} has no task list: hand it tasks"
                ) from refused
            self._raise(refused)
        except Malformed as error:
            raise EnvError(
                f"{self._transport.url} answered tasks with what the protocol does not "
                f"allow: {error}."
            ) from error

    def reset(self, task: Task, seed: int) -> str:
        self._let_go()
        return self._said(
            partial(string, name="observation"), self._anew("reset", task=task.to_json(), seed=seed)
        )

    def step(self, action: str) -> StepResult:
        return self._said(result_from_json, self._call("step", action=action))

    def valid_actions(self) -> Sequence[str]:
        return self._said(actions_from_json, self._call("valid_actions"))

    def snapshot(self) -> object:
        """The server's name for the state: a text, which any `Remote` of the same server can
        restore."""
        return self._said(partial(string, name="snapshot"), self._call("snapshot"))

    def restore(self, snapshot: object) -> None:
        self._anew("restore", snapshot=snapshot)

    def release(self, snapshot: object) -> None:
        """Sent with the next reset, or at the end."""
        self._server.released.append(str(snapshot))

    def versions(self) -> Mapping[str, str]:
        return {"remote protocol": str(PROTOCOL), **self._server.facts["versions"]}

    def close(self) -> None:
        if self._session is not None:  # else there is nobody to tell, or nobody who listens
            self._let_go()
            self._lose()
        self._transport.close()
        self._server = _Server(self._server.facts)  # the others' no longer hangs on this one

    def _describe(self) -> dict[str, Any]:
        """What the server says of its environment; UserError where it speaks another version or is
        no server of ours, EnvError where it does not answer."""
        url = self._transport.url
        try:
            said = self._transport.call("")
            version = said.get("protocol")
            if version is None:
                raise Malformed("'protocol' is absent")
            if version != PROTOCOL or isinstance(version, bool):
                raise UserError(
                    f"The server at {url} speaks version {version!r} of the protocol and "
                    f"this leafe version {PROTOCOL}: update the older one."
                )
            horizon, splits, versions = (
                said.get("horizon"),
                said.get("splits", []),
                said.get("versions", {}),
            )
            if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
                raise Malformed(f"'horizon' is {horizon!r}, not a number of steps")
            if not isinstance(splits, list) or not isinstance(versions, dict):
                raise Malformed("'splits' is no list, or 'versions' no object")
            return {
                "name": string(said, "name"),
                "deterministic": boolean(said, "deterministic"),
                "horizon": horizon,
                "actions_help": string(said, "actions_help", ""),
                "splits": tuple(str(split) for split in splits),
                "snapshots": boolean(said, "snapshots", False),
                "versions": {str(k): str(v) for k, v in versions.items()},
            }
        except Malformed as error:
            raise UserError(
                f"What answers at {url} is no environment server ({error}): correct the option url."
            ) from error
        except Refused as refused:
            if refused.kind == "user":
                raise UserError(
                    f"The server at {url} refuses to be asked: {refused}; correct the "
                    "options url and token_env."
                ) from refused
            raise UserError(
                f"What answers at {url} is no environment server ({refused}): correct the "
                "option url."
            ) from refused

    def _describe_at_first(self) -> dict[str, Any]:
        """The same, but a server that does not answer is the user's to mend."""
        try:
            return self._describe()
        except Unreachable as error:
            raise UserError(
                f"There is no environment server to be reached: {str(error).rstrip('.')}; "
                "start it (leafe envs serve NAME --port N) or correct the option url."
            ) from error
        except EnvError as error:
            raise UserError(
                f"What answers at {self._transport.url} does not work: "
                f"{str(error).rstrip('.')}; look at the server, or correct the option url."
            ) from error

    def _anew(self, what: str, **fields: Any) -> dict[str, Any]:
        """A call that needs nothing of the session: one that is lost is opened again, once."""
        if self._session is not None:
            with suppress(_Lost):
                return self._call(what, **fields)
        self._open()
        return self._call(what, **fields)

    def _open(self) -> None:
        """A session begins with its first call; only its name is made here."""
        if not self._asked:
            before, now = self._server.facts, self._describe()
            if now != before:
                changed = ", ".join(name for name in now if now[name] != before[name])
                raise UserError(
                    f"The server at {self._transport.url} now offers another environment "
                    f"than before (other: {changed}): start it as it was."
                )
        self._asked, self._session, self._calls = False, token_hex(16), 0

    def _call(self, what: str, **fields: Any) -> dict[str, Any]:
        if self._session is None:
            raise EnvError(
                f"There is no session at {self._transport.url} to {what} in: reset the "
                "environment first."
            )
        self._calls += 1
        try:
            return self._transport.call(
                what, {"session": self._session, "call": self._calls, **fields}
            )
        except Refused as refused:
            if refused.kind not in ("absent", "gone"):
                self._lose(told=refused.kind == "lost")
            self._raise(refused)
        except BaseException:
            self._lose()
            raise

    def _raise(self, refused: Refused) -> NoReturn:
        sentence = f"The environment {self.name} at {self._transport.url}: {refused}."
        match refused.kind:
            case "user":
                raise UserError(sentence) from refused
            case "gone":
                raise SnapshotGone(sentence) from refused
            case "absent":
                raise NotImplementedError(sentence) from refused
            case "lost":
                raise _Lost(sentence) from refused
            case _:
                raise EnvError(sentence) from refused

    def _said(self, read: Callable[[Mapping[str, Any]], T], answer: dict[str, Any]) -> T:
        try:
            return read(answer)
        except Malformed as error:
            self._lose()
            raise EnvError(
                f"{self._transport.url} answered with what the protocol does not allow: {error}."
            ) from error

    def _lose(self, told: bool = False) -> None:
        """Forget the session; tell the server, unless it knows, so that its environment is free for
        others."""
        session, self._session = self._session, None
        if session is not None and not told:
            with suppress(Refused, EnvError, UserError):
                self._transport.call("close", {"session": session}, timeout=_PARTING_S, retries=0)

    def _let_go(self) -> None:
        names: list[str] = []
        with suppress(IndexError):
            while len(names) < 1000:
                names.append(self._server.released.popleft())
        if names:
            with suppress(Refused, EnvError, UserError):  # what is not released goes when it is old
                self._transport.call("release", {"snapshots": names}, timeout=_PARTING_S, retries=0)


class _Lost(EnvError):
    """The session is not known to the server."""
