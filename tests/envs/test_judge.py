"""Tests of a function are judged as plain Python judges them, whatever they are written with; and a
program passes by the right values alone."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import UserError
from leafe.envs.code.mbpp import Mbpp
from leafe.envs.sandbox import NOT_THE_PROGRAM, Outcome, Sandbox
from leafe.envs.sandbox.guest._judge import Names
from leafe.envs.sandbox.guest._plain import Decoder, Encoder, Unreadable
from tests.envs.data import needs_sandbox
from tests.envs.judged import KINDS

CASES = [
    pytest.param(*case, id=f"{kind}: {name}")
    for kind, cases in KINDS.items()
    for name, case in cases.items()
]


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return Sandbox()


@needs_sandbox
class TestAsPythonDoes:
    @pytest.mark.parametrize(("program", "test"), CASES)
    def test_a_test_that_holds_passes(self, box: Sandbox, program: str, test: str) -> None:
        space: dict[str, object] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(program, space)
            exec(
                test if "math.isclose" not in test or "import" in test else f"import math\n{test}",
                space,
            )
        verdict = box.run(program, [test])
        assert verdict.outcome is Outcome.passed, verdict

    def test_one_test_after_another(self, box: Sandbox) -> None:
        """What a test binds is there for the next, and what is the program's stays the
        program's."""
        program = "count = 0\ndef f(x):\n    global count\n    count += 1\n    return x + count"
        tests = [
            "got = f(1)\nassert got == 2",
            "assert got == 2 and count == 1",
            "assert f(got) == 4",
            "assert count == 2",
        ]
        assert box.run(program, [*tests, "f = 3\nassert f == 3", "assert f == 3"]).passed == 6

    def test_windows_line_ends(self, box: Sandbox) -> None:
        assert (
            box.run(
                "def f(n): return n\r\n",
                ["x = f(3)\r\nassert x == 3\r\n", "\r\nassert f(4) == 4\r\n"],
            ).passed
            == 2
        )

    @pytest.mark.parametrize("name", ["double", "e", "x", "got"])
    def test_a_name_that_nobody_defines_is_an_error(self, box: Sandbox, name: str) -> None:
        verdict = box.run("def f(x): return x", [f"assert {name}(f(2)) == 4"])
        assert (verdict.outcome, verdict.detail) == (
            Outcome.error,
            f"NameError: name {name!r} is not defined",
        )

    def test_what_the_tests_do_wrong_is_an_error_of_theirs(self, box: Sandbox) -> None:
        program = "def f(x): return x"
        for test in (
            "assert f(1) ==",
            "raise KeyError(f(1))",
            "import nothing_of_this_name\nassert f(1)",
            "exit()",
            "assert g(1) == 1",
            "f(1).x",
        ):
            verdict = box.run(program, ["assert f(3) == 3", test])
            assert (verdict.outcome, verdict.passed, verdict.test) == (Outcome.error, 1, 1), test
        verdict = box.run(program, ["assert f(3) == 3"], judge_setup="import nothing_of_this_name")
        assert verdict.outcome is Outcome.error
        assert "the tests' own setup: ModuleNotFoundError" in verdict.detail

    @pytest.mark.slow
    def test_a_test_that_does_not_end_by_itself_is_told_from_a_program_that_does_not(
        self, box: Sandbox
    ) -> None:
        verdict = box.run("def f(x): return x", ["assert f(3) == 3", "while f: x = 3"])
        assert (verdict.outcome, verdict.test, verdict.detail) == (Outcome.time, 1, NOT_THE_PROGRAM)
        verdict = box.run("def f(x): return 'x' * 900_000", ["print(f(1), f(2), f(3))"])
        assert (verdict.outcome, verdict.detail) == (Outcome.output, NOT_THE_PROGRAM)


