"""Checks whether a server keeps the protocol where `Remote` would not notice before an answer is
lost or two sessions meet.

`leafe.testing.check_environment` on a `Remote` checks the environment. This checks the server:
repeated calls, numbers out of order, sessions side by side, snapshots carried from one session to
another, unknown fields and calls.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from leafe.core import EnvError, Task, UserError
from leafe.envs.remote._client import Remote
from leafe.envs.remote._transport import Transport
from leafe.envs.remote._wire import Refused

_STEPS = 12


def check_server(
    url: str,
    *,
    tasks: Sequence[Task] | None = None,
    actions: Sequence[str] | None = None,
    timeout: float = 60.0,
    token_env: str | None = None,
) -> list[str]:
    """Check a server against the protocol (docs/remote.md) by comparing episodes.

    Args:
        url: The server's address.
        tasks: Two or more tasks; needed where the server has no task list.
        actions: Texts most of which can be taken; needed where it lists no valid actions.
        timeout: Seconds a call may take.
        token_env: The environment variable that holds the server's token.

    Returns:
        One sentence for each violation; empty where the server keeps the protocol.

    Raises:
        UserError: There is no server, nothing to play, or the environment is not deterministic.
    """
    env = Remote(url, timeout=timeout, retries=0, token_env=token_env)
    try:
        if not env.deterministic:
            raise UserError(
                f"The environment {env.name!r} at {url} is not deterministic: its server "
                "cannot be checked by comparing episodes."
            )
        try:
            chosen = list(
                tasks
                or env.tasks(
                    "train" if not env.splits or "train" in env.splits else env.splits[0], 2
                )
            )
        except NotImplementedError as error:
            raise UserError(
                f"The server at {url} has no task list: give check_server two tasks."
            ) from error
        if len(chosen) < 2:
            raise UserError(
                f"There are fewer than two tasks for the server at {url}: give check_server two."
            )
        check = _Check(
            Transport(url, timeout, 0, token_env),
            [_reference_episode(env, task, actions) for task in chosen[:2]],
        )
        try:
            check.run(snapshots=env.can_snapshot)
        finally:
            check.end()
        return check.problems
    finally:
        env.close()


Episode = tuple[dict[str, Any], list[str], list[dict[str, Any]]]
"""A task, actions, and the answers of a session that was played alone, the reset's first."""


def _reference_episode(env: Remote, task: Task, actions: Sequence[str] | None) -> Episode:
    rng, taken = random.Random(task.id), list[str]()
    first = env.reset(task, 7)
    seen: list[dict[str, Any]] = [{"observation": first}]
    for _ in range(_STEPS):
        try:
            valid = list(actions or env.valid_actions())
        except NotImplementedError as error:
            raise UserError(
                f"The environment {env.name!r} lists no valid actions there: give "
                "check_server some."
            ) from error
        if not valid:
            break
        taken.append(rng.choice(valid))
        result = env.step(taken[-1])
        seen.append({"observation": result.observation, "done": result.done, "valid": result.valid})
        if result.done:
            break
    return task.to_json(), taken, seen


