"""Preference pairs from unconnected episodes of one task: the first point at which a success and a
failure act differently after the same history.

Trees with branches give better pairs (the revised action over the original one,
`leafe.distill.build` with method = "dpo"). These are for imported or independent episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from leafe.core import FAILED, Message, Tree, Turn
from leafe.distill import Dataset, Sample, same_action
from leafe.prompts import Prompts, history_before


def first_differences(trees: Mapping[str, Tree], prompts: Prompts) -> Dataset:
    """One pair for each success and each different action that a failure of the same task took at
    the point where they part.

    Args:
        trees: Trees by task id.
        prompts: Builds the prompts and reads actions out of texts.

    Returns:
        Pairs as samples of the part `counterfactual`, each (history, chosen, rejected) once, with
        counts of duplicates and of rejected candidates by reason: an action that the environment
        refused, the same action in other words, an answer that was cut.
    """
    samples: list[Sample] = []
    duplicates = 0
    skipped: Counter[str] = Counter()
    for task_id, tree in trees.items():
        seen: set[tuple[tuple[Message, ...], str, str]] = set()
        wins = [(e, tree.trajectory(e)) for e in tree.successes() if e.acts]
        failures = [(e, tree.trajectory(e)) for e in tree.episodes if e.stop in FAILED and e.acts]
        for won, path in wins:
            for lost, other in failures:
                at = _first_difference(path, other)
                if (
                    at is None
                    or tree.episode_of(path[0].id).first_observation
                    != tree.episode_of(other[0].id).first_observation
                ):
                    continue
                reason = _reject_reason(path[at], other[at], prompts)
                if reason is not None:
                    skipped[f"pair: {reason}"] += 1
                    continue
                messages = prompts.act(history_before(tree, path[at], with_experience=False))
                key = (messages, path[at].action_text, other[at].action_text)
                if key in seen:
                    duplicates += 1
                    continue
                seen.add(key)
                note = f"episode {won.index} won, episode {lost.index} did not; they part here"
                chosen, rejected = (
                    Message("assistant", t.action_text, t.tokens) for t in (path[at], other[at])
                )
                samples.append(
                    Sample(
                        "counterfactual",
                        task_id,
                        path[at].id,
                        messages,
                        chosen,
                        note=note,
                        rejected=rejected,
                    )
                )
    return Dataset(
        tuple(samples), {"counterfactual": duplicates} if duplicates else {}, dict(skipped)
    )


def _reject_reason(won: Turn, lost: Turn, prompts: Prompts) -> str | None:
    """Why two answers to one history are no pair; None if they are one."""
    if not won.valid:
        return "the environment refused the action that a success took there"
    if same_action(won, lost, prompts):
        return "the answers differ, the actions do not"
    return "an answer was cut at its limit of tokens" if won.cut or lost.cut else None


def _first_difference(won: list[Turn], lost: list[Turn]) -> int | None:
    """The first step with different answers; None if the observations differ before it, or one
    episode is the beginning of the other."""
    for at, (a, b) in enumerate(zip(won, lost, strict=False)):
        if a.action_text != b.action_text:
            return at
        if a.observation != b.observation:
            return None
    return None
