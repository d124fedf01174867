"""Tool calls of logs: their tool's name is kept, the environment is given what the log says it was
given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.data import Problems, as_logged
from leafe.data.importing._records import InvalidRecord, LoggedEpisode, episode, number


def log(*said: dict[str, Any]) -> LoggedEpisode:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Tidy up."}]
    for each in said:
        messages += [
            {"role": "assistant", "content": None} | each,
            {"role": "tool", "content": "done"},
        ]
    return episode("here", messages, Problems(), success=True)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": json.dumps(arguments)}}


names = st.text(min_size=1, max_size=8)


@given(names, names, st.text(max_size=10))
def test_the_name_is_kept_with_one_text_argument(tool: str, argument: str, value: str) -> None:
    (turn,) = log({"tool_calls": [call(tool, **{argument: value})]}).turns
    assert json.loads(turn.text) == {"name": tool, "arguments": {argument: value}}
    assert turn.action == value  # the only tool: its environment is given the argument


def test_where_there_are_several_tools_their_names_tell_the_actions_apart() -> None:
    turns = log(
        {"tool_calls": [call("open", path="a")]}, {"tool_calls": [call("delete", path="a")]}
    ).turns
    assert [json.loads(t.action or "") for t in turns] == [
        {"name": n, "arguments": {"path": "a"}} for n in ("open", "delete")
    ]
    assert turns[0].text != turns[1].text
    found = as_logged(
        [
            log({"tool_calls": [call("open", path="a")]}),
            log({"tool_calls": [call("delete", path="a")]}),
        ],
        problems=Problems(),
    )
    assert found.episodes == 2


@pytest.mark.parametrize(
    "arguments", ["not JSON", "", "[" * 5000, '"text"', "null", "3", '{"a": "b", "c": 1}']
)
def test_arguments_of_any_form_keep_the_name(arguments: str) -> None:
    (turn,) = log({"tool_calls": [{"function": {"name": "bash", "arguments": arguments}}]}).turns
    assert json.loads(turn.text)["name"] == "bash"


def test_an_explicit_action_wins_over_tool_calls() -> None:
    (turn,) = log(
        {"content": "So.", "action": "go north", "tool_calls": [call("walk", where="north")]}
    ).turns
    assert (turn.action, turn.thought) == ("go north", "So.")
    assert turn.text == 'So.\n{"name": "walk", "arguments": {"where": "north"}}'
    (turn,) = log({"action": "", "tool_calls": [call("walk", where="north")]}).turns
    assert turn.action == ""


@pytest.mark.parametrize("reward", [10**400, float("inf"), float("nan"), "1", [1]])
def test_a_reward_that_is_no_number_is_left_out_with_a_sentence(reward: Any) -> None:
    with pytest.raises(InvalidRecord, match="not a finite number"):
        number(reward, "its reward")
    with pytest.raises(InvalidRecord, match="not a finite number"):
        number(-(10**5000), "its reward")


@pytest.mark.parametrize("payload", [{"a": float("nan")}, {"a": [{"b": float("-inf")}]}])
def test_a_payload_that_json_does_not_hold_is_left_out(payload: Any) -> None:
    said = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "go"}]
    with pytest.raises(InvalidRecord, match=r"payload\['a'\]"):
        episode("here", said, Problems(), success=True, payload=payload)
