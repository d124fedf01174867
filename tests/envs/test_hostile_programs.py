"""One program never ends a run: nothing of it is parsed in this process, and what is told of it
can be hashed, stored and shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Task, UserError, observation_hash
from leafe.envs.code._submissions import _is_prose
from leafe.envs.code.mbpp import Mbpp

DETAIL = 'import os\ndef f(x):\n    os.write(3, b\'{"outcome": "error", %s}\\n\')\n    return 1'
HOSTILE = {
    "nested operators": "not " * 3000 + "x",
    "nested operators within": "def f(x): return " + "not " * 3000 + "x",
    "brackets": "(" * 10_000 + ")" * 10_000,
    "signs": "-" * 20_000 + "x",
    "attributes": "x" + ".a" * 20_000,
    "a surrogate raised": "def f(x):\n    raise ValueError('\\ud800' * 100)",
    "a surrogate while loading": "raise ValueError('\\udfff')",
    "a surrogate in the source": "x = '\ud800'\ndef f(x): return 1",
    "a surrogate returned": "def f(x): return '\\ud800'",
    "a NUL": "x\0y",
    "a huge number": "def f(x): return " + "1" * 5000,
    "a long message": "def f(x):\n    raise ValueError('\\x00' * 10**6)",
    "a long name": "def f(x):\n    raise type('é' * 1_000_000, (Exception,), {})()",
    "a name with a surrogate": "def f(x):\n"
    "    raise type('E', (Exception,), {'__str__': lambda s: '\\ud800'})()",
    "a detail that grows when escaped": DETAIL.replace(
        "%s", '"error": "E", "detail": "\' + \'é\'.encode() * 1_300_000 + b\'"'
    ),
    "an error that grows when escaped": DETAIL.replace(
        "%s", '"detail": "", "error": "\' + \'é\'.encode() * 1_300_000 + b\'"'
    ),
    "a detail that is no text": DETAIL.replace("%s", '"error": {"a": []}, "detail": [1, {}]'),
}


@pytest.fixture(scope="module")
def env() -> Iterator[Mbpp]:
    try:
        made = Mbpp(problems="-", shown_tests=1)
    except UserError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.parametrize("what", HOSTILE)
def test_one_program_never_ends_a_run(env: Mbpp, what: str) -> None:
    env.reset(
        Task(
            "t",
            "mbpp",
            "train",
            "",
            {"tests": ["assert f(1) == 1", "assert f(1) == 1"], "setup": ""},
        ),
        0,
    )
    result = env.step(HOSTILE[what])
    assert not result.success
    assert result.valid
    assert len(result.observation) < 3000
    observation_hash(result.observation)
    result.observation.encode()


@pytest.mark.parametrize(
    "text", ["I cannot do it.", "I do not know how", "Sorry.", "the answer is four", "No idea!"]
)
def test_prose_is_not_run(text: str) -> None:
    assert _is_prose(text)


@given(
    st.sampled_from(
        [
            "pass",
            "x",
            "import sys",
            "from os import path",
            "x in y",
            "not x",
            "x is not y",
            "a if b else c",
            "assert x",
            "del x",
            "return x",
            "x and y",
        ]
    )
)
def test_a_line_of_python_is_run(text: str) -> None:
    assert not _is_prose(text)


@given(st.text(st.sampled_from("not x.!?()[]-+\n"), max_size=50))
def test_what_reads_as_python_is_never_taken_for_prose(text: str) -> None:
    try:
        compile(text.strip(), "", "exec")
    except (SyntaxError, ValueError):
        return
    assert not _is_prose(text)
