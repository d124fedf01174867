"""What a server's refusal means: servers say the same thing in many ways, and few give it a code.

Only the sentence and the codes beside it are read, never the rest of the body, which may repeat the
prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_TEXT = 300
_MAX_DEPTH = 8

_CONTEXT = re.compile(
    r"""
    # the context, or the longest sequence, by one of its names
    context[ _-]*(length|size|window|limit) | (maximum|exceeds?|model'?s?)[ ]context
    | exceed_context | context[ ](the[ ])?overflow | input[ _]length
    | max(imum)?[ _]?(allowed[ ])?(prompt|input|sequence|seq|model|total|position)\w*
      [ _]?(len|length|size|tokens|embeddings)\b
    | token[ ]limit | too[ ]many[ ](\w+[ ])?tokens
    # what was sent, and that it is too much
    | (prompt|inputs?|messages?|request|conversation|sequence|text|history)\b
      [^;]{0,60}?\btoo[ ](long|large)\b
    | (prompt|inputs?|messages?|request|conversation|sequence|text|history|tokens)\b[^;]{0,60}?
      \b(exceed(s|ed)?|(longer|greater|larger|more)[ ]than
      |(must|cannot|can|may|should)[ ](not[ ])?(be|have|exceed)[ ]?
       (<=?|less|fewer|at[ ]most|no[ ]more|up[ ]to))
      [^;]{0,60}?(token|length|limit|context|\d{3})
    # what to do about it
    | (reduce|shorten|truncate|trim)\b.{0,20}
      \b(length|prompt|input|messages?|history|conversation|tokens)
    | length[ ]is[ ]\d+[ ]while[ ]limit | tokens?[ ]?>[ ]?[\d,]+ | (超出|超过|过长|太长)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""How OpenAI, vLLM, SGLang, llama.cpp, Ollama, LM Studio, TGI, TensorRT-LLM, transformers,
Anthropic, Bedrock, Gemini, xAI, Mistral, Cohere, Groq, DashScope and gateways say that prompt +
answer do not fit; tests/policies/test_http_refusals.py has their sentences."""
_CONTEXT_CODES = re.compile(
    r"context_(length|window|size)|above_max_length|(request|prompt|input)_too_(large|long)"
    r"|tokens_limit|input_length",
    re.IGNORECASE,
)
_RATE = re.compile(
    (
        r"\b(rate|quota|billing|credit|balance)|per[ "
        r"-](minute|min|hour|day|second|month)|\b[TR]P[MD]\b"
    ),
    re.IGNORECASE,
)

_NAMES_SCHEMA = re.compile(
    r"response_format|json_schema|json schema|schema|grammar|guided|structured", re.IGNORECASE
)
_NAMES_N = re.compile(
    (
        r"\bn_cmpl\b|[\"'`]n[\"'`]|\bn (must|should|is|can|>|=)|\bbest_of\b|number of "
        r"(choices|completions)|only (one|1) (completion|choice)"
    ),
    re.IGNORECASE,
)
_NAMES_LIMIT = re.compile(
    r"max_?((completion|new|output)_?)?tokens|max_tokens_to_sample|num_predict"
    r"|(output|completion|generated|new|maximum|max|requested) tokens|tokens you requested",
    re.IGNORECASE,
)
_OLD_LIMIT = re.compile(r"\bmax_tokens\b")
_TOO_HIGH = re.compile(
    r"large|above|range|<=|at most|maximum|exceed|greater|less than", re.IGNORECASE
)
_NOT_TAKEN = re.compile(
    r"un(supported|recogni[sz]ed|known|expected|permitted)|not (\w+ "
    r")?(support|permit|allow|recogni[sz]|accept|know|valid)|no longer|deprecated|instead|extra "
    r"(input|field)s?"
    r"|forbidden|invalid (parameter|argument|field)",
    re.IGNORECASE,
)
_FIELDS = {
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    "stop": re.compile(r"\bstop(_sequences|_words|_tokens)?\b", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class ErrorText:
    """What an error body says: one line of at most 300 characters, and its codes and types."""

    text: str
    codes: str = ""

    @property
    def context_full(self) -> bool:
        """The prompt, or prompt and answer, do not fit the context. A rate limit does not count."""
        if _CONTEXT_CODES.search(self.codes):
            return True
        return _CONTEXT.search(self.text) is not None and not self.of_rates

    @property
    def of_rates(self) -> bool:
        """It names a rate limit or a quota."""
        return _RATE.search(self.text) is not None

    @property
    def names_n(self) -> bool:
        return _NAMES_N.search(self.text) is not None

    @property
    def names_schema(self) -> bool:
        return _NAMES_SCHEMA.search(self.text) is not None

    @property
    def names_limit(self) -> bool:
        """It names the limit on the answer's tokens."""
        return _NAMES_LIMIT.search(self.text) is not None

    @property
    def renames_limit(self) -> bool:
        """It does not know the limit as `max_tokens`."""
        return (
            all(p.search(self.text) for p in (_OLD_LIMIT, _NOT_TAKEN))
            and _TOO_HIGH.search(self.text) is None
        )

    def names(self, field: str) -> bool:
        return _FIELDS[field].search(self.text) is not None


def error_text(answer: object) -> ErrorText:
    """The text and codes of a decoded body, or of the text of a body that is no JSON."""
    found, codes = answer, []
    for _ in range(_MAX_DEPTH):
        if (
            isinstance(found, list)
            and len(found) == 1
            and isinstance(found[0], dict)
            and "error" in found[0]
        ):
            found = found[0]  # as Gemini sends it
        if not isinstance(found, dict):
            break
        codes += [found[k] for k in ("code", "type") if isinstance(found.get(k), str)]
        field = next((k for k in ("error", "message", "detail", "msg") if k in found), None)
        if field is None:
            break
        found = found[field]
    text = "".join(
        c if c.isprintable() else " " if c.isspace() else "" for c in _text(found)[: 4 * _MAX_TEXT]
    )
    return ErrorText(" ".join(text.split())[:_MAX_TEXT].rstrip(". "), " ".join(codes)[:_MAX_TEXT])


def _text(value: object) -> str:
    try:
        return value if isinstance(value, str) else str(value)
    except (RecursionError, ValueError):  # nested without end, or a number of thousands of digits
        return "something that cannot be shown"


def status_in(answer: object) -> int | None:
    """The status inside an error body that a gateway sent with 200; None where there is none."""
    error = answer.get("error") if isinstance(answer, dict) and "choices" not in answer else None
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])
    return code if type(code) is int and 400 <= code < 600 else None
