"""The in-process engine honours both schemas: even a model of random weights gives lessons that can
be read, and deltas that at worst name no operation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("torch").set_num_threads(1)

from leafe.baselines._asides import Unusable  # noqa: E402
from leafe.baselines.ace import DELTA_SCHEMA, INSIGHT_SCHEMA, Playbook, parse_delta, parse_insight  # noqa: E402
from leafe.core import Completion, Message, Request  # noqa: E402
from leafe.policies.hf import HFPolicy  # noqa: E402
from leafe.prompts import PromptSet  # noqa: E402
from tests.tiny import byte_tokenizer, tiny_checkpoint  # noqa: E402


def test_lessons_and_deltas_of_a_random_model_can_be_read(tmp_path: Path) -> None:
    policy = HFPolicy(tiny_checkpoint(tmp_path, tokenizer=byte_tokenizer(), scale=0.1), threads=1)

    async def main() -> list[list[Completion]]:
        asked = [
            Request((Message("user", "teach"),), n=4, max_tokens=120, seed=1, schema=schema)
            for schema in (INSIGHT_SCHEMA, DELTA_SCHEMA)
        ]
        try:
            return [await policy.complete(request) for request in asked]
        finally:
            await policy.close()

    lessons, deltas = asyncio.run(main())
    for answer in lessons:
        assert list(json.loads(answer.text)) == ["section", "lesson", "helpful", "harmful"]
        assert parse_insight(answer.text, PromptSet(name="p"), Playbook(), 0.8).text
    for answer in deltas:
        assert list(json.loads(answer.text)) == ["operation", "item", "section", "text"]
        with pytest.raises(Unusable, match="the operation is none of"):
            parse_delta(answer.text)
