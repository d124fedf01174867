"""What the base policy can do, by exact probabilities where they can be computed.

Following is the model's probability of the noted choice. Act success is the product of its
probabilities along the one shortest solution of a task: a lower bound of Pass@1, since detours over
invalid actions are left out. Reflections are sampled, as exploration does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from leafe.core import ChatTokens, Kind, Message, Policy, Task, Turn
from leafe.envs.gates import Gates
from leafe.envs.gates.rules import HABIT, HELD_OUT, SHIFTED, TARGET, WAYS
from leafe.prompts import History, Prompts, UnusableReflection

REQUIRED: Mapping[str, float] = {
    "following": 0.75,
    "parsable": 0.95,
    "markers_seen": 1.0,
    "act_success": 1e-6,
}
"""The least that a base policy has to reach, as fractions of 1."""


def measure_base(
    model: Any, chat: ChatTokens, prompts: Prompts, tasks: int = 80, seed: int = 7
) -> dict[str, float]:
    """Following (held-out pairs; ways), parsable and right reflections, habit, act success:
    fractions of 1. On validation tasks of the hard setting."""
    rng = random.Random(seed)
    meter, script = _Meter(model, chat, prompts), _Script(rng)
    env = Gates("hard")
    wins: list[float] = []
    stages: dict[str, list[float]] = {
        "following": [],
        "following_way": [],
        "refining": [],
        "habit": [],
        "shifted": [],
        "trivial": [],
    }
    failures: list[tuple[History, str]] = []
    for task in env.tasks("valid", tasks, seed):
        plain, asked = script.walk(env, task)
        chances = meter.chances([*plain, *((history, text) for _, history, text in asked)])
        wins.append(math.prod(chances[: len(plain)]))
        for (name, _, _), chance in zip(asked, chances[len(plain) :], strict=True):
            stages[name].append(chance)
        failures.append(script.fail(env, task))
    parsable, right = meter.reflections(failures, rng.randrange(2**31))
    out = {name: sum(values) / len(values) for name, values in stages.items()}
    return out | {
        "parsable": parsable,
        "reflection_right": right,
        "act_success": sum(wins) / len(wins),
    }


async def measure_policy(
    policy: Policy, prompts: Prompts, tasks: int = 60, seed: int = 7
) -> dict[str, float]:
    """The rates that a policy can lose by training: mean probabilities of the noted choice and of
    the due reflection on validation tasks of the hard setting.

    Args:
        policy: a policy that can score answers (`score`).
        prompts: the prompts of `gates`.
        tasks: how many tasks to ask about.
        seed: draws the tasks and the notes.

    Returns:
        following, following_way and reflection_right as fractions of 1; empty where the policy
        cannot score.
    """
    score = getattr(policy, "score", None)
    if score is None:
        return {}
    script = _Script(random.Random(seed))
    env = Gates("hard")
    asked: list[tuple[str, tuple[Message, ...], Message]] = []
    for task in env.tasks("valid", tasks, seed):
        asked += [
            (name, prompts.act(history), Message("assistant", text))
            for name, history, text in script.walk(env, task)[1]
            if "following" in name
        ]
        history, due = script.fail(env, task)
        asked.append(("reflection_right", prompts.reflect(history), Message("assistant", due)))
    chances: dict[str, list[float]] = {}
    for (name, _, _), logp in zip(
        asked, await score([(prompt, answer) for _, prompt, answer in asked]), strict=True
    ):
        if logp is not None:
            chances.setdefault(name, []).append(math.exp(logp))
    return {name: sum(values) / len(values) for name, values in sorted(chances.items())}


class _Script:
    """What is asked about a task; all choices are drawn from one generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def walk(
        self, env: Gates, task: Task
    ) -> tuple[list[tuple[History, str]], list[tuple[str, History, str]]]:
        """Along the winning way: its actions, and each choice without and with a note, as (what it
        tells, history, action)."""
        history = History(task, env.reset(task))
        plain: list[tuple[History, str]] = []
        asked: list[tuple[str, History, str]] = []
        for kind, name, right, walks in task.payload["stages"]:
            if kind == "gate":
                tool = self.rng.choice([t for a, t in sorted(HELD_OUT) if a == name])
                noted = History(
                    task,
                    history.first_observation,
                    history.turns,
                    {history.step: f"{name} needs {tool}"},
                )
                told = History(
                    task,
                    history.first_observation,
                    history.turns,
                    preamble=(f"gate breaks ; {name} needs {tool}",),
                )
                asked += [
                    ("following", noted, f"take {tool}"),
                    ("refining", told, f"take {tool}"),
                    ("habit", history, f"take {HABIT[name]}"),
                ]
                if name in SHIFTED:
                    asked.append(("shifted", history, f"take {TARGET[name]}"))
                actions = [f"take {right}", f"use {right}"]
            else:
                way = self.rng.choice(WAYS)
                noted = History(
                    task,
                    history.first_observation,
                    history.turns,
                    {history.step: f"{name} go {way}"},
                )
                asked.append(("following_way", noted, f"go {way}"))
                actions = [f"go {right}", *["walk on"] * walks]
            for i, action in enumerate(actions):
                plain.append((history, action))
                if i:
                    asked.append(("trivial", history, action))
                history = _after(history, env, action)
        thing = f"take {task.payload['object']}"
        plain.append((history, thing))
        asked.append(("trivial", history, thing))
        return plain, asked

    def fail(self, env: Gates, task: Task) -> tuple[History, str]:
        """A history that fails at some stage, with the reflection that is due."""
        stages = task.payload["stages"]
        at = self.rng.randrange(len(stages))
        history = History(task, env.reset(task))
        due = ""
        for i, (kind, name, right, walks) in enumerate(stages[: at + 1]):
            choice = right
            if i == at:
                others = (
                    [w for w in WAYS if w != right]
                    if kind == "fork"
                    else [t for t in HABIT.values() if t != right]
                )
                choice = self.rng.choice(others)
                due = f"s{history.step} {name} {'go' if kind == 'fork' else 'needs'} {right}"
            for action in (
                [f"take {choice}", f"use {choice}"]
                if kind == "gate"
                else [f"go {choice}", *["walk on"] * walks]
            ):
                history = _after(history, env, action)
        return history, due


