"""The verdict does not depend on how the process was made: kept boxes against fresh ones, over
programs that do what they should not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.envs.sandbox import Limits, Outcome, Sandbox, Verdict, restarts
from tests.envs.data import needs_sandbox
from tests.envs.nasty import PROGRAMS, SLEEP, SLOW

SHORT = Limits(seconds=1, memory=160 << 20, output=10_000)
HURRIED = Limits(seconds=1, wall_seconds=2.0, memory=160 << 20, output=10_000)
"""For those that sleep."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PROGRAMS]


@pytest.fixture(scope="module")
def boxes() -> tuple[Sandbox, Sandbox]:
    return Sandbox(SHORT, way="fork"), Sandbox(SHORT, way="fresh")


@pytest.fixture(scope="module")
def sleepers() -> tuple[Sandbox, Sandbox]:
    return Sandbox(HURRIED, way="fork"), Sandbox(HURRIED, way="fresh")


@needs_sandbox
@pytest.mark.parametrize("name", NAMES)
def test_nasty_programs_fare_the_same(boxes: tuple[Sandbox, Sandbox], name: str) -> None:
    program = PROGRAMS[name]
    before = restarts()
    limits = HURRIED if name in SLEEP else SHORT
    kept, fresh = (box.run_script(program, b"1 2\n3\n", limits) for box in boxes)
    assert kept.outcome == fresh.outcome
    assert kept.detail == fresh.detail
    if kept.outcome is not Outcome.output:
        assert kept.stdout == fresh.stdout
    if kept.outcome is Outcome.passed:
        assert kept == boxes[0].run_script(program, b"1 2\n3\n")
    assert restarts() == before, "no program ends a fork server"


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("name", NAMES)
def test_nasty_modules_fare_the_same(
    boxes: tuple[Sandbox, Sandbox], sleepers: tuple[Sandbox, Sandbox], name: str
) -> None:
    """The nasty part when the program is loaded, and when its function is called."""
    before = restarts()
    body = "\n".join("    " + line for line in PROGRAMS[name].split("\n"))
    for program in (
        PROGRAMS[name] + "\ndef f(x): return x + 1",
        f"def f(x):\n{body}\n    return x + 2",
    ):
        tests = ["assert f(1) == 2", "assert f(2) == 3"]
        kept, fresh = (box.run(program, tests) for box in (sleepers if name in SLEEP else boxes))
        assert kept == fresh
        if "x + 2" in program:
            assert kept.passed == 0
    assert boxes[0].run("def f(x): return x + 1", tests) == Verdict(Outcome.passed, 2, 2)
    assert restarts() == before


LINES = """
print(input())
x = 1 / 0
import sys; sys.exit(int(input()))
print({'a', 'b'})
raise ValueError('v')
import os; os.write(2, b'e')
x = []
print(object())
def f(): return f()
f()
import os; os.close(1)
print('x' * 3000)
import os; os._exit(5)
print(len(dir()))
del x
""".strip().split("\n")


@pytest.mark.slow
@needs_sandbox
@settings(max_examples=25)
@given(st.lists(st.sampled_from(LINES), max_size=6))
def test_random_programs_fare_the_same(boxes: tuple[Sandbox, Sandbox], lines: list[str]) -> None:
    kept, fresh = (box.run_script("\n".join(lines), b"4\n2\n") for box in boxes)
    assert (kept.outcome, kept.detail) == (fresh.outcome, fresh.detail)
    assert kept.stdout == fresh.stdout or b"0x" in kept.stdout
