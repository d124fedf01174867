"""Messages to token ids, exactly and once: what was sampled is spliced in, never tokenised again.

The model's own chat template is rendered with a mark in the place of every assistant message. The text between the marks is tokenised
piece by piece; the sampled ids go where the marks were. So the prompt of a turn is, by construction, a prefix of its child's,
if the template renders earlier messages the same whatever follows. A template that does not is refused by name. Needs no torch: the tokenizer
is handed in (any `transformers` fast tokenizer with a chat template).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafe.core.errors import UserError
from leafe.core.policy import Message

_MARK = "\ue0f1leafe\ue0f2"  # private-use characters: no tokenizer merges across them, no observation holds them


def is_plain(folder: Path) -> bool:
    """Whether the folder's tokenizer is a plain `tokenizer.json`, to be read as it stands: for some architectures (Qwen2) `AutoTokenizer` would put its own
    pre-tokenizer in the place of the file's. False for a folder that says otherwise, or nothing."""
    described = folder / "tokenizer_config.json"
    if not described.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    try:
        kind = json.loads(described.read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{described} cannot be read: {error}.") from error
    return kind in ("TokenizersBackend", "PreTrainedTokenizerFast")


class ChatTokens:
    """Exact token ids for one tokenizer. UserError if it has no chat template or one that breaks the prefix rule.

    `end_of_turn` is the one token id that closes an assistant message: the model writes it, the mask covers it.
    """

    def __init__(self, tokenizer: Any, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"The checkpoint {self.name} has no chat template: use an instruction-tuned model or set tokenizer.chat_template.")
        self._cache: OrderedDict[tuple[tuple[str, str], ...], tuple[tuple[int, ...], ...]] = OrderedDict()
        self.end_of_turn = self._probe()

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the prompt in answer to which the model writes its next message; the last message is the user's."""
        if not messages or messages[-1].role == "assistant":
            raise ValueError("a prompt ends with a user message")
        pieces = self._pieces(messages)
        ids = list(pieces[0])
        answers = [m for m in messages if m.role == "assistant"]
        for message, piece in zip(answers, pieces[1:], strict=True):
            answer = self.answer(message)
            ids += answer
            # the piece begins with the end-of-turn token: drop it where the model wrote it itself
            ids += piece[1:] if answer and answer[-1] == self.end_of_turn else piece
        return tuple(ids)

    def answer(self, message: Message) -> tuple[int, ...]:
        """Ids of an assistant message as trained on: the sampled ids where they are known, else its text and, unless it was cut, the end-of-turn token."""
        if message.tokens is not None:
            return message.tokens
        text = self._encode(message.content)
        return text if message.cut else (*text, self.end_of_turn)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids without the end-of-turn token."""
        kept = [i for i in ids if i != self.end_of_turn]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        chat = [{"role": m.role, "content": _MARK if m.role == "assistant" else m.content} for m in messages]
        try:
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))
        except Exception as error:  # jinja raises its own kinds, and templates raise by raise_exception
            raise UserError(f"The chat template of {self.name} refuses these messages ({', '.join(m.role for m in messages)}): {error}.") from error

    def _pieces(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], ...]:
        key = tuple((m.role, "" if m.role == "assistant" else m.content) for m in messages)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        texts = self._render(messages, True).split(_MARK)
        turns = sum(m.role == "assistant" for m in messages)
        if len(texts) != turns + 1:
            raise UserError(f"The chat template of {self.name} drops or repeats earlier assistant messages: it breaks the prefix rule and cannot be used.")
        shorter = self._cache.get(key[:-2]) if turns else None
        # where the shorter prompt was seen, its pieces are known and only the last text is new
        pieces = (*shorter, self._encode(texts[-1])) if shorter is not None else tuple(self._encode(text) for text in texts)
        self._cache[key] = pieces
        if len(self._cache) > 20_000:
            self._cache.popitem(last=False)
        return pieces

    def _probe(self) -> int:
        talk = [Message("user", "first"), Message("assistant", ""), Message("user", "second"), Message("assistant", ""), Message("user", "third")]
        long, middle, short = (self._render(talk[:n], True).split(_MARK) for n in (5, 3, 1))
        if len(long) != 3 or len(middle) != 2 or long[:2] != middle or middle[:1] != short or "second" not in middle[1]:
            raise UserError(
                f"The chat template of {self.name} renders earlier messages differently once later ones follow: it breaks the prefix rule "
                "(a turn's prompt must be a prefix of the next turn's). Use a template that only appends."
            )
        tail = self._encode(middle[1])
        closing = self._encode(self._render(talk[:2], False).split(_MARK)[-1])
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        if not tail or not closing or tail[0] != closing[0] or tail[0] not in special:
            raise UserError(f"The chat template of {self.name} does not close an assistant message with one special token: a turn has no end.")
        return int(tail[0])
