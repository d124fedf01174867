"""An environment over HTTP: a session on a server is one environment there, and every call in it
has a number.

A call that is sent again with the same number gets the recorded answer, so a lost answer never
steps twice. `reset` and `restore` do not depend on what the session was, so for them a lost session
is opened again; for any other call it is an `EnvError`, after which the caller resets and replays.
The server's description is requested once, and again for every session but the first: a server that
meanwhile offers something else is not played on. The instances of one address share that answer
while one of them lives, so that a fresh one in mid-run takes a restarting server for a failure that
may pass, and not for the user's mistake.
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
    tasks_from_json,
)

T = TypeVar("T")

_FAREWELL_S = 1.0
"""How long the server may take to hear that a session is over; else the session expires there."""


class _Server:
    """What the instances of one address share."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.released: deque[str] = deque()
        """Snapshots to free with the next reset of any instance: `release` may be called in the
        middle of another call."""


_servers: WeakValueDictionary[tuple[str, str | None], _Server] = WeakValueDictionary()
"""By address and token_env."""


class Remote(Environment):
    """An environment on a server, in another process or on another machine, played over HTTP.

    Name, horizon, splits, tasks, the help on actions and snapshots are the server's.

    Args:
        url: The server's address.
        timeout: Seconds a call may take, its repetitions included.
        retries: Further tries after a lost connection or a 5xx.
        token_env: The environment variable that holds the bearer token, where the server wants one.

    Raises:
        UserError: An option is not usable, no environment server answers, or it speaks another
            version of the protocol.
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
        self._described = known is None
        """The server was asked for its description on behalf of the next session."""
        self._server = known or _servers.setdefault(key, _Server(self._first_description()))
        facts = self._server.facts
        self.name, self.deterministic = facts["name"], facts["deterministic"]
        self.horizon, self.actions_help = facts["horizon"], facts["actions_help"]
        self.splits, self.can_snapshot = facts["splits"], facts["snapshots"]

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The server's tasks; NotImplementedError where it has no list."""
        try:
            return tasks_from_json(
                self._transport.call("tasks", {"split": split, "count": count, "seed": seed})
            )
        except Refused as refused:
            if refused.kind == "absent":
                raise NotImplementedError(
                    f"the server at {self._transport.url} has no task list: hand it tasks"
                ) from refused
            self._raise(refused)
        except Malformed as error:
            raise self._violation(error) from error

    def reset(self, task: Task, seed: int) -> str:
        self._send_releases()
        answer = self._call_in_any_session("reset", task=task.to_json(), seed=seed)
        return self._read(partial(string, name="observation"), answer)

    def step(self, action: str) -> StepResult:
        return self._read(result_from_json, self._call("step", action=action))

    def valid_actions(self) -> Sequence[str]:
        return self._read(actions_from_json, self._call("valid_actions"))

    def snapshot(self) -> object:
        """The server's name for the state, which any `Remote` of the same server can restore."""
        return self._read(partial(string, name="snapshot"), self._call("snapshot"))

    def restore(self, snapshot: object) -> None:
        self._call_in_any_session("restore", snapshot=snapshot)

    def release(self, snapshot: object) -> None:
        """Sent with the next reset, or at the end."""
        self._server.released.append(str(snapshot))

    def versions(self) -> Mapping[str, str]:
        return {"remote protocol": str(PROTOCOL), **self._server.facts["versions"]}

    def close(self) -> None:
        if self._session is not None:
            self._send_releases()
            self._end_session()
        self._transport.close()
        self._server = _Server(self._server.facts)  # the shared one may be collected

    def _description(self) -> dict[str, Any]:
        """The server's description; UserError where it speaks another version or is no environment
        server, EnvError where it does not answer."""
        url = self._transport.url
        try:
            found = self._transport.call("")
            version = found.get("protocol")
            if version is None:
                raise Malformed("'protocol' is absent")
            if version != PROTOCOL or isinstance(version, bool):
                raise UserError(
                    f"The server at {url} speaks version {version!r} of the protocol and "
                    f"this leafe version {PROTOCOL}: update the older one."
                )
            horizon = found.get("horizon")
            splits, versions = found.get("splits", []), found.get("versions", {})
            if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
                raise Malformed(f"'horizon' is {horizon!r}, not a number of steps")
            if not isinstance(splits, list) or not isinstance(versions, dict):
                raise Malformed("'splits' is no list, or 'versions' no object")
            return {
                "name": string(found, "name"),
                "deterministic": boolean(found, "deterministic"),
                "horizon": horizon,
                "actions_help": string(found, "actions_help", ""),
                "splits": tuple(str(split) for split in splits),
                "snapshots": boolean(found, "snapshots", False),
                "versions": {str(k): str(v) for k, v in versions.items()},
            }
        except Refused as refused:
            if refused.kind == "user":
                raise UserError(
                    f"The server at {url} refuses this client: {refused}; correct the "
                    "options url and token_env."
                ) from refused
            problem: Exception = refused
        except Malformed as error:
            problem = error
        raise UserError(
            f"What answers at {url} is no environment server ({problem}): correct the option url."
        ) from problem

    def _first_description(self) -> dict[str, Any]:
        """The same at construction, where a server that does not answer is a UserError too."""
        try:
            return self._description()
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

    def _call_in_any_session(self, what: str, **fields: Any) -> dict[str, Any]:
        """A call that needs nothing of the session: a lost session is opened again, once."""
        if self._session is not None:
            with suppress(_SessionLost):
                return self._call(what, **fields)
        self._open_session()
        return self._call(what, **fields)

    def _open_session(self) -> None:
        """Make up a name; the session begins on the server with its first call."""
        if not self._described:
            before, now = self._server.facts, self._description()
            if now != before:
                changed = ", ".join(name for name in now if now[name] != before[name])
                raise UserError(
                    f"The server at {self._transport.url} now offers another environment "
                    f"than before (other: {changed}): start it as it was."
                )
        self._described, self._session, self._calls = False, token_hex(16), 0

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
                self._end_session(tell=refused.kind != "lost")
            self._raise(refused)
        except BaseException:
            self._end_session()
            raise

    def _raise(self, refused: Refused) -> NoReturn:
        sentence = f"The environment {self.name} at {self._transport.url}: {refused}."
        error = {
            "user": UserError,
            "gone": SnapshotGone,
            "absent": NotImplementedError,
            "lost": _SessionLost,
        }.get(refused.kind, EnvError)
        raise error(sentence) from refused

    def _read(self, read: Callable[[Mapping[str, Any]], T], answer: dict[str, Any]) -> T:
        try:
            return read(answer)
        except Malformed as error:
            self._end_session()
            raise self._violation(error) from error

    def _violation(self, error: Malformed) -> EnvError:
        return EnvError(
            f"{self._transport.url} answered with what the protocol does not allow: {error}."
        )

    def _end_session(self, tell: bool = True) -> None:
        """Forget the session, and tell the server, so that its environment is free for others."""
        session, self._session = self._session, None
        if session is not None and tell:
            self._try_to_send("close", session=session)

    def _send_releases(self) -> None:
        names: list[str] = []
        with suppress(IndexError):
            while len(names) < 1000:
                names.append(self._server.released.popleft())
        if names:  # what does not arrive goes when it is old
            self._try_to_send("release", snapshots=names)

    def _try_to_send(self, what: str, **fields: Any) -> None:
        with suppress(Refused, EnvError, UserError):
            self._transport.call(what, fields, timeout=_FAREWELL_S, retries=0)


class _SessionLost(EnvError):
    """The session is not known to the server."""
