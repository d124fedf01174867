"""MBPP: feedback, submissions, and the references of the real file."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import pytest

from leafe.core import Environment, Task, UserError
from leafe.envs.code.mbpp import MAX_PROGRAM, Mbpp, read_problems
from leafe.envs.sandbox import Outcome, Sandbox, Verdict
from leafe.testing import check_environment
from tests.envs.data import MBPP, needs_mbpp, needs_sandbox
from tests.loop import both_stages

ROW = {
    "task_id": 601,
    "text": "Write a function to double a number.",
    "code": "def double(x): return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(3) == 6", "assert double(0) == 0"],
    "test_setup_code": "",
    "challenge_test_list": [],
}


@pytest.fixture
def problems(tmp_path: Path) -> str:
    file = tmp_path / "mbpp.jsonl"
    file.write_text(
        "\n".join(json.dumps(ROW | {"task_id": n}) for n in (1, 11, 12, 511, 601, 602)) + "\n"
    )
    return str(file)


@needs_sandbox
def test_a_task_is_solved_at_the_third_submission(problems: str) -> None:
    env = Mbpp(problems=problems, shown_tests=3)
    task = env.tasks("train", 1)[0]
    shown = "assert double(2) == 4\nassert double(3) == 6\nassert double(0) == 0"
    assert (
        task.instruction
        == f"Write a function to double a number.\nYour code should pass these tests:\n{shown}"
    )
    assert "2 * x" not in json.dumps(task.to_json())
    assert env.reset(task, 0) == "Nothing is submitted yet. You have 4 submissions."
    result = env.step("def double(x): return 4")
    assert result.observation == (
        "1 of 3 tests passed. This test failed:\nassert double(3) == 6\ndouble(3) is "
        "4\nYou have 3 submissions left."
    )
    assert (result.valid, result.done, result.reward, result.progress) == (True, False, 0.0, 1.0)
    result = env.step("def double(x): return x / 0")
    assert result.observation == (
        "0 of 3 tests passed. This test raised an exception:\nassert double(2) == 4\n"
        "line 1, in double: def double(x): return x / 0\nZeroDivisionError: division by "
        "zero\nYou have 2 submissions left."
    )
    assert result.progress == 1.0
    result = env.step(ROW["code"])  # type: ignore[arg-type]
    assert (result.observation, result.done, result.success, result.reward, result.progress) == (
        "All 3 tests passed.",
        True,
        True,
        1.0,
        3.0,
    )
    assert not env.step(ROW["code"]).valid  # type: ignore[arg-type]


@needs_sandbox
def test_of_a_hidden_test_only_the_kind_of_its_failure_is_said(problems: str) -> None:
    env = Mbpp(problems=problems)
    task = env.tasks("train", 1)[0]
    assert task.instruction == (
        "Write a function to double a number.\nYour code should pass this test:\nassert "
        "double(2) == 4"
    )
    for program, kind in (
        ("def double(x): return 4", "failed"),
        (
            (
                "def double(x):\n    if x != 2: raise type(f'leaked {x}', (Exception,), "
                "{})(x)\n    return 4"
            ),
            "raised an exception",
        ),
        ("import sys\ndef double(x): return 4 if x == 2 else sys.exit(x)", "ended the process"),
        ("import os\ndef double(x): return 4 if x == 2 else os._exit(x)", "ended the process"),
    ):
        env.reset(task, 0)
        result = env.step(program)
        assert (
            result.observation
            == f"All 1 shown test passed. A hidden test {kind}.\nYou have 3 submissions left."
        )
        assert result.progress == 1.0
    env.reset(task, 0)
    said = env.step("def double(x): return 5").observation
    assert said == (
        "0 of 1 shown test passed. This test failed:\nassert double(2) == 4\ndouble(2) is "
        "5\nYou have 3 submissions left."
    )


@needs_sandbox
def test_hidden_tests_run_last_and_in_boxes_of_their_own(
    problems: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program leaves behind in a box where hidden tests ran is found by no shown test; and
    where a shown one fails, no hidden one runs."""
    env = Mbpp(problems=problems)
    env.reset(env.tasks("train", 1)[0], 0)
    runs: list[tuple[int, bool]] = []
    run = env.sandbox.run

    def noted(
        program: str, tests: list[str], *args: Any, hidden: bool = False, **options: Any
    ) -> Verdict:
        runs.append((len(tests), hidden))
        return run(program, tests, *args, hidden=hidden, **options)

    monkeypatch.setattr(env.sandbox, "run", noted)
    for program, expected in (
        (ROW["code"], [(1, False), (3, True)]),
        ("def double(x): return 5", [(1, False)]),
        ("def double(x): return 4", [(1, False), (3, True)]),
        ("def double(x)", [(1, False)]),
    ):
        runs.clear()
        env.reset(env.tasks("train", 1)[0], 0)
        env.step(str(program))
        assert runs == expected


