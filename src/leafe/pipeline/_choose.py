"""What validation decides: which round is the last, and which round or setting of a sweep is the
arm.

Every attempt was sampled on the same validation tasks, so that differences are paired. Pass@k of
`validation.k` decides, Pass@1 among equals, the
earlier attempt among those. Test tasks have no say.
"""

from __future__ import annotations

import math
from typing import Any

from leafe.evaluate import Counts, counts, paired_difference, pass_estimate
from leafe.pipeline._plan import Stage, plan, stage_name
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees


def last_round(run: RunFolder, recipe: Recipe, stage: Stage) -> str | None:
    """Why the round that begins with this exploration is not to be; None where it is. It needs the
    validations of all rounds before it."""
    found = [(need, _sampled(run, need)) for need in stage.needs if need.startswith("validate/")]
    there = [(name, sampled) for name, sampled in found if sampled is not None]
    if not there or there[-1][0] != found[-1][0]:
        return None  # the newest round learned nothing: the next one has other tasks
    best = max(range(len(there)), key=lambda i: _score(there[i][1], recipe.validation.k))
    newest = len(there) - 1
    for k in dict.fromkeys((1, recipe.validation.k)):
        drop = paired_difference([there[newest][1]], [there[best][1]], k)
        if newest != best and drop.high < 0:
            return (
                f"no further round: on {drop.tasks} validation tasks Pass@{k} of "
                f"{_short(there[newest][0])} is {-100 * drop.value:.1f} points below that "
                "of "
                f"{_short(there[best][0])} (95 % interval {-100 * drop.high:.1f} to "
                f"{-100 * drop.low:.1f})"
            )
    return None


def choose(run: RunFolder, recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The marker of a `choose` stage: the attempt that is the arm, its temperature, and the figures
    of all. Weights of a sweep's others are deleted."""
    mine = [s for s in plan(recipe) if s.kind == "validate" and s.name in stage.needs]
    k = recipe.validation.k
    rows: list[dict[str, Any]] = []
    scores: dict[int, tuple[float, float]] = {}
    for nth, each in enumerate(mine):
        done = run.done(each.name) or {}
        row: dict[str, Any] = {
            "attempt": each.policy,
            "what": each.title,
            "temperature": done.get("temperature"),
        }
        sampled = _sampled(run, each.name)
        if sampled is None:
            rows.append(
                row | {reason: done[reason] for reason in ("stopped", "empty") if reason in done}
            )
            continue
        scores[nth] = _score(sampled, k)
        short = {"lost": int(sampled.short.sum())} if sampled.short.any() else {}
        rows.append(
            row
            | short
            | {
                "tasks": len(sampled.tasks),
                "pass_at": {str(n): _figure(sampled, n) for n in dict.fromkeys((1, k))},
            }
        )
    if not scores:
        return {
            "empty": next(
                (row["empty"] for row in rows if "empty" in row), "no attempt was sampled"
            ),
            "candidates": rows,
        }
    best = max(scores, key=lambda nth: scores[nth])
    chosen = mine[best]
    rows[best]["chosen"] = True
    deleted = (
        _delete(run, stage, {s.policy for s in mine}, chosen.policy)
        if recipe.arms[stage.what].sweep
        else []
    )
    return {
        "chosen": chosen.policy,
        "what": chosen.title,
        "temperature": rows[best]["temperature"],
        "k": k,
        "candidates": rows,
        "deleted": deleted,
    }


def _sampled(run: RunFolder, validate: str) -> Counts | None:
    done = run.done(validate)
    return (
        None
        if done is None or "empty" in done or "stopped" in done
        else counts(list(load_trees(run.path / validate).values()))
    )


def _score(sampled: Counts, k: int) -> tuple[float, float]:
    """(Pass@k, Pass@1); an attempt whose samples were lost comes last."""
    values = [pass_estimate([sampled], n).value for n in (k, 1)]
    return (-1.0, -1.0) if math.isnan(values[0]) else (round(values[0], 9), round(values[1], 9))


def _figure(sampled: Counts, k: int) -> dict[str, Any]:
    """Pass@k with its interval; null where too many samples were lost."""
    found = pass_estimate([sampled], k)
    return (
        {"value": None, "ci95": None}
        if math.isnan(found.value)
        else {"value": found.value, "ci95": [found.low, found.high]}
    )


def _short(validate: str) -> str:
    return validate.rpartition(".")[2].replace("round", "round ")


def _delete(run: RunFolder, stage: Stage, attempts: set[str], chosen: str) -> list[str]:
    """Remove the weights of all attempts but the chosen one; what is known of the trainings
    stays."""
    others = sorted(attempts - {chosen})
    for attempt in others:
        folder = run.path / stage_name("distill", stage.variant, attempt) / "checkpoint"
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            file.unlink()
    return others
