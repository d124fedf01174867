"""Environments as a Gymnasium user writes them, for the adapter's tests."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

WORDS = ("red", "green", "blue", "white")


class Riddle(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """Say the three words in the order that chance has set, drawn from every generator there is."""

    def __init__(self, text: bool = True) -> None:
        self.action_space = spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyz ")
        self.observation_space = spaces.Dict({"text": spaces.Text(100), "left": spaces.Discrete(9)})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.order = [
            WORDS[int(self.np_random.integers(4))],
            random.choice(WORDS),
            WORDS[int(np.random.randint(4))],
        ]
        self.at = 0
        return {"text": "Three words, in order.", "left": 3}, {"valid_actions": list(WORDS)}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action not in WORDS:
            return (
                {"text": f"I do not know {action}.", "left": 3},
                0.0,
                False,
                False,
                {"refused": True, "valid_actions": list(WORDS)},
            )
        right = action == self.order[self.at]
        self.at += right
        done = self.at == 3
        luck = random.randrange(1000)
        return (
            {"text": f"{'Yes' if right else 'No'}, {luck}.", "left": 3 - self.at},
            0.0,
            done,
            False,
            {"solved": done, "valid_actions": list(WORDS)},
        )


class Pixels(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """What cannot be told as text."""

    def __init__(self, actions: int = 2) -> None:
        self.action_space = (
            spaces.Box(-1, 1, (2,)) if actions == 0 else spaces.Discrete(actions, start=1)
        )
        self.observation_space = spaces.Box(0, 1, (100,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return np.zeros(100), {}


def not_an_env() -> str:
    return "nothing"
