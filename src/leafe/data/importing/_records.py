"""A logged episode, whatever wrote it: what stood before the first action, then actions, each with
the answer that followed.

All readers end here. A conversation that is no episode is `Bad`, with a sentence; `Problems` counts
them and keeps the first few.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core.answers import plain_json

SHOWN = 5
"""Sentences of one kind that are kept; all are counted."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class Bad(ValueError):
    """This record cannot be taken: `kind` for the count, the message for people."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


@dataclass(slots=True)
class Problems:
    """What was not taken as it stood. `left_out` counts records that are in no tree, `noted` those
    that are, with something about them."""

    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)
    """The first of each kind, with where."""

    def leave_out(self, where: str, bad: Bad) -> None:
        self.left_out[bad.kind] += 1
        self._say(self.left_out[bad.kind], f"{where}: {bad}.")

    def note(self, where: str, kind: str, message: str = "") -> None:
        self.noted[kind] += 1
        self._say(self.noted[kind], f"{where}: {message or kind}.")

    def _say(self, nth: int, sentence: str) -> None:
        if nth <= SHOWN:
            self.sentences.append(" ".join(sentence.split())[:400])

    @property
    def unsaid(self) -> int:
        return max(0, self.left_out.total() + self.noted.total() - len(self.sentences))


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """One action and what came back."""

    text: str
    """The assistant's message; tool calls stand in it as `call_text` says."""
    action: str | None = None
    """What the environment was given, where the log says it; None: it is read out of the text."""
    thought: str = ""
    answer: str | None = None
    """The messages up to the next action, as they stand; None where the log ends with the
    action."""
    observation: str | None = None
    """What exactly the environment said, where the log has it beside the message that was made of
    it."""
    reward: float | None = None
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """One episode of a log."""

    where: str
    """File and line, for people."""
    system: str
    first: str
    """The user's messages before the first action, as they stand."""
    turns: tuple[LoggedTurn, ...]
    task: str | None = None
    instruction: str = ""
    payload: Mapping[str, Any] | None = None
    """What the environment needs to build the task, where the log has it."""
    first_observation: str | None = None
    reward: float | None = None
    success: bool | None = None
    model: str = "imported"
    split: str = "train"

    def won(self, success_at: float) -> bool:
        """By the log: its own word, else a reward of at least `success_at`."""
        return (
            self.success
            if self.success is not None
            else self.reward is not None and self.reward >= success_at
        )


def episode(
    where: str, messages: object, problems: Problems, *, before: int = 0, **about: Any
) -> Logged:
    """The episode that these messages are; Bad where they are none. The first `before` messages are
    the prompt, whoever speaks in them."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Bad("no messages", "it has no list of messages")
    system: list[str] = []
    first: list[str] = []
    turns: list[LoggedTurn] = []
    answers: list[str] = []
    exact: str | None = None
    first_exact: str | None = None
    reasoning = 0
    one_tool = len(_tools(messages)) == 1
    for nth, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise Bad("a message is no object", f"message {nth} is no object with role and content")
        if message.get("example") is True:
            continue
        role = message.get("role")
        if role is None:
            raise Bad("a message without a role", f"message {nth} has no role")
        if not isinstance(role, str) or role not in ROLES:
            raise Bad(
                "a message of an unknown role",
                (
                    f"message {nth} has the role {str(role)[:40]!r}; there are system, user, "
                    "assistant and tool"
                ),
            )
        text = content_text(message.get("content"), nth)
        if ROLES[role] == "assistant":
            if nth < before:
                raise Bad(
                    "an answer within the prompt",
                    (
                        f"message {nth} of the prompt is an assistant's: few-shot examples "
                        "cannot be told from actions"
                    ),
                )
            if turns and turns[-1].answer is None and not answers:
                raise Bad(
                    "two actions in a row",
                    (
                        f"messages {nth - 1} and {nth} are both the assistant's: what the "
                        "environment said between them is missing"
                    ),
                )
            if not turns and not first:
                raise Bad("no prompt", "nothing stands before the first assistant message")
            turns = _closed(turns, answers, exact)
            answers, exact = [], None
            turns.append(_acted(message, text, nth, one_tool))
            reasoning += bool(message.get("reasoning_content") or message.get("reasoning"))
        elif ROLES[role] == "system" and not turns and not first:
            system.append(text)
        else:
            said = message.get("observation")
            said = said if isinstance(said, str) else None
            if turns:
                answers.append(text)
                exact = said if exact is None else exact
            else:
                first.append(text)
                first_exact = said if first_exact is None else first_exact
    if not turns:
        raise Bad("no action", "it has no assistant message")
    turns = _closed(turns, answers, exact)
    if reasoning:
        problems.note(
            where,
            "reasoning left out",
            f"the reasoning of {reasoning} messages stands beside their text and is left out",
        )
    found = Logged(
        where,
        "\n".join(system),
        "\n".join(first),
        tuple(turns),
        first_observation=first_exact,
        **about,
    )
    if found.reward is None and found.success is None:
        raise Bad("no reward", "it has neither a reward nor success")
    _encodable(found)
    if found.payload is None:
        return found
    try:
        return replace(found, payload=plain_json(found.payload, "payload"))
    except ValueError as error:
        raise Bad("a payload that is no JSON", f"of its task the {error}") from error


def content_text(content: object, nth: int) -> str:
    """A message's content as text: a string, or a list of text parts. Bad for pictures and
    sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise Bad(
            "content that is no text",
            f"the content of message {nth} is neither a text nor a list of parts",
        )
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            parts.append(part)
        elif kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind != "reasoning":
            raise Bad(
                "content that is no text",
                f"message {nth} holds {str(kind)[:40]!r}, and leafe's environments are text",
            )
    return "\n".join(parts)


