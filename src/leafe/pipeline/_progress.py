"""Events of a stage's progress, as plain values for the display, the log and `--json`.

Nothing is decided by them. Every event has `done` of `of`: tasks, or the steps of a training. Other
keys are there where the stage knows them; counts are those of the whole stage, earlier starts
included.

    turns, calls                     environment steps and completions
    tokens, prompt_tokens, cached_tokens    generated; read; read out of a cache
    solved, by_rollback              tasks solved at least once; those first solved by a rollback
    samples, successes               of an evaluation
    budget                           {"of": a limit's name, "spent", "limit"}: for all tasks
                                     together, the limit that is closest
    errors                           by kind: episodes that ended in an error, unusable reflections,
                                     failures of an endpoint and of environments
    words                            more, as a text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leafe.core import Spent, Stop
from leafe.evaluate import EvaluateProgress
from leafe.explore import Progress

_ERRORS = (Stop.diverged, Stop.env_error, Stop.policy_error, Stop.context_full, Stop.invalid_limit)
_NO_FAILURE = {"requests", "spilled", "hedged", "hedge_won", "brought_back"}
"""Of a policy's own counts: what went well."""


def exploring(
    p: Progress,
    limits: Mapping[str, float] | None = None,
    run_limits: Mapping[str, float] | None = None,
    *,
    done: int | None = None,
    failures: Mapping[str, int] | None = None,
    words: str = "",
) -> dict[str, Any]:
    """An event of Stage 1, or of another stage that grows trees.

    Args:
        p: The progress of the exploration.
        limits: Limits of one task's budget.
        run_limits: Limits of the whole stage.
        done: Finished tasks, where the local engine does not count them.
        failures: Counts of failures by kind.
        words: More, as a text.
    """
    errors = _errors(p.stops, failures or {}) | (
        {"unusable reflections": p.unusable_reflections} if p.unusable_reflections else {}
    )
    errors |= {"tasks given up": p.given_up} if p.given_up else {}
    out = {
        "done": p.tasks_done if done is None else done,
        "of": p.tasks,
        "solved": p.solved,
        "by_rollback": p.solved_by_rollback,
    }
    return (
        out
        | _costs(p.spent)
        | {"budget": _budget(p, limits or {}, run_limits or {}), "errors": errors}
        | ({"words": words} if words else {})
    )


def evaluating(
    p: EvaluateProgress,
    *,
    done: int | None = None,
    failures: Mapping[str, int] | None = None,
    words: str = "",
) -> dict[str, Any]:
    """An event of an evaluation or a validation."""
    out = {
        "done": p.tasks_done if done is None else done,
        "of": p.tasks,
        "solved": p.solved,
        "samples": p.samples,
        "successes": p.successes,
    }
    return (
        out
        | _costs(p.spent)
        | {"errors": _errors(p.stops, failures or {})}
        | ({"words": words} if words else {})
    )


def _costs(spent: Spent) -> dict[str, Any]:
    return {
        "turns": spent.env_steps,
        "calls": spent.policy_calls,
        "tokens": spent.generated_tokens,
        "prompt_tokens": spent.prompt_tokens,
        "cached_tokens": spent.cached_tokens,
    }


def _errors(stops: Mapping[str, int], failures: Mapping[str, int]) -> dict[str, int]:
    ended = {
        stop.value.replace("_", " "): stops[stop.value] for stop in _ERRORS if stops.get(stop.value)
    }
    return ended | went_wrong(failures)


def went_wrong(counts: Mapping[str, int]) -> dict[str, int]:
    """Of what a policy counts, the failures that occurred, by name."""
    return {
        name.replace("_", " "): number
        for name, number in counts.items()
        if number and name not in _NO_FAILURE
    }


def _budget(
    p: Progress, limits: Mapping[str, float], run_limits: Mapping[str, float]
) -> dict[str, Any] | None:
    """The limit of which the largest share is used up; None where there is none but seconds, which
    are each task's own."""
    shared = {name: limit * p.tasks for name, limit in limits.items() if name != "seconds"}
    for name, limit in run_limits.items():
        if name != "seconds":
            shared[name] = min(limit, shared.get(name, limit))
    spent = {name: getattr(p.spent, name) for name in shared}
    if not shared:
        return None
    closest = max(shared, key=lambda n: spent[n] / shared[n] if shared[n] else 1.0)
    return {"of": closest, "spent": spent[closest], "limit": shared[closest]}
