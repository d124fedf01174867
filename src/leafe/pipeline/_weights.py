"""Whose weights (and which playbook) a stage uses, and whether there is anything for it to do: read
from the markers of the stages that it needs.

A training that found nothing to learn from leaves no weights (`empty`): its arm has no row, and
arms that build on it have none either; a later round
goes on from the weights before it. Rounds after the one at which validation stopped are `stopped`:
their stages are marked as such and do nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafe.pipeline._plan import Stage, Variant, stage_name
from leafe.runs import RunFolder


def checkpoint_of(run: RunFolder, variant: Variant, policy: str) -> Path | None:
    """The folder of an arm's or attempt's weights; None for the base policy, and for an attempt
    that learned nothing and stayed what it was."""
    policy = str((run.done(stage_name("choose", variant, policy)) or {}).get("chosen", policy))
    grown = run.done(stage_name("collect", variant, policy))
    if grown is not None and "before" in grown:
        return checkpoint_of(run, variant, str(grown["before"]))
    trained = stage_name("distill", variant, policy)
    done = run.done(trained)
    if done is None:
        return None
    return (
        checkpoint_of(run, variant, str(done["stays"]))
        if "empty" in done
        else run.path / trained / "checkpoint"
    )


def playbook_of(run: RunFolder, variant: Variant, policy: str) -> tuple[Path, str] | None:
    """(the file, where it is read: an `AceConfig.place`) of an ACE arm or attempt; None for all
    others."""
    policy = str((run.done(stage_name("choose", variant, policy)) or {}).get("chosen", policy))
    grown = stage_name("collect", variant, policy)
    done = run.done(grown) or {}
    return (run.path / grown / "playbook.json", str(done["place"])) if "before" in done else None


def nothing_to_do(run: RunFolder, stage: Stage) -> dict[str, Any] | None:
    """The marker of a stage that has nothing to do, with the reason in words; None where it has."""
    markers = {need: run.done(need) or {} for need in stage.needs}
    if stage.kind == "choose":
        return None
    if not any(need.startswith("choose/") for need in stage.needs):
        stopped = next((done["stopped"] for done in markers.values() if "stopped" in done), None)
        if stopped is not None:
            return {"stopped": stopped}
    uses = stage.attempt.start if stage.kind == "distill" and stage.attempt else stage.policy
    collected = next(
        (
            done["empty"]
            for need, done in markers.items()
            if need.startswith("collect/") and "empty" in done
        ),
        None,
    )
    if collected is not None:
        return {"empty": collected, "stays": uses}
    if not (
        stage.kind in ("explore", "distill") and "." in uses
    ):  # a later round begins with what there is
        for kind in ("choose", "distill", "collect"):
            done = markers.get(stage_name(kind, stage.variant, uses), {})
            if "empty" in done:
                return {"empty": done["empty"], "stays": uses}
    if stage.kind in ("collect", "distill") and stage.attempt and stage.attempt.explored:
        reasons = [markers[need].get("empty") for need in stage.attempt.explored]
        if all(reasons):
            return {"empty": reasons[0], "stays": uses}
    return None