@needs_sandbox
class TestByTheRightValuesAlone:
    LIES = (
        "class Lie{base}:\n    def __init__(self, *a): pass\n    def __getattr__(self, "
        "name): return lambda *a, **k: True\n"
        "    def _yes(self, *a): return True\n    def _me(self, *a): return self\n    def "
        "_zero(self, *a): return 0\n"
        "    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = "
        "__instancecheck__ = _yes\n    __ne__ = lambda *a: False\n"
        "    __hash__ = lambda self: 1\n    __sub__ = __rsub__ = __add__ = __radd__ = "
        "__mul__ = __rmul__ = __mod__ = __rmod__ = __and__ = __rand__ = {sums}\n"
        "    __xor__ = __rxor__ = __truediv__ = __rtruediv__ = __floordiv__ = __pow__ = "
        "__isub__ = __iadd__ = __divmod__ = __abs__ = __neg__ = {sums}\n"
        "    startswith = endswith = issubset = issuperset = isdisjoint = _yes\n"
        "    __float__ = lambda self: 0.0\n    __int__ = __index__ = __len__ = __round__ = "
        "_zero\n    __iter__ = lambda self: iter([self])\n"
        "    __getitem__ = _me\n"
    )
    WRONG = (
        "assert f(2) == 4",
        "assert 4 == f(2)",
        "assert not f(2) != 4",
        "assert abs(f(2) - 4.5) < 1e-6",
        "assert abs(4.5 - f(2)) < 1e-6",
        "assert f(2) - 4 == 0",
        "assert (f(2) - 4) is not None and not f(2) - 4",
        "assert f(2) in (4, 5)",
        "assert 4 in f(2)",
        "assert [f(2)] == [4]",
        "assert {f(2)} == {4}",
        "assert f(2) > 3",
        "assert 3 < f(2) < 5",
        "assert f(2) <= 4",
        "assert f(2) + 1 == 5",
        "assert 2 * f(2) == 8",
        "assert f(2) % 4 == 0",
        "assert not f(2) ^ 4",
        "assert isinstance(f(2), int)",
        "assert isinstance(f(2), (list, tuple)) ",
        "assert type(f(2)) is int",
        "assert sum([f(2)]) == 4",
        "assert f(2)[0] == 4",
        "assert list(f(2)) == [4]",
        "assert set(f(2)) == {4}",
        "assert sorted(f(2)) == [4]",
        "assert f(2).startswith('4')",
        "assert f(2).issuperset({4})",
        "assert (4,) == tuple(f(2))",
        "assert len(f(2)) == 4",
        "assert str(f(2)) == '4'",
        "assert round(f(2), 1) == 4",
        "import math\nassert math.isclose(f(2), 4.0)",
        "x = f(2)\nx -= 4\nassert abs(x) < 1e-9",
        "assert f(2) == 4 or f(2) == 5",
        "assert {4: 1}[f(2)] == 1",
        "assert f(2) == f(3) == 4",
    )

    @pytest.mark.parametrize("sums", ["_zero", "_me", "_yes"])
    @pytest.mark.parametrize(
        "base",
        ["", "(int)", "(float)", "(str)", "(list)", "(tuple)", "(dict)", "(set)", "(ValueError)"],
    )
    def test_an_object_that_says_yes_to_everything(
        self, box: Sandbox, base: str, sums: str
    ) -> None:
        program = self.LIES.format(base=base, sums=sums) + "def f(n): return Lie()"
        plain = f"def f(n): return {base.strip('()')}()" if base else "def f(n): return object()"
        if box.run(program, self.WRONG).passed > box.run(plain, self.WRONG).passed:
            passed = [
                [test for test in self.WRONG if box.run(p, [test]).outcome is Outcome.passed]
                for p in (program, plain)
            ]
            assert passed[0] == passed[1]

    def test_operators_are_not_asked_where_the_other_side_is_plain(self, box: Sandbox) -> None:
        program = (
            "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + "
            "getattr(o, 'x', o))\n"
        )
        program += "    __eq__ = lambda s, o: s.x == getattr(o, 'x', o)"
        assert (
            box.run(
                program,
                ["assert (V(1) + V(2)) == V(3)", "assert V(1) + 2 == V(3)", "assert V(1) == 1"],
            ).passed
            == 1
        )

    @pytest.mark.parametrize(
        "lines",
        [
            ['{"callback": 0, "args": [], "named": []}'] * 5,
            ['{"callback": 99, "args": [], "named": []}'],
            ['{"ok": ["yours", 0]}'],
            ['{"ok": true, "changed": [[0, [4]], [7, []], ["x", 1]]}'],
            ['{"ok": ["same", 0]}'],
            ['{"ok": ["exception", ["int", [4]]]}'],
            ['{"ok": ["sub", 5, ["ref", 0, "int", "4", []]]}', '{"ok": ["sub", ["list", []], 4]}'],
            ['{"ok": ["class", 9, "E", []]}', '{"ok": ["error", 9, ["type", "int"], []]}'],
            [
                (
                    '{"ok": ["ref", 0, "int", "4", ["__eq__", "__class__", "__init__", '
                    '"__del__", "__getattribute__"]]}'
                )
            ],
            ['{"raised": ["exception", ["SystemExit", []]], "outcome": "passed"}'],
            ['{"raised": 4}'],
            [
                '{"ok": ["Pattern", ["a", 1]]}',
                '{"ok": ["deque", 4]}',
                '{"ok": ["defaultdict", [[], "open"]]}',
                '{"ok": ["datetime", "x"]}',
            ],
        ],
    )
    def test_forged_answers(self, box: Sandbox, lines: list[str]) -> None:
        program = (
            f"import os\ndef f(n, *a):\n    for line in {lines!r}: os.write(3, line.encode() + "
            "b'\\n')\n    os._exit(0)"
        )
        for test in (
            "assert f(2) == 4",
            "x = [4]\nassert f(2, x) == 4",
            "assert f(2, lambda: 4) == 4",
            "assert f(2) == 4 and f(3) == 4",
        ):
            verdict = box.run(program, [test])
            assert verdict.passed == 0

    def test_calls_that_go_to_and_fro_without_end(self, box: Sandbox) -> None:
        verdict = box.run("def f(g): return g(g)", ["def g(h): return f(h)\nassert f(g) == 4"])
        assert verdict.outcome in (
            Outcome.error,
            Outcome.exited,
            Outcome.time,
            Outcome.memory,
            Outcome.output,
        )


