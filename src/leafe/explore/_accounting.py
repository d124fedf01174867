"""What episodes were charged, and whether a task still gets closer to a limit.

Every episode has to charge something that a limit bounds, or the task is given up: so exploration
ends whatever the environment and the policy do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leafe.core import FOREIGN, Budget, Episode, Spent, Turn, Usage


def cost_of(episode: Episode) -> dict[str, float]:
    """What a finished episode was charged, by the names of `leafe.core.LIMITS` (seconds aside).

    The sum over a journal is what the budget was charged.
    """
    return {
        "episodes": 0 if episode.looks_back else 1,
        "env_steps": sum(t.env_steps for t in episode.acts),
        "replayed_steps": episode.replayed,
        "policy_calls": len(episode.turns),
        "prompt_tokens": sum(t.usage.prompt for t in episode.turns),
        "cached_tokens": sum(t.usage.cached for t in episode.turns),
        "generated_tokens": sum(t.usage.generated for t in episode.turns),
    }


def add_cost(spent: Spent, episode: Episode) -> None:
    """Add what a finished episode was charged."""
    for name, amount in cost_of(episode).items():
        setattr(spent, name, getattr(spent, name) + amount)


def charge_tokens(budget: Budget, usage: Usage) -> None:
    """Charge the tokens of one policy call."""
    budget.charge(
        prompt_tokens=usage.prompt, cached_tokens=usage.cached, generated_tokens=usage.generated
    )


def limited_quantities(budget: Budget) -> frozenset[str]:
    """The quantities that a budget or one of its parents limits, time aside.

    Where only time is limited: policy calls and environment steps.
    """
    names: set[str] = set()
    level: Budget | None = budget
    while level is not None:
        names |= level.limits.keys()
        level = level.parent
    return frozenset(names - {"seconds"}) or frozenset({"policy_calls", "env_steps"})


def stalled_in_a_row(episodes: Iterable[Episode], limited: frozenset[str]) -> tuple[int, str]:
    """How many of the latest episodes in a row got no closer to a limit.

    An episode is stalled where it began at the root and took no action, or where it charged none of
    the quantities `limited`. Errors are counted elsewhere, and a branch without an action uses up
    its reflection: neither ends a row.

    Args:
        episodes: A task's episodes, in order.
        limited: As `limited_quantities` gives them.

    Returns:
        The number, and one sentence on the last of these episodes (empty for 0).
    """
    count, why = 0, ""
    for episode in episodes:
        is_branch = episode.start is not None or episode.experience is not None
        if episode.stop in FOREIGN or (is_branch and not episode.turns):
            continue
        if not episode.turns:
            reason = episode.error or f"it ended as {episode.stop.value}"
            count, why = count + 1, f"it cannot begin: {reason}"
        elif any(value for name, value in cost_of(episode).items() if name in limited):
            count, why = 0, ""
        else:
            names = ", ".join(sorted(limited))
            count += 1
            why = f"its episodes use nothing that is limited ({names}): limit policy_calls as well."
    return count, why


def invalid_in_a_row(turns: Sequence[Turn]) -> int:
    """How many of the latest turns in a row were invalid."""
    return next((n for n, turn in enumerate(reversed(turns)) if turn.valid), len(turns))
