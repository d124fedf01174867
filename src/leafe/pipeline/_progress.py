"""What a stage says while it runs, as plain values: the display, the log lines and `--json` show
them, and nothing is decided by them.

Every event has `done` of `of`: tasks, or the steps of a training. All other keys are there where
the stage knows them; counts are those of the whole
stage, what an earlier start of it left included.

    turns, calls                     environment steps and completions
    tokens, prompt_tokens, cached_tokens    generated; read; read out of a cache
    solved, by_rollback              tasks solved at least once; those of them that no episode from
    the start solved first
    samples, successes               of an evaluation
    budget                           {"of": a limit's name, "spent", "limit"}: what the tasks may
    spend together, of the limit that is closest
    errors                           by kind: episodes that ended in an error, unusable reflections,
    an endpoint's failures, environments that failed
    words                            what else there is to say
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
    """Of Stage 1, and of whatever else grows trees. `limits` are those of one task; `done`:
    finished tasks, where it is not the local engine that counts."""
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
    """Of an evaluation or a validation."""
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
    """The limit of which the largest share is used up; None where there is none that can be told
    from here (each task's seconds are its own)."""
    shared = {name: limit * p.tasks for name, limit in limits.items() if name != "seconds"}
    for name, limit in run_limits.items():
        if name != "seconds":
            shared[name] = min(limit, shared.get(name, limit))
    spent = {name: getattr(p.spent, name) for name in shared}
    if not shared:
        return None
    closest = max(shared, key=lambda n: spent[n] / shared[n] if shared[n] else 1.0)
    return {"of": closest, "spent": spent[closest], "limit": shared[closest]}
