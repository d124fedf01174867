"""Requests to JSON bodies, answers to completions.

Plain dictionaries and no validation library: this runs thousands of times a second. A history grows
by two messages a turn, so each message is encoded once and its bytes are kept. Nothing here waits,
retries or holds a connection. Servers are not trusted: every field is checked before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leafe.core import Completion, Message, Request, Usage
from leafe.policies.http._refusals import error_text

LIMITS = ("max_tokens", "max_completion_tokens")
"""The fields in which servers take the limit on an answer's tokens."""
_ABORTED_REASON = re.compile(
    r"abort|error|cancel|fail|interrupt|preempt|time_?out|timed_out|insufficient|malformed"
    r"|incomplete|crash|kill|shut_?down|disconnect",
    re.IGNORECASE,
)
_CUT_REASON = re.compile(
    r"length|max_?(output_?|completion_?|new_?)?tokens|token_limit"
    r"|content_?filter|safety|recitation|blocklist|prohibited|sensitive",
    re.IGNORECASE,
)
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")


class Garbage(ValueError):
    """A 200 whose body is no chat completion."""

    kind = "garbage"


class Aborted(Garbage):
    """A 200 whose answer the server gave up half-way."""

    kind = "aborted"


Schema = Mapping[str, Any]

SCHEMA_FIELDS: Mapping[str, Callable[[Schema], Any]] = {
    "response_format": lambda schema: {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    },  # OpenAI and most others
    "structured_outputs": lambda schema: {"json": schema},  # vLLM from 0.11 on
    "guided_json": lambda schema: schema,  # vLLM before 0.12
    "json_schema": lambda schema: schema,  # llama.cpp
}
"""The fields of the request body in which servers take a JSON schema, and what they hold, in the
order in which they are tried."""


@dataclass(slots=True)
class Dialect:
    """What one server understands, as its refusals and `check` showed."""

    schema: str | None = "response_format"
    """The field of `SCHEMA_FIELDS` that it follows; None: none."""
    seed: bool = True
    """It takes a seed."""
    seed_holds: bool = True
    """Equal seeds give equal samples, as far as is known."""
    most: int | None = None
    """The most choices that one request yields, where it gave fewer than it was asked for."""
    ids: Literal["return_token_ids", "logprobs"] | None = None
    """How token ids are asked for: by a field of their own (vLLM, SGLang), or beside the
    log-probabilities (llama.cpp); None: not at all."""
    logprobs: bool = False
    limit: str = LIMITS[0]
    """The field for the limit on the answer's tokens."""
    temperature: bool = True
    """It takes a temperature of 1; False: the field is left out where it is 1."""
    top_p: bool = True
    """It takes a top_p of 1; False: the field is left out where it is 1."""
    stop: bool = True
    """It takes stop texts; False: they are cut off here."""
    reasoning: bool = False
    """It puts the model's thinking beside the answer."""
    context: int | None = None
    """Tokens of prompt and answer that it holds, where its models list says so."""
    tokens_taken: int = 0
    """The highest limit on an answer's tokens that it has taken."""


_FRAGMENTS: dict[tuple[str, str], bytes] = {}
_MAX_FRAGMENTS = 1 << 25
"""Bytes of messages that are kept before the cache is emptied."""
_fragments_size = 0


def _fragment(message: Message) -> bytes:
    """The message as JSON."""
    global _fragments_size
    key = (message.role, message.content)
    found = _FRAGMENTS.get(key)
    if found is None:
        found = b'{"role":"%b","content":%b}' % (
            message.role.encode(),
            json.dumps(message.content).encode(),
        )
        if _fragments_size > _MAX_FRAGMENTS:
            _FRAGMENTS.clear()
            _fragments_size = 0
        _FRAGMENTS[key] = found
        _fragments_size += 2 * len(found) + 200
    return found


