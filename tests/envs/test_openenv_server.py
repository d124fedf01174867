"""A served environment is an OpenEnv server too: its messages over /ws as openenv's client sends
them (written after `core/env_client.py`, `mcp_client.py` and `env_server/types.py`, version 0.10),
and leafe's own beside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.envs import load_tasks, make_env
from leafe.envs.adapters.openenv import OpenEnv
from leafe.envs.remote import Remote
from leafe.testing import check_environment
from tests.envs.remote_envs import Served, Stuck, Tally, until

TASK = {"id": "t", "payload": {"from": 0}}
ACTIONS = ["take mirror", "use mirror", "take rope", "use rope", "go left", "walk on"]


class Client:
    """One connection, as openenv's client has it: a message, then its answer."""

    def __init__(self, url: str, query: str = "", **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.session = self.run(self._session())
        url = url.replace("http", "ws", 1) + "/ws" + query
        self.socket = self.run(self._connect(url, options))

    async def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def _connect(self, url: str, options: dict[str, Any]) -> aiohttp.ClientWebSocketResponse:
        return await self.session.ws_connect(url, **options)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def send(self, text: str) -> dict[str, Any]:
        self.run(self.socket.send_str(text))
        answer = json.loads(self.run(self.socket.receive_str()))
        assert answer.keys() == {"type", "data"}
        return answer  # type: ignore[no-any-return]

    def ask(self, kind: str, data: Any = None, **more: Any) -> dict[str, Any]:
        message = {"type": kind, **({} if data is None else {"data": data}), **more}
        return self.send(json.dumps(message))

    def result(self, kind: str, **data: Any) -> dict[str, Any]:
        answer = self.ask(kind, data)
        assert answer["type"] == "observation", answer
        assert answer["data"].keys() - {"metadata"} == {"observation", "reward", "done"}
        return answer["data"]  # type: ignore[no-any-return]

    def code(self, kind: str, data: Any = None, **more: Any) -> str:
        answer = self.ask(kind, data, **more)
        assert answer["type"] == "error", answer
        assert answer["data"]["message"]
        return str(answer["data"]["code"])

    def get(self, url: str, body: Any = None) -> Any:
        async def read() -> Any:
            method = "GET" if body is None else "POST"
            async with self.session.request(method, url, json=body) as response:
                return response.status, await response.json()

        return self.run(read())

    def close(self) -> None:
        self.run(self.socket.close())
        self.run(self.session.close())
        self.loop.close()


@contextmanager
def connected(url: str, query: str = "", **options: Any) -> Iterator[Client]:
    client = Client(url, query, **options)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def tally() -> Iterator[Served]:
    with Served() as served:
        yield served


def test_an_episode_is_the_local_one() -> None:
    local = make_env("gates", setting="easy")
    with Served("gates", setting="easy") as served, connected(served.url) as client:
        for seed in range(5):
            task = local.tasks("train", 1, seed)[0]
            first = client.result("reset", seed=seed, episode_id=f"e{seed}")
            assert first["observation"]["text"] == local.reset(task, seed)
            assert (first["reward"], first["done"]) == (None, False)
            assert first["metadata"] == {"task": task.to_json(), "seed": seed}
            for at, action in enumerate(ACTIONS):
                here, there = local.step(action), client.result("step", text=action)
                assert there["observation"] == {
                    "text": here.observation,
                    "success": here.success,
                    "valid": here.valid,
                    "progress": here.progress,
                    "info": dict(here.info),
                }
                assert (there["reward"], there["done"]) == (here.reward, here.done)
                state = {"episode_id": f"e{seed}", "step_count": at + 1, "task_id": task.id}
                assert client.ask("state") == {"type": "state", "data": state}
        for split, index in (("test", 0), ("valid", 3)):
            found = client.result("reset", seed=2, split=split, index=index)["metadata"]["task"]
            assert found == local.tasks(split, index + 1, 2)[index].to_json()


def test_without_a_seed_the_episode_says_which_it_drew(tally: Served) -> None:
    with connected(tally.url) as client:
        drawn = client.result("reset")
        again = client.result("reset", **drawn["metadata"])
        assert again["observation"] == drawn["observation"]
        assert again["metadata"] == drawn["metadata"]


def test_leafes_openenv_environment_plays_it() -> None:
    with Served("gates", setting="easy") as served:
        with OpenEnv(served.url, success="success") as env:
            assert (env.action_field, env.text_field) == ("text", "text")
            report = check_environment(env, env.tasks("train", 4), ACTIONS)
            assert not report.problems, report
        assert until(lambda: not served.server.table.sessions)


def test_tools_are_steps(tally: Served) -> None:
    with connected(tally.url) as client:
        (tool,) = client.result("step", type="list_tools")["observation"]["tools"]  # before a reset
        assert tool.keys() == {"name", "description", "input_schema"}
        client.result("reset", task=TASK, seed=0)
        call = {"type": "call_tool", "tool_name": tool["name"], "arguments": {"text": "add 3"}}
        result = client.result("step", **call)
        assert (result["reward"], result["done"]) == (0.5, False)
        assert result["observation"] == {
            "tool_name": tool["name"],
            "result": "You have 3.",
            "error": None,
        }
        assert result["metadata"]["info"] == {"total": 3}
        for wrong, kind in (
            ({"tool_name": "other"}, "tool_not_found"),
            ({"arguments": {}}, "invalid_args"),
            ({"arguments": {"text": 1}}, "invalid_args"),
            ({"arguments": []}, "invalid_args"),
        ):
            error = client.result("step", **call | wrong)["observation"]["error"]
            assert error["error_type"] == kind
        assert client.ask("state")["data"]["step_count"] == 1
        assert client.code("step", {"type": "call_tool"}) == "VALIDATION_ERROR"


def test_errors_have_openenvs_codes_and_the_session_goes_on(tally: Served) -> None:
    with connected(tally.url) as client:
        assert client.send("{")["data"]["code"] == "INVALID_JSON"
        assert client.send("[1]")["data"]["code"] == "INVALID_JSON"
        for kind in ("mcp", "", "reset it", 7):
            assert client.code(kind, {}) == "UNKNOWN_TYPE"  # type: ignore[arg-type]
        assert client.code("step", {"text": "add 1"}) == "SESSION_ERROR"  # before a reset
        for data in ([], {"seed": -1}, {"seed": "x"}, {"task": {"id": 7}}, {"index": -1}):
            assert client.code("reset", data) == "VALIDATION_ERROR"
        for data in ({"split": "elsewhere"}, {"task": TASK, "seed": 13}):
            assert client.code("reset", data) == "EXECUTION_ERROR"
        client.result("reset", task=TASK, seed=0)
        for data in ({}, {"text": 7}, {"message": "add 1"}):
            answer = client.ask("step", data)["data"]
            assert answer["code"] == "VALIDATION_ERROR"
            assert "'text'" in answer["errors"][0]["msg"]
        assert client.result("step", text="add 1")["observation"]["info"] == {"total": 1}
        assert client.code("step", {"text": "raise it"}) == "EXECUTION_ERROR"
        assert client.code("step", {"text": "add 1"}) == "SESSION_ERROR"  # its environment is gone
        client.result("reset", task=TASK, seed=0)


def test_places_are_counted_with_those_of_leafes_protocol() -> None:
    task = Tally().tasks("train")[0]
    with Served(workers=1) as served, connected(served.url) as client:
        with Remote(served.url, retries=0) as env:
            env.reset(task, 0)
            assert client.code("reset", {"seed": 0}) == "CAPACITY_REACHED"
        until(lambda: client.ask("reset", {"seed": 0})["type"] == "observation")
        client.run(client.socket.send_str(json.dumps({"type": "close"})))
        assert client.run(client.socket.receive()).type is aiohttp.WSMsgType.CLOSE
        with Remote(served.url) as env:
            env.reset(task, 0)
    with Served(workers=1) as served:
        with connected(served.url) as client:
            client.result("reset", seed=0)
        with Remote(served.url) as env:  # a client that just leaves frees its place too
            env.reset(task, 0)


def test_snapshots_are_leafes_extension(tally: Served) -> None:
    with connected(tally.url) as one, connected(tally.url) as two:
        one.result("reset", task=TASK, seed=0)
        one.result("step", text="add 3")
        mark = one.ask("snapshot")
        assert mark["type"] == "snapshot"
        one.result("step", text="add 4")
        for client in (one, two):  # in any session, the first call of one included
            assert client.ask("restore", mark["data"]) == {"type": "restore", "data": {}}
            state = client.ask("state")["data"]
            assert (state["step_count"], state["task_id"]) == (1, "t")
            assert client.result("step", text="add 5")["observation"]["info"] == {"total": 8}
        assert one.ask("valid_actions")["data"] == {"actions": ["add 1", "add 2"]}
        assert one.code("restore", {"snapshot": "no such"}) == "EXECUTION_ERROR"


def test_a_call_that_is_sent_again_is_answered_once(tally: Served) -> None:
    with connected(tally.url, "?session=mine") as client:
        client.ask("reset", {"task": TASK, "seed": 0}, call=1)
        first = client.ask("step", {"text": "add 3"}, call=2)
        before = Tally.happened["step"]
        assert client.ask("step", {"text": "add 3"}, call=2) == first
    with connected(tally.url, "?session=mine") as client:  # over another connection
        assert client.ask("step", {"text": "add 3"}, call=2) == first
        assert Tally.happened["step"] == before
        assert client.code("step", {"text": "add 4"}, call=2) == "SESSION_ERROR"
        assert client.code("step", {"text": "add 4"}, call=4) == "SESSION_ERROR"
        assert client.result("step", text="add 4")["observation"]["info"] == {"total": 7}
        assert client.ask("state")["data"]["step_count"] == 2
        client.run(client.socket.send_str(json.dumps({"type": "close"})))
        client.run(client.socket.receive())
    assert until(lambda: "mine" not in tally.server.table.sessions)


def test_pings_are_answered_while_a_step_runs(tally: Served) -> None:
    """openenv's client hangs up where its ping has no pong for 20 s."""
    Tally.go_on.clear()
    with connected(tally.url, autoping=False) as client:
        client.result("reset", task=TASK, seed=0)
        client.run(client.socket.send_str('{"type": "step", "data": {"text": "wait"}}'))
        client.run(client.socket.ping())
        assert client.run(client.socket.receive()).type is aiohttp.WSMsgType.PONG
        Tally.go_on.set()
        assert json.loads(client.run(client.socket.receive_str()))["type"] == "observation"


@pytest.mark.slow
def test_a_client_that_leaves_a_hung_step_frees_its_place() -> None:
    with Served(f"{Stuck.__module__}:Stuck", workers=1) as served:
        with connected(served.url) as client:
            client.result("reset", task=TASK, seed=0)
            client.run(client.socket.send_str('{"type": "step", "data": {"text": "hang"}}'))
        with connected(served.url) as client:
            reset = {"task": TASK, "seed": 0}
            assert until(lambda: client.ask("reset", reset)["type"] == "observation")


def test_descriptions_and_tasks() -> None:
    local = make_env("gates", setting="easy")
    with Served("gates", setting="easy") as served, connected(served.url) as client:
        assert client.get(f"{served.url}/health") == (200, {"status": "healthy"})
        schema = client.get(f"{served.url}/schema")[1]
        assert schema.keys() == {"action", "observation", "state"}
        assert schema["action"]["required"] == ["text"]
        seen = client.result("reset", seed=0)["observation"]
        assert seen.keys() <= schema["observation"]["properties"].keys()
        assert client.ask("state")["data"].keys() == schema["state"]["properties"].keys()
        about = client.get(f"{served.url}/metadata")[1]
        assert about["name"] == "gates"
        assert about["description"]
        assert client.get(f"{served.url}/state")[1] == {"episode_id": None, "step_count": 0}
        assert client.get(f"{served.url}/list_environments") == (200, ["gates"])
        splits = client.get(f"{served.url}/gates/splits")[1]
        assert [s["type"] for s in splits] == ["train", "validation", "test"]
        tasks = [t.to_json() for t in load_tasks(local, "valid")]
        call = f"{served.url}/gates"
        assert client.get(f"{call}/tasks", {"split": "valid"})[1]["tasks"] == tasks
        assert client.get(f"{call}/num_tasks", {"split": "valid"})[1] == {"num_tasks": len(tasks)}
        one = client.get(f"{call}/task", {"split": "valid", "index": 2})[1]["task"]
        assert one == tasks[2]
        some = client.get(f"{call}/task_range", {"split": "valid", "start": 1, "stop": 3})[1]
        assert some["tasks"] == tasks[1:3]
        assert client.result("reset", task=one, seed=0)["metadata"]["task"]["id"] == one["id"]
        for path, body in (
            ("gates/task", {"split": "valid"}),
            ("gates/tasks", {"split": "nowhere"}),
            ("other/tasks", {"split": "valid"}),
            ("gates/moons", {"split": "valid"}),
        ):
            assert client.get(f"{served.url}/{path}", body)[0] in (400, 404), path


def test_who_may_connect() -> None:
    with Served(token="s3same") as served:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            Client(served.url)
        with connected(served.url, headers={"Authorization": "Bearer s3same"}) as client:
            client.result("reset", task=TASK, seed=0)
    with Served() as served:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                Client(served.url, headers=headers)
        with connected(served.url) as client:
            status, answer = client.get(f"{served.url}/ws")  # no handshake
            assert (status, answer["error"]["kind"]) == (400, "user")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "type", "seed", "task", "snapshot", "index", "id"]), inner
        )
    ),
    max_leaves=6,
)
KINDS = ["reset", "step", "state", "snapshot", "restore", "valid_actions", "mcp"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS) | anything, anything, st.none() | anything)))
def test_no_message_breaks_the_session(tally: Served, messages: list[Any]) -> None:
    with connected(tally.url) as client:
        for kind, data, call in messages:
            answer = client.ask(kind, data, **({} if call is None else {"call": call}))
            assert answer["type"] in (kind, "observation", "error")
        client.ask("reset", {"task": TASK, "seed": 0}, call=0)
        until(lambda: client.ask("reset", {"task": TASK, "seed": 0})["type"] == "observation")


def test_an_environment_without_tasks_wants_one() -> None:
    with (
        Served("tests.envs.remote_envs:Loose") as served,
        connected(served.url) as client,
    ):
        assert client.code("reset", {"seed": 0}) == "EXECUTION_ERROR"
        assert client.result("reset", task=TASK)["observation"]["text"] == "Loose."
        assert client.code("snapshot") == "EXECUTION_ERROR"
        assert client.result("step", text="x")["done"]
