"""Text is text and a prompt is the same on every day, with real tokenizers of `transformers` over
bytes."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as templates
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import ChatTokens, Message, UserError
from leafe.core.chat import TEMPLATE_DATE
from tests.tiny import SPECIAL, TEMPLATE, byte_tokenizer

ROLE = "<<role>>"
"""An added token that is not special, as role marks are in some tokenizers."""
pieces = st.lists(
    st.sampled_from(
        [*SPECIAL, ROLE, "\ue0f1", "\ue0f10\ue0f2", "\ue0f1leafe\ue0f2", "a", " ", "\n", "é", "<|"]
    ),
    max_size=6,
)
hostile = pieces.map("".join)


def tokenizer(template: str = TEMPLATE) -> Any:
    made = byte_tokenizer()
    made.add_tokens([ROLE])
    made.chat_template = template
    return made


ROLES = TEMPLATE.replace("<|{{ m['role'] }}|>", ROLE + "{{ m['role'] }}:").replace(
    "<|assistant|>", ROLE + "assistant:"
)


@pytest.fixture(scope="module", params=[TEMPLATE, ROLES])
def chat(request: pytest.FixtureRequest) -> ChatTokens:
    return ChatTokens(tokenizer(request.param), "made")


def structure(chat: ChatTokens, ids: tuple[int, ...]) -> list[str]:
    tokens = chat.tokenizer.convert_ids_to_tokens(list(ids))
    roles = [ROLE] if ROLE in chat.tokenizer.chat_template else []
    return [t for t in tokens if t in (*SPECIAL, *roles)]


@given(st.lists(hostile, min_size=1, max_size=3), st.booleans())
def test_what_a_message_spells_never_becomes_a_control_token(
    chat: ChatTokens, texts: list[str], system: bool
) -> None:
    def talk(texts: list[str]) -> list[Message]:
        out = [Message("system", texts[0])] if system else []
        for text in texts:
            out += [Message("user", text), Message("assistant", "b", (200, 201))]
        return out[:-1]

    ids, plain = chat.prompt(talk(texts)), chat.prompt(talk(["a"] * len(texts)))
    assert structure(chat, ids) == structure(chat, plain)
    text = chat.tokenizer.decode(list(ids))
    assert all(observed in text for observed in texts)  # the characters are all there


@given(hostile)
def test_an_answer_without_ids_has_one_end_of_turn_at_its_end(chat: ChatTokens, text: str) -> None:
    ids = chat.answer(Message("assistant", text))
    assert ids[-1] == chat.end_of_turn
    assert chat.end_of_turn not in ids[:-1]
    found = chat.tokenizer.convert_ids_to_tokens(list(ids[:-1]))
    assert not set(found) & set(SPECIAL)
    # an added token that is not special is one that the assistant could have written
    assert found.count(ROLE) == text.count(ROLE)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\ue0f1", exclude_categories=("Cs",))),
        min_size=1,
        max_size=3,
    )
)
def test_ordinary_text_is_tokenised_as_the_template_alone_would(
    chat: ChatTokens, texts: list[str]
) -> None:
    plain = [Message("user", t) for t in texts]
    said = [{"role": "user", "content": t} for t in texts]
    expected = chat.tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_dict=False
    )
    assert chat.prompt(plain) == tuple(expected)


class Clock(datetime.datetime):
    day_ = 1

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(2031, 5, cls.day_)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("strftime_now('%d %b %Y')", "%d %b %Y"),
        ('strftime_now("%Y-%m-%d").split("-")[0]', "%Y"),
        ("strftime_now(form)", "%A, 100%% %B"),
        ("strftime_now('%H:%M') if strftime_now is defined else 'none'", "%H:%M"),
    ],
)
def test_a_template_that_writes_the_date_writes_the_same_one_on_every_day(
    monkeypatch: pytest.MonkeyPatch, call: str, expected: str
) -> None:
    monkeypatch.setattr(templates, "datetime", Clock)
    dated = "{% set form = '%A, 100%% %B' %}Today: {{ " + call + " }};" + TEMPLATE
    prompts = []
    for day in (1, 2):
        monkeypatch.setattr(Clock, "day_", day)
        made = tokenizer(dated)
        prompts.append(ChatTokens(made, "made").prompt([Message("user", "a")]))
    assert prompts[0] == prompts[1]
    assert made.decode(list(prompts[0])).startswith(f"Today: {TEMPLATE_DATE.strftime(expected)};")
    assert made.chat_template == dated  # the checkpoint's own template is left as it is


SYSTEM_LAST = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set "
    "rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}<|user|>{% if loop.last and s is "
    "defined %}{{ s }}\n{% endif %}"
    "{{ m['content'] }}<|assistant|>{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)


def test_a_template_that_moves_the_system_text_is_refused_where_there_is_one() -> None:
    chat = ChatTokens(tokenizer(SYSTEM_LAST), "made")
    talk = [Message("user", "u0"), Message("assistant", "a0"), Message("user", "u1")]
    assert chat.prompt(talk)[: len(chat.prompt(talk[:1]))] == chat.prompt(talk[:1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"made .*system message.*prefix rule"):
            chat.prompt([Message("system", "rules"), *talk[:1]])
