"""Messages to token ids, exactly and once: sampled ids are spliced in, never tokenised again.

The model's own chat template is rendered with a mark in the place of every assistant message. The
text between the marks is tokenised piece by piece, and the sampled ids go where the marks were. So
the prompt of a turn is a prefix of its child's, provided that the template renders earlier messages
the same whatever follows; a template that does not is refused by name. No torch is needed: the
caller passes the tokenizer (any `transformers` fast tokenizer with a chat template).

Two things are kept out of prompts. Text stays text: where a message spells a control token
(`<|im_end|>` in an observation), the spelling is tokenised as characters and ends no turn. And a
template that writes today's date is given `TEMPLATE_DATE`, so that a prompt is the same every day.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from leafe.core.errors import UserError
from leafe.core.policy import Message, Role
from leafe.core.text import clean_text

TEMPLATE_DATE = datetime(2026, 1, 1)
"""What `strftime_now` returns to a chat template: a prompt that is sampled on one day and trained
on, or resumed, on another must be the same tokens."""
_DIRECTIVES = {c: TEMPLATE_DATE.strftime(f"%{c}") for c in "aAbBcdHIjmMpSUwWxXyYZ%"}
# hides the function of that name that `transformers` gives to templates; it passes on no variables
# that are functions
_STRFTIME_NOW = """\
{%- macro strftime_now(format) -%}
{%- set at = namespace(directive=false) -%}
{%- for c in format -%}
{%- if at.directive -%}
{%- if c not in "-_0^#" -%}{{ leafe_date[c] }}{%- set at.directive = false -%}{%- endif -%}
{%- elif c == "%" -%}{%- set at.directive = true -%}
{%- else -%}{{ c }}{%- endif -%}
{%- endfor -%}
{%- endmacro -%}
"""

# Marks in rendered text, of private-use characters. Where a message holds the first of them, it is
# escaped like a control token, so that every mark in a rendered text is one of ours.
_OPEN, _CLOSE = "\ue0f1", "\ue0f2"
_MARK = f"{_OPEN}leafe{_CLOSE}"
_SPELLED = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def is_plain(folder: Path) -> bool:
    """Whether a folder's tokenizer is a plain `tokenizer.json`, to be loaded without
    `AutoTokenizer`, which for some architectures (Qwen2) replaces the file's pre-tokenizer by its
    own.

    Raises:
        UserError: `tokenizer_config.json` cannot be read.
    """
    described = folder / "tokenizer_config.json"
    if not described.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    try:
        kind = json.loads(described.read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{described} cannot be read: {error}.") from error
    return kind in ("TokenizersBackend", "PreTrainedTokenizerFast")


class ChatTokens:
    """Exact token ids of chats, for one tokenizer.

    Args:
        tokenizer: A `transformers` fast tokenizer with a chat template.
        name: Of the checkpoint, for errors; default: the tokenizer's own.

    Attributes:
        end_of_turn: The one token id that closes an assistant message. The model writes it, and the
            loss mask covers it.

    Raises:
        UserError: There is no chat template, or one that breaks the prefix rule.
    """

    def __init__(self, tokenizer: Any, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"The checkpoint {self.name} has no chat template: use an "
                "instruction-tuned model or set tokenizer.chat_template."
            )
        self._cache: OrderedDict[tuple[tuple[str, str], ...], tuple[tuple[int, ...], ...]] = (
            OrderedDict()
        )
        self._system_checked = False
        template = _template(tokenizer)
        self._spellings, self._guards = _control_tokens(tokenizer, template)
        self._dated = (
            {"chat_template": _STRFTIME_NOW + template, "leafe_date": _DIRECTIVES}
            if "strftime_now" in template
            else {}
        )
        self.end_of_turn = self._probe()

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the prompt for the model's next message.

        Args:
            messages: The chat; the last message is the user's.

        Raises:
            ValueError: The last message is the assistant's, or there is none.
            UserError: The template refuses these messages, or breaks the prefix rule.
        """
        if not messages or messages[-1].role == "assistant":
            raise ValueError("a prompt ends with a user message")
        pieces = self._pieces(messages)
        ids = list(pieces[0])
        answers = [m for m in messages if m.role == "assistant"]
        for message, piece in zip(answers, pieces[1:], strict=True):
            answer = self.answer(message)
            ids += answer
            # a piece begins with the end-of-turn token: drop it where the model wrote it
            ids += piece[1:] if answer and answer[-1] == self.end_of_turn else piece
        return tuple(ids)

    def answer(self, message: Message) -> tuple[int, ...]:
        """Ids of an assistant message as it is trained on: the sampled ids where they are known,
        else its text and, unless it was cut, the end-of-turn token."""
        if message.tokens is not None:
            return message.tokens
        text = self._encode(self._guard("assistant", message.content))
        return text if message.cut else (*text, self.end_of_turn)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids without the end-of-turn token."""
        kept = [i for i in ids if i != self.end_of_turn]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def _guard(self, role: Role, text: str) -> str:
        """The text of a message, with a mark in the place of each spelled control token."""
        pattern = self._guards[role == "assistant"]
        return pattern.sub(lambda m: f"{_OPEN}{self._spellings.index(m[0])}{_CLOSE}", text)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Ids of rendered text; what `_guard` marked becomes ordinary characters."""
        if _OPEN not in text:
            return self._ids(text)
        out: tuple[int, ...] = ()
        for at, piece in enumerate(_SPELLED.split(text)):  # text, number, text, number, ..., text
            if at % 2:  # cut after its first character, so that no tokenizer sees it whole
                spelling = self._spellings[int(piece)]
                out += self._ids(spelling[:1]) + self._ids(spelling[1:])
            else:
                out += self._ids(piece)
        return out

    def _ids(self, text: str) -> tuple[int, ...]:
        text = clean_text(text, len(text))
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        chat = [
            {
                "role": m.role,
                "content": _MARK if m.role == "assistant" else self._guard(m.role, m.content),
            }
            for m in messages
        ]
        options = {"tokenize": False, "add_generation_prompt": generation, **self._dated}
        try:
            return str(self.tokenizer.apply_chat_template(chat, **options))
        except Exception as error:  # jinja's own errors, and what templates raise
            raise UserError(
                f"The chat template of {self.name} refuses these messages "
                f"({', '.join(m.role for m in messages)}): {error}."
            ) from error

    def _pieces(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], ...]:
        key = tuple((m.role, "" if m.role == "assistant" else m.content) for m in messages)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        if messages[0].role == "system" and not self._system_checked:
            self._check_appends([Message("system", "rules")])
            self._system_checked = True
        texts = self._render(messages, True).split(_MARK)
        turns = sum(m.role == "assistant" for m in messages)
        if len(texts) != turns + 1:
            raise UserError(
                f"The chat template of {self.name} drops or repeats earlier assistant "
                "messages: it breaks the prefix rule and cannot be used."
            )
        shorter = self._cache.get(key[:-2]) if turns else None
        # where the shorter prompt was seen, only the last text is new
        new = texts if shorter is None else texts[-1:]
        self._cache[key] = pieces = (*(shorter or ()), *map(self._encode, new))
        if len(self._cache) > 20_000:
            self._cache.popitem(last=False)
        return pieces

    def _check_appends(self, head: list[Message]) -> None:
        """UserError unless the prompt of each turn of a chat that begins with `head` is a prefix of
        the next turn's."""
        talk = [*head, *_TALK]
        long, middle, short = (
            self._render(talk[: len(head) + n], True).split(_MARK) for n in (5, 3, 1)
        )
        same = (len(long), len(middle)) == (3, 2) and long[:2] == middle and middle[:1] == short
        if same and "second" in middle[1]:
            return
        system = " in a conversation that begins with a system message" if head else ""
        raise UserError(
            f"The chat template of {self.name} renders earlier messages differently once later "
            f"ones follow{system}: it breaks the prefix rule (a turn's prompt must be a prefix of "
            "the next turn's). Use a template that only appends."
        )

    def _probe(self) -> int:
        """The id that closes an assistant message."""
        self._check_appends([])
        tail = self._encode(self._render(_TALK[:3], True).split(_MARK)[1])
        closing = self._encode(self._render(_TALK[:2], False).split(_MARK)[-1])
        added = {
            *self.tokenizer.all_special_ids,
            *getattr(self.tokenizer, "added_tokens_decoder", {}),
        }
        if not tail or tail[:1] != closing[:1] or tail[0] not in added:
            raise UserError(
                f"The chat template of {self.name} does not close an assistant message "
                "with one special token: a turn has no end."
            )
        return int(tail[0])


