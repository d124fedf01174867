"""The rounds of every arm that has several, one row a round, gathered from their stages.

Rows of several seeds or runs are one row: rates are those of the pooled rows, validation and
samples are means over the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafe.distill import PARTS
from leafe.pipeline._plan import Stage, plan
from leafe.pipeline._result import Outcome, result_of
from leafe.recipes import Recipe
from leafe.runs import RunFolder


def rounds_rows(
    runs: Sequence[tuple[RunFolder, Recipe]], summary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row a round.

    Args:
        runs: The runs with their recipes.
        summary: The summary of these runs, with `details.validation`.

    Returns:
        `arm`, `round`; `tasks`, `solved`, `coverage` (of its exploration); `samples` (that it was
        trained on); `valid`, `test` (Pass@k by k); `entropy`, `distinct`, `following`,
        `reflection`, `same_step` (as in its test row); `chosen`, `stopped`, `runs` (in how many
        runs it is the arm, was stopped, was planned).
    """
    rows: dict[tuple[str, int], list[tuple[RunFolder, Stage]]] = {}
    for run, recipe in runs:
        for stage in plan(recipe):
            if (
                stage.kind == "distill"
                and stage.attempt is not None
                and not stage.variant.control
                and recipe.rounds_of(stage.attempt.arm).number > 1
            ):
                rows.setdefault((stage.attempt.arm, stage.attempt.number), []).append((run, stage))
    titles = {stage.name: stage.row for _, recipe in runs for stage in plan(recipe)}
    explored = {row["strategy"]: row for row in summary["explore"]}
    evaluated = {row["arm"]: row for row in summary["evaluate"]}
    out = []
    for (arm, number), places in rows.items():
        first = places[0][1]
        assert first.attempt is not None
        found = explored.get(titles[first.attempt.explored[-1]], {})
        tested = evaluated.get(f"{arm} (round {number})", {})
        validated = [
            row
            for row in summary["details"]["validation"]
            if (row["arm"], row["attempt"]) == (arm, first.what)
        ]
        results = [
            result for run, stage in places if (result := result_of(run, stage.name)) is not None
        ]
        if not results and not found:
            continue
        out.append(
            {
                "arm": arm,
                "round": number,
                **{name: found.get(name) for name in ("tasks", "solved", "coverage")},
                "samples": _mean(
                    [
                        sum(result.marker["counts"][p]["samples"] for p in PARTS)
                        for result in results
                        if "counts" in result.marker
                    ]
                ),
                "valid": _passes([row["pass_at"] for row in validated if "pass_at" in row]),
                "test": {k: p["value"] for k, p in tested.get("pass_at", {}).items()},
                **{
                    name: tested.get(name)
                    for name in ("entropy", "distinct", "following", "reflection", "same_step")
                },
                "chosen": sum(bool(row.get("chosen")) for row in validated),
                "stopped": sum(result.outcome is Outcome.stopped for result in results),
                "runs": len(places),
            }
        )
    return out


def _passes(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {
        k: _mean([p[k]["value"] for p in found if p[k]["value"] is not None])
        for k in (found[0] if found else ())
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
