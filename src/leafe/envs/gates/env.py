"""Gates and forks: a chain of choices whose mistakes show only later, cannot be undone, and are
named when they show.

A task is a chain of stages and an object at its end. At a gate one takes a tool and uses it: the
wrong one breaks the gate. At a
fork one goes a way and walks on, once or twice: the wrong way is a dead end. Which tool opens a
gate is a rule of the environment (`rules.TARGET`), to be
learnt once; which way is right is hidden and fixed by the task alone, so that nobody can do better
than guess it. The end of a failed
episode says what should have been done (`gate breaks ; mossy needs hammer`, `dead end ; attic go
down`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leafe.core import Environment, StepResult, Task, UserError, derive_seed
from leafe.envs.gates.rules import ADJECTIVES, FAMILIES, HORIZON, OBJECTS, RULES, TOOLS, WAYS, Words

SETTINGS: Mapping[str, tuple[int, int]] = {"easy": (3, 4), "hard": (5, 6), "random": (5, 6)}
"""Fewest and most stages. `random` draws its rules afresh for every task: the control, in which
there is nothing to learn."""

SPLITS: Mapping[str, range] = {"train": range(6), "valid": range(6, 8), "test": range(8, 10)}
"""A stage list belongs to a split by its hash modulo ten, so that no two splits can share one."""

STALE = 10_000
"""Draws in a row without a new task after which there are held to be no more."""

Stage = tuple[str, str, str, int]
"""Kind (gate | fork), name (adjective | place), what is right (tool | way), stretches of path after
the choice (gate: 0)."""


class Gates(Environment):
    """The embedded environment. `setting`: easy (3-4 stages), hard (5-6 stages) or random (as hard,
    other rules in every task).

    `rules`: target, or habit for the control in which no rule differs from those that the embedded
    model was brought up with; the tasks are the same but
    for their tools. UserError for what there is not.
    """

    name = "gates"
    splits = ("train", "valid", "test")
    quick = True
    can_snapshot = True
    horizon = HORIZON

    def __init__(self, setting: str = "hard", rules: str = "target", words: str = "all") -> None:
        if setting not in SETTINGS:
            raise UserError(
                f"gates has no setting {setting!r}: choose one of {', '.join(SETTINGS)}."
            )
        if rules not in RULES:
            raise UserError(f"gates has no rules {rules!r}: choose one of {', '.join(RULES)}.")
        if setting == "random" and rules != "target":
            raise UserError(
                "gates draws its rules afresh for every task in the setting random: rules "
                f"= {rules!r} has no use there."
            )
        if words not in FAMILIES:
            raise UserError(f"gates has no words {words!r}: choose one of {', '.join(FAMILIES)}.")
        self.setting = setting
        self.rules = rules
        self.words = words
        self._stages: tuple[Stage, ...] = ()
        self._object = ""
        self._at = 0  # stages passed
        self._walked = (
            0  # steps taken since the choice at this stage, the choice included; 0: not chosen yet
        )
        self._choice = ""
        self._over = True

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """`count` (default 200) tasks with different stage lists; other seeds give other tasks of
        the same split. UserError where there are not so many."""
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
        stale = 0
        while len(out) < wanted:
            rules = (
                {adjective: rng.choice(TOOLS) for adjective in ADJECTIVES}
                if self.setting == "random"
                else RULES[self.rules]
            )
            stages = draw_stages(rng, rng.randint(*SETTINGS[self.setting]), rules, words=words)
            names = tuple(stage[1] for stage in stages)
            if names in seen or derive_seed("gates", *names) % 10 not in SPLITS[split]:
                stale += 1
                if stale == STALE:
                    raise UserError(
                        f"gates {name} has hardly more than {len(out)} tasks in the split "
                        f"{split}, and {wanted} are asked for: ask for fewer."
                    )
                continue
            stale = 0
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
        """UserError where more tasks are asked for than there are stage lists; a split holds its
        tenths of them, give or take the hash."""
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
        why = self._forbidden(verb, what)
        if why:
            return self._says(f"{why} ; {self._look()}", valid=False)
        if self._at == len(self._stages):
            self._over = True
            return self._says(f"you have {self._object}", reward=1.0, done=True, success=True)
        kind, name, right, walks = self._stages[self._at]
        if self._walked == 0:
            self._choice = what
        self._walked += 1
        if self._walked <= max(walks, 1):
            return self._says(self._look())
        if self._choice != right:
            self._over = True
            return self._says(
                f"gate breaks ; {name} needs {right}"
                if kind == "gate"
                else f"dead end ; {name} go {right}",
                done=True,
            )
        self._at, self._walked, self._choice = self._at + 1, 0, ""
        return self._says(self._look())

    def valid_actions(self) -> Sequence[str]:
        every = [
            *(f"take {what}" for what in (*TOOLS, *OBJECTS)),
            *(f"use {tool}" for tool in TOOLS),
            *(f"go {way}" for way in WAYS),
            "walk on",
        ]
        return [action for action in every if not self._forbidden(*action.split())]

    def _says(self, observation: str, **outcome: Any) -> StepResult:
        return StepResult(observation, progress=float(self._at), **outcome)

    def _look(self) -> str:
        """The present situation: all that the last observation of a running episode says."""
        if self._at == len(self._stages):
            return f"{self._object} here"
        kind, name, _, _ = self._stages[self._at]
        if kind == "gate":
            return f"hold {self._choice}" if self._walked else f"{name} gate"
        return "path" if self._walked else f"{name} fork"

    def _forbidden(self, verb: str, what: str) -> str:
        """Why this action cannot be taken here, in the environment's own words; '' where it can."""
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
    """`count` stages of different names; a stage is a fork with probability `forks`, with two
    stretches of path with `long_walks`."""

    def stages() -> Iterator[Stage]:
        adjectives, places = (
            rng.sample(words.adjectives, len(words.adjectives)),
            rng.sample(words.places, len(words.places)),
        )
        for _ in range(count):
            if rng.random() < forks:
                yield "fork", places.pop(), rng.choice(WAYS), 2 if rng.random() < long_walks else 1
            else:
                adjective = adjectives.pop()
                yield "gate", adjective, rules[adjective], 0

    return tuple(stages())


def task_payload(stages: Sequence[Stage], thing: str) -> dict[str, Any]:
    """The payload of a task: its stages with what is right at each, and the object at the end."""
    return {"stages": [list(stage) for stage in stages], "object": thing}