class TestNames:
    @given(st.sampled_from([test for cases in KINDS.values() for _, test in cases.values()]))
    def test_what_a_test_binds_is_bound(self, test: str) -> None:
        names = Names.of(test)
        assert not names.modules & names.bound
        assert set(names.called) <= set(names.read) | names.bound | {"f", "x", "h", "g", "inner"}

    def test_scopes(self) -> None:
        test = (
            "def g(a, b=c):\n    d = a\n    return [e for e in d if e > h]\nwith i as j, k: "
            "pass\ntry: l()\nexcept m as n: pass\n"
        )
        names = Names.of(test + "match o:\n    case [p, *q]: r\n")
        assert set(names.read) == {"c", "h", "i", "k", "l", "m", "o", "r"}
        assert names.bound == {"g", "j", "n", "p", "q"}


class TestCodec:
    TAGS = ("list", "same", "sub", "exception", "deque", "type", "Decimal", "dict", "range", "x")
    VALUES = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.complex_numbers(allow_nan=False)
        | st.dates()
        | st.timedeltas(),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(), inner)
            | st.frozensets(st.integers())
            | st.sets(st.text())
        ),
        max_leaves=20,
    )

    @staticmethod
    def there(value: object) -> object:
        return Decoder(lambda *_: None).decode(
            json.loads(json.dumps(Encoder(lambda *_: ["ref", 0]).encode(value)))
        )

    @given(VALUES)
    def test_plain_values_come_as_they_are(self, value: object) -> None:
        found = self.there(value)
        assert found == value
        assert repr(found) == repr(value) or isinstance(
            value, set | frozenset | dict | list | tuple
        )

    def test_what_is_one_container_stays_one(self) -> None:
        row = [0]
        found = self.there([row, row, {"a": row}])
        assert isinstance(found, list)
        assert found[0] is found[1] is found[2]["a"]

    @settings(max_examples=300)
    @given(
        st.recursive(st.none() | st.integers(-3, 3) | st.sampled_from(TAGS), st.lists, max_leaves=9)
    )
    def test_what_is_no_value_is_unreadable(self, data: object) -> None:
        with contextlib.suppress(Unreadable):
            Decoder(lambda *_: None).decode(data)


