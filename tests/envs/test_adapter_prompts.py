"""The few-shot examples of the adapters' prompt sets are what the environments really say."""

from __future__ import annotations

import pytest

from leafe.core import Task
from leafe.prompts import History, Prompts, load_prompt_set


def test_gymnasium_examples() -> None:
    pytest.importorskip("gymnasium", reason="needs pip install 'leafe[gymnasium]'")
    from leafe.envs.adapters.gymnasium import GymnasiumEnv
    from tests.envs.test_prompt_sets import replay

    env = GymnasiumEnv()
    task = Task("x", "gymnasium", "train", env.instruction, {"seed": 0})
    assert replay(load_prompt_set("gymnasium"), env, [task, task]) == [(True, False), (True, True)]


def test_textarena_examples() -> None:
    pytest.importorskip("textarena", reason="needs pip install 'leafe[textarena]'")
    from leafe.envs.adapters.textarena import TextArena
    from tests.envs.test_prompt_sets import replay

    task = Task("x", "textarena", "train", "Play Minesweeper and win.", {"seed": 4})
    assert replay(load_prompt_set("textarena"), TextArena(), [task, task]) == [
        (True, False),
        (True, True),
    ]


@pytest.mark.parametrize("name", ["gymnasium", "textarena"])
def test_window_prompts_hold_what_is_needed(name: str) -> None:
    prompts = Prompts(load_prompt_set(name), "HELP", history="window:2")
    messages = prompts.act(History(Task("x", name, "train", "DO THIS", {}), "SEEN"))
    assert "HELP" in messages[0].content
    assert all(word in messages[-1].content for word in ("DO THIS", "SEEN"))
