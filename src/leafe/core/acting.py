"""A policy's answer and the environment's answer to it, as the one record that they are."""

from __future__ import annotations

from leafe.core.environment import StepResult
from leafe.core.policy import Completion
from leafe.core.types import Kind, Turn


def act_turn(
    answer: Completion,
    thought: str,
    action: str,
    result: StepResult,
    *,
    id: str,
    parent: str | None,
    task_id: str,
    step: int,
    policy: str,
    seconds: float,
    experience: str | None = None,
    count: int = 1,
) -> Turn:
    """The act turn of an answer that was parsed into thought and action, and of what the
    environment said to it. One environment step; `seconds` are rounded."""
    return Turn(
        id=id,
        parent=parent,
        task_id=task_id,
        step=step,
        kind=Kind.act,
        action_text=answer.text,
        action=action,
        thought=thought,
        observation=result.observation,
        reward=result.reward,
        done=result.done,
        success=result.success,
        valid=result.valid,
        progress=result.progress,
        count=count,
        experience=experience,
        policy=policy,
        usage=answer.usage,
        env_steps=1,
        tokens=answer.tokens,
        logprob=answer.logprob,
        seconds=round(seconds, 4),
        finish=answer.finish,
    )
