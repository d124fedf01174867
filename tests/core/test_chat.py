"""Token ids by splicing: the prompt of a turn is a prefix of its child's, and a template that
cannot give that is refused by name.

The tokenizers here are hand-made: the few methods of a `transformers` fast tokenizer that
`ChatTokens` uses, over words, with jinja templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import ChatTokens, Message, UserError
from leafe.core.chat import _MARK

END = "<|end|>"
APPENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if "
    "add_generation_prompt %}<|assistant|>{% endif %}"
)
BROKEN = {
    "drops earlier answers": (
        (
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|{{ m.role }}|>{{ "
            "m.content }}<|end|>{% endif %}{% endfor %}<|assistant|>"
        ),
        "breaks the prefix rule",
    ),
    "cuts earlier answers short": (
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last or m.role == "
            "'user' else m.content[:3] }}<|end|>{% endfor %}<|assistant|>"
        ),
        "breaks the prefix rule",
    ),
    "renders earlier messages anew": (
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ '' if loop.last else 'earlier ' }}{{ "
            "m.content }}<|end|>{% endfor %}<|assistant|>"
        ),
        "breaks the prefix rule",
    ),
    "counts the messages in its head": (
        "<|system|>{{ messages | length }}" + APPENDS,
        "breaks the prefix rule",
    ),
    "shows the last user message alone": (
        (
            "<|user|>{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content "
            "}}<|end|><|assistant|>"
        ),
        "breaks the prefix rule",
    ),
    "closes no answer": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '' if m.role == "
        "'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "a turn has no end",
    ),
    "closes an answer with a plain word": (
        APPENDS.replace("<|end|>", " end "),
        "a turn has no end",
    ),
    "raises": ("{{ messages[9].content.nothing }}", "refuses these messages"),
}


@cache
def _compiled(template: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)


class Words:
    """A tokenizer of words: special tokens, words and single spaces, ids in the order of first
    sight."""

    special = ("<|system|>", "<|user|>", "<|assistant|>", END)

    def __init__(self, template: str | None) -> None:
        self.chat_template = template
        self.name_or_path = "toy/words"
        self.ids = {word: number for number, word in enumerate(self.special)}
        self.all_special_ids = list(range(len(self.special)))

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        pieces = re.findall("|".join(map(re.escape, self.special)) + r"|\s|[^\s<]+|<", text)
        return {"input_ids": [self.ids.setdefault(piece, len(self.ids)) for piece in pieces]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        words = list(self.ids)
        return "".join(words[i] for i in ids if not (skip_special_tokens and i < len(self.special)))

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.special[number]

    def apply_chat_template(
        self, chat: list[dict[str, str]], tokenize: bool, **variables: object
    ) -> str:
        assert not tokenize
        return _compiled(self.chat_template).render(messages=chat, **variables)


texts = st.lists(st.sampled_from(["take", "lamp", "s1", " ", "\n", "é"]), max_size=5).map(" ".join)
sampled = st.lists(st.integers(1000, 1009), max_size=4)
"""Ids that the tokenizer would never give for a text: only splicing can put them there."""


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    """A whole episode: user and assistant in turn, some answers with sampled ids, some of those cut
    off before the end-of-turn token."""
    talk = [Message("system", draw(texts))] * draw(st.integers(0, 1)) + [
        Message("user", draw(texts))
    ]
    for _ in range(draw(st.integers(0, 5))):
        tokens = draw(st.none() | sampled.map(tuple) | sampled.map(lambda ids: (*ids, 3)))
        talk += [Message("assistant", draw(texts), tokens), Message("user", draw(texts))]
    return talk


@given(talks())
def test_the_prompt_of_a_turn_and_its_answer_are_a_prefix_of_the_next_prompt(
    talk: list[Message],
) -> None:
    chat = ChatTokens(Words(APPENDS))
    for at, message in enumerate(talk):
        if message.role == "assistant":
            before, answer, after = (
                chat.prompt(talk[:at]),
                chat.answer(message),
                chat.prompt(talk[: at + 2]),
            )
            assert after[: len(before) + len(answer)] == before + answer
            closed = answer if answer[-1:] == (chat.end_of_turn,) else (*answer, chat.end_of_turn)
            assert after[: len(before) + len(closed)] == before + closed
            if message.tokens is not None:
                assert answer == message.tokens


@given(talks())
def test_without_sampled_ids_it_is_the_template_and_nothing_else(talk: list[Message]) -> None:
    words = Words(APPENDS)
    plain = [Message(m.role, m.content) for m in talk]
    rendered = words.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in plain],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert ChatTokens(words).prompt(plain) == tuple(
        words(rendered, add_special_tokens=False)["input_ids"]
    )


@given(talks())
def test_the_cache_changes_nothing(talk: list[Message]) -> None:
    words = Words(APPENDS)
    used = ChatTokens(words)
    for at in range(1, len(talk) + 1):
        if talk[at - 1].role == "user":
            assert used.prompt(talk[:at]) == ChatTokens(words).prompt(talk[:at])


@given(texts)
def test_an_answer_decodes_to_its_text(text: str) -> None:
    chat = ChatTokens(Words(APPENDS))
    assert chat.decode(chat.answer(Message("assistant", text))) == text


@pytest.mark.parametrize("what", BROKEN)
def test_a_template_that_breaks_the_rule_is_refused_by_name(what: str) -> None:
    template, words = BROKEN[what]
    with pytest.raises(UserError, match=words) as refused:
        ChatTokens(Words(template))
    assert "toy/words" in str(refused.value)


def test_no_template_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="toy/words has no chat template"):
        ChatTokens(Words(None))


@pytest.mark.parametrize("messages", [[], [Message("user", "a"), Message("assistant", "b")]])
def test_a_prompt_ends_with_the_user(messages: list[Message]) -> None:
    with pytest.raises(ValueError, match="ends with a user message"):
        ChatTokens(Words(APPENDS)).prompt(messages)


def test_a_template_that_names_the_role_in_words_and_breaks_the_line_is_accepted() -> None:
    named = (
        "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% "
        "if add_generation_prompt %}<|user|>assistant\n{% endif %}"
    )
    assert ChatTokens(Words(named)).end_of_turn == 3


@pytest.mark.parametrize("mark", [_MARK, _MARK * 3, "\ud800", "\udfff x"])
def test_no_observation_is_taken_for_an_answer_or_refused_by_the_tokenizer(mark: str) -> None:
    from tests.tiny import byte_tokenizer

    for tokenizer in (Words(APPENDS), byte_tokenizer()):
        chat = ChatTokens(tokenizer)
        talk = [
            Message("user", f"a {mark}"),
            Message("assistant", f"b {mark}"),
            Message("user", f"{mark} c"),
        ]
        prompt = chat.prompt(talk)
        assert prompt[: len(chat.prompt(talk[:1]))] == chat.prompt(talk[:1])
