"""A logged episode in one form for all formats: the prompt, then actions, each with the answer that
followed.

All readers end in `episode`. A conversation that is no episode raises `InvalidRecord` with a
sentence; `Problems` counts these and keeps the first few sentences.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from leafe.core.answers import plain_json

SENTENCES_PER_KIND = 5
"""Sentences kept per kind; all are counted."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class InvalidRecord(ValueError):
    """This record is no episode: `kind` for the count, the message for people."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or kind)
        self.kind = kind


@dataclass(slots=True)
class Problems:
    """What an import left out or changed.

    Attributes:
        left_out: Records that are in no tree, by reason.
        noted: Records that were taken with a remark, by remark.
        sentences: The first few of each reason and remark, with file and line.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    sentences: list[str] = field(default_factory=list)

    def leave_out(self, where: str, bad: InvalidRecord) -> None:
        self.left_out[bad.kind] += 1
        self._add_sentence(self.left_out[bad.kind], f"{where}: {bad}.")

    @contextmanager
    def skipping(self, where: str) -> Iterator[None]:
        """Leave the record at `where` out if the block raises `InvalidRecord`."""
        try:
            yield
        except InvalidRecord as invalid:
            self.leave_out(where, invalid)

    def note(self, where: str, kind: str, message: str = "") -> None:
        self.noted[kind] += 1
        self._add_sentence(self.noted[kind], f"{where}: {message or kind}.")

    def _add_sentence(self, nth: int, sentence: str) -> None:
        if nth <= SENTENCES_PER_KIND:
            self.sentences.append(" ".join(sentence.split())[:400])

    @property
    def unreported(self) -> int:
        """How many have no sentence of their own."""
        return max(0, self.left_out.total() + self.noted.total() - len(self.sentences))


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """One action and the answer to it."""

    text: str
    """The assistant's message, tool calls included (`call_text`)."""
    action: str | None = None
    """What the environment received, where the log says it; None: to be parsed from the text."""
    thought: str = ""
    answer: str | None = None
    """The messages up to the next action; None where the log ends with this action."""
    observation: str | None = None
    """The environment's exact observation, where the log has it beside the message."""
    reward: float | None = None
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LoggedEpisode:
    """One episode of a log."""

    where: str
    """File and line, for people."""
    system: str
    first: str
    """The user's messages before the first action."""
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
        """Success by the log: its own flag, else a reward of at least `success_at`."""
        return (
            self.success
            if self.success is not None
            else self.reward is not None and self.reward >= success_at
        )