def call_text(call: Mapping[str, Any]) -> str:
    """A tool call as text: `{"name": ..., "arguments": {...}}`, whatever its arguments are."""
    name, arguments = _called(call)
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def bare_call(call: Mapping[str, Any]) -> str:
    """A call of an episode's only tool as its environment takes it: its argument where that is one
    text (`go north`, `ls -l`), else as `call_text`."""
    _, arguments = _called(call)
    if isinstance(arguments, str):
        return arguments
    if (
        isinstance(arguments, Mapping)
        and len(arguments) == 1
        and isinstance(only := next(iter(arguments.values())), str)
    ):
        return only
    return call_text(call)


def _called(call: Mapping[str, Any]) -> tuple[object, object]:
    """The tool's name, and its arguments: read where they are JSON."""
    function = call.get("function")
    inner: Mapping[str, Any] = (
        function
        if isinstance(function, Mapping)
        else {"name": function or call.get("name"), "arguments": call.get("arguments")}
    )
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return inner.get("name"), inner.get("arguments")
    return inner.get("name"), arguments


def _tools(messages: Sequence[object]) -> set[str]:
    """Names of all tools that these messages call."""
    calls = [message.get("tool_calls") for message in messages if isinstance(message, Mapping)]
    return {
        str(_called(call)[0])
        for each in calls
        if isinstance(each, Sequence)
        for call in each
        if isinstance(call, Mapping)
    }


def number(value: object, what: str) -> float | None:
    """A finite number or None. Bad for anything else."""
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        shown = str(value)[:40]
    except (OverflowError, ValueError):  # a whole number of hundreds of digits
        shown = "a number of hundreds of digits"
    raise Bad("a reward that is no number", f"{what} is {shown!r}, and not a finite number")


def _acted(message: Mapping[str, Any], text: str, nth: int, one_tool: bool) -> LoggedTurn:
    """What the assistant did; `one_tool`: all calls of the episode are of one tool, whose name the
    environment need not be told."""
    action, thought = message.get("action"), ""
    calls = message.get("tool_calls")
    if calls:
        if (
            not isinstance(calls, Sequence)
            or isinstance(calls, str)
            or not all(isinstance(call, Mapping) for call in calls)
        ):
            raise Bad(
                "tool calls that are none", f"the tool_calls of message {nth} are no list of calls"
            )
        called = "\n".join(call_text(call) for call in calls)
        if not isinstance(action, str):
            action = "\n".join(bare_call(call) for call in calls) if one_tool else called
        thought = text
        text = f"{text}\n{called}" if text else called
    tokens = message.get("tokens")
    if tokens is not None and not (
        isinstance(tokens, Sequence)
        and all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in tokens)
    ):
        raise Bad("tokens that are no ids", f"the tokens of message {nth} are no list of token ids")
    reward = number(message.get("reward"), f"the reward of message {nth}")
    return LoggedTurn(
        text,
        action if isinstance(action, str) else None,
        thought,
        reward=reward,
        tokens=None if tokens is None else tuple(tokens),
    )


def _closed(turns: list[LoggedTurn], answers: list[str], exact: str | None) -> list[LoggedTurn]:
    if not turns or not answers:
        return turns
    last = turns[-1]
    return [
        *turns[:-1],
        LoggedTurn(
            last.text,
            last.action,
            last.thought,
            "\n".join(answers),
            exact,
            last.reward,
            last.tokens,
        ),
    ]


def _encodable(found: Logged) -> None:
    """Half a surrogate pair is valid JSON and no text: nothing later could write it."""
    texts = [
        found.system,
        found.first,
        found.instruction,
        found.task or "",
        found.model,
        found.split,
    ]
    for turn in found.turns:
        texts += [turn.text, turn.action or "", turn.answer or "", turn.observation or ""]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise Bad(
            "text that is no Unicode", "it holds half a surrogate pair, which is no text"
        ) from None
