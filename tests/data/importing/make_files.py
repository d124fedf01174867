"""The logs in `files/`, written by the tools themselves: gates episodes as an Inspect log and as
traces of verifiers.

python -m tests.data.importing.make_files    # needs inspect_ai (was 0.3.285), verifiers (0.4.0)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.data.importing.logs import chat_lines, played

FILES = Path(__file__).parent / "files"
LONG = "x" * 300


def rows() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return chat_lines(played(3, 2), Path(folder) / "out")


def inspect_log() -> Any:
    """Each episode as a sample: the first acts by text, the others by a tool; the last has no
    score."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        ModelOutput,
    )
    from inspect_ai.scorer import Score
    from inspect_ai.tool import ToolCall

    samples = []
    for nth, row in enumerate(rows()):
        messages: list[Any] = [ChatMessageSystem(content=f"Be quick. {LONG}")]
        for at, message in enumerate(row["messages"]):
            if message["role"] == "assistant" and nth:
                call = ToolCall(
                    id=str(at), function="act", arguments={"command": message["content"]}
                )
                messages.append(
                    ChatMessageAssistant(
                        content=[ContentReasoning(reasoning="hm"), ContentText(text="So.")],
                        tool_calls=[call],
                    )
                )
            elif message["role"] == "assistant":
                messages.append(ChatMessageAssistant(content=message["content"]))
            elif at and nth:
                messages.append(
                    ChatMessageTool(
                        content=message["content"], tool_call_id=str(at - 1), function="act"
                    )
                )
            else:
                messages.append(ChatMessageUser(content=message["content"]))
        samples.append(
            EvalSample(
                id=row["task"]["id"],
                epoch=row["episode"] + 1,
                input=row["messages"][0]["content"],
                target="",
                messages=messages,
                output=ModelOutput.from_content("m", "done"),
                scores={"won": Score(value="C" if row["success"] else "I")},
                metadata={
                    "payload": row["task"]["payload"],
                    "instruction": row["task"]["instruction"],
                },
            )
        )
    samples[-1] = samples[-1].model_copy(update={"scores": None})
    spec = EvalSpec(
        task="gates",
        model="mockllm/fickle",
        created="2026-01-01T00:00:00+00:00",
        dataset=EvalDataset(name="gates"),
        config=EvalConfig(),
    )
    return EvalLog(eval=spec, samples=samples, status="success")


def traces() -> list[str]:
    """Each episode as version 1's episode with one trace, as `traces.jsonl` has it."""
    from verifiers.v1.configs.agent import WireAgentConfig
    from verifiers.v1.episode import EnvInfo, Episode
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.task import WireTaskData
    from verifiers.v1.trace import EXCLUDE_FIELDS, AgentInfo, Reward, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, UserMessage

    out = []
    for row in rows():
        data = WireTaskData(
            id=row["task"]["id"],
            payload=row["task"]["payload"],
            instruction=row["task"]["instruction"],
        )  # type: ignore[call-arg]
        task = TraceTask(type="Gates", data=data)
        nodes = []
        for at, message in enumerate(row["messages"]):
            said = message["role"] == "assistant"
            made = (
                AssistantMessage(content=message["content"])
                if said
                else UserMessage(content=message["content"])
            )
            ids = [7, 8, 9, 10] if said else [5, 6]
            nodes.append(
                MessageNode(
                    parent=at - 1 if at else None,
                    message=made,
                    sampled=said,
                    token_ids=ids,
                    mask=[False, True, True, True] if said else [False] * 2,
                )
            )
        agent = AgentInfo(config=WireAgentConfig(model="fickle"))  # type: ignore[call-arg]
        trace = Trace(
            task=task,
            agent=agent,
            nodes=nodes,
            rewards={"won": Reward(score=row["reward"], weight=1.0), "style": None},
            is_completed=True,
            ok=True,
        )
        episode = Episode(env=EnvInfo(id="gates"), task=task, traces=[trace], ok=True)
        out.append(
            episode.model_dump_json(
                exclude_none=True, exclude={"traces": {"__all__": EXCLUDE_FIELDS}}
            )
        )
    return out


if __name__ == "__main__":
    from inspect_ai.log import write_eval_log

    FILES.mkdir(exist_ok=True)
    write_eval_log(inspect_log(), str(FILES / "gates.eval"))
    write_eval_log(inspect_log(), str(FILES / "gates.json"))
    (FILES / "traces.jsonl").write_text("".join(line + "\n" for line in traces()), encoding="utf-8")