def episode(
    where: str, messages: object, problems: Problems, *, before: int = 0, **about: Any
) -> LoggedEpisode:
    """Turn messages into an episode.

    Args:
        where: File and line, for people.
        messages: Chat messages as the log has them.
        problems: Notes what is dropped from messages.
        before: The first messages that are the prompt, whatever their roles.
        about: Further fields of `LoggedEpisode`.

    Raises:
        InvalidRecord: The messages are no episode.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRecord("no messages", "it has no list of messages")
    system: list[str] = []
    first: list[str] = []
    turns: list[LoggedTurn] = []
    answers: list[str] = []
    exact: str | None = None
    first_exact: str | None = None
    reasoning = 0
    one_tool = len(_tool_names(messages)) == 1
    for nth, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRecord(
                "a message is no object", f"message {nth} is no object with role and content"
            )
        if message.get("example") is True:
            continue
        role = message.get("role")
        if role is None:
            raise InvalidRecord("a message without a role", f"message {nth} has no role")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidRecord(
                "a message of an unknown role",
                (
                    f"message {nth} has the role {str(role)[:40]!r}; there are system, user, "
                    "assistant and tool"
                ),
            )
        text = content_text(message.get("content"), nth)
        if ROLES[role] == "assistant":
            if nth < before:
                raise InvalidRecord(
                    "an answer within the prompt",
                    (
                        f"message {nth} of the prompt is an assistant's: few-shot examples "
                        "cannot be told from actions"
                    ),
                )
            if turns and turns[-1].answer is None and not answers:
                raise InvalidRecord(
                    "two actions in a row",
                    (
                        f"messages {nth - 1} and {nth} are both the assistant's: what the "
                        "environment answered between them is missing"
                    ),
                )
            if not turns and not first:
                raise InvalidRecord(
                    "no prompt", "there is no message before the first assistant message"
                )
            turns = _with_answer(turns, answers, exact)
            answers, exact = [], None
            turns.append(_assistant_turn(message, text, nth, one_tool))
            reasoning += bool(message.get("reasoning_content") or message.get("reasoning"))
        elif ROLES[role] == "system" and not turns and not first:
            system.append(text)
        else:
            observed = message.get("observation")
            observed = observed if isinstance(observed, str) else None
            if turns:
                answers.append(text)
                exact = observed if exact is None else exact
            else:
                first.append(text)
                first_exact = observed if first_exact is None else first_exact
    if not turns:
        raise InvalidRecord("no action", "it has no assistant message")
    turns = _with_answer(turns, answers, exact)
    if reasoning:
        problems.note(
            where,
            "reasoning left out",
            f"the reasoning of {reasoning} messages is beside their text and left out",
        )
    found = LoggedEpisode(
        where,
        "\n".join(system),
        "\n".join(first),
        tuple(turns),
        first_observation=first_exact,
        **about,
    )
    if found.reward is None and found.success is None:
        raise InvalidRecord("no reward", "it has neither a reward nor success")
    _check_encodable(found)
    if found.payload is None:
        return found
    try:
        return replace(found, payload=plain_json(found.payload, "payload"))
    except ValueError as error:
        raise InvalidRecord("a payload that is no JSON", f"of its task the {error}") from error


def content_text(content: object, nth: int) -> str:
    """A message's content as text: a string, or a list of text parts. InvalidRecord for images and
    sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRecord(
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
            raise InvalidRecord(
                "content that is no text",
                f"message {nth} holds {str(kind)[:40]!r}, and leafe's environments are text",
            )
    return "\n".join(parts)


def call_text(call: Mapping[str, Any]) -> str:
    """A tool call as text: `{"name": ..., "arguments": {...}}`, whatever its arguments are."""
    name, arguments = _call_parts(call)
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def bare_call(call: Mapping[str, Any]) -> str:
    """A call of an episode's only tool as its environment takes it: the argument itself if it is
    one text (`go north`, `ls -l`), else `call_text`."""
    _, arguments = _call_parts(call)
    if isinstance(arguments, str):
        return arguments
    if (
        isinstance(arguments, Mapping)
        and len(arguments) == 1
        and isinstance(only := next(iter(arguments.values())), str)
    ):
        return only
    return call_text(call)


def _call_parts(call: Mapping[str, Any]) -> tuple[object, object]:
    """The tool's name and its arguments, parsed if they are JSON text."""
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


def _tool_names(messages: Sequence[object]) -> set[str]:
    """Names of all tools that these messages call."""
    calls = [message.get("tool_calls") for message in messages if isinstance(message, Mapping)]
    return {
        str(_call_parts(call)[0])
        for each in calls
        if isinstance(each, Sequence)
        for call in each
        if isinstance(call, Mapping)
    }


def number(value: object, what: str) -> float | None:
    """A finite number or None. InvalidRecord for anything else."""
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        shown = str(value)[:40]
    except (OverflowError, ValueError):  # a whole number of hundreds of digits
        shown = "a number of hundreds of digits"
    raise InvalidRecord(
        "a reward that is no number", f"{what} is {shown!r}, and not a finite number"
    )


def _assistant_turn(message: Mapping[str, Any], text: str, nth: int, one_tool: bool) -> LoggedTurn:
    """The assistant's turn; `one_tool`: all calls of the episode are of one tool, whose name its
    environment does not need."""
    action, thought = message.get("action"), ""
    calls = message.get("tool_calls")
    if calls:
        if (
            not isinstance(calls, Sequence)
            or isinstance(calls, str)
            or not all(isinstance(call, Mapping) for call in calls)
        ):
            raise InvalidRecord(
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
        raise InvalidRecord(
            "tokens that are no ids", f"the tokens of message {nth} are no list of token ids"
        )
    reward = number(message.get("reward"), f"the reward of message {nth}")
    return LoggedTurn(
        text,
        action if isinstance(action, str) else None,
        thought,
        reward=reward,
        tokens=None if tokens is None else tuple(tokens),
    )


def _with_answer(
    turns: list[LoggedTurn], answers: list[str], exact: str | None
) -> list[LoggedTurn]:
    if not turns or not answers:
        return turns
    last = replace(turns[-1], answer="\n".join(answers), observation=exact)
    return [*turns[:-1], last]


def _check_encodable(found: LoggedEpisode) -> None:
    """Refuse half a surrogate pair: valid JSON, but no text that could be written again."""
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
        raise InvalidRecord(
            "text that is no Unicode", "it holds half a surrogate pair, which is no text"
        ) from None
