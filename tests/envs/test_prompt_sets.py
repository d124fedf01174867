"""The few-shot examples of the environments' prompt sets are what the environments really say."""

from __future__ import annotations

import pytest

from leafe.core import Environment, Task
from leafe.envs.code.mbpp import Mbpp
from leafe.envs.sokoban import Sokoban
from leafe.prompts import History, Prompts, PromptSet, load_prompt_set
from tests.envs.data import needs_sandbox

LEVEL = ["######", "#@   #", "# $  #", "#  . #", "######"]
EVEN = [
    "assert even_squares([1, 2, 3, 4]) == 20",
    "assert even_squares([]) == 0",
    "assert even_squares([5, 6]) == 36",
]
WORDS = ["assert reverse_words('one two three') == 'three two one'"]


def replay(prompt_set: PromptSet, env: Environment, tasks: list[Task]) -> list[tuple[bool, bool]]:
    """Play the examples on the environment; (done, success) of each episode. Every user message
    must be the environment's own words."""
    prompts = Prompts(prompt_set, env.actions_help)
    ends: list[tuple[bool, bool]] = []
    said, step, left = "", 0, list(tasks)
    reflected = True
    for message in prompt_set.shots:
        if message.role == "user":
            if reflected or (ends and ends[-1][1]):
                task = left.pop(0)
                first = prompts.act(History(task, env.reset(task, 0)))[-1].content
                assert message.content == first
                step, reflected = 0, False
                ends.append((False, False))
                continue
            assert message.content.startswith(f"[Step {step}]\n{said}")
            reflected = (
                "Stop here and look back. Which of the steps 0 to " + str(step - 1)
                in message.content
            )
            assert reflected or message.content == f"[Step {step}]\n{said}"
        elif reflected:
            target, note = prompts.parse_reflection(message.content, step)
            assert 0 <= target < step
            assert note
        else:
            result = env.step(prompts.parse_action(message.content)[1])
            assert result.valid
            said, step, ends[-1] = result.observation, step + 1, (result.done, result.success)
    assert not left
    return ends


def test_sokoban_examples() -> None:
    task = Task("x", "sokoban", "train", "Push every box onto a goal.", {"level": LEVEL})
    prompt_set = load_prompt_set("sokoban")
    assert replay(prompt_set, Sokoban(), [task, task]) == [(True, False), (True, True)]
    system = Prompts(prompt_set, Sokoban.actions_help).act(History(task, "..."))[0]
    assert system.role == "system"
    assert "# wall, _ floor, O goal" in system.content


@needs_sandbox
def test_mbpp_examples() -> None:
    def task(text: str, tests: list[str]) -> Task:
        return Task(
            "x",
            "mbpp",
            "shots",
            f"{text}\nYour code should pass this test:\n{tests[0]}",
            {"tests": tests, "setup": ""},
        )

    even = task(
        "Write a function to find the sum of the squares of the even numbers in a list.", EVEN
    )
    words = task("Write a function to reverse the order of the words in a sentence.", WORDS)
    assert replay(load_prompt_set("mbpp"), Mbpp(), [even, even, words]) == [
        (False, False),
        (True, True),
        (True, True),
    ]


@pytest.mark.parametrize("name", ["sokoban", "mbpp", "codecontests", "humaneval"])
def test_window_prompts_hold_what_is_needed(name: str) -> None:
    task = Task("x", name, "train", "DO THIS", {})
    prompts = Prompts(load_prompt_set(name), "HELP", history="window:2")
    messages = prompts.act(History(task, "SEEN"))
    assert "HELP" in messages[0].content
    assert all(word in messages[-1].content for word in ("DO THIS", "SEEN"))
