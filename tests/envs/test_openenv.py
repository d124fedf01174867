"""The OpenEnv adapter against a server that speaks its protocol and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from leafe.core import Task, UserError, WorldError
from leafe.envs.adapters.openenv import OpenEnv, _only
from leafe.testing import check_environment
from tests.envs.openenv_server import PONGS, SCHEMA, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def start(url: str, **options: Any) -> tuple[OpenEnv, Task]:
    world = OpenEnv(url, **options)
    task = world.tasks("train", 1)[0]
    assert world.reset(task, 0) == "Guess a number from 1 to 10."
    return world, task


def test_fields_are_found_and_a_game_is_won(url: str) -> None:
    world, task = start(url)
    assert (world.action_field, world.text_field) == ("guess", "hint")
    for guess in range(1, 11):
        if (result := world.step(str(guess))).done:
            break
    assert result.success or guess == 6
    assert "The episode is over." in result.observation
    assert not world.step("3").valid
    world.reset(task, 0)
    long = world.step("x" * 30)
    assert (long.valid, long.done) == (False, False)
    assert "does not take this action (String should have at most 20 characters)" in long.observation
    assert not world.step(" ").valid
    world.close()
    world.close()


def test_contract(url: str) -> None:
    with OpenEnv(url, reset={"tries": 30}) as world:
        numbers = [str(n) for n in range(1, 11)]
        report = check_environment(world, world.tasks("train", 5), numbers, invalid=("", "no such action at all"), steps=20)
    assert not report.problems, report


def test_success_by_a_field_or_a_threshold(url: str) -> None:
    for rule, wins in (("solved", True), ("unheard of", False), (2.0, False), (0.5, True)):
        world, _ = start(url, success=rule, reset={"tries": 10})
        results = [world.step(str(n)) for n in range(1, 11)]
        assert any(r.success for r in results) is wins
        world.close()


def test_an_idle_session_stays_open(url: str) -> None:
    """The server pings after the reset; the pong must come though nobody calls the world."""
    while PONGS.acquire(blocking=False):
        pass
    world, _ = start(url)
    assert PONGS.acquire(timeout=120)
    assert world.step("5").valid
    world.close()


def test_a_reset_finds_a_new_session_where_the_server_closed_the_kept_one(url: str) -> None:
    world, task = start(url)
    for _ in range(20):  # whether the end of the session has been heard of by then or not
        assert world.step("leave").valid
        assert world.reset(task, 0) == "Guess a number from 1 to 10."
    assert world.step("leave").valid
    with pytest.raises(WorldError):  # a step needs the session: it is the caller who replays
        world.step("5")
    world.close()


def test_from_another_thread(url: str) -> None:
    world, _ = start(url)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(world.step("0").observation))
    thread.start()
    thread.join()
    assert said == ["Higher."]
    world.close()


@pytest.mark.parametrize(
    ("guess", "says"),
    [
        ("hang", "gave no answer: TimeoutError"),
        ("die", "the server ended the session"),
        ("babble", "answered with what its protocol does not have"),
        ("boom", r"failed: it broke \(EXECUTION_ERROR\)"),
    ],
)
def test_faults_are_the_worlds_and_pass(url: str, guess: str, says: str) -> None:
    world, task = start(url)
    if guess == "hang":
        world.line.timeout = 0.05
    with pytest.raises(WorldError, match=says):
        world.step(guess)
    world.line.timeout = 60.0
    if guess in ("hang", "die"):
        with pytest.raises(WorldError, match="the session is lost"):
            world.step("5")
    world.reset(task, 0)
    assert world.step("0").observation == "Higher."
    world.close()


def test_a_server_that_goes_away() -> None:
    with serving() as url:
        world, task = start(url)
    with pytest.raises(WorldError, match="gave no answer"):
        world.step("5")
    with pytest.raises(WorldError, match="gave no answer"):
        world.reset(task, 0)
    world.close()


def test_missing_field_is_named(url: str) -> None:
    world = OpenEnv(url, text_field="words")
    with pytest.raises(WorldError, match="no field 'words', only hint, left, metadata: set the option text_field"):
        world.reset(world.tasks("train", 1)[0], 0)
    world.close()


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
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}, "reward": {}}, "required": ["a", "b"]}
    with pytest.raises(UserError, match="which field of the action to use: set action_field to one of a, b"):
        _only(schema, "action", required=True)
    with pytest.raises(UserError, match="set text_field to one of a, b"):
        _only(schema, "observation", required=False)
    assert _only(SCHEMA["action"], "action", required=True) == "guess"