def body_of(
    request: Request,
    model: str,
    n: int,
    seed: int | None,
    dialect: Dialect,
    extra: Mapping[str, Any],
) -> bytes:
    """The JSON body for n samples.

    Args:
        request: What to sample.
        model: What the server calls the model.
        n: How many samples.
        seed: Of the first sample.
        dialect: What the server understands.
        extra: The user's own fields, which override all others.
    """
    rest: dict[str, Any] = {"model": model}
    if dialect.temperature or request.temperature != 1.0:
        rest["temperature"] = request.temperature
    if dialect.top_p or request.top_p != 1.0:
        # always sent where it is taken: several servers else read top_p from the model's own
        # generation config
        rest["top_p"] = request.top_p
    if not any(limit in extra for limit in LIMITS):
        rest[dialect.limit] = request.max_tokens
    if n > 1:
        rest["n"] = n
    if seed is not None and dialect.seed:
        # 31 bits: llama.cpp keeps 32 and reads the largest of them as "random"
        rest["seed"] = seed & 0x7FFF_FFFF
    if request.stop and dialect.stop:
        rest["stop"] = list(request.stop)
    if dialect.schema is not None and request.schema is not None:
        rest[dialect.schema] = SCHEMA_FIELDS[dialect.schema](request.schema)
    if dialect.ids == "return_token_ids":
        rest["return_token_ids"] = True
    if dialect.logprobs or dialect.ids == "logprobs":
        rest |= {
            "logprobs": True,
            "top_logprobs": 1,
        }  # of llama.cpp: 0 gives nothing, and without it come 20 a token
    rest.update(extra)
    if "messages" in rest:
        return json.dumps(rest).encode()
    return b'{"messages":[%b],%b' % (
        b",".join([_fragment(m) for m in request.messages]),
        json.dumps(rest).encode()[1:],
    )


def completions_of(answer: object, request: Request) -> list[Completion]:
    """The choices of a chat completion.

    The server reports usage once for all choices: the first completion carries the prompt.
    Generated tokens are exact where the server gives token ids or made one choice, else shared out
    evenly.

    Raises:
        Garbage: A needed field is missing or of the wrong type.
        Aborted: The server gave an answer up half-way.
    """
    if not isinstance(answer, dict):
        raise Garbage("the answer is no JSON object")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        why = f": {error_text(answer).text}" if "error" in answer else ""
        raise Garbage(f"the answer has no choices{why}")
    texts: list[str] = []
    sampled: list[tuple[int, ...] | None] = []
    whole: list[bool] = []
    finishes: list[Literal["stop", "length"]] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or not message:
            raise Garbage("a choice has no message with a text")
        finishes.append(_finish(choice))
        content = _content(message)
        text = _before_stop(content, request.stop)
        texts.append(text)
        sampled.append(_ids(choice))
        whole.append(text == content and not _met_stop(choice, request.stop))
    reported = answer.get("usage")
    total = _count(reported.get("completion_tokens")) if isinstance(reported, dict) else 0
    if total and total != sum(len(ids or ()) for ids in sampled):
        sampled = [None] * len(choices)  # not all of them: the end-of-turn tokens are missing, say
    usage = _usage(answer, total, len(choices), sampled)
    plain = request.temperature == 1.0 and request.top_p == 1.0
    return [
        Completion(
            text=text,
            # where a stop text was met the ids hold it, and the text does not
            tokens=ids if all_of_it else None,
            # servers give log-probabilities from before the temperature and top_p: only here are
            # they those of the sample
            logprob=_logprob(choice, used.generated) if plain and "logprobs" in choice else None,
            finish=finish,
            usage=used,
        )
        for choice, text, ids, all_of_it, finish, used in zip(
            choices, texts, sampled, whole, finishes, usage, strict=True
        )
    ]


