"""CodeContests: how an output is judged, what is shown of which test, data and its faults,
references and mutants."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Environment, Task, UserError
from leafe.envs import make_env
from leafe.envs.code._compare import excerpt, first_difference
from leafe.envs.code.codecontests import CodeContests, hash_split
from leafe.envs.sandbox import Limits, Outcome, Run
from leafe.prompts import load_prompt_set
from leafe.testing import check_environment
from tests.envs.data import ROOT, needs_sandbox
from tests.envs.mutants import mutants
from tests.envs.test_prompt_sets import replay
from tests.loop import both_stages

FOLDER = ROOT / "codecontests"
SAMPLE = FOLDER / "sample.jsonl.gz"
needs_sample = pytest.mark.skipif(
    not SAMPLE.is_file(), reason=f"no CodeContests at {FOLDER}: set LEAFE_DATA"
)

ROW: dict[str, Any] = {
    "name": "1_A. Sum",
    "description": "Add up the numbers.",
    "public_tests": {"input": ["2\n1 2\n", "1\n5\n"], "output": ["3\n", "5\n"]},
    "private_tests": {"input": ["3\n40 50 60\n", "1\n-7123\n"], "output": ["150\n", "-7123\n"]},
    "generated_tests": {"input": ["1\n81234\n"], "output": ["81234\n"]},
    "time_limit": {"seconds": 1, "nanos": 0},
    "memory_limit_bytes": 256_000_000,
}
SUM = "input()\nprint(sum(map(int, input().split())))"


def row(**changes: Any) -> dict[str, Any]:
    return ROW | changes


def write(path: Path, *rows: Any) -> str:
    text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture
def env(tmp_path: Path) -> CodeContests:
    return CodeContests(write(tmp_path / "train.jsonl", row()))


class TestCompare:
    """The rules of execution/tester_sandboxer.cc in google-deepmind/code_contests."""

    TOKENS = st.lists(
        st.sampled_from(
            [b"1", b"2", b"a", b"YES", b"1.5", b"0.30", b"-3", b"1e9", b".", b"\xff", b"1\x1c2"]
        ),
        max_size=6,
    )
    SPACE = st.sampled_from([b" ", b"\n", b"  ", b"\t\n", b" \r\n", b"\v"])

    @given(TOKENS, st.data())
    def test_whitespace_is_free(self, tokens: list[bytes], data: st.DataObject) -> None:
        def written() -> bytes:
            return b"".join(data.draw(self.SPACE) + t for t in tokens) + data.draw(self.SPACE)

        assert first_difference(written(), written()) is None

    @given(TOKENS, TOKENS)
    def test_other_words_are_a_difference_at_the_first_of_them(
        self, got: list[bytes], want: list[bytes]
    ) -> None:
        at = first_difference(b" ".join(got), b" ".join(want))
        assert (at is None) == (got == want)
        if at is not None:
            assert got[:at] == want[:at]
            assert got[at : at + 1] != want[at : at + 1]

    @given(
        st.floats(-1e6, 1e6),
        st.floats(-2e-5, 2e-5),
        st.sampled_from(["{:.12f}", "{:.15e}", "{!r}"]),
        st.sampled_from(["{:.12f}", "{:.15E}", "{!r}"]),
    )
    def test_numbers_may_differ_by_less_than_a_hundred_thousandth(
        self, value: float, error: float, one: str, other: str
    ) -> None:
        want, got = one.format(value), other.format(value + error)
        gap = abs(float(want) - float(got))
        assert (first_difference(got.encode(), want.encode()) is None) == (gap < 1e-5)

    @given(st.binary(max_size=60), st.binary(max_size=60))
    def test_any_bytes(self, got: bytes, want: bytes) -> None:
        assert first_difference(got, got) is None
        assert (first_difference(got, want) is None) == (first_difference(want, got) is None)

    @given(
        st.text(st.characters(min_codepoint=128, categories=["Nd", "Zs"]), min_size=1, max_size=3)
    )
    def test_other_alphabets_have_no_digits_and_no_blanks(self, text: str) -> None:
        assert first_difference(f"1{text}2".encode(), b"1 2") is not None
        assert first_difference(text.encode(), b"1") is not None

    @pytest.mark.parametrize(
        ("got", "want", "same"),
        [
            ("3", "3.0", True),
            ("3.0", "3", True),
            ("5.", "5", True),
            (".5", "0.5", True),
            ("1e3", "1000", True),
            ("1E3", "1000.000001", True),
            ("0.33333", "0.3333333333", True),
            ("0.3333", "0.3333333333", False),
            ("1234567.1", "1234567.2", False),
            ("+7", "7", True),
            ("+-7", "-7", False),
            ("007", "7", True),
            ("-0.0", "0", True),
            ("1000001", "1000000", False),
            ("9007199254740993", "9007199254740992", True),
            ("123456789012345678901", "123456789012345678901.0", True),
            ("1_000", "1000", False),
            ("0x10", "16", False),
            ("1e", "1", False),
            ("1.2.3", "1.2.30", False),
            ("nan", "1", False),
            ("NaN", "nan", True),
            ("nan 1", "nan 1.0", False),
            ("inf", "Infinity", False),
            ("inf 1", "inf 1.0", False),
            ("1e999", "1e999", True),
            ("1e999", "5", False),
            ("yes", "YES", True),
            ("yEs 3", "YeS 3.0", True),
            ("\u00c9", "\u00e9", False),
            ("", "1", False),
            ("1", "", False),
            ("", "", True),
            ("\n \t", "", True),
            ("1 2", "1", False),
            ("1\r\n2\r\n", "1 2", True),
            ("1\v2", "1 2", True),
            ("1\f2", "1 2", False),
            ("\f1", "1", True),
            ("1\x1c2", "1 2", False),
            ("1\x852", "1 2", False),
            ("1\u00a02", "1 2", False),
            ("\u0661", "1", False),
            ("1\0", "1", False),
            ("x" * 100_000, "X" * 100_000, True),
            ("1" * 300_000, "1" * 299_999, False),
        ],
    )
    def test_cases(self, got: str, want: str, same: bool) -> None:
        assert (first_difference(got.encode(), want.encode()) is None) == same

    @given(st.text(max_size=3000))
    def test_excerpts_are_short_and_printable(self, text: str) -> None:
        shown = excerpt(text)
        assert len(shown) <= 410
        assert shown.count("\n") < 12
        assert all(c.isprintable() or c in "\n\t" for c in shown)


@needs_sandbox
class TestVerdicts:
    def submit(self, env: CodeContests, program: str) -> tuple[str, bool]:
        env.reset(env.tasks("train")[0], 0)
        result = env.step(program)
        assert result.valid
        assert result.observation.endswith("You have 3 submissions left.") or result.success
        return result.observation.removesuffix("\nYou have 3 submissions left."), result.success

    def test_accepted(self, env: CodeContests) -> None:
        assert self.submit(env, SUM) == ("Accepted: all 3 hidden tests passed.", True)
        assert self.submit(env, SUM + "\nexit()") == ("Accepted: all 3 hidden tests passed.", True)

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            (
                "print(3)",
                (
                    "Wrong answer on public test 2 (1 of 2 public tests "
                    "passed).\nInput:\n1\n5\nExpected:\n5\nGot:\n3"
                ),
            ),
            ("", ""),
            (
                "import sys; sys.exit(0)",
                (
                    "Wrong answer on public test 1 (0 of 2 public tests passed).\nInput:\n2\n1 "
                    "2\nExpected:\n3\nGot:\n(nothing)"
                ),
            ),
            (
                "n = int(input())\nx = input().split()\nprint(x[n])",
                (
                    "Runtime error on public test 1 (0 of 2 public tests "
                    "passed).\nInput:\n2\n1 2\nline 3: print(x[n])\nIndexError: list index out "
                    "of range"
                ),
            ),
            (
                "print('",
                "Runtime error on public test 1 (0 of 2 public tests "
                "passed).\nInput:\n2\n1 2\nline 1: print('\nSyntaxError: unterminated "
                "string literal "
                "(detected at line 1)",
            ),
            (
                "while True: pass",
                (
                    "Time limit exceeded on public test 1 (0 of 2 public tests "
                    "passed).\nInput:\n2\n1 2\nIt ran longer than 1 s."
                ),
            ),
            (
                "x = [0] * 10**9",
                (
                    "Memory limit exceeded on public test 1 (0 of 2 public tests "
                    "passed).\nInput:\n2\n1 2\nIt took more than 256 MB."
                ),
            ),
            (
                "while True: print(1)",
                (
                    "Output limit exceeded on public test 1 (0 of 2 public tests "
                    "passed).\nInput:\n2\n1 2\nIt printed more than 1024 KB."
                ),
            ),
            (
                "import os; os._exit(3)",
                (
                    "The process ended too early on public test 1 (0 of 2 public tests "
                    "passed).\nInput:\n2\n1 2\nstatus 3"
                ),
            ),
            (
                "print(id)",
                (
                    "Wrong answer on public test 1 (0 of 2 public tests passed).\nInput:\n2\n1 "
                    "2\nExpected:\n3\nGot:\n<built-in function id>"
                ),
            ),
            (
                "print(object())",
                (
                    "Wrong answer on public test 1 (0 of 2 public tests passed).\nInput:\n2\n1 "
                    "2\nExpected:\n3\nGot:\n<object object at 0x...>"
                ),
            ),
        ],
    )
    def test_public_tests_are_explained(self, env: CodeContests, program: str, said: str) -> None:
        if program:
            assert self.submit(env, program) == (said, False)
        else:
            assert (
                "no whole program in this answer" in env.step(program).observation
                if env.reset(env.tasks("train")[0], 0)
                else False
            )

    @pytest.mark.parametrize(
        ("what", "kind"),
        [
            ("print(s + 1)", "Wrong answer"),
            ("raise ValueError(s)", "Runtime error"),
            ("raise type('E%d' % s, (Exception,), {})(s)", "Runtime error"),
            ("exec('\\n' * s + '1 / 0')", "Runtime error"),
            ("sys.exit(s % 255)", "The process ended too early"),
            ("os.kill(os.getpid(), s % 30 + 1)", "The process ended too early"),
            ("x = [s] * 10**9", "Memory limit exceeded"),
            ("while True: print(s)", "Output limit exceeded"),
            ("while True: pass", "Time limit exceeded"),
        ],
    )
    def test_of_hidden_tests_nothing_is_shown_but_the_kind(
        self, env: CodeContests, what: str, kind: str
    ) -> None:
        program = (
            "import os, sys\ninput()\ns = sum(map(int, input().split()))\nif s < 9: "
            f"print(s)\nelse:\n    s = abs(s)\n    {what}"
        )
        said, success = self.submit(env, program)
        assert not success
        assert said == f"All 2 public tests passed. {kind} on a hidden test."

    def test_long_outputs_say_where_they_differ(self, tmp_path: Path) -> None:
        many = " ".join(map(str, range(1000)))
        env = CodeContests(
            write(tmp_path / "train.jsonl", row(public_tests={"input": ["1\n"], "output": [many]}))
        )
        said, _ = self.submit(env, "print(*range(500), 7, *range(501, 1000))")
        assert said.endswith("First difference: word 501 should be 500, and is 7.")
        assert len(said) < 1200

    def test_a_right_program_may_differ_from_a_public_test(self, tmp_path: Path) -> None:
        """Hidden tests decide: the statement's example may be one answer of several."""
        env = CodeContests(
            write(
                tmp_path / "train.jsonl", row(public_tests={"input": ["1\n5\n"], "output": ["6\n"]})
            )
        )
        assert self.submit(env, SUM) == ("Accepted: all 3 hidden tests passed.", True)
        said, success = self.submit(env, "print(5)")
        assert not success
        assert said.startswith("Wrong answer on public test 1")

    def test_without_hidden_tests_the_public_ones_decide(self, tmp_path: Path) -> None:
        none: dict[str, list[str]] = {"input": [], "output": []}
        env = CodeContests(
            write(tmp_path / "train.jsonl", row(private_tests=none, generated_tests=none))
        )
        assert self.submit(env, SUM) == ("Accepted: all 2 tests passed.", True)
        assert not self.submit(env, "print(3)")[1]

    def test_progress_and_four_submissions(self, env: CodeContests) -> None:
        env.reset(env.tasks("train")[0], 0)
        results = [
            env.step(p)
            for p in (
                "print(3)",
                "print(0)",
                SUM.replace("print", "x ="),
                "print(150 if '40' in open(0).read() else 3)",
            )
        ]
        assert [r.progress for r in results] == [1.0, 1.0, 1.0, 1.0], (
            "the last is right on a hidden test, and not on all public ones"
        )
        assert [r.done for r in results] == [False, False, False, True]
        assert results[-1].observation.endswith("That was the last submission: the task is lost.")
        again = env.step(SUM)
        assert (again.valid, again.done, again.observation) == (
            False,
            True,
            "The task is over: nothing was run.",
        )

    @settings(max_examples=12, deadline=None)
    @given(
        st.lists(st.booleans(), min_size=1, max_size=3),
        st.lists(st.booleans(), min_size=1, max_size=5),
        st.data(),
    )
    def test_progress_is_public_tests_first(
        self, public: list[bool], hidden: list[bool], data: st.DataObject
    ) -> None:
        """Two programs, each right on some of the tests: the one that fails a public test never
        stands above one that passes them all."""
        tests = [[f"{n}\n", f"{n}\n"] for n in range(len(public) + len(hidden))]
        payload = {
            "public": tests[: len(public)],
            "hidden": tests[len(public) :],
            "seconds": 2.0,
            "memory": 256_000_000,
        }
        task = Task("codecontests-x", "codecontests", "train", "Say n.", payload)
        others = data.draw(st.lists(st.booleans(), min_size=len(public), max_size=len(public)))
        found = []
        with CodeContests("unused") as judge:
            for right in (
                public + hidden,
                others + hidden[::-1],
                [True] * len(public) + [False] * len(hidden),
            ):
                program = f"n = int(input())\nprint(n if {right!r}[n] else -1)"
                judged = judge.judge(task, program)
                found.append((all(right[: len(public)]), judged.passed))
                if not all(right[: len(public)]):
                    assert judged.passed == sum(right[: len(public)])
        for well, progress in found:
            assert all(progress >= other for otherwise, other in found if well and not otherwise)

    def test_where_a_hidden_test_fails_is_not_told(self, tmp_path: Path) -> None:
        """Neither which one it was, nor how many there are: a program could choose them by what it
        reads."""
        said = set()
        for hidden in (1, 2, 5):
            tests = {
                "input": [f"{n}\n" for n in range(10, 10 + hidden)],
                "output": ["x\n"] * hidden,
            }
            public = {"input": ["1\n"], "output": ["x\n"]}
            env = CodeContests(
                write(
                    tmp_path / "train.jsonl",
                    row(public_tests=public, private_tests=tests, generated_tests=None),
                )
            )
            for fails in range(10, 10 + hidden):
                said.add(self.submit(env, f"print('y' if int(input()) == {fails} else 'x')")[0])
        assert said == {"All 1 public test passed. Wrong answer on a hidden test."}

    def test_a_shown_test_never_runs_where_a_hidden_one_did(
        self, env: CodeContests, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = []
        run_script = env.sandbox.run_script

        def noted(
            program: str, stdin: bytes, limits: Limits | None = None, *, hidden: bool = False
        ) -> Run:
            runs.append((stdin, hidden))
            return run_script(program, stdin, limits, hidden=hidden)

        monkeypatch.setattr(env.sandbox, "run_script", noted)
        for program in (SUM, "print(3)", SUM.replace("sum", "max")):
            self.submit(env, program)
        public = [text.encode() for text in ROW["public_tests"]["input"]]
        assert all(hidden == (stdin not in public) for stdin, hidden in runs)
        assert any(hidden for _, hidden in runs)

    def test_outputs_that_are_no_text(self, tmp_path: Path) -> None:
        """Bytes that are no UTF-8, an empty expected output, lone surrogates in a test, Windows
        line ends, outputs without an end."""
        none: dict[str, list[str]] = {"input": [], "output": []}
        for stdin, want, program, right in (
            ("1\n", "", "pass", True),
            ("1\n", "\n\n", "print('  ')", True),
            ("1\n", "", "print(1)", False),
            ("1\r\n2\r\n", "1\r\n2\r\n", "print(int(input()))\nprint(int(input()))", True),
            (
                "\ud800\n",
                "\ud800",
                "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())",
                True,
            ),
            ("1\n", "1 \t\n\n", "print(1, end='')", True),
            ("1\n", "\u00e9 \u4e2d", "print('\u00e9', '\u4e2d')", True),
            ("1\n", "1", "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe1')", False),
            ("1\n", "7 " * 100_000, "print('7 ' * 99_999 + '7')", True),
        ):
            tests = {"input": [stdin], "output": [want]}
            payload = CodeContests(
                write(
                    tmp_path / "train.jsonl",
                    row(public_tests=none, private_tests=tests, generated_tests=None),
                )
            ).tasks("train")[0]
            with CodeContests("unused") as judge:
                assert (judge.judge(payload, program).outcome is Outcome.passed) == right, (
                    stdin,
                    want[:20],
                    program,
                )

    def test_the_problems_own_limits_and_a_factor(self, tmp_path: Path) -> None:
        none: dict[str, list[str]] = {"input": [], "output": []}
        limits = {
            "time_limit": {"seconds": 0, "nanos": 400_000_000},
            "memory_limit_bytes": 64_000_000,
        }
        path = write(tmp_path / "train.jsonl", row(**limits, private_tests=none, public_tests=none))
        busy = "import time\nwhile time.process_time() < 0.6: pass\n" + SUM
        assert "Time limit exceeded" in self.submit(CodeContests(path), busy)[0]
        assert self.submit(CodeContests(path, time_factor=5), busy)[1]
        big = "x = bytearray(150_000_000)\n" + SUM
        assert "Memory limit exceeded" in self.submit(CodeContests(path), big)[0]
        assert self.submit(CodeContests(path, memory_factor=4, time_factor=5), big)[1]
        assert (
            "Time limit: 0.4 s. Memory limit: 64 MB."
            in CodeContests(path).tasks("train")[0].instruction
        )

    def test_contract(self, env: CodeContests) -> None:
        actions = [
            *env.valid_actions(),
            SUM,
            "print({'a', 'b', 'c'})",
            "print(hash('a'))",
            "",
            "no such action at all",
        ]
        report = check_environment(
            env,
            env.tasks("train"),
            actions,
            invalid=["", "no such action at all", "#" * 60_001],
            steps=4,
        )
        assert not report.problems, report

    def test_prompt_examples(self) -> None:
        def task(
            text: str,
            given: str,
            asked: str,
            limits: str,
            public: list[list[str]],
            hidden: list[list[str]],
        ) -> Task:
            instruction = f"{text}\n\nInput\n\n{given}\n\nOutput\n\n{asked}\n\n{limits}"
            return Task(
                "x",
                "codecontests",
                "train",
                instruction,
                {"public": public, "hidden": hidden, "seconds": 2.0, "memory": 256_000_000},
            )

        even = task(
            "You are given n integers. Print how many of them are even.",
            (
                "The first line contains n (1 ≤ n ≤ 100000). The second line contains n "
                "integers, each at most 10^9 in absolute value."
            ),
            "Print one number.",
            "Time limit: 2 s. Memory limit: 256 MB.",
            [["3\n2 5 4\n", "2\n"], ["4\n1 3 5 7\n", "0\n"]],
            [["2\n-2 3\n", "1\n"]],
        )
        larger = task(
            "For each of t pairs of integers a and b print the larger one.",
            "The first line contains t (1 ≤ t ≤ 1000). Each of the next t lines contains a and b.",
            "Print t lines.",
            "Time limit: 1 s. Memory limit: 256 MB.",
            [["2\n1 2\n4 3\n", "2\n4\n"]],
            [["1\n0 0\n", "0\n"]],
        )
        env = CodeContests("unused")
        assert replay(load_prompt_set("codecontests"), env, [even, even, larger]) == [
            (False, False),
            (True, True),
            (True, True),
        ]


@needs_sandbox
class TestData:
    def test_splits_by_file_and_by_hash(self, tmp_path: Path) -> None:
        rows = [row(name=f"{n}") for n in range(200)]
        (one := tmp_path / "one").mkdir()
        env = CodeContests(write(one / "mine.jsonl.gz", *rows))
        by_hash = {split: {t.id for t in env.tasks(split)} for split in env.splits}
        assert sum(map(len, by_hash.values())) == len(set().union(*by_hash.values())) == 200
        assert all(
            hash_split(i.removeprefix("codecontests-")) == split
            for split, ids in by_hash.items()
            for i in ids
        )
        assert 110 < len(by_hash["train"]) < 170
        (three := tmp_path / "three" / "data").mkdir(parents=True)
        for split, part in (("train", rows[:5]), ("valid", rows[5:7]), ("test", rows[7:10])):
            write(three / f"{split}-00000-of-00001.jsonl", *part)
        env = CodeContests(str(three.parent))
        assert {split: len(env.tasks(split)) for split in env.splits} == {
            "train": 5,
            "valid": 2,
            "test": 3,
        }
        assert [t.id for t in env.tasks("train", 3, 7)] == [
            t.id for t in env.tasks("train", None, 7)
        ][:3]
        assert [t.id for t in env.tasks("train", None, 7)] != [
            t.id for t in env.tasks("train", None, 8)
        ]
        assert sorted(name for name in env.versions() if name.startswith("data")) == [
            f"data {s}-00000-of-00001.jsonl" for s in ("test", "train", "valid")
        ]
        with pytest.raises(UserError, match="no split 'dev': its splits are train, valid, test"):
            env.tasks("dev")
        with pytest.raises(
            UserError, match=r"holds no file of the split 'valid': there is test-0\.jsonl"
        ):
            CodeContests(write(tmp_path / "test-0.jsonl", row())).tasks("valid")

    def test_parquet_and_json_lines_are_the_same(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [
            row(name=str(n), input_file="", solutions={"language": [3], "solution": ["secret"]})
            for n in range(70)
        ] + [row(name="f", input_file="input.txt")]
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet"
        )
        write(tmp_path / "train.jsonl", *rows)
        one, other = (
            CodeContests(str(tmp_path / name)).tasks("train", 50, 3)
            for name in ("train-00000-of-00001.parquet", "train.jsonl")
        )
        assert [t.to_json() for t in one] == [t.to_json() for t in other]
        assert len(one) == 50
        assert len(CodeContests(str(tmp_path / "train.jsonl")).tasks("train")) == 70, (
            "a problem that reads a named file is left out"
        )
        assert "secret" not in json.dumps([t.to_json() for t in one])

    def test_what_conversions_appended_is_cut(self, tmp_path: Path) -> None:
        description = (
            "Add.\n\nInput\n\nn\n\nExamples\n\nInput\n\n1\n\n## Categories\n\n- math\n\n## "
            "Examples\n\n### Example 3\n\n```\n150\n```\n"
        )
        public = {
            "input": ["1\n5\n", "1\n6\n"],
            "output": ["5\n\nInput\n\n1\n6\n\nOutput\n\n6\n", "6\n\n## Source\n\nCodeforces"],
        }
        task = CodeContests(
            write(tmp_path / "train.jsonl", row(description=description, public_tests=public))
        ).tasks("train")[0]
        assert task.instruction == (
            "Add.\n\nInput\n\nn\n\nExamples\n\nInput\n\n1\n\nTime limit: 1 s. Memory limit: 256 MB."
        )
        assert [want.split() for _, want in task.payload["public"]] == [["5"], ["6"]]

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "line 2: this is no JSON"),
            ("[" * 100_000, "line 2: this is no JSON (too deep)"),
            ("[1]", "line 2: the column 'name' is missing"),
            (row(description=None), "line 2: the column 'description'"),
            (row(public_tests=None), "line 2: the column 'public_tests'"),
            (
                row(private_tests={"input": ["1"], "output": []}),
                "line 2: the column 'private_tests'",
            ),
            (
                row(generated_tests={"input": [1], "output": ["1"]}),
                "line 2: the column 'generated_tests'",
            ),
            (row(time_limit=3), "line 2: the column 'time_limit'"),
            (row(memory_limit_bytes="256 MB"), "line 2: the column 'memory_limit_bytes'"),
            (
                row(
                    public_tests={"input": [], "output": []},
                    private_tests={"input": [], "output": []},
                    generated_tests=None,
                ),
                "line 2: this problem has no test",
            ),
        ],
    )
    def test_bad_rows_are_named_by_line(self, tmp_path: Path, line: Any, says: str) -> None:
        changed = line | {"name": "other"} if isinstance(line, dict) else line
        path = write(tmp_path / "train.jsonl", row(), changed)
        with pytest.raises(UserError) as caught:
            CodeContests(path).tasks("train")
        assert f"{path}, {says}" in str(caught.value)

    def test_files_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"CodeContests not found at .*nothing"):
            CodeContests(str(tmp_path / "nothing")).tasks("train")
        monkeypatch.setenv("LEAFE_DATA", str(tmp_path))
        with pytest.raises(
            UserError,
            match=(
                "set LEAFE_DATA to the folder that holds codecontests, or give the option problems"
            ),
        ):
            CodeContests().tasks("train")
        with pytest.raises(UserError, match="holds no problems"):
            CodeContests(str(tmp_path)).tasks("train")
        whole = gzip.compress((json.dumps(row()) + "\n").encode() * 50)
        for name, data in (
            ("train.jsonl.gz", whole[:-30]),
            ("train.jsonl.gz", b"\x1f\x8b"),
            ("train.jsonl.gz", b"plain"),
            ("train.jsonl", b"\xff\xfe{"),
        ):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(UserError, match=r"cannot be read: .*Fetch it again"):
                CodeContests(str(tmp_path / name)).tasks("train")

    def test_parquet_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "train.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([row()] * 300), path)
        data = path.read_bytes()
        for torn in (data[: len(data) // 2], data[:-1], b"PAR1", b""):
            path.write_bytes(torn)
            with pytest.raises(
                UserError, match=r"CodeContests file .*train\.parquet cannot be read"
            ):
                CodeContests(str(path)).tasks("train")
        parquet.write_table(pyarrow.Table.from_pylist([{"name": "a", "text": "b"}]), path)
        parquet.write_table(
            pyarrow.Table.from_pylist(
                [row(name=str(n), time_limit=None if n != 20 else {"s": 1}) for n in range(30)]
            ),
            path,
        )
        with pytest.raises(UserError, match=r"train\.parquet, row 21: the column 'time_limit'"):
            CodeContests(str(path)).tasks("train")
        parquet.write_table(pyarrow.Table.from_pylist([{"name": "a", "text": "b"}]), path)
        with pytest.raises(
            UserError, match=r"train\.parquet, row 1: the column 'description' is missing"
        ):
            CodeContests(str(path)).tasks("train")

    @pytest.mark.parametrize(
        "options",
        [
            {"time_factor": 0},
            {"memory_factor": -1},
            {"time_factor": "fast"},
            {"horizon": 0},
            {"horizon": True},
        ],
    )
    def test_wrong_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=f"cannot have {next(iter(options))}"):
            make_env("codecontests", **options)


def _references() -> dict[str, str]:
    rows = map(json.loads, gzip.decompress(SAMPLE.read_bytes()).splitlines())
    return {f"codecontests-{r['name']}": r["solutions"]["solution"][0] for r in rows}


def _all(env: CodeContests) -> list[Task]:
    return sorted((t for split in env.splits for t in env.tasks(split)), key=lambda t: t.id)


@needs_sample
@needs_sandbox
class TestRealProblems:
    def test_what_the_policy_sees_holds_no_hidden_test(self) -> None:
        """The sample's statements were given examples that are private tests: none of them is
        left."""
        tasks = _all(CodeContests(str(FOLDER)))
        assert len(tasks) == 157
        for task in tasks:
            for stdin, want in task.payload["hidden"]:
                if len(stdin) > 60 and [stdin, want] not in task.payload["public"]:
                    assert stdin.strip() not in task.instruction
            assert not any("## " in want for _, want in task.payload["public"])

    @pytest.mark.real
    def test_a_sample_of_references_is_accepted(self) -> None:
        env, references = CodeContests(str(FOLDER), time_factor=3), _references()
        for task in random.Random(0).sample(_all(env), 12):
            assert env.judge(task, references[task.id]).outcome is Outcome.passed, task.id

    @pytest.mark.slow
    def test_all_references_are_accepted(self) -> None:
        env, references = CodeContests(str(FOLDER), time_factor=3), _references()
        assert [
            t.id for t in _all(env) if env.judge(t, references[t.id]).outcome is not Outcome.passed
        ] == []

    @pytest.mark.slow
    def test_mutants_are_rejected(self) -> None:
        """Those of 40 problems, 2 each; bench/code_envs.py has all and says which of the accepted
        ones are alike."""
        env, references = CodeContests(str(FOLDER)), _references()
        jobs = [
            (t, program) for t in _all(env)[::4] for _, program in mutants(references[t.id], 2, 1)
        ]
        rejected = sum(
            env.judge(task, program).outcome is not Outcome.passed for task, program in jobs
        )
        assert rejected > 0.6 * len(jobs)

    @pytest.mark.real
    def test_both_stages(self, tmp_path: Path) -> None:
        references = _references()

        def solve(env: Environment, task: Task) -> list[str]:
            return [references[task.id].strip()]

        both_stages(
            "codecontests",
            tmp_path,
            solve=solve,
            wrong="print('no')",
            options={"problems": str(FOLDER), "time_factor": 3},
        )