@needs_sandbox
def test_how_many_hidden_tests_pass_is_not_told(tmp_path: Path) -> None:
    """A program could choose that number, and which test fails, by what it reads in one."""
    file = tmp_path / "mine.jsonl"
    file.write_text(
        json.dumps(ROW | {"test_list": [f"assert double({n}) == {2 * n}" for n in range(6)]})
    )
    env = Mbpp(problems=str(file))
    said = set()
    for wrong in ({1}, {5}, {1, 2, 3}, {1, 2, 3, 4, 5}):
        env.reset(env.tasks("train")[0], 0)
        result = env.step(f"def double(x): return -1 if x in {wrong} else 2 * x")
        said.add(result.observation)
        assert result.progress == 6.0 - len(wrong)
    assert said == {"All 1 shown test passed. A hidden test failed.\nYou have 3 submissions left."}


@needs_sandbox
def test_progress_is_shown_tests_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        json.dumps(ROW | {"test_list": [f"assert double({n}) == {2 * n}" for n in range(6)]})
    )
    env = Mbpp(problems=str(file), shown_tests=2)
    found = []
    for wrong in ({0}, {0, 1}, {2, 3, 4, 5}, {5}, set()):
        env.reset(env.tasks("train")[0], 0)
        found.append(
            env.step(f"def double(x): return -1 if x in {wrong or {99}} else 2 * x").progress
        )
    assert found == [1.0, 0.0, 2.0, 5.0, 6.0]


