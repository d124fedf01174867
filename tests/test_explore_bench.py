"""bench/explore.py: every loop is made to wait for the same latencies, and no run is faster than
the ideal that is computed from them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.explore import Run, engine, leafe_run, other_run
from bench.mock_endpoint import ByTurn
from bench.walk import Walk

ARGS = argparse.Namespace(mean=0.002, seed=3, most=30.0, workers=2, step=0.001)


@given(
    st.dictionaries(
        st.integers(0, 40), st.lists(st.floats(0.001, 5.0), min_size=1, max_size=8), min_size=1
    ),
    st.integers(1, 9),
)
def test_no_schedule_is_faster_than_the_bounds_and_the_list_is_within_both(
    drawn: dict[int, list[float]], in_flight: int
) -> None:
    run = Run("any", "normal", in_flight, 1, 1.0, 0.0, drawn)
    assert run.ideal <= run.listed * (1 + 1e-9)
    assert run.listed <= (run.slots + run.path) * (1 + 1e-9)  # Graham's bound for lists
    if in_flight >= len(drawn):
        assert run.listed == pytest.approx(run.path)
    if in_flight == 1:
        assert run.listed == pytest.approx(run.slots)


def test_a_latency_belongs_to_a_turn_and_not_to_the_order_of_requests() -> None:
    def body(task: int, answers: int) -> bytes:
        talk: list[dict[str, Any]] = [{"role": "user", "content": f"Errand task-{task}: go."}]
        talk += [
            {"role": "assistant", "content": "up"},
            {"role": "user", "content": "seen"},
        ] * answers
        return json.dumps({"messages": talk}).encode()

    turns = [(task, answers) for task in range(5) for answers in range(4)] * 2
    one, other = ByTurn([i / 7 for i in range(4096)]), ByTurn([i / 7 for i in range(4096)])
    first = [one.draw(body(*turn))[0] for turn in turns]
    assert len(set(first)) > 30, "the second time that a turn is asked for it has another latency"
    for turn in sorted(turns, key=lambda t: (t[1], -t[0])):
        other.draw(body(*turn))
    assert {t: sorted(w) for t, w in one.drawn.items()} == {
        t: sorted(w) for t, w in other.drawn.items()
    }


@pytest.mark.slow
def test_every_loop_plays_the_same_episodes_and_waits_for_the_same_latencies() -> None:
    tasks = Walk().tasks("train", 8, ARGS.seed)
    whole = sum(int(t.payload["length"]) for t in tasks)
    runs = [
        leafe_run(ARGS, "long", 4, 8, calls=None),
        other_run(ARGS, "lockstep", "long", 4, tasks),
        other_run(ARGS, "openai", "long", 4, tasks),
    ]
    for run in runs:
        assert (run.turns, run.whole) == (whole, True)
        assert run.drawn == runs[0].drawn, run.loop
        assert run.wall >= run.ideal
    assert {task: len(waits) for task, waits in runs[0].drawn.items()} == {
        int(t.id.removeprefix("task-")): t.payload["length"] for t in tasks
    }


@pytest.mark.parametrize("env", ["walk", "threads"])
def test_the_rollback_tree_is_asked_for_what_it_is_charged(env: str) -> None:
    run = leafe_run(ARGS, "normal", 4, 4, calls=25, env=env)
    assert run.turns == run.requests == 4 * 25
    assert run.wall >= run.ideal
    assert run.waits["envs"] > 0 or env == "walk"


def test_the_engine_ends_with_its_standard_input() -> None:
    with engine(ARGS, "normal") as mock:
        assert mock.process.poll() is None
    assert mock.process.returncode == 0


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_turns(tmp_path: Path) -> None:
    """In a process of its own: what is resident after 20,000 turns and after 100,000 differs by
    less than 8 MB (0.1 kB a turn; a turn's record has 2)."""
    code = (
        "import asyncio, json, sys, pathlib; from bench.resume import flat; "
        "print(json.dumps(asyncio.run(flat(100_000, pathlib.Path(sys.argv[1])))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    seen = {turns // 10_000: mb for turns, mb in json.loads(done.stdout)}
    assert set(seen) == set(range(11))
    assert max(seen[i] for i in range(3, 11)) - seen[2] < 8


def test_a_journal_of_the_bench_is_one_that_can_be_gone_on_with(tmp_path: Path) -> None:
    from bench.resume import plan, resume, write

    write(tmp_path, 400)
    assert "400 turns" in resume(tmp_path)
    assert "20 tasks" in plan(20)
