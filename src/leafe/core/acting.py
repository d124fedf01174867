"""How a parsed answer and the environment's reply become one act turn."""

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
    """The act turn of one environment step.

    Args:
        answer: What the policy wrote.
        thought: The thought, parsed out of `answer`.
        action: The action, parsed out of `answer`; what the environment was given.
        result: The environment's answer.
        id: The turn's id (`turn_id`).
        parent: The act turn before it; None at the root.
        task_id: The task.
        step: The index t of the action, from 0.
        policy: The weights that answered.
        seconds: Wall time of call and step; rounded to 0.1 ms.
        experience: The reflection that stood in the prompt.
        count: How many samples took this turn.
    """
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