class TestFiles:
    """Sanitized MBPP and MBPP+, in the columns in which they are published."""

    SANITIZED: ClassVar[dict[str, Any]] = {
        "source_file": "x.ipynb",
        "task_id": 602,
        "prompt": "Write a function to find a root.",
        "code": "def root(n):\n    return math.sqrt(n)",
        "test_imports": ["import math"],
        "test_list": [
            "assert math.isclose(root(2), math.sqrt(2))",
            "assert root(4) == 2",
            "assert root(0) == 0",
        ],
    }
    PLUS: ClassVar[dict[str, Any]] = SANITIZED | {
        "test": "import numpy as np\nfrom math import inf\n\ndef is_floats(x) -> bool:\n    if "
        "isinstance(x, float):\n        return True\n"
        "    if isinstance(x, (list, tuple)):\n        return all(isinstance(i, float) for "
        "i in x)\n    if isinstance(x, np.ndarray):\n"
        "        return x.dtype == np.float64 or x.dtype == np.float32\n    return "
        "False\n\ndef assertion(out, exp, atol):\n"
        "    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n    if out != exp and "
        "atol != 0:\n"
        "        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n    else:\n        "
        'assert out == exp, f"out: {out}, exp: {exp}"\n\n'
        "inputs = [[4], [9], [2], [inf]]\nresults = [2.0, 3.0, 1.4142135, inf]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(root(*inp), exp, 0)\n"
    }

    @pytest.mark.parametrize("row", [SANITIZED, PLUS], ids=["sanitized", "plus"])
    @pytest.mark.parametrize(
        "form", ["array", "indented array", "lines", "gzip", "marked", "parquet"]
    )
    def test_they_are_read(self, tmp_path: Path, row: dict[str, Any], form: str) -> None:
        file = tmp_path / "mine.json"
        rows = [row, row | {"task_id": 11}]
        if form == "parquet":
            pyarrow, parquet = (
                pytest.importorskip("pyarrow"),
                pytest.importorskip("pyarrow.parquet"),
            )
            parquet.write_table(pyarrow.Table.from_pylist(rows), file := tmp_path / "test.parquet")
        elif form == "gzip":
            (file := tmp_path / "mine.json.gz").write_bytes(
                gzip.compress(json.dumps(rows).encode())
            )
        else:
            text = (
                "\n".join(map(json.dumps, rows))
                if form == "lines"
                else "\n " + json.dumps(rows, indent=2 if "indented" in form else None)
            )
            file.write_text(text, encoding="utf-8-sig" if form == "marked" else "utf-8")
        assert [row["task_id"] for row in read_problems(file)] == [602, 11]

    @needs_sandbox
    def test_they_are_judged(self, tmp_path: Path) -> None:
        (tmp_path / "mine.json").write_text(
            json.dumps([self.SANITIZED, self.PLUS | {"task_id": 11}])
        )
        env = Mbpp(problems=str(tmp_path / "mine.json"), shown_tests=3)
        (plain,), (plus,) = env.tasks("train"), env.tasks("test")
        assert plain.instruction.startswith(
            "Write a function to find a root.\nYour code should pass these tests:\nassert "
            "math.isclose(root(2)"
        )
        for task, total in ((plain, 3), (plus, 4)):
            assert env.judge(task, str(self.SANITIZED["code"])).passed == total
            assert env.judge(task, "def root(n): return n ** 0.5").outcome is Outcome.passed
            assert env.judge(task, "def root(n): return n").outcome is Outcome.failed
        special = "import math\ndef root(n): return math.sqrt(n) if n != 9 else 4"
        assert env.judge(plain, special).outcome is Outcome.passed
        judged = env.judge(plus, special)
        assert (judged.feedback, judged.passed, judged.outcome) == (
            "All 3 shown tests passed. A hidden test failed.",
            3,
            Outcome.failed,
        )

    @pytest.mark.parametrize(
        "row",
        [
            {"task_id": "Mbpp/2", "prompt": "p", "base_input": [[1]]},
            {"task_id": 2, "prompt": "p"},
            SANITIZED | {"test_imports": "import m"},
            7,
        ],
    )
    def test_what_fits_is_said_of_one_that_does_not(self, tmp_path: Path, row: Any) -> None:
        (tmp_path / "mine.json").write_text(json.dumps([self.SANITIZED, row]))
        with pytest.raises(
            UserError,
            match=(
                r"mine\.json, item 2: the column '\w+' is missing .*: each row is one problem "
                r"in the columns of"
            ),
        ):
            read_problems(tmp_path / "mine.json")


@needs_sandbox
def test_four_submissions_and_no_more(problems: str) -> None:
    env = Mbpp(problems=problems, seconds=1)
    env.reset(env.tasks("train", 1)[0], 0)
    for nothing in ("", " \n ", "x" * (MAX_PROGRAM + 1)):
        assert not env.step(nothing).valid
    said = [
        env.step(p)
        for p in (
            "def double(x)",
            "print('x' * 100_000)",
            "while True: pass",
            "import os; os._exit(0)",
        )
    ]
    first_lines = [r.observation.split("\n")[0] for r in said]
    assert first_lines == [
        "Loading the program raised an exception.",
        "Loading the program printed more than 64 KB.",
        "Loading the program ran past the time limit of 1 s.",
        "Loading the program ended the process.",
    ]
    assert [r.done for r in said] == [False, False, False, True]
    assert said[0].observation.endswith("You have 3 submissions left.")
    assert said[2].observation.endswith("You have 1 submission left.")
    assert said[3].observation.endswith("That was the last submission: the task is lost.")
    assert not any(r.success for r in said)


