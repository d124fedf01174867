"""Reads traces of verifiers: version 0's `results.jsonl` (a data set with `prompt`, `completion`,
`reward`) and version 1's `traces.jsonl`.

Version 1 writes an episode with the traces of all its agents, or one trace per line; a trace is a
graph of messages. A trace that forks (sub-agents, a compacted history) is not one episode and is
left out. Schemas: verifiers/v1/trace.py, graph.py and docs/v0/reference.md (RolloutOutput) of
PrimeIntellect-ai/verifiers, version 0.4.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leafe.data.importing._records import InvalidRecord, LoggedEpisode, Problems, episode, number

VERIFIERS_FILES = ("traces.jsonl", "results.jsonl")


def traces(where: str, record: Mapping[str, Any], problems: Problems) -> Iterator[LoggedEpisode]:
    """The episodes of one record."""
    if isinstance(record.get("traces"), Sequence):
        known = record.get("task")
        for nth, trace in enumerate(record["traces"]):
            if not isinstance(trace, Mapping):
                raise InvalidRecord("a trace that is no object", f"trace {nth} of it is no object")
            with problems.skipping(f"{where}, trace {nth}"):
                yield _trace(where, {"task": known} | dict(trace), problems)
    elif "nodes" in record:
        yield _trace(where, record, problems)
    elif "completion" in record:
        yield _rollout(where, record, problems)
    else:
        raise InvalidRecord(
            "no trace",
            "it has neither nodes nor prompt and completion, which a trace of verifiers has",
        )


def _trace(where: str, trace: Mapping[str, Any], problems: Problems) -> LoggedEpisode:
    nodes = trace.get("nodes")
    if not isinstance(nodes, Sequence) or not all(isinstance(node, Mapping) for node in nodes):
        raise InvalidRecord("no nodes", "its nodes are no list of objects")
    parents = [node.get("parent") for node in nodes]
    if any(
        parent is not None and not (isinstance(parent, int) and 0 <= parent < nth)
        for nth, parent in enumerate(parents)
    ):
        raise InvalidRecord(
            "a broken graph", "a node of it names a parent that does not precede it"
        )
    leaves = len(nodes) - len({parent for parent in parents if parent is not None})
    if leaves != 1 or sum(parent is None for parent in parents) != 1:
        raise InvalidRecord(
            "a trace that forks",
            (
                f"its messages fork into {leaves} conversations, and it does not name the one "
                "that is the episode"
            ),
        )
    messages = []
    for node in nodes:
        message = node.get("message")
        if not isinstance(message, Mapping):
            raise InvalidRecord("a node without a message", "a node of it holds no message")
        ids, mask = node.get("token_ids") or [], node.get("mask") or []
        sampled = [token for token, mine in zip(ids, mask, strict=False) if mine]
        messages.append(dict(message) | ({"tokens": sampled} if sampled else {}))
    before = next((nth for nth, node in enumerate(nodes) if node.get("sampled")), 0)
    task = trace.get("task")
    data = task.get("data") if isinstance(task, Mapping) else None
    data = data if isinstance(data, Mapping) else {}
    name = next((data[key] for key in ("id", "name", "idx") if data.get(key) is not None), None)
    about = _episode_fields(name, data, trace)
    return episode(
        where, messages, problems, before=before, reward=_weighted_reward(trace), **about
    )


def _weighted_reward(trace: Mapping[str, Any]) -> float | None:
    """The weighted sum; None if nothing was scored."""
    rewards = trace.get("rewards")
    if not isinstance(rewards, Mapping):
        return number(trace.get("reward"), "its reward")
    scored = [each for each in rewards.values() if each is not None]
    total = 0.0
    for each in scored:
        each = each if isinstance(each, Mapping) else {"score": each}
        total += (number(each.get("score"), "a score") or 0.0) * (
            number(each.get("weight", 1.0), "a weight") or 0.0
        )
    return total if scored else None


def _rollout(where: str, row: Mapping[str, Any], problems: Problems) -> LoggedEpisode:
    prompt, completion, info = (
        _from_json(row.get(key)) for key in ("prompt", "completion", "info")
    )
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, Sequence) or not isinstance(completion, Sequence):
        raise InvalidRecord("no messages", "its prompt and completion are no messages")
    data = info if isinstance(info, Mapping) else {}
    name = next(
        (
            value
            for value in (data.get("task"), data.get("id"), row.get("example_id"), row.get("id"))
            if isinstance(value, str | int)
        ),
        None,
    )
    about = _episode_fields(name, data, row)
    return episode(
        where,
        [*prompt, *completion],
        problems,
        before=len(prompt),
        reward=number(row.get("reward"), "its reward"),
        **about,
    )


def _from_json(value: object) -> object:
    """Parse lists and objects that a data set keeps as JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _episode_fields(
    name: object, data: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, Any]:
    out: dict[str, Any] = {"task": None if name is None else str(name)}
    if isinstance(data.get("payload"), Mapping):
        out |= {"payload": data["payload"], "instruction": str(data.get("instruction", ""))}
    agent = record.get("agent")
    config = agent.get("config") if isinstance(agent, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else record.get("model")
    return out | ({"model": model} if isinstance(model, str) and model else {})
