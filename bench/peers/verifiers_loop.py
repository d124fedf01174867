"""The walk's episodes in verifiers, as a MultiTurnEnv: for versions whose environments run in the
caller's process (0.1.5 and 0.1.14 were tried).

Runs in an environment of its own, without leafe; reads the job from standard input, prints
{"version", "turns", "wall", "cpu"}. The clock runs from the call
that plays the rollouts to its end; imports and the data set are not counted.
"""

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version

JOB = json.load(sys.stdin)
os.environ["MOCK_API_KEY"] = "none"

import verifiers as vf  # noqa: E402
from datasets import Dataset  # noqa: E402

HELP = "Actions: go up, go down, take ITEM, open ITEM, look."
HALL = "You stand in a hall with many doors. The lamp is somewhere in this house. " * 6
ROOM = "There is a table, a lamp and two doors, one of them open. " * 4
OLD = hasattr(vf.Environment, "a_generate")
turns = 0


def seen(at):
    return [{"role": "user", "content": f"[Step {at}]\nRoom {at}. {ROOM}"}]


class OldWalk(vf.MultiTurnEnv):
    """Of 0.1.5."""

    async def is_completed(self, messages, state, **kwargs):
        return state["turn"] >= state["info"]["length"]

    async def env_response(self, messages, state, **kwargs):
        global turns
        assert "Action: " in messages[-1]["content"]
        turns += 1
        return seen(state["turn"]), state


class Walk(vf.MultiTurnEnv):
    """Of 0.1.14."""

    async def env_response(self, messages, state, **kwargs):
        global turns
        said = messages[-1]
        assert "Action: " in str(said["content"] if isinstance(said, dict) else said.content)
        turns += 1
        return seen(len(state["trajectory"]))

    if not OLD:

        @vf.stop
        async def walked(self, state):
            return len(state["trajectory"]) >= state["info"]["length"]


async def main():
    rows = {"prompt": [], "answer": [], "info": []}
    for name, length in JOB["lengths"].items():
        text = f"Errand {name}: find the lamp and light it.\n\n{HELP}\n\n[Step 0]\n{HALL}"
        rows["prompt"].append([{"role": "user", "content": text}])
        rows["answer"].append("")
        rows["info"].append({"length": length})
    rubric = vf.Rubric(funcs=[lambda completion, **kwargs: 0.0], weights=[1.0])
    env = (OldWalk if OLD else Walk)(dataset=Dataset.from_dict(rows), rubric=rubric)
    data, sampling = env.get_dataset(), {"max_tokens": 256, "temperature": 1.0}
    if OLD:
        from openai import AsyncOpenAI

        client, play = AsyncOpenAI(base_url=JOB["url"], api_key="none"), env.a_generate
    else:
        from verifiers.types import ClientConfig

        client, play = (
            ClientConfig(api_base_url=JOB["url"], api_key_var="MOCK_API_KEY"),
            env.generate,
        )
    began, cpu = time.perf_counter(), time.process_time()
    await play(data, client, "mock", sampling, max_concurrent=JOB["in_flight"])
    return time.perf_counter() - began, time.process_time() - cpu


wall, cpu = asyncio.run(main())
# the last turn of an episode has no answer of the environment here
print(
    json.dumps(
        {
            "version": version("verifiers"),
            "turns": turns + len(JOB["lengths"]),
            "wall": wall,
            "cpu": cpu,
        }
    )
)