@needs_sandbox
def test_contract(problems: str) -> None:
    env = Mbpp(problems=problems)
    actions = [
        "def double(x): return 4",
        "def double(x): return {str(x), 'a', 'b'}",
        "def double(x): return object()",
        "",
        "nonsense here",
    ]
    report = check_environment(
        env, env.tasks("test"), actions, invalid=["", "#" * (MAX_PROGRAM + 1)], steps=4
    )
    assert not report.problems, report


@needs_sandbox
def test_splits_and_shown_tests(problems: str) -> None:
    env = Mbpp(problems=problems, shown_tests=3)
    assert {split: len(env.tasks(split)) for split in env.splits} == {
        "shots": 1,
        "test": 2,
        "valid": 1,
        "train": 2,
    }
    assert env.tasks("train")[0].instruction.endswith(
        "these tests:\nassert double(2) == 4\nassert double(3) == 6\nassert double(0) == 0"
    )
    assert Mbpp(problems=problems, shown_tests=0).tasks("train")[0].instruction == ROW["text"]
    with pytest.raises(UserError, match="no split 'dev': its splits are shots, test, valid, train"):
        env.tasks("dev")
    for wrong in ({"shown_tests": -1}, {"horizon": 0}, {"seconds": 0.5}):
        with pytest.raises(UserError, match="give a whole number from"):
            Mbpp(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: this is no JSON"),
        ("[1]", "line 2: the column 'task_id' is missing"),
        (
            json.dumps(ROW | {"text": None}),
            "line 2: the column 'text' is missing or of the wrong type",
        ),
        (json.dumps(ROW | {"test_list": []}), "line 2: the column 'test_list'"),
        (json.dumps(ROW | {"test_list": [1]}), "line 2: the column 'test_list'"),
    ],
)
def test_bad_files_are_named_by_line(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        read_problems(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(tmp_path / "nothing.jsonl")
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(json.dumps(ROW).encode())[:30])
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(torn)


@needs_mbpp
def test_published_split() -> None:
    rows = read_problems(MBPP)
    assert sorted(row["task_id"] for row in rows) == list(range(1, 975))


@needs_mbpp
@needs_sandbox
def test_setup_code_runs_after_the_program() -> None:
    box = Sandbox()
    for row in read_problems(MBPP):
        if row["test_setup_code"]:
            assert (
                box.run(row["code"], row["test_list"], row["test_setup_code"]).outcome
                is Outcome.passed
            )
            assert (
                box.run("class Node: pass", row["test_list"], row["test_setup_code"]).outcome
                is Outcome.error
            )


@pytest.mark.real
@needs_mbpp
@needs_sandbox
def test_both_stages(tmp_path: Path) -> None:
    codes = {f"mbpp-{row['task_id']}": row["code"].strip() for row in read_problems(MBPP)}

    def solve(env: Environment, task: Task) -> list[str]:
        return [codes[task.id]]

    both_stages(
        "mbpp-smollm2", tmp_path, solve=solve, wrong="print('no')", options={"problems": str(MBPP)}
    )


@pytest.mark.slow
@needs_mbpp
@needs_sandbox
def test_references_pass() -> None:
    """A sample of 60; of all 974 one did not pass (task 123 takes longer than 3 s)."""
    box = Sandbox()
    sample = random.Random(0).sample(read_problems(MBPP), 60)
    outcomes = [
        box.run(row["code"], row["test_list"], row["test_setup_code"]).outcome for row in sample
    ]
    assert sum(outcome is Outcome.passed for outcome in outcomes) >= 59


@needs_mbpp
@needs_sandbox
def test_real_tasks_keep_the_contract() -> None:
    env = Mbpp(problems=str(MBPP))
    codes = {f"mbpp-{row['task_id']}": row["code"] for row in read_problems(MBPP)}

    def act(task: Task, observation: str, draw: random.Random) -> str:
        return draw.choice([codes[task.id], "def f(): pass", "import os; os._exit(1)"])

    report = check_environment(env, env.tasks("valid", 3), act, invalid=[""], steps=4)
    assert not report.problems, report
