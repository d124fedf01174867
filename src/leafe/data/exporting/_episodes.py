"""Whole episodes as JSON lines of chat messages with rewards, as `leafe import --format chat` reads
them (docs/data.md).

The messages are the prompts of an agent without experience. Beside each text is what it was
made of (`action`, `observation`, the sampled `tokens`), so that an import restores the episode
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from leafe.core import Episode, Tree, Turn
from leafe.prompts import History, Prompts


def rows(
    trees: Mapping[str, Tree], prompts: Prompts, left_out: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """One row per episode, branches from the reset on. Episodes without an action are counted in
    `left_out`."""
    for tree in trees.values():
        for episode in tree.rollouts:
            if episode.acts:
                yield _row(tree, episode, prompts)
            else:
                reason = "episode: it took no action"
                left_out[reason] = left_out.get(reason, 0) + 1


def _row(tree: Tree, episode: Episode, prompts: Prompts) -> dict[str, Any]:
    turns = tree.trajectory(episode)
    first = tree.episode_of(turns[0].id).first_observation
    prompt = prompts.act(History(tree.task, first, tuple(turns)))
    shots = len(prompts.set.shots)
    head = len(prompt) - 2 * len(turns) - 1 - shots
    messages: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in prompt]
    for example in messages[head : head + shots]:
        example["example"] = True
    messages[head + shots]["observation"] = first
    for nth, turn in enumerate(turns):
        at = head + shots + 2 * nth + 1
        messages[at] |= _acted(tree, turn)
        messages[at + 1]["observation"] = turn.observation
    task, reward = tree.task, sum(t.reward for t in turns)
    return {
        "task": {"id": task.id, "instruction": task.instruction, "payload": dict(task.payload)},
        "messages": messages,
        # the sum of finite rewards may be infinite
        "reward": reward if math.isfinite(reward) else None,
        "success": episode.success,
        "stop": episode.stop.value,
        "model": turns[-1].policy,
        "env": task.env,
        "split": task.split,
        "episode": episode.index,
        "depth": episode.depth,
    }


def _acted(tree: Tree, turn: Turn) -> dict[str, Any]:
    out: dict[str, Any] = {"action": turn.action, "reward": turn.reward}
    if turn.cut:
        out["finish_reason"] = turn.finish
    if turn.tokens is not None:
        out["tokens"] = list(turn.tokens)
    if turn.experience is not None:
        # part of the prompt that this was sampled from, and of no message here
        out["experience"] = tree[turn.experience].note
    return out
