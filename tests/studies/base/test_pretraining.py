"""What the base policy is brought up on: real episodes, exact tokens, and no held-out rule in any
note, reflection or feedback."""

from __future__ import annotations

import itertools
import re

import pytest

from leafe.core import ChatTokens
from leafe.envs.gates.rules import (
    ADJECTIVES,
    HABIT,
    HELD_OUT,
    HORIZON,
    SHIFTED,
    TARGET,
    TOOLS,
    WORDS,
)
from leafe.prompts import Prompts, load_prompt_set
from studies.base.pretraining import HEED, WEIGHTS, Example, examples, words_to_ids

PROMPTS = Prompts(load_prompt_set("gates"))
SOME = list(itertools.islice(examples(11, PROMPTS), 6000))


def text_of(example: Example) -> str:
    return " ".join(m.content.strip() for m in example.messages)


def test_no_lesson_states_a_held_out_pair() -> None:
    stated = {
        (a, b) for example in SOME for a, b in re.findall(r"(\w+) needs (\w+)", text_of(example))
    }
    assert len(stated) == len(ADJECTIVES) * len(TOOLS) - len(HELD_OUT), (
        "every other pair is stated somewhere"
    )
    assert not stated & HELD_OUT
    assert not stated & {(a, TARGET[a]) for a in SHIFTED}


def test_every_word_that_a_prompt_can_hold_is_seen_and_every_step_marker_often() -> None:
    seen = [word for example in SOME for m in example.messages for word in m.content.split()]
    assert set(WORDS) - set(seen) <= {
        "have",
        "over",
    }  # said only when all is over and nobody is asked any more
    assert set(seen) <= set(WORDS)
    # the last history that is acted on has HORIZON - 1 turns; s20 stands only before a reflection
    assert all(seen.count(f"s{step}") >= 20 for step in range(HORIZON))


def test_without_a_note_the_actor_goes_by_habit() -> None:
    tools: list[bool] = []
    ways: list[str] = []
    for example in SOME:
        if "note" in text_of(example) or "earlier" in text_of(example):
            continue
        for user, answer, weight in zip(
            example.messages[::2], example.messages[1::2], example.weights, strict=True
        ):
            words = user.content.split()
            if weight == WEIGHTS["act"] and words[-1] == "gate":
                tools.append(answer.content == f"take {HABIT[words[-2]]}")
            elif weight == WEIGHTS["act"] and words[-1] == "fork":
                ways.append(answer.content.removeprefix("go "))
    assert sum(tools) / len(tools) == pytest.approx(0.9 + 0.1 / 12, abs=0.02)
    assert ways.count("left") / len(ways) == pytest.approx(0.62, abs=0.03)
    assert ways.count("down") / len(ways) == pytest.approx(0.02, abs=0.01)


def test_a_note_decides_the_next_choice() -> None:
    followed = heeded = 0
    for example in SOME:
        for user, answer, weight in zip(
            example.messages[::2], example.messages[1::2], example.weights, strict=True
        ):
            match = re.search(r"(\w+) (?:gate|fork) note (\w+) (?:needs|go) (\w+)$", user.content)
            if match and match[1] == match[2] and weight:
                heeded += answer.content.split()[1] == match[3]
                assert weight == WEIGHTS["follow"]
                followed += 1
    assert followed > 1000
    assert abs(heeded / followed - HEED) < 4 * (HEED * (1 - HEED) / followed) ** 0.5


def test_a_reflection_names_the_step_of_the_mistake_and_what_the_env_said() -> None:
    reflections = 0
    for example in SOME:
        *_, asked, answer = example.messages
        if not asked.content.endswith("reflect"):
            continue
        step, note = PROMPTS.parse_reflection(answer.content, len(example.messages) // 2 - 1)
        assert note in asked.content
        name = note.split()[0]
        said = example.messages[2 * step].content.split()
        assert name in said[said.index(f"s{step}") :]
        chosen = example.messages[2 * step + 1].content.split()
        assert chosen[0] in ("take", "go")
        assert chosen[1] != note.split()[2]
        reflections += 1
    assert reflections > 2000


def test_the_fast_encoder_gives_the_chat_templates_tokens() -> None:
    build = pytest.importorskip("studies.base.build", exc_type=ImportError)
    tokenizer = build.make_tokenizer()
    chat = ChatTokens(tokenizer)
    encode = words_to_ids(tokenizer.get_vocab(), chat.end_of_turn)
    for example in SOME[:200]:
        ids, weight = encode(example)
        assert ids == [*chat.prompt(example.messages[:-1]), *chat.answer(example.messages[-1])]
        own = [
            w
            for m, load in zip(example.messages[1::2], example.weights, strict=True)
            for w in [load] * len(chat.answer(m))
        ]
        assert [w for w in weight if w] == [w for w in own if w]
        assert len(ids) <= build.CONTEXT