class _Check:
    def __init__(self, transport: Transport, episodes: list[Episode]) -> None:
        self.transport, self.episodes = transport, episodes
        self.problems: list[str] = []
        self.sessions: dict[str, int] = {}

    def run(self, snapshots: bool) -> None:
        (task, actions, seen), (other_task, other_actions, other_seen) = self.episodes

        again = self.session()
        self.expect("the reset", seen[0], self.twice(again, "reset", task=task, seed=7))
        for at, action in enumerate(actions):
            self.expect(
                f"step {at}, of a session in which every call is sent twice,",
                seen[at + 1],
                self.twice(again, "step", action=action),
            )

        one, two = self.session(), self.session()
        self.call(one, "reset", task=task, seed=7, field_of_no_version=[1])
        self.call(two, "reset", task=other_task, seed=7)
        for at in range(max(len(actions), len(other_actions))):
            for name, taken, wanted in ((one, actions, seen), (two, other_actions, other_seen)):
                if at < len(taken):
                    what = f"step {at}, with another session in between,"
                    self.expect(
                        what,
                        wanted[at + 1],
                        self.call(name, "step", action=taken[at], field_of_no_version=None),
                    )

        if snapshots:
            self.snapshots(task, actions, seen)

        self.refuses(
            "a number that is left out",
            "lost",
            "step",
            session=one,
            call=self.sessions[one] + 2,
            action=actions[0],
        )
        self.refuses(
            "a step in a session that nobody opened",
            "lost",
            "step",
            session=token_hex(16),
            call=1,
            action=actions[0],
        )
        self.refuses(
            "a later call in a session that nobody opened",
            "lost",
            "reset",
            session=token_hex(16),
            call=5,
            task=task,
            seed=7,
        )
        self.refuses(
            "a call of no version",
            "absent",
            "no_such_call",
            session=one,
            call=self.sessions[one] + 1,
        )
        for name in (two, two):
            if isinstance(refused := self.ask("close", session=name), Refused):
                self.problems.append(
                    f"close was refused ({refused}): it must be answered for any session."
                )
        self.refuses(
            "a step in a closed session",
            "lost",
            "step",
            session=two,
            call=self.sessions[two] + 1,
            action=other_actions[0],
        )

    def snapshots(
        self, task: dict[str, Any], actions: list[str], seen: list[dict[str, Any]]
    ) -> None:
        source, middle = self.session(), len(actions) // 2
        self.call(source, "reset", task=task, seed=7)
        for action in actions[:middle]:
            self.call(source, "step", action=action)
        name = str(self.twice(source, "snapshot").get("snapshot"))
        for action in actions[middle:]:
            self.call(source, "step", action=action)
        for where, session in (
            ("another session", self.session()),
            ("its own session, a second time,", source),
        ):
            self.twice(session, "restore", snapshot=name)
            for at, action in enumerate(actions[middle:], middle):
                self.expect(
                    f"step {at}, after a restore in {where},",
                    seen[at + 1],
                    self.call(session, "step", action=action),
                )
        gone = token_hex(8)
        self.refuses(
            "a snapshot that was never taken",
            "gone",
            "restore",
            session=source,
            call=self.sessions[source] + 1,
            snapshot=gone,
        )
        if isinstance(refused := self.ask("release", snapshots=[name, gone]), Refused):
            self.problems.append(
                f"release was refused ({refused}): it must be answered for any snapshot."
            )

    def session(self) -> str:
        name = token_hex(16)
        self.sessions[name] = 0
        return name

    def ask(self, path: str, **body: Any) -> dict[str, Any] | Refused:
        try:
            return self.transport.call(path, body)
        except Refused as refused:
            return refused
        except EnvError as error:
            return Refused("env", str(error))

    def call(self, session: str, path: str, **body: Any) -> dict[str, Any]:
        self.sessions[session] += 1
        answer = self.ask(path, session=session, call=self.sessions[session], **body)
        if isinstance(answer, Refused):
            self.problems.append(
                f"call {self.sessions[session]} of a session, {path}, was refused "
                f"({answer.kind}: {answer})."
            )
            return {}
        return answer

    def twice(self, session: str, path: str, **body: Any) -> dict[str, Any]:
        first = self.call(session, path, **body)
        again = self.ask(path, session=session, call=self.sessions[session], **body)
        if first and isinstance(again, Refused):
            self.problems.append(
                f"{path}, sent again with the same number, was refused ({again.kind}: "
                f"{again}): it must get the recorded answer."
            )
        elif again != first:
            self.problems.append(
                f"{path}, sent again with the same number, got {again}, not the recorded "
                f"answer {first}."
            )
        return first

    def expect(self, what: str, wanted: dict[str, Any], got: dict[str, Any]) -> None:
        complete = {"done": False, "valid": True, **got}
        if got and any(complete.get(key) != value for key, value in wanted.items()):
            self.problems.append(
                f"{what} was answered with {got}, not with {wanted} as in a session alone."
            )

    def refuses(self, what: str, kind: str, path: str, **body: Any) -> None:
        answer = self.ask(path, **body)
        if not isinstance(answer, Refused):
            self.problems.append(f"{what} was accepted: it is the error {kind!r}.")
        elif answer.kind != kind:
            self.problems.append(
                f"{what} was refused as {answer.kind!r} ({answer}): it is the error {kind!r}."
            )

    def end(self) -> None:
        for name in self.sessions:
            self.ask("close", session=name)
        self.transport.close()
