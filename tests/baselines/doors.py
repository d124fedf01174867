"""What the tests of the baselines share: the environment of doors, and policies with known
behaviour for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from leafe.core import Budget, Completion, Episode, Request, Spent, Tree, Usage
from leafe.explore import EnvPool, cost_of
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, PromptSet
from tests.explore.envs import Doors

PROMPTS = Prompts(PromptSet(name="doors"))
KEYS = "abc"


def pool(make: Callable[[], Doors] = Doors, size: int = 4) -> EnvPool:
    return EnvPool(make, size)


def asked_for(request: Request) -> str:
    """What a request asks: act, lesson, delta, explain, predict or reflect, by the default
    wording."""
    last = request.messages[-1].content
    if "keep a list of lessons" in last:
        return "delta"
    known = {
        "most useful lesson": "lesson",
        "why is action A": "explain",
        "next observation will be": "predict",
        "Which of the steps": "reflect",
    }
    return next((what for words, what in known.items() if words in last), "act")


def seeded_key(request: Request) -> str:
    assert request.seed is not None
    return KEYS[request.seed % 3]


def pupil(request: Request) -> str:
    """Does what the playbook says of the door that it stands before, else guesses. As reflector it
    names what the trap said, marks the items of the doors that
    it passed as helpful and the one of the door where it failed as harmful; as curator it adds
    every lesson."""
    users = [m.content for m in request.messages if m.role == "user"]
    items = {
        int(d): (int(i), key)
        for i, d, key in re.findall(r"\[(\d+)\] door (\d): at door \d say (\w)", users[0])
    }
    what = asked_for(request)
    if what == "act":
        door = int(re.findall(r"door (\d)", users[-1])[-1])
        key = items[door][1] if door in items else seeded_key(request)
        return f"Thought: a key.\nAction: {key}"
    if what == "lesson":
        trap = re.findall(r"trap: door (\d) needed (\w)", users[-1])
        passed = len(users) - 2 if trap else len(users) - 1
        helpful = ", ".join(str(items[d][0]) for d in items if d < passed) or "none"
        if not trap:
            return json.dumps(
                {"section": "all", "lesson": "none", "helpful": helpful, "harmful": "none"}
            )
        door, key = trap[-1]
        wrong = str(items[int(door)][0]) if int(door) in items else "none"
        return json.dumps(
            {
                "section": f"door {door}",
                "lesson": f"at door {door} say {key}",
                "helpful": helpful,
                "harmful": wrong,
            }
        )
    assert what == "delta"
    section, lesson = re.findall(r"under the topic (.+?):\n(.+)", users[0])[0]
    return json.dumps({"operation": "ADD", "item": 0, "section": section, "text": lesson})


def scripted(script: Callable[[Request], list[Completion] | str]) -> ScriptedPolicy:
    return ScriptedPolicy(script)


def counted(text: str, count: int, read: int = 5) -> Completion:
    return Completion(text, count, usage=Usage(read, 1, 2 * count))


def total(episodes: Iterable[Episode]) -> Spent:
    """The journal's sums."""
    budget = Budget()
    for episode in episodes:
        budget.charge(**cost_of(episode))
    return budget.spent


def episodes(trees: Iterable[Tree]) -> list[Episode]:
    return [e for tree in trees for e in tree.episodes]


def plain(values: Sequence[Episode]) -> list[object]:
    """Without the clock."""
    out = []
    for episode in values:
        data = episode.to_json() | {"seconds": 0}
        data["turns"] = [t | {"seconds": 0} for t in data["turns"]]
        out.append(data)
    return out


class Killed(Exception):
    """The process ends here."""


class Sink:
    """A journal in memory that dies at a given append."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.lines: list[list[Episode]] = []
        self.dies_at = dies_at

    def append(self, lot: Sequence[Episode]) -> None:
        if self.dies_at is not None and len(self.lines) >= self.dies_at:
            raise Killed
        self.lines.append(list(lot))
