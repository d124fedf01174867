"""Bodies and answers, without a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Message, Request, Usage
from leafe.policies.http import _wire
from leafe.policies.http._wire import Aborted, Dialect, Garbage, completions_of, has_reasoning

REQUEST = Request(
    (Message("system", "s"), Message("user", "u", tokens=None)),
    temperature=0.7,
    top_p=0.9,
    max_tokens=5,
    seed=2**62 + 3,
)


def body_of(
    request: Request,
    model: str,
    n: int,
    seed: int | None,
    *,
    schema: bool,
    extra: dict[str, object],
) -> dict[str, Any]:
    dialect = Dialect(schema="response_format" if schema else None)
    body: dict[str, Any] = json.loads(_wire.body_of(request, model, n, seed, dialect, extra))
    return body


def choice(content: object, **more: object) -> dict[str, object]:
    return {"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}


def test_the_body_holds_what_was_asked_for() -> None:
    body = body_of(REQUEST, "m", 1, REQUEST.seed, schema=True, extra={})
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 3,
    }


def test_n_stop_and_schema_stand_in_the_body_only_where_there_are_such() -> None:
    request = Request((Message("user", "u"),), n=4, stop=("\n",), schema={"type": "object"})
    body = body_of(request, "m", 4, None, schema=True, extra={})
    assert (body["n"], body["stop"], "seed" in body) == (4, ["\n"], False)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "response_format" not in body_of(request, "m", 4, None, schema=False, extra={})


def test_extra_fields_win() -> None:
    assert (
        body_of(REQUEST, "m", 1, None, schema=True, extra={"top_k": -1, "top_p": 0.5})["top_p"]
        == 0.5
    )


@given(st.integers(0, 2**63 - 1))
def test_a_seed_fits_31_bits(seed: int) -> None:
    assert 0 <= body_of(REQUEST, "m", 1, seed, schema=True, extra={})["seed"] < 2**31


def test_usage_is_the_servers_and_its_sum_is_kept() -> None:
    answer = {
        "choices": [choice("a"), choice("b", finish_reason="length"), choice("c")],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    got = completions_of(answer, REQUEST)
    assert [c.text for c in got] == ["a", "b", "c"]
    assert [c.finish for c in got] == ["stop", "length", "stop"]
    assert got[0].usage == Usage(10, 4, 3)
    assert sum((c.usage for c in got), Usage()) == Usage(10, 4, 8)


def test_token_ids_are_taken_where_the_server_gives_them() -> None:
    got = completions_of(
        {
            "choices": [choice("a", token_ids=[5, 2]), choice("b", token_ids=[7, 8, 2])],
            "usage": {"prompt_tokens": 3},
        },
        REQUEST,
    )
    assert [c.tokens for c in got] == [(5, 2), (7, 8, 2)]
    assert [c.usage.generated for c in got] == [2, 3]


def test_null_details_and_absent_usage_count_as_nothing() -> None:
    assert completions_of(
        {"choices": [choice("a")], "usage": {"prompt_tokens": 3, "prompt_tokens_details": None}},
        REQUEST,
    )[0].usage == Usage(3)
    assert completions_of({"choices": [choice("a")], "usage": None}, REQUEST)[0].usage == Usage()
    assert (
        completions_of(
            {"choices": [choice("a")], "usage": {"prompt_tokens": "many", "completion_tokens": -4}},
            REQUEST,
        )[0].usage
        == Usage()
    )


def test_a_text_ends_before_its_first_stop_and_holds_no_lone_surrogate() -> None:
    request = Request((Message("user", "u"),), stop=("END", "\n", ""))
    assert completions_of({"choices": [choice("go on\nEND more")]}, request)[0].text == "go on"
    text = completions_of(
        json.loads('{"choices": [{"message": {"content": "caf\u00e9 \\ud83d!"}}]}'), request
    )[0].text
    assert text == "caf\u00e9 \ufffd!"
    assert completions_of({"choices": [choice(None)]}, request)[0].text == ""


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": {}}]},
        {"choices": [choice(3)]},
        {"choices": [choice("a"), {"text": "b"}]},
        {"error": {"message": "overloaded"}},
    ],
)
def test_what_is_no_completion_is_garbage(answer: object) -> None:
    with pytest.raises(Garbage):
        completions_of(answer, REQUEST)


def test_a_message_without_a_text_is_an_empty_one() -> None:
    """As where a reasoning model is cut off before it has begun to answer."""
    cut = {"message": {"role": "assistant", "reasoning": "hm"}, "finish_reason": "length"}
    for message in (
        {"role": "assistant"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": []},
    ):
        (got,) = completions_of(
            {"choices": [cut | {"message": message | {"reasoning": "hm"}}]}, REQUEST
        )
        assert (got.text, got.finish) == ("", "length")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["text", "output_text", "bare", "plain", "thinking", "image_url"]),
            st.text(alphabet="abc \n", max_size=6),
        ),
        max_size=5,
    )
)
def test_a_text_in_parts_is_put_together(parts: list[tuple[str, str]]) -> None:
    def part(kind: str, text: str) -> object:
        if kind in ("bare", "plain"):
            return text if kind == "bare" else {"text": text}
        return (
            {"type": kind, "text": text}
            if "text" in kind
            else {"type": kind, kind: [{"type": "text", "text": text}]}
        )

    (got,) = completions_of({"choices": [choice([part(*p) for p in parts])]}, REQUEST)
    assert got.text == "".join(
        text for kind, text in parts if kind not in ("thinking", "image_url")
    )
    assert has_reasoning({"choices": [choice([part(*p) for p in parts])]}) == any(
        kind == "thinking" for kind, _ in parts
    )


def test_one_part_without_a_list() -> None:
    assert (
        completions_of({"choices": [choice({"type": "text", "text": "go"})]}, REQUEST)[0].text
        == "go"
    )


@pytest.mark.parametrize(
    "content",
    [
        3,
        True,
        [3],
        [None],
        [{"type": "text", "text": 3}],
        [{"type": "text"}],
        {"type": "text", "text": []},
    ],
)
def test_parts_that_are_no_text_are_garbage(content: object) -> None:
    with pytest.raises(Garbage):
        completions_of({"choices": [choice(content)]}, REQUEST)


@pytest.mark.parametrize(
    "field", ["reasoning_content", "reasoning", "thinking", "reasoning_details"]
)
def test_thinking_beside_the_answer_is_noticed(field: str) -> None:
    def answer(value: object) -> dict[str, object]:
        return {
            "choices": [
                choice("a"),
                {"message": {"role": "assistant", "content": "b", field: value}},
            ]
        }

    assert has_reasoning(answer("I think of the red door."))
    assert not has_reasoning(answer(""))
    assert not has_reasoning(answer(None))


@pytest.mark.parametrize(
    "reason",
    [
        None,
        "abort",
        "aborted",
        "error",
        "cancelled",
        "canceled",
        "request_cancelled",
        "timeout",
        "insufficient_system_resource",
        "MALFORMED_FUNCTION_CALL",
        {"type": "abort", "message": "killed"},
    ],
)
def test_an_answer_that_was_given_up_half_way_is_none(reason: object) -> None:
    with pytest.raises(Aborted, match="half-way"):
        completions_of(
            {"choices": [choice("a"), choice("the first half", finish_reason=reason)]}, REQUEST
        )


def test_an_error_inside_a_choice_is_said() -> None:
    with pytest.raises(Aborted, match="upstream died"):
        completions_of(
            {"choices": [choice("half", error={"code": 502, "message": "upstream died"})]}, REQUEST
        )


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("tool_calls", "stop"),
        ("COMPLETE", "stop"),
        ("stop_sequence", "stop"),
        ({"type": "stop"}, "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "length"),
        ({"type": "length", "length": 8}, "length"),
    ],
)
def test_how_an_answer_ended(reason: object, finish: str) -> None:
    assert (
        completions_of({"choices": [choice("a", finish_reason=reason)]}, REQUEST)[0].finish
        == finish
    )
    silent = {"message": {"role": "assistant", "content": "a"}}
    assert completions_of({"choices": [silent]}, REQUEST)[0].finish == "stop"


@pytest.mark.parametrize(
    "mark",
    [{"stop_reason": "END"}, {"matched_stop": "END"}, {"left in": True}, {"logprobs": "spelled"}],
)
def test_a_choice_that_met_a_stop_text_costs_the_others_no_ids(mark: dict[str, object]) -> None:
    request = Request((Message("user", "u"),), n=3, stop=("END",))
    met = choice("go END" if "left in" in mark else "go ", token_ids=[4, 5], **mark)
    if "logprobs" in mark:
        met["logprobs"] = {"content": [{"token": "go "}, {"token": "E"}, {"token": "ND"}]}
    answer = {
        "choices": [
            choice("a", token_ids=[1, 2]),
            met,
            choice("b", token_ids=[3, 2, 2], stop_reason=7, matched_stop=2),
        ],
        "usage": {"completion_tokens": 7},
    }
    got = completions_of(answer, request)
    assert [c.tokens for c in got] == [(1, 2), None, (3, 2, 2)]
    assert [c.usage.generated for c in got] == [2, 2, 3]
    assert got[1].text == "go "
    # where the server counted others than it gave, none of them is whole
    assert [
        c.tokens for c in completions_of(answer | {"usage": {"completion_tokens": 10}}, request)
    ] == [None] * 3


@pytest.mark.parametrize(
    "value", [float("-inf"), float("inf"), float("nan"), -1e305, None, "-1", True, 0.5, -(10**400)]
)
def test_log_probabilities_that_are_none(value: object) -> None:
    plain = Request((Message("user", "u"),))

    def answer(last: object) -> dict[str, object]:
        items = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": last}]
        return {
            "choices": [choice("ab", logprobs={"content": items})],
            "usage": {"completion_tokens": 2},
        }

    assert completions_of(answer(-1), plain)[0].logprob == -1.5
    assert completions_of(answer(value), plain)[0].logprob is None


@pytest.mark.parametrize("ids", [[], [1, -1], [1, 2**31], [1, True], [1.0], "12", [None]])
def test_ids_that_no_vocabulary_has_are_none(ids: object) -> None:
    assert completions_of({"choices": [choice("a", token_ids=ids)]}, REQUEST)[0].tokens is None


def test_what_is_left_out_of_the_body() -> None:
    request = Request((Message("user", "u"),), stop=("END",))
    bare = Dialect(temperature=False, top_p=False, stop=False, limit="max_completion_tokens")
    body = json.loads(_wire.body_of(request, "m", 1, None, bare, {}))
    assert body.keys() == {"messages", "model", "max_completion_tokens"}
    other = Request(
        (Message("user", "u"),), temperature=0.7, top_p=0.9
    )  # what is not the default must be said
    assert json.loads(_wire.body_of(other, "m", 1, None, bare, {})).keys() == {
        "messages",
        "model",
        "temperature",
        "top_p",
        "max_completion_tokens",
    }
    mine = json.loads(
        _wire.body_of(request, "m", 1, None, Dialect(), {"max_completion_tokens": 64})
    )
    assert "max_tokens" not in mine


KEYS = ["choices", "message", "content", "usage", "token_ids", "error", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_json_comes_it_is_completions_or_garbage(answer: object) -> None:
    try:
        got = completions_of(answer, REQUEST)
    except Garbage as garbage:
        assert str(garbage)  # noqa: PT017
    else:
        assert got
        assert all(isinstance(c.text, str) for c in got)
    has_reasoning(answer)


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=40)),
        max_size=6,
    ),
    st.booleans(),
)
def test_messages_whose_json_is_kept_are_the_messages(
    talk: list[tuple[Any, str]], forget: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if forget:
            patch.setattr(_wire, "_MAX_FRAGMENTS", 0)
        request = Request(tuple(Message(role, text) for role, text in talk))
        for _ in range(2):
            body = body_of(request, "m", 1, None, schema=False, extra={})
            assert body["messages"] == [{"role": role, "content": text} for role, text in talk]
            assert body["model"] == "m"


def test_the_kept_json_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "_MAX_FRAGMENTS", 50_000)
    for i in range(2000):
        body_of(Request((Message("user", f"{i} " * 50),)), "m", 1, None, schema=False, extra={})
        assert sum(map(len, _wire._FRAGMENTS.values())) < 60_000


def test_messages_of_ones_own_win_too() -> None:
    body = body_of(
        REQUEST,
        "m",
        1,
        None,
        schema=False,
        extra={"messages": [{"role": "user", "content": "mine"}]},
    )
    assert body["messages"] == [{"role": "user", "content": "mine"}]
