"""An answer held to a flat schema parses, whatever the model would have liked to say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from leafe.core import Completion, Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy  # noqa: E402
from tests.tiny import byte_tokenizer, tiny_checkpoint  # noqa: E402

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "step": {"type": "integer", "minimum": 0},
        "experience": {"type": "string", "minLength": 1, "maxLength": 30},
    },
    "required": ["step", "experience"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("bytes"), tokenizer=byte_tokenizer(), scale=0.1)


def ask(policy: HFPolicy, *requests: Request) -> list[list[Completion]]:
    async def main() -> list[list[Completion]]:
        found = await asyncio.gather(*(policy.complete(r) for r in requests))
        await policy.close()
        return list(found)

    return asyncio.run(main())


def test_every_answer_parses_and_fits(checkpoint: Path) -> None:
    short, long = (
        Request((Message("user", "look back"),), n=60, max_tokens=m, seed=1, schema=SCHEMA)
        for m in (34, 80)
    )
    policy = HFPolicy(checkpoint, max_batch=16)
    for request, found in zip((short, long), ask(policy, short, long), strict=True):
        assert sum(c.count for c in found) == 60
        for c in found:
            value = json.loads(c.text)
            assert list(value) == ["step", "experience"]
            assert 0 <= value["step"] <= 9999
            assert 1 <= len(value["experience"]) <= 30
            assert c.finish == "stop"
            assert c.tokens is not None
            assert len(c.tokens) <= request.max_tokens
            assert c.tokens[-1] == policy.chat.end_of_turn
            assert policy.chat.decode(c.tokens) == c.text
    assert len({json.loads(c.text)["step"] for c in found}) > 5


def test_probabilities_are_the_models_own_among_what_is_allowed(checkpoint: Path) -> None:
    policy = HFPolicy(checkpoint)
    request = Request(
        (Message("user", "x"),),
        n=20,
        max_tokens=12,
        seed=3,
        schema={"type": "object", "properties": {"n": {"type": "integer"}}},
    )
    found = ask(policy, request)[0]
    prompt = policy.chat.prompt(request.messages)
    text = '{"n": '
    digits = [
        policy.chat.tokenizer(str(d), add_special_tokens=False)["input_ids"][0] for d in range(10)
    ]
    close = policy.chat.tokenizer("}", add_special_tokens=False)["input_ids"][0]
    frame = policy.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    for c in found:
        assert c.tokens is not None
        ids = [*prompt, *frame]
        total, answer = 0.0, str(json.loads(c.text)["n"])
        for i, character in enumerate(answer + "}"):
            allowed = (
                digits if i == 0 else [close] if answer[0] == "0" or i == 4 else [*digits, close]
            )
            with torch.no_grad():
                logits = policy.engine.model(input_ids=torch.tensor([ids])).logits[0, -1]
            token = close if character == "}" else digits[int(character)]
            total += float(logits[token] - logits[allowed].logsumexp(0))
            ids.append(token)
        assert c.logprob == pytest.approx(total, abs=1e-4)


def test_other_schemas_and_short_limits_are_left_to_the_parser(checkpoint: Path) -> None:
    free = Request((Message("user", "x"),), max_tokens=20, seed=4)
    others = [
        Request(
            free.messages,
            max_tokens=20,
            seed=4,
            schema={"type": "array", "items": {"type": "integer"}},
        ),
        Request(
            free.messages,
            max_tokens=20,
            seed=4,
            schema={"type": "object", "properties": {"a": {"type": "string", "enum": ["b"]}}},
        ),
        Request(
            free.messages, max_tokens=20, seed=4, schema=SCHEMA
        ),  # the shortest answer needs more
    ]
    texts = [f[0].text for f in ask(HFPolicy(checkpoint), free, *others)]
    assert texts == [texts[0]] * 4


def test_a_vocabulary_that_cannot_write_json_answers_freely(tmp_path: Path) -> None:
    (found,) = ask(
        HFPolicy(tiny_checkpoint(tmp_path)),
        Request((Message("user", "go"),), max_tokens=200, seed=0, schema=SCHEMA),
    )
    assert sum(c.count for c in found) == 1
    assert not found[0].text.startswith("{")


@pytest.mark.parametrize("most", [0, 4, 13, 207])
def test_an_integer_keeps_its_maximum(checkpoint: Path, most: int) -> None:
    schema = {
        **SCHEMA,
        "properties": {
            **SCHEMA["properties"],
            "step": {"type": "integer", "minimum": 0, "maximum": most},
        },
    }
    policy = HFPolicy(checkpoint, max_batch=16)
    (found,) = ask(
        policy, Request((Message("user", "look back"),), n=60, max_tokens=60, seed=2, schema=schema)
    )
    steps = [json.loads(c.text)["step"] for c in found]
    assert all(0 <= step <= most for step in steps)
    assert len(set(steps)) >= min(most, 3)