_TALK = [
    Message("user", "first"),
    Message("assistant", ""),
    Message("user", "second"),
    Message("assistant", ""),
    Message("user", "third"),
]


def _template(tokenizer: Any) -> str:
    """The template in use; a tokenizer may hold several by name."""
    return str(
        tokenizer.get_chat_template()
        if hasattr(tokenizer, "get_chat_template")
        else tokenizer.chat_template
    )


def _control_tokens(
    tokenizer: Any, template: str
) -> tuple[list[str], tuple[re.Pattern[str], re.Pattern[str]]]:
    """Spellings of the tokens that structure a chat, and two patterns that find them: in messages
    of system and user, and in an assistant's text.

    The spellings are those of the special tokens and, for system and user, of the added tokens
    that the template writes (role marks that a tokenizer does not call special). An assistant's
    text keeps the latter: `<think>` is a token that the model would have written. A token of one
    character has no other spelling and is left alone.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {
        *tokenizer.all_special_ids,
        *(i for i, token in added.items() if getattr(token, "special", False)),
    }
    spelled = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in sorted({*special, *added})}
    long = {i: text for i, text in spelled.items() if len(text) > 1}
    own = [_OPEN, *(text for i, text in long.items() if i in special)]
    written = [t for i, t in long.items() if i not in special and t.strip() and t in template]
    every = [*own, *written]
    return every, (_any_of(every), _any_of(own))


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