def has_reasoning(answer: object) -> bool:
    """Whether some choice has the model's thinking beside its text."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    messages = (
        [c.get("message") for c in choices if isinstance(c, dict)]
        if isinstance(choices, list)
        else []
    )
    for message in messages:
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if any(message.get(field) for field in _REASONING) or any(
            isinstance(p, dict) and p.get("type") in ("thinking", "reasoning") for p in parts
        ):
            return True
    return False


def _finish(choice: Mapping[str, Any]) -> Literal["stop", "length"]:
    """How the answer ended. A null reason means that it did not; a missing one means nothing."""
    reason = choice.get("finish_reason", "stop")
    if isinstance(reason, dict):  # as SGLang writes it inside
        reason = reason.get("type")
    if reason is None or choice.get("error"):
        cause = error_text(choice).text if choice.get("error") else "finish_reason is null"
        raise Aborted(f"the answer was given up half-way ({cause})")
    if not isinstance(reason, str):
        raise Garbage("the finish_reason of a choice is no text")
    if _ABORTED_REASON.search(reason):
        raise Aborted(f"the answer was given up half-way (finish_reason {reason[:40]!r})")
    return "length" if _CUT_REASON.search(reason) else "stop"


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message, its parts joined; "" where there is none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        raise Garbage("a choice has no message with a text")
    return "".join(part if isinstance(part, str) else _part(part) for part in parts)


def _part(part: object) -> str:
    """The text of one part of a message; "" for thinking and for what is no text."""
    if not isinstance(part, dict):
        raise Garbage("a part of a message is neither a text nor an object")
    text = part.get("text") if part.get("type", "text") in ("text", "output_text") else ""
    if not isinstance(text, str):
        raise Garbage("a part of a message has no text")
    return text


def _met_stop(choice: Mapping[str, Any], stop: tuple[str, ...]) -> bool:
    """A stop text was removed from the text: vLLM and SGLang name it, llama.cpp's tokens hold
    it."""
    if isinstance(choice.get("stop_reason"), str) or isinstance(choice.get("matched_stop"), str):
        return True
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if stop and isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return False
    spelled = "".join(str(item.get("token", "")) for item in content if isinstance(item, dict))
    return any(mark in spelled for mark in stop if mark)


_LARGEST_ID = 2**31


def _ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The sampled ids: `token_ids` of vLLM, `response_token_ids` of SGLang, `id` beside each
    log-probability of llama.cpp."""
    ids = choice.get("token_ids")
    if ids is None:
        ids = choice.get("response_token_ids")
    if (
        ids is None
        and isinstance(logprobs := choice.get("logprobs"), dict)
        and isinstance(content := logprobs.get("content"), list)
    ):
        ids = [item.get("id") if isinstance(item, dict) else None for item in content]
    if not isinstance(ids, list) or not ids:
        return None
    return tuple(ids) if all(type(i) is int and 0 <= i < _LARGEST_ID for i in ids) else None


def _logprob(choice: Mapping[str, Any], generated: int) -> float | None:
    """The sum over all sampled tokens; None where one is missing, or the sum is not finite."""
    logprobs = choice["logprobs"]
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or len(content) != generated:
        return None
    total = 0.0
    for item in content:
        value = item.get("logprob") if isinstance(item, dict) else None
        if isinstance(value, bool) or not isinstance(value, float | int) or not -1e300 < value <= 0:
            return None
        total += value
    return total if math.isfinite(total) else None


def _before_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text up to the first stop text: some servers leave it in."""
    for mark in filter(None, stop):
        text = text.split(mark, 1)[0]
    return text


def _usage(
    answer: Mapping[str, Any], total: int, choices: int, tokens: list[tuple[int, ...] | None]
) -> list[Usage]:
    if all(ids is not None for ids in tokens):
        generated = [len(ids or ()) for ids in tokens]
    else:
        generated = [total // choices + (i < total % choices) for i in range(choices)]
    reported = answer.get("usage")
    if not isinstance(reported, dict):
        return [Usage(generated=g) for g in generated]
    prompt = _count(reported.get("prompt_tokens"))
    first = Usage(prompt, min(_cached(answer, reported), prompt), generated[0])
    return [first, *(Usage(generated=g) for g in generated[1:])]


def _cached(answer: Mapping[str, Any], usage: Mapping[str, Any]) -> int:
    """Prompt tokens that came from the prefix cache: the field of OpenAI, vLLM, SGLang and
    llama.cpp, else llama.cpp's timings or DeepSeek's field."""
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and details.get("cached_tokens") is not None:
        return _count(details["cached_tokens"])
    timings = answer.get("timings")
    if isinstance(timings, dict) and "cache_n" in timings:
        return _count(timings["cache_n"])
    return _count(usage.get("prompt_cache_hit_tokens"))


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
