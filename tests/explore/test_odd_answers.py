"""An environment may answer with anything: what is explored and what is evaluated stays JSON, or
the episode ends as `env_error` with a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from leafe.core import Environment, ForeignFailure, Request, StepResult, Stop, Task
from leafe.envs import load_tasks
from leafe.envs.worker import ProcessEnv
from leafe.evaluate import evaluate
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, PromptSet
from leafe.runs import Journal, load_trees, write_tasks

PROMPTS = Prompts(PromptSet(name="test", action="plain"))


class Odd(Environment):
    """Answers the first step as it is told, wins at the second."""

    name = "odd"
    horizon = np.int64(3)  # type: ignore[assignment]
    quick = True
    answers: ClassVar[dict[str, StepResult]] = {
        "numpy": StepResult(
            "a\udcff",
            np.float32(0.5),
            np.bool_(False),
            np.bool_(False),
            np.int64(1),
            np.float64(2),
            {"x": np.zeros(2), 1: {3}},
        ),  # type: ignore[arg-type,dict-item]
        "none": StepResult("a", None),  # type: ignore[arg-type]
        "nan": StepResult("a", math.nan),
        "progress": StepResult("a", progress=-math.inf),
        "bytes": StepResult(b"a"),  # type: ignore[arg-type]
        "flag": StepResult("a", success="no"),  # type: ignore[arg-type]
    }

    def __init__(self, what: str = "numpy") -> None:
        self.what = what

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        return [
            Task(
                f"t{n}", "odd", split, "Go\ud800.", {"n": np.int64(n), "at": (np.float32(1), None)}
            )
            for n in range(count or 2)
        ]

    def reset(self, task: Task, seed: int) -> str:
        self.at = 0
        return f"s\udcff {task.payload['n']} {task.payload['at'][1]}"

    def step(self, action: str) -> StepResult:
        self.at += 1
        return (
            self.answers[self.what]
            if self.at == 1
            else StepResult("won", 1, done=True, success=True)
        )


def strict(folder: Path) -> None:
    for path in (folder / "tasks.jsonl", *folder.glob("journal-*.jsonl")):
        for line in path.read_bytes().splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(name))
            assert "\\ud" not in line.decode()


def play(env: Any, folder: Path, stage: str) -> Any:
    def script(request: Request) -> str:
        return "go"

    async def main() -> Any:
        pool = EnvPool(env, size=1)
        try:
            tasks = load_tasks(pool.facts, "train", 1)
            write_tasks(folder, tasks)
            with Journal(folder) as journal:
                if stage == "explore":
                    config = ExploreConfig(
                        limits={"policy_calls": 2.0, "episodes": 1.0}, reflect_on_failure=False
                    )
                    await explore(
                        ScriptedPolicy(script), pool, tasks, PROMPTS, config, journal=journal
                    )
                else:
                    await evaluate(
                        ScriptedPolicy(script), pool, tasks, PROMPTS, samples=2, journal=journal
                    )
        finally:
            pool.close()
        return load_trees(folder)["t0"]

    return asyncio.run(main())


@pytest.mark.parametrize("stage", ["explore", "evaluate"])
@pytest.mark.parametrize("process", [False, True])
def test_numpy_and_surrogates_are_recorded_as_plain_values(
    stage: str, process: bool, tmp_path: Path
) -> None:
    tree = play(lambda: ProcessEnv(f"{__name__}:Odd", {}) if process else Odd(), tmp_path, stage)
    strict(tmp_path)
    episode = tree.episodes[0]
    turn = episode.acts[0]
    assert (turn.observation, turn.reward, turn.valid, turn.progress) == ("a\ufffd", 0.5, True, 2.0)
    assert episode.first_observation == "s\ufffd 0 None"
    assert episode.stop is Stop.success
    assert tree.task.payload == {"n": 0, "at": [1.0, None]}
    assert tree.task.instruction == "Go\ufffd."


@pytest.mark.parametrize("what", [what for what in Odd.answers if what != "numpy"])
@pytest.mark.parametrize("stage", ["explore", "evaluate"])
def test_what_carries_no_value_is_a_typed_stop(what: str, stage: str, tmp_path: Path) -> None:
    with contextlib.suppress(
        ForeignFailure
    ):  # every episode of this environment fails: the stage may end with that
        play(lambda: Odd(what), tmp_path, stage)
    strict(tmp_path)
    for episode in load_trees(tmp_path)["t0"].episodes:
        assert episode.stop is Stop.env_error
        assert "breaks its contract" in episode.error
