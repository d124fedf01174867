"""Whatever an environment answers is plain JSON afterwards, or one sentence; what carries its value
keeps it."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import asdict, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import EnvError, Environment, Kind, StepResult, Task, Turn, UserError
from leafe.core.answers import (
    check_facts,
    observation_text,
    plain_json,
    plain_task,
    step_result,
    versions_of,
)


class Raises:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __float__(self) -> float:
        raise RuntimeError("no number")


itself: list[Any] = []
itself.append(itself)
odd = st.sampled_from(
    [
        None,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        -1,
        2,
        0.5,
        "",
        "1.0",
        "True",
        b"1",
        "\ud800",
        "\udcff a",
        [],
        [1.0],
        {},
        {1: 2},
        set(),
        object(),
        Raises(),
        itself,
        np.float32(1),
        np.float32("nan"),
        np.int64(3),
        np.bool_(True),
        np.str_("hi"),
        np.array([1.0]),
        np.array([1.0, 2.0]),
        np.array("x"),
        np.zeros(()),
        1j,
        Decimal("0.1"),
        Decimal("NaN"),
        Fraction(1, 3),
        Path("a"),
        np.datetime64("2020-01-01"),
    ]
)
fields = st.fixed_dictionaries(
    dict.fromkeys(("observation", "reward", "done", "success", "valid", "progress", "info"), odd)
)


def strict(value: object) -> Any:
    text = json.dumps(value, allow_nan=False)
    return json.loads(text)


@given(fields)
def test_any_answer_is_plain_or_refused_in_one_sentence(values: dict[str, Any]) -> None:
    try:
        result = step_result(StepResult(**values), "w")
    except EnvError as error:
        said = str(error)
        assert said.startswith("The environment w breaks its contract: ")
        assert said.endswith(".")
        assert "\n" not in said
        assert any(name in said for name in values)
        said.encode()
        return
    assert strict(asdict(result)) == asdict(result)
    assert {type(v) for v in (result.done, result.success, result.valid)} == {bool}
    assert type(result.reward) is float
    assert type(result.observation) is str
    result.observation.encode()


@given(
    st.sampled_from([np.float32, np.float64, np.int64, np.int8, Decimal, Fraction, float, int]),
    st.integers(-100, 100),
)
def test_a_number_keeps_its_value(kind: Any, number: int) -> None:
    result = step_result(
        StepResult("x", reward=kind(number), progress=kind(number), done=np.bool_(number > 0)), "w"
    )  # type: ignore[arg-type]
    assert (result.reward, result.progress, result.done) == (number, number, number > 0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1", [1.0], np.array([1.0, 2.0])])
def test_what_is_no_number_is_no_reward(value: Any) -> None:
    with pytest.raises(EnvError, match=r"whose reward is .*, not a finite number"):
        step_result(StepResult("x", reward=value), "w")


@pytest.mark.parametrize("value", [None, "False", 2, [False], np.array([True, False])])
def test_what_is_no_flag_is_not_taken_for_one(value: Any) -> None:
    for name in ("done", "success", "valid"):
        with pytest.raises(EnvError, match=f"whose {name} is .*, not True or False"):
            step_result(replace(StepResult("x"), **{name: value}), "w")


def test_texts_are_cleaned_and_other_things_are_no_texts() -> None:
    assert observation_text("a\udcffb", "w") == "a\ufffdb"
    assert step_result(StepResult("\ud83d\ude00 \ud800"), "w").observation == "\U0001f600 \ufffd"
    for value in (None, b"x", 5, ["x"]):
        with pytest.raises(EnvError, match="reset returned"):
            observation_text(value, "w")
        with pytest.raises(EnvError, match="observation is"):
            step_result(StepResult(value), "w")  # type: ignore[arg-type]
    for value in (None, ("x", 1.0, True), {"observation": "x"}):
        with pytest.raises(EnvError, match="not a StepResult"):
            step_result(value, "w")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values))
def test_a_payload_of_json_is_left_as_it_is(payload: dict[str, Any]) -> None:
    task = Task("t", "w", "train", "Go.", payload)
    assert plain_task(task, "w") == task


def test_a_payload_of_numpy_reads_back_as_json() -> None:
    payload = {
        "n": np.int64(3),
        "grid": np.arange(4).reshape(2, 2),
        "pair": (1, np.float32(0.5)),
        "more": OrderedDict(ok=np.bool_(True)),
        "s": np.str_("x"),
    }
    plain = plain_task(Task("t", "w", "train", "Go.", payload), "w")
    assert plain.payload == {
        "n": 3,
        "grid": [[0, 1], [2, 3]],
        "pair": [1, 0.5],
        "more": {"ok": True},
        "s": "x",
    }
    assert Task.from_json(strict(plain.to_json())) == plain


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"a": [math.nan]}, r"payload\['a'\]\[0\] is nan"),
        ({"a": {1}}, "type set, which JSON"),
        ({1: 2}, "the key '1', which is no text"),
        ([1], "not a mapping"),
        ({"a": itself}, "holds itself"),
        ({"a": np.array([np.inf])}, "is inf"),
        ({"a": b"x"}, "type bytes"),
        ({"a": Raises()}, "type Raises"),
        (None, "None"),
    ],
)
def test_a_payload_that_json_does_not_hold_is_refused_with_its_place(
    payload: Any, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        plain_task(Task("t", "w", "train", "Go.", payload), "w")


def test_a_task_is_a_record_with_texts() -> None:
    assert plain_task(Task("t\ud800", "w", np.str_("train"), "Go."), "w") == Task(
        "t\ufffd", "w", "train", "Go."
    )
    for task in (Task(3, "w", "train", "Go."), Task("t", "w", None, "Go."), {"id": "t"}):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"[Tt]ask"):
            plain_task(task, "w")


@pytest.mark.parametrize("value", [set(), object(), 1j, np.datetime64("2020-01-01"), Raises()])
def test_what_json_does_not_hold_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="x is a value of type"):
        plain_json(value, "x")


def env(**facts: Any) -> Environment:
    class Odd(Environment):
        def reset(self, task: Task, seed: int) -> str:
            return ""

        def step(self, action: str) -> StepResult:
            return StepResult("")

    made = Odd()
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def test_what_an_environment_says_of_itself() -> None:
    made = check_facts(env(horizon=np.int64(4), actions_help="go\ud800", name=np.str_("w")))
    assert (type(made.horizon), made.horizon, made.actions_help, made.name) == (
        int,
        4,
        "go\ufffd",
        "w",
    )
    for facts in (
        {"horizon": None},
        {"horizon": math.inf},
        {"horizon": 0},
        {"horizon": "3"},
        {"name": 3},
        {"actions_help": None},
        {"name": b"\xff"},
    ):
        with pytest.raises(UserError, match="give its class"):
            check_facts(env(**facts))
    made.versions = lambda: {"rom": np.int64(3), "data": None}  # type: ignore[method-assign,dict-item]
    assert versions_of(made) == {"rom": "3", "data": "None"}


@pytest.mark.parametrize("value", ["null", "NaN", "-Infinity", '"x"', "[1]"])
def test_a_journal_of_0_1_0_with_odd_numbers_is_read(value: str) -> None:
    turn = Turn("t/0.0", None, "t", 0, Kind.act, "go")
    turn = Turn.from_json(
        turn.to_json() | dict.fromkeys(("reward", "progress", "logprob"), json.loads(value))
    )
    assert (turn.reward, turn.progress, turn.logprob) == (0.0, None, None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_not_written(number: float) -> None:
    turn = Turn(
        "t/0.0", None, "t", 0, Kind.act, "go", reward=number, progress=number, logprob=number
    )
    assert Turn.from_json(strict(turn.to_json())) == Turn("t/0.0", None, "t", 0, Kind.act, "go")
