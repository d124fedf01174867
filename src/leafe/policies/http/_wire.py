"""What goes over the wire: a request to a JSON body, an answer to completions, a refusal to its meaning.

Plain dictionaries and no validation library: this runs once a turn, several hundred times a second. Nothing here
waits, retries or knows of a connection. What a server writes is not trusted: every field is looked at before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leafe.core import Completion, Request, Usage

_CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum context|exceeds?[ _](the )?(\w+ )?context|exceed_context|prompt is too long|input is too long"
    r"|too many (input |prompt )?tokens|longer than the (model|maximum)|max_new_tokens` must be <=|reduce the length",
    re.IGNORECASE,
)
"""How OpenAI, vLLM, SGLang, llama.cpp, TGI and Anthropic-style gateways say that prompt + answer do not fit."""

_NAMES_SCHEMA = re.compile(r"response_format|json_schema|json schema|schema|grammar|guided|structured", re.IGNORECASE)
_NAMES_SEED = re.compile(r"\bseed\b", re.IGNORECASE)
_NAMES_N = re.compile(
    r"\bn_cmpl\b|[\"'`]n[\"'`]|\bn (must|should|is|can|>|=)|\bbest_of\b|number of (choices|completions)|only (one|1) (completion|choice)", re.IGNORECASE
)


class Garbage(ValueError):
    """The server said 200 and sent something that is no chat completion; the message says what."""


def body_of(request: Request, model: str, n: int, seed: int | None, *, schema: bool, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body for n samples. `extra` comes last: what the user sets by hand wins."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": request.temperature,
        # always sent: several servers else take top_p from the model's own generation config
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
    }
    if n > 1:
        body["n"] = n
    if seed is not None:
        # 31 bits: llama.cpp keeps 32 and reads the largest of them as "random"
        body["seed"] = seed & 0x7FFF_FFFF
    if request.stop:
        body["stop"] = list(request.stop)
    if schema and request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.schema, "strict": True}}
    body.update(extra)
    return body


def completions_of(answer: object, request: Request) -> list[Completion]:
    """The choices of a chat completion; Garbage where a needed field is missing or of the wrong type.

    The server reports usage once for all choices: the first completion carries the prompt. Generated tokens are exact where the server
    gives token ids or made one choice, else shared out evenly, sum kept.
    """
    if not isinstance(answer, dict):
        raise Garbage("the answer is no JSON object")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Garbage(f"the answer has no choices: {refusal_text(answer)}" if "error" in answer else "the answer has no choices")
    texts: list[str] = []
    tokens: list[tuple[int, ...] | None] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or not isinstance(message.get("content", 0), str | None):
            raise Garbage("a choice has no message with a text")
        texts.append(_clean(message["content"] or "", request.stop))
        ids = choice.get("token_ids")
        tokens.append(tuple(ids) if isinstance(ids, list) and all(type(i) is int for i in ids) else None)
    usage = _usage(answer.get("usage"), len(choices), tokens)
    return [
        Completion(
            text=text,
            tokens=ids,
            finish="length" if choice.get("finish_reason") == "length" else "stop",
            usage=used,
        )
        for choice, text, ids, used in zip(choices, texts, tokens, usage, strict=True)
    ]


def _clean(text: str, stop: tuple[str, ...]) -> str:
    """Cut at the first stop text (some servers leave it in), and free of lone surrogates, which no journal could hold."""
    for mark in filter(None, stop):
        text = text.split(mark, 1)[0]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _usage(reported: object, choices: int, tokens: list[tuple[int, ...] | None]) -> list[Usage]:
    if not isinstance(reported, dict):
        return [Usage(generated=len(ids or ())) for ids in tokens]
    prompt = _count(reported.get("prompt_tokens"))
    details = reported.get("prompt_tokens_details")
    cached = min(_count(details.get("cached_tokens")), prompt) if isinstance(details, dict) else 0
    total = _count(reported.get("completion_tokens"))
    if all(ids is not None for ids in tokens):
        generated = [len(ids or ()) for ids in tokens]
    else:
        generated = [total // choices + (i < total % choices) for i in range(choices)]
    return [Usage(prompt, cached, g) if i == 0 else Usage(generated=g) for i, g in enumerate(generated)]


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def refusal_text(answer: object) -> str:
    """What a server's error body says, in one line of at most 300 characters."""
    found = answer
    while isinstance(found, dict):
        found = next((found[k] for k in ("error", "message", "detail", "msg") if k in found), str(found))
    return " ".join(str(found).split())[:300].rstrip(". ")


def is_context_full(text: str) -> bool:
    return _CONTEXT.search(text) is not None


def names_schema(text: str) -> bool:
    return _NAMES_SCHEMA.search(text) is not None


def names_seed(text: str) -> bool:
    return _NAMES_SEED.search(text) is not None


def names_n(text: str) -> bool:
    return _NAMES_N.search(text) is not None
