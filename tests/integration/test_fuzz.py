"""Whatever a model answers: no traceback, no hang. Both stages, the journal, the viewer's pages
and the terminal are given thousands of answers as no model should write them.

A tenth of the size by default; `LEAFE_FUZZ=20000` is the whole of it.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import urllib.parse
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import pytest

from leafe.cli._console import SafeConsole
from leafe.core import (
    ChatTokens,
    Completion,
    Environment,
    Kind,
    Request,
    StepResult,
    Stop,
    Task,
    Tree,
    UserError,
)
from leafe.core.text import HOSTILE, visible
from leafe.distill import build, encode, preset
from leafe.envs.code.humaneval import HumanEval
from leafe.envs.code.mbpp import Mbpp
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, PromptSet, load_prompt_set
from leafe.runs import Journal, StoredTrees
from tests.fuzz import answer
from tests.tiny import byte_tokenizer
from tests.view.folders import STAGE, new_run, write_stage
from tests.view.test_pages import Get, visit

ANSWERS = int(os.environ.get("LEAFE_FUZZ", "2000"))
_EACH = 40
"""Answers to one task."""


class Echo(Environment):
    """Says what it was told, and is won by some answers and not by others."""

    name = "echo"
    quick = True
    horizon = 4

    def reset(self, task: Task, seed: int) -> str:
        self.steps = 0
        return "Say anything."

    def step(self, action: str) -> StepResult:
        number = blake2b(action.encode(), digest_size=1).digest()[0]
        self.steps += number % 4 > 0
        won = number % 16 == 0
        return StepResult(
            f"You said: {action}",
            float(won),
            done=won,
            success=won,
            valid=number % 4 > 0,
            progress=float(self.steps),
        )


def fuzzy(request: Request) -> list[Completion]:
    """Any answer, now and then one that was cut."""
    draw = random.Random(request.seed)
    reflects = request.schema is not None or "look back" in request.messages[-1].content[-600:]
    return [
        Completion(
            answer(draw, reflects), request.n, finish="length" if draw.random() < 0.1 else "stop"
        )
    ]


def explored(
    make: Callable[[], Environment],
    tasks: Sequence[Task],
    prompts: Prompts,
    folder: Path,
    each: int = _EACH,
) -> StoredTrees:
    """The trees that so many answers a task lead to, read back from the journal."""
    pool = EnvPool(make, size=2)
    config = ExploreConfig(
        limits={"policy_calls": float(each)},
        stop_when="budget",
        concurrency=2,
        reflect_every=2,
        max_invalid_actions=3,
    )
    write_stage(folder, [Tree(task) for task in tasks])

    async def main() -> dict[str, Tree]:
        with Journal(folder / STAGE, fsync=False) as journal:
            return (
                await explore(ScriptedPolicy(fuzzy), pool, tasks, prompts, config, journal=journal)
            ).trees

    try:
        grown = asyncio.run(main())
    finally:
        pool.close()
    stored = StoredTrees(folder / STAGE)
    for task, tree in grown.items():
        assert stored[task].episodes == tree.episodes
        assert sum(turn.kind in (Kind.act, Kind.reflect) for turn in tree) >= each - 1
        assert not {episode.stop for episode in tree.episodes} & {
            Stop.env_error,
            Stop.policy_error,
            Stop.diverged,
        }, [e.error for e in tree.episodes]
        for turn in tree:
            turn.action_text.encode()
            turn.action.encode()
            assert turn.kind is not Kind.reflect or turn.valid == (
                turn.target is not None and bool(turn.note)
            ), turn
    return stored


def trained_on(stored: StoredTrees, prompts: Prompts) -> int:
    """Samples of all presets, as tokens."""
    chat, samples = ChatTokens(byte_tokenizer()), 0
    for name in ("paper", "leafe+"):
        encoded = encode(
            build(stored, prompts, preset(name, max_steps=1), 0).samples, chat, 1 << 15
        )
        for sequences in encoded.parts.values():
            samples += len(sequences)
            assert all(len(sequence.ids) <= 1 << 15 for sequence in sequences)
    return samples


def shown(run: Path, stored: StoredTrees, cache: Path) -> None:
    """The viewer's pages, the terminal and the report steer nobody."""
    tasks = list(stored)

    async def tour(get: Get) -> None:
        paths = [
            "/",
            f"/tasks/{STAGE}",
            "/search?q=" + urllib.parse.quote("\x1b\u202e action OR {"),
            "/search?q=go",
        ]
        for task in tasks[:4]:
            paths += [
                f"/tree/{STAGE}?"
                + urllib.parse.urlencode({"task": task, "turn": turn.id.rpartition("/")[2]})
                for turn in list(stored[task])[:8]
            ]
        for path in paths:
            page = await get(path)
            assert page.status == 200, page.body[:500]
            assert not HOSTILE.search(page.body.decode())

    visit(run, cache, tour)
    console = SafeConsole(file=io.StringIO(), width=100)
    for task in tasks:
        for turn in stored[task]:
            console.print(turn.action_text[:300], markup=False, highlight=False)
            assert not HOSTILE.search(visible(turn.observation))
    assert isinstance(console.file, io.StringIO)
    assert not HOSTILE.search(console.file.getvalue())


TEXT_SETS = {
    "react": PromptSet(name="react"),
    "several lines": PromptSet(name="lines", multiline=True),
    "plain": PromptSet(name="plain", action="plain"),
    "line": PromptSet(name="line", action="line"),
    "pattern": PromptSet(
        name="pattern",
        reflection="pattern",
        reflection_pattern=r'"step": (?P<step>\d+), "experience": "(?P<experience>[^"]*)"',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXT_SETS)
def test_a_text_environment(kind: str, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tasks = [
        Task(f"{kind} {i}", "echo", "train", "Say it.")
        for i in range(max(2, ANSWERS // 2 // len(TEXT_SETS) // _EACH))
    ]
    prompts = Prompts(TEXT_SETS[kind])
    stored = explored(Echo, tasks, prompts, run)
    assert trained_on(stored, prompts) > 0
    shown(run, stored, tmp_path / "cache")


def _mbpp() -> tuple[Callable[[], Environment], list[Task]]:
    tests = ["assert f(1) == 1", "assert f([1]) == [1]", "assert f('a') == 'a'"]
    tasks = [
        Task(
            f"t{i}",
            "mbpp",
            "train",
            "Write f, which gives back what it is given.",
            {"tests": tests[i % 3 :], "setup": ""},
        )
        for i in range(1000)
    ]
    return partial(Mbpp, problems="-", seconds=1), tasks


def _humaneval() -> tuple[Callable[[], Environment], list[Task]]:
    with HumanEval() as env:
        return partial(HumanEval, seconds=1), list(env.tasks("test"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_a_code_environment(name: str, tmp_path: Path) -> None:
    try:
        make, tasks = {"mbpp": _mbpp, "humaneval": _humaneval}[name]()
        make().close()
    except UserError as error:
        pytest.skip(str(error))
    run = new_run(tmp_path / "run")
    prompts = Prompts(load_prompt_set(name), make().actions_help)
    wanted = max(2, ANSWERS // 4 // _EACH)
    stored = explored(
        make, tasks[:wanted], prompts, run, each=max(_EACH, ANSWERS // 4 // len(tasks[:wanted]))
    )
    trained_on(stored, prompts)
    shown(run, stored, tmp_path / "cache")


def test_the_same_seed_gives_the_same_answers() -> None:
    assert [answer(random.Random(i)) for i in range(50)] == [
        answer(random.Random(i)) for i in range(50)
    ]
