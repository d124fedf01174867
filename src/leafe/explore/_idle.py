"""Whether a task's episodes come nearer to an end: every episode has to charge something that a
limit bounds, or the task is given up."""

from __future__ import annotations

from collections.abc import Iterable

from leafe.core import Budget, Episode, Stop
from leafe.explore._cost import cost_of

ERRORS = frozenset({Stop.policy_error, Stop.env_error})
"""Stops that say nothing of the policy; `max_errors` bounds them."""


def bounding(budget: Budget) -> frozenset[str]:
    """What the limits of a budget and of those above it bound, time aside; under time limits alone,
    calls and steps."""
    names: set[str] = set()
    each: Budget | None = budget
    while each is not None:
        names |= each.limits.keys()
        each = each.parent
    return frozenset(names - {"seconds"}) or frozenset({"policy_calls", "env_steps"})


def idle_in_a_row(episodes: Iterable[Episode], names: frozenset[str]) -> tuple[int, str]:
    """How many of the latest episodes in a row did nothing that ends a task, and one sentence on
    the last of them.

    An episode is idle where it began at the root and took no action, or where it charged nothing of
    `names`. Errors are counted
    elsewhere; a branch without an action uses up its reflection: neither ends a row.
    """
    count, why = 0, ""
    for episode in episodes:
        within = episode.start is not None or episode.experience is not None
        if episode.stop in ERRORS or (within and not episode.turns):
            continue
        if not episode.turns:
            said = episode.error or f"it ended as {episode.stop.value}"
            count, why = count + 1, f"it cannot begin: {said}"
        elif not any(value for name, value in cost_of(episode).items() if name in names):
            count, why = (
                count + 1,
                (
                    "its episodes charge nothing that a limit bounds "
                    f"({', '.join(sorted(names))}): limit policy_calls as well."
                ),
            )
        else:
            count, why = 0, ""
    return count, why
