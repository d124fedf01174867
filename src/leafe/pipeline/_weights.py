"""Whose weights, and which playbook, a stage uses; and whether a stage has anything to do.

Both are read from the markers of earlier stages. A training that found nothing to learn from is
`empty`: it leaves no weights, its arm has no row, and arms that build on it have none either. A
later round goes on from the weights before it. Rounds after the one at which validation stopped are
`stopped` and do nothing.
"""

from __future__ import annotations

from pathlib import Path

from leafe.pipeline._plan import Stage, Variant, kind_of, stage_name
from leafe.pipeline._policy_ref import PolicyRef
from leafe.pipeline._result import Outcome, StageResult, result_of
from leafe.runs import RunFolder


def checkpoint_of(run: RunFolder, variant: Variant, policy: PolicyRef | str) -> Path | None:
    """The folder of a policy's weights.

    Args:
        run: The run, read or open.
        variant: The seed and control that the policy was trained in.
        policy: An arm or an attempt at one, also by its text (`leafe+`, `leafe+.round2`).

    Returns:
        The folder; None where the base policy acts: it is asked for, the attempt learned nothing,
        or it is a playbook in front of the base.
    """
    policy = _chosen(run, variant, policy)
    collected = result_of(run, stage_name("collect", variant, policy))
    if collected is not None and collected.before is not None:
        return checkpoint_of(run, variant, collected.before)
    trained = stage_name("distill", variant, policy)
    result = result_of(run, trained)
    if result is None:
        return None
    if result.stays is not None:
        return checkpoint_of(run, variant, result.stays)
    return run.path / trained / "checkpoint"


def playbook_of(run: RunFolder, variant: Variant, policy: PolicyRef) -> tuple[Path, str] | None:
    """(the file, where it is read: an `AceConfig.place`) of an ACE arm or attempt; else None."""
    name = stage_name("collect", variant, _chosen(run, variant, policy))
    result = result_of(run, name)
    if result is None or result.before is None:
        return None
    return run.path / name / "playbook.json", str(result.marker["place"])


def _chosen(run: RunFolder, variant: Variant, policy: PolicyRef | str) -> PolicyRef:
    """The attempt that an arm of several attempts is; any other policy as it is."""
    result = result_of(run, stage_name("choose", variant, policy))
    if result is not None and result.chosen is not None:
        return result.chosen
    return PolicyRef.parse(policy) if isinstance(policy, str) else policy


def nothing_to_do(run: RunFolder, stage: Stage) -> StageResult | None:
    """The result of a stage that has nothing to do, with the reason; None where it has."""
    if stage.kind == "choose":
        return None
    needs = {need: result_of(run, need) for need in stage.needs}
    results = {need: result for need, result in needs.items() if result is not None}
    if not any(kind_of(need) == "choose" for need in results):
        for result in results.values():
            if result.outcome is Outcome.stopped:
                return StageResult.stopped(result.reason)
    uses = stage.attempt.start if stage.kind == "distill" and stage.attempt else stage.policy
    relevant = [name for name in results if kind_of(name) == "collect"]
    # a later round begins with what there is
    if not (stage.kind in ("explore", "distill") and uses.kind == "attempt"):
        relevant += [
            stage_name(kind, stage.variant, uses) for kind in ("choose", "distill", "collect")
        ]
    for name in relevant:
        if name in results and results[name].outcome is Outcome.empty:
            return StageResult.empty(results[name].reason, uses)
    if stage.kind in ("collect", "distill") and stage.attempt and stage.attempt.explored:
        explored = [results.get(name) for name in stage.attempt.explored]
        if all(result and result.outcome is Outcome.empty for result in explored):
            return StageResult.empty(explored[0].reason if explored[0] else "", uses)
    return None