class _Meter:
    def __init__(self, model: Any, chat: ChatTokens, prompts: Prompts) -> None:
        self.model, self.chat, self.prompts = model, chat, prompts

    def chances(self, asked: Sequence[tuple[History, str]]) -> list[float]:
        """The probability of each answer, end-of-turn token included."""
        prompts = [self.chat.prompt(self.prompts.act(history)) for history, _ in asked]
        answers = [self.chat.answer(Message("assistant", text)) for _, text in asked]
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            logs = self.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        return [
            float(sum(logs[i, len(p) - 1 + j, token] for j, token in enumerate(a)).exp())
            for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
        ]

    def reflections(
        self, failures: Sequence[tuple[History, str]], seed: int
    ) -> tuple[float, float]:
        """Fractions of sampled reflections that parse, and that are the one due."""
        generator = torch.Generator().manual_seed(seed)
        parsed = right = 0
        for history, due in failures:
            ids = list(self.chat.prompt(self.prompts.reflect(history)))
            start = len(ids)
            while (
                len(ids) - start < self.prompts.set.reflect_max_tokens
                and ids[-1] != self.chat.end_of_turn
            ):
                with torch.inference_mode():
                    last = (
                        self.model(input_ids=torch.tensor([ids]), use_cache=False)
                        .logits[0, -1]
                        .float()
                        .softmax(-1)
                    )
                ids.append(int(torch.multinomial(last, 1, generator=generator)))
            text = self.chat.decode(ids[start:])
            try:
                self.prompts.parse_reflection(text, history.step)
                parsed += 1
            except UnusableReflection:
                pass
            right += text == due
        return parsed / len(failures), right / len(failures)


def _after(history: History, env: Gates, action: str) -> History:
    turn = Turn(
        f"{history.task.id}/0.{history.step}",
        None,
        history.task.id,
        history.step,
        Kind.act,
        action,
        observation=env.step(action).observation,
    )
    return history.then(turn)