@needs_sandbox
class TestTasksThatCannotBeJudged:
    @staticmethod
    def env(tmp_path: Path, *pairs: tuple[str, str]) -> Mbpp:
        rows = [
            {
                "task_id": 601 + n,
                "text": "t",
                "code": code,
                "test_list": [test],
                "test_setup_code": "",
            }
            for n, (code, test) in enumerate(pairs)
        ]
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return Mbpp(problems=str(tmp_path / "mine.jsonl"))

    GOOD = ("def f(): return 1", "assert f() == 1")

    @pytest.mark.parametrize(
        ("code", "test"),
        [
            (
                (
                    "class M:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return "
                    "s.x == o\ndef f(x): return M(x)"
                ),
                "assert f(2) == 2",
            ),
            (
                (
                    "class V:\n    def __init__(s, x): s.x = x\n    def __mul__(s, n): return "
                    "V(s.x * n)"
                ),
                "assert (V(2) * 3).x == 6",
            ),
            (
                "class S(list):\n    def peek(s): return s[-1]",
                "s = S()\ns.append(1)\nassert s.peek() == 1",
            ),
            ("def f(node): return node.value", "class Node: value = 3\nassert f(Node()) == 3"),
            (
                "kept = []\ndef keep(a): kept.append(a)\ndef grow(): kept[0].append(1)",
                "a = []\nkeep(a)\ngrow()\nassert a == [1]",
            ),
            ("def f(): return 2", "assert max([f()]) == 3"),
            ("def f(): return 2", "while True: pass"),
        ],
    )
    def test_it_is_left_out_by_name(self, tmp_path: Path, code: str, test: str) -> None:
        env = self.env(tmp_path, self.GOOD, (code, test))
        with pytest.warns(
            UserWarning,
            match=(
                r"mine\.jsonl: 1 of 2 tasks cannot be judged here \(.*: mbpp-602 \(\w+\)\. "
                r"They are left out"
            ),
        ):
            assert [t.id for t in env.tasks("train")] == ["mbpp-601"]
        with pytest.raises(UserError, match=r"1 of 1 task cannot be judged here \(.*mbpp-601"):
            self.env(tmp_path, (code, test)).tasks("train")

    def test_a_smaller_count_is_a_prefix_of_a_larger_one(self, tmp_path: Path) -> None:
        env = self.env(
            tmp_path,
            *[
                self.GOOD if n % 3 else ("def f(): return 2", "assert max([f()]) == 3")
                for n in range(12)
            ],
        )
        with pytest.warns(UserWarning, match=r"4 of 12 tasks"):
            whole = [t.id for t in env.tasks("train", None, 5)]
        assert len(whole) == 8
        for count in range(1, 8):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert [t.id for t in env.tasks("train", count, 5)] == whole[:count]

    def test_what_can_be_judged_is_kept(self, tmp_path: Path) -> None:
        env = self.env(tmp_path, *KINDS["operators"].values())
        assert len(env.tasks("train")) == len(KINDS["operators"])

    def test_what_has_no_reference_that_runs_is_taken_at_its_word(self, tmp_path: Path) -> None:
        assert (
            len(self.env(tmp_path, ("def f(: return 2", "assert max([f()]) == 3")).tasks("train"))
            == 1
        )
        (tmp_path / "mine.jsonl").write_text(
            json.dumps({"task_id": 601, "text": "t", "test_list": ["assert max([f()]) == 3"]})
        )
        assert len(Mbpp(problems=str(tmp_path / "mine.jsonl")).tasks("train")) == 1
