"""The walk's episodes in Inspect AI: samples with a solver that generates, steps the environment
and appends, as its own agent loops do.

Runs in an environment of its own, without leafe; reads the job from standard input, prints
{"version", "turns", "wall", "cpu"}. The clock runs from the call
of `eval` to its end; imports are not counted. The log is written where Inspect writes it, without
samples, and nothing is shown.
"""

import json
import os
import sys
import time
from importlib.metadata import version

JOB = json.load(sys.stdin)
os.environ["MOCK_API_KEY"] = "none"

from inspect_ai import Task, eval, task  # noqa: E402
from inspect_ai.dataset import MemoryDataset, Sample  # noqa: E402
from inspect_ai.model import ChatMessageUser  # noqa: E402
from inspect_ai.solver import Generate, TaskState, solver  # noqa: E402

HELP = "Actions: go up, go down, take ITEM, open ITEM, look."
HALL = "You stand in a hall with many doors. The lamp is somewhere in this house. " * 6
ROOM = "There is a table, a lamp and two doors, one of them open. " * 4
turns = 0


@solver
def walk():
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        global turns
        for at in range(1, state.metadata["length"] + 1):
            state = await generate(state)
            assert "Action: " in state.output.completion
            turns += 1
            state.messages.append(ChatMessageUser(content=f"[Step {at}]\nRoom {at}. {ROOM}"))
        return state

    return solve


@task
def errands():
    first = f"find the lamp and light it.\n\n{HELP}\n\n[Step 0]\n{HALL}"
    samples = [
        Sample(f"Errand {name}: {first}", metadata={"length": length})
        for name, length in JOB["lengths"].items()
    ]
    return Task(MemoryDataset(samples), solver=walk())


began, cpu = time.perf_counter(), time.process_time()
logs = eval(
    errands(),
    model="openai-api/mock/mock",
    model_base_url=JOB["url"],
    display="none",
    log_dir=JOB["folder"],
    log_samples=False,
    log_realtime=False,
    log_model_api=False,
    score=False,
    max_samples=JOB["in_flight"],
    max_connections=JOB["in_flight"],
    max_tokens=256,
)
wall, cpu = time.perf_counter() - began, time.process_time() - cpu
assert logs[0].status == "success", logs[0].error
print(json.dumps({"version": version("inspect-ai"), "turns": turns, "wall": wall, "cpu": cpu}))
