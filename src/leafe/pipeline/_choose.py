"""What validation decides: which round is the last, and which round or setting is the arm.

All attempts are sampled on the same validation tasks, so that differences are paired. Pass@k of
`validation.k` decides, Pass@1 among equals, the earlier attempt among those. Test tasks are not
read.
"""

from __future__ import annotations

import math
from typing import Any

from leafe.evaluate import Counts, counts, paired_difference, pass_estimate
from leafe.pipeline._plan import Stage, plan, stage_name
from leafe.pipeline._result import StageResult, result_of
from leafe.recipes import Recipe
from leafe.runs import RunFolder, load_trees


def last_round(run: RunFolder, recipe: Recipe, stage: Stage) -> str | None:
    """Why the round that begins with this exploration is not run; None where it is.

    It is not run where the newest round is worse than the best one on validation: the paired 95 %
    interval of Pass@1 or Pass@k lies below zero.
    """
    validated = _validations(recipe, stage)
    found = [(each, counts_) for each in validated if (counts_ := _sampled(run, each))]
    if not found or found[-1][0] is not validated[-1]:
        return None  # the newest round learned nothing: the next one has other tasks
    best, best_counts = max(found, key=lambda each: _score(each[1], recipe.validation.k))
    newest, newest_counts = found[-1]
    for k in dict.fromkeys((1, recipe.validation.k)):
        drop = paired_difference([newest_counts], [best_counts], k)
        if newest is not best and drop.high < 0:
            return (
                f"no further round: on {drop.tasks} validation tasks Pass@{k} of "
                f"{_round(newest)} is {-100 * drop.value:.1f} points below that of "
                f"{_round(best)} (95 % interval {-100 * drop.high:.1f} to {-100 * drop.low:.1f})"
            )
    return None


def choose(run: RunFolder, recipe: Recipe, stage: Stage) -> StageResult:
    """The attempt that is the arm, its temperature, and the figures of all attempts.

    The weights of a sweep's other attempts are deleted.
    """
    validated = _validations(recipe, stage)
    k = recipe.validation.k
    rows: list[dict[str, Any]] = []
    scores: dict[int, tuple[float, float]] = {}
    reasons: list[str] = []
    for nth, each in enumerate(validated):
        result = result_of(run, each.name)
        row: dict[str, Any] = {
            "attempt": str(each.policy),
            "what": each.title,
            "temperature": result.marker.get("temperature") if result else None,
        }
        rows.append(row)
        sampled = _sampled(run, each)
        if sampled is None:
            if result is not None:
                row[result.outcome.value] = result.reason
                reasons += [result.reason] if result.outcome == "empty" else []
            continue
        scores[nth] = _score(sampled, k)
        if sampled.short.any():
            row["lost"] = int(sampled.short.sum())
        row["tasks"] = len(sampled.tasks)
        row["pass_at"] = {str(n): _figure(sampled, n) for n in dict.fromkeys((1, k))}
    if not scores:
        return StageResult.empty(next(iter(reasons), "no attempt was sampled"), candidates=rows)
    best = max(scores, key=lambda nth: scores[nth])
    rows[best]["chosen"] = True
    chosen = validated[best]
    return StageResult.completed(
        chosen=str(chosen.policy),
        what=chosen.title,
        temperature=rows[best]["temperature"],
        k=k,
        candidates=rows,
        deleted=_delete_weights(run, validated, chosen) if recipe.arms[stage.what].sweep else [],
    )


def _validations(recipe: Recipe, stage: Stage) -> list[Stage]:
    """The validation stages that it needs, by number."""
    return [s for s in plan(recipe) if s.kind == "validate" and s.name in stage.needs]


def _sampled(run: RunFolder, stage: Stage) -> Counts | None:
    result = result_of(run, stage.name)
    if result is None or not result.has_row:
        return None
    return counts(list(load_trees(run.path / stage.name).values()))


def _score(sampled: Counts, k: int) -> tuple[float, float]:
    """(Pass@k, Pass@1); an attempt whose samples were lost comes last."""
    values = [pass_estimate([sampled], n).value for n in (k, 1)]
    return (-1.0, -1.0) if math.isnan(values[0]) else (round(values[0], 9), round(values[1], 9))


def _figure(sampled: Counts, k: int) -> dict[str, Any]:
    """Pass@k with its interval; null where too many samples were lost."""
    found = pass_estimate([sampled], k)
    if math.isnan(found.value):
        return {"value": None, "ci95": None}
    return {"value": found.value, "ci95": [found.low, found.high]}


def _round(validate: Stage) -> str:
    return f"round {validate.attempt.number if validate.attempt else 0}"


def _delete_weights(run: RunFolder, validated: list[Stage], chosen: Stage) -> list[str]:
    """Remove the weights of all attempts but the chosen one; the trainings' records stay."""
    others = {each.policy for each in validated} - {chosen.policy}
    for policy in others:
        folder = run.path / stage_name("distill", chosen.variant, policy) / "checkpoint"
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            file.unlink()
    return sorted(map(str, others))
