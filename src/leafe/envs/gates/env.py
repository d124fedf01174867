"""Gates and forks: a chain of choices whose mistakes show only later and cannot be undone.

A task is a chain of stages with an object at its end. At a gate one takes a tool and uses it: the
wrong one breaks the gate. At a fork one chooses a way and walks on, once or twice: the wrong way is
a dead end. Which tool opens a gate is a rule of the environment (`rules.TARGET`), which can be
learned. Which way is right is hidden and fixed by the task alone, so nobody can do better than
guess. The end of a failed episode says what was right (`gate breaks ; mossy needs hammer`, `dead
end ; attic go down`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs.gates.rules import ADJECTIVES, FAMILIES, HORIZON, OBJECTS, RULES, TOOLS, WAYS, Words

SETTINGS: Mapping[str, tuple[int, int]] = {"easy": (3, 4), "hard": (5, 6), "random": (5, 6)}
"""Fewest and most stages. `random` draws new rules for every task: the control, with nothing to
learn."""

SPLITS: Mapping[str, range] = {"train": range(6), "valid": range(6, 8), "test": range(8, 10)}
"""Split -> the hashes modulo ten of its stage lists, so that no two splits share one."""

MAX_REDRAWS = 10_000
"""Draws in a row without a new task after which the split counts as exhausted."""

Stage = tuple[str, str, str, int]
"""Kind (gate | fork), name (adjective | place), the right choice (tool | way), steps of path after
the choice (gate: 0)."""


class Gates(Environment):
    """The embedded environment: gates and forks.

    Args:
        setting: 'easy' (3-4 stages), 'hard' (5-6 stages) or 'random' (as hard, with new rules in
            every task).
        rules: 'target', or 'habit' for the control whose rules are those that the embedded model
            was pretrained on. The tasks differ only in their tools.
        words: 'all', or one of two families without common adjectives, places and objects: 'first'
            or 'second'.

    Raises:
        UserError: An option has no such value.
    """

    name = "gates"
    splits = ("train", "valid", "test")
    quick = True
    can_snapshot = True
    horizon = HORIZON

    def __init__(self, setting: str = "hard", rules: str = "target", words: str = "all") -> None:
        for option, value, known in (
            ("setting", setting, SETTINGS),
            ("rules", rules, RULES),
            ("words", words, FAMILIES),
        ):
            if value not in known:
                raise UserError(
                    f"gates has no {option} {value!r}: choose one of {', '.join(known)}."
                )
        if setting == "random" and rules != "target":
            raise UserError(
                "gates draws new rules for every task in the setting random: rules "
                f"= {rules!r} has no use there."
            )
        self.setting, self.rules, self.words = setting, rules, words
        self._stages: tuple[Stage, ...] = ()
        self._object = ""
        self._at = 0  # stages passed
        self._walked = 0  # steps at this stage, the choice included; 0: not chosen yet
        self._choice = ""
        self._over = True

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """`count` (default 200) tasks with different stage lists. Other seeds give other tasks of
        the same split. UserError if there are not so many."""
        if split not in SPLITS:
            raise UserError(f"gates has no split {split!r}: choose one of {', '.join(SPLITS)}.")
        family = () if self.words == "all" else (self.words,)
        rng = random.Random(derive_seed("gates", self.setting, *family, split, seed))
        name = "-".join([self.setting, *([self.rules] if self.rules != "target" else []), *family])
        words = FAMILIES[self.words]
        wanted = 200 if count is None else count
        self._check_supply(name, split, wanted)
        seen: set[tuple[str, ...]] = set()
        out: list[Task] = []
        redraws = 0
        while len(out) < wanted:
            rules = (
                {adjective: rng.choice(TOOLS) for adjective in ADJECTIVES}
                if self.setting == "random"
                else RULES[self.rules]
            )
            stages = draw_stages(rng, rng.randint(*SETTINGS[self.setting]), rules, words=words)
            names = tuple(stage[1] for stage in stages)
            if names in seen or derive_seed("gates", *names) % 10 not in SPLITS[split]:
                redraws += 1
                if redraws == MAX_REDRAWS:
                    raise UserError(
                        f"gates {name} has hardly more than {len(out)} tasks in the split "
                        f"{split}, and {wanted} are asked for: ask for fewer."
                    )
                continue
            redraws = 0
            seen.add(names)
            thing = rng.choice(words.objects)
            out.append(
                Task(
                    f"gates-{name}-{split}-{seed}-{len(out)}",
                    self.name,
                    split,
                    f"get {thing}",
                    task_payload(stages, thing),
                )
            )
        return out

    def _check_supply(self, name: str, split: str, wanted: int) -> None:
        """UserError if there are fewer stage lists; a split has its tenths of them, roughly."""
        words = FAMILIES[self.words]
        least, most = SETTINGS[self.setting]
        lists = sum(
            math.perm(len(words.adjectives) + len(words.places), length)
            for length in range(least, most + 1)
        )
        there = lists * len(SPLITS[split]) // 10
        if wanted > there:
            raise UserError(
                f"gates {name} has about {there} tasks in the split {split}, and {wanted} "
                "are asked for: ask for fewer."
            )

    def reset(self, task: Task, seed: int = 0) -> str:
        self._stages = tuple(
            (kind, name, right, walks) for kind, name, right, walks in task.payload["stages"]
        )
        self._object = task.payload["object"]
        self._at, self._walked, self._choice, self._over = 0, 0, "", False
        return self._look()

    def snapshot(self) -> object:
        return (self._stages, self._object, self._at, self._walked, self._choice, self._over)

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, tuple)
        self._stages, self._object, self._at, self._walked, self._choice, self._over = snapshot

    def step(self, action: str) -> StepResult:
        if self._over:
            return StepResult("over", done=True, valid=False, progress=float(self._at))
        verb, _, what = " ".join(action.split()).partition(" ")
        if why := self._forbidden(verb, what):
            return self._result(f"{why} ; {self._look()}", valid=False)
        if self._at == len(self._stages):
            self._over = True
            return self._result(f"you have {self._object}", reward=1.0, done=True, success=True)
        kind, name, right, walks = self._stages[self._at]
        if self._walked == 0:
            self._choice = what
        self._walked += 1
        if self._walked <= max(walks, 1):
            return self._result(self._look())
        if self._choice != right:
            self._over = True
            return self._result(
                f"gate breaks ; {name} needs {right}"
                if kind == "gate"
                else f"dead end ; {name} go {right}",
                done=True,
            )
        self._at, self._walked, self._choice = self._at + 1, 0, ""
        return self._result(self._look())

    def valid_actions(self) -> Sequence[str]:
        every = [
            *(f"take {what}" for what in (*TOOLS, *OBJECTS)),
            *(f"use {tool}" for tool in TOOLS),
            *(f"go {way}" for way in WAYS),
            "walk on",
        ]
        return [action for action in every if not self._forbidden(*action.split())]

    def _result(self, observation: str, **outcome: Any) -> StepResult:
        return StepResult(observation, progress=float(self._at), **outcome)

    def _look(self) -> str:
        """The observation of the current situation."""
        if self._at == len(self._stages):
            return f"{self._object} here"
        kind, name, _, _ = self._stages[self._at]
        if kind == "gate":
            return f"hold {self._choice}" if self._walked else f"{name} gate"
        return "path" if self._walked else f"{name} fork"

    def _forbidden(self, verb: str, what: str) -> str:
        """Why this action cannot be taken here; "" if it can."""
        known = {"take": (*TOOLS, *OBJECTS), "use": TOOLS, "go": WAYS, "walk": ("on",)}
        if what not in known.get(verb, ()):
            return "unknown action ; say take or use or go or walk on"
        kind = "end" if self._at == len(self._stages) else self._stages[self._at][0]
        if verb == "go":
            return "" if kind == "fork" and not self._walked else "no fork here"
        if verb == "walk":
            if kind == "fork":
                return "" if self._walked else "first go way"
            return "gate shut" if kind == "gate" else f"no way ; take {self._object}"
        if verb == "use":
            return (
                ""
                if kind == "gate" and self._walked and what == self._choice
                else f"you hold no {what}"
            )
        if kind == "end":
            return "" if what == self._object else f"no {what} here"
        if kind == "gate" and what in TOOLS:
            return f"you hold {self._choice}" if self._walked else ""
        return f"no {what} here"


def draw_stages(
    rng: random.Random,
    count: int,
    rules: Mapping[str, str],
    forks: float = 0.4,
    long_walks: float = 0.5,
    words: Words = FAMILIES["all"],
) -> tuple[Stage, ...]:
    """`count` stages of different names. A stage is a fork with probability `forks`, and a fork has
    two steps of path with probability `long_walks`."""

    def stages() -> Iterator[Stage]:
        adjectives = rng.sample(words.adjectives, len(words.adjectives))
        places = rng.sample(words.places, len(words.places))
        for _ in range(count):
            if rng.random() < forks:
                yield "fork", places.pop(), rng.choice(WAYS), 2 if rng.random() < long_walks else 1
            else:
                adjective = adjectives.pop()
                yield "gate", adjective, rules[adjective], 0

    return tuple(stages())


def task_payload(stages: Sequence[Stage], thing: str) -> dict[str, Any]:
    """The payload of a task: its stages with the right choices, and the object at the end."""
    return {"stages": [list(stage) for stage in stages], "object": thing}
