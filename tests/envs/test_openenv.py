"""The OpenEnv adapter against a server that speaks its protocol and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from leafe.core import EnvError, Task, UserError
from leafe.envs.adapters.openenv import OpenEnv, _only_field
from leafe.testing import check_environment
from tests.envs.openenv_server import PONGS, SCHEMA, serving, serving_tools


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def start(url: str, **options: Any) -> tuple[OpenEnv, Task]:
    env = OpenEnv(url, **options)
    task = env.tasks("train", 1)[0]
    assert env.reset(task, 0) == "Guess a number from 1 to 10."
    return env, task


def test_fields_are_found_and_a_game_is_won(url: str) -> None:
    env, task = start(url)
    assert (env.action_field, env.text_field) == ("guess", "hint")
    for guess in range(1, 11):
        if (result := env.step(str(guess))).done:
            break
    assert result.success or guess == 6
    assert "The episode is over." in result.observation
    assert not env.step("3").valid
    env.reset(task, 0)
    long = env.step("x" * 30)
    assert (long.valid, long.done) == (False, False)
    assert (
        "does not take this action (String should have at most 20 characters)" in long.observation
    )
    assert not env.step(" ").valid
    env.close()
    env.close()


def test_contract(url: str) -> None:
    with OpenEnv(url, reset={"tries": 30}) as env:
        numbers = [str(n) for n in range(1, 11)]
        report = check_environment(
            env, env.tasks("train", 5), numbers, invalid=("", "no such action at all"), steps=20
        )
    assert not report.problems, report


def test_success_by_a_field_or_a_threshold(url: str) -> None:
    for rule, wins in (("solved", True), ("unheard of", False), (2.0, False), (0.5, True)):
        env, _ = start(url, success=rule, reset={"tries": 10})
        results = [env.step(str(n)) for n in range(1, 11)]
        assert any(r.success for r in results) is wins
        env.close()


def test_an_idle_session_stays_open(url: str) -> None:
    """The server pings after the reset; the pong must come though nobody calls the environment."""
    while PONGS.acquire(blocking=False):
        pass
    env, _ = start(url)
    assert PONGS.acquire(timeout=120)
    assert env.step("5").valid
    env.close()


def test_a_reset_finds_a_new_session_where_the_server_closed_the_kept_one(url: str) -> None:
    env, task = start(url)
    for _ in range(20):  # whether the end of the session has been heard of by then or not
        assert env.step("leave").valid
        assert env.reset(task, 0) == "Guess a number from 1 to 10."
    assert env.step("leave").valid
    with pytest.raises(EnvError):  # a step needs the session: it is the caller who replays
        env.step("5")
    env.close()


def test_from_another_thread(url: str) -> None:
    env, _ = start(url)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(env.step("0").observation))
    thread.start()
    thread.join()
    assert said == ["Higher."]
    env.close()


@pytest.mark.parametrize(
    ("guess", "says"),
    [
        ("hang", "gave no answer: TimeoutError"),
        ("die", "the server ended the session"),
        ("babble", "answered with what its protocol does not have"),
        ("boom", r"failed: it broke \(EXECUTION_ERROR\)"),
    ],
)
def test_faults_are_the_envs_and_pass(url: str, guess: str, says: str) -> None:
    env, task = start(url)
    if guess == "hang":
        env.connection.timeout = 0.05
    with pytest.raises(EnvError, match=says):
        env.step(guess)
    env.connection.timeout = 60.0
    if guess in ("hang", "die"):
        with pytest.raises(EnvError, match="the session is lost"):
            env.step("5")
    env.reset(task, 0)
    assert env.step("0").observation == "Higher."
    env.close()


def test_a_server_that_goes_away() -> None:
    with serving() as url:
        env, task = start(url)
    with pytest.raises(EnvError, match="gave no answer"):
        env.step("5")
    with pytest.raises(EnvError, match="gave no answer"):
        env.reset(task, 0)
    env.close()


def test_missing_field_is_named(url: str) -> None:
    env = OpenEnv(url, text_field="words")
    with pytest.raises(
        EnvError, match="no field 'words', only hint, left, metadata: set the option text_field"
    ):
        env.reset(env.tasks("train", 1)[0], 0)
    env.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000"}, "no web address"),
        ({"url": "http://127.0.0.1:9"}, "finds no OpenEnv server at http://127.0.0.1:9"),
        ({"timeout": 0}, "cannot have timeout = 0"),
        ({"horizon": 0}, "cannot have horizon = 0"),
        ({"tasks": 0}, "cannot have tasks = 0"),
    ],
)
def test_mistakes_are_named(url: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        OpenEnv(**{"url": url} | options)
    assert says in str(caught.value)


def test_fields_that_are_not_clear() -> None:
    schema = {
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "reward": {}},
        "required": ["a", "b"],
    }
    with pytest.raises(
        UserError, match="which field of the action to use: set action_field to one of a, b"
    ):
        _only_field(schema, "action", required=True)
    with pytest.raises(UserError, match="set text_field to one of a, b"):
        _only_field(schema, "observation", required=False)
    assert _only_field(SCHEMA["action"], "action", required=True) == "guess"


TOOLS = [
    {
        "name": "look",
        "description": "Look at\na thing.",
        "input_schema": {"properties": {"thing": {"type": "string"}}},
    },
    {
        "name": "add",
        "description": "",
        "inputSchema": {"properties": {"a": {"type": "integer"}, "b": {}}},
    },
]


@pytest.fixture
def tool_url() -> Iterator[str]:
    with serving_tools(TOOLS) as address:
        yield address


def test_tool_calls_are_actions(tool_url: str) -> None:
    """OpenEnv's MCP environments take {tool_name, arguments}: the policy writes a call as JSON."""
    env = OpenEnv(tool_url)
    assert "look(thing: string): Look at a thing.\nadd(a: integer, b: any)" in env.actions_help
    assert env.reset(env.tasks("train", 1)[0], 0) == "Two tools are here."
    for action, says in (
        ('{"name": "add", "arguments": {"a": 2, "b": 3}}', "5"),  # FastMCP's data
        ('{"name": "look", "arguments": {"thing": "door"}}', "A door.\nShut."),  # its parts
    ):
        result = env.step(action)
        assert (result.observation, result.valid, result.reward) == (says, True, 0.0)
    missing = env.step('{"name": "fly"}')
    assert (missing.observation, missing.valid) == ("There is no tool fly.", False)
    for wrong in ("look at the door", '{"arguments": {}}', '{"name": "look", "arguments": 3}', ""):
        result = env.step(wrong)
        assert not result.valid
        assert "no tool call" in result.observation
    end = env.step('{"name": "look", "arguments": {"thing": "exit"}}')
    assert (end.reward, end.done, end.success) == (1.0, True, True)
    env.close()


def test_the_only_tools_only_text_needs_no_json() -> None:
    with serving_tools(TOOLS[:1]) as url:
        env = OpenEnv(url)
        assert "or just the text" in env.actions_help
        env.reset(env.tasks("train", 1)[0], 0)
        assert env.step("door").observation == "A door.\nShut."
        assert env.step('{"name": "look", "arguments": {"thing": "door"}}').valid
        env.close()
    with serving_tools([]) as url, pytest.raises(UserError):
        OpenEnv(url)
