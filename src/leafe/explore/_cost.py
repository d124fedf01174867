"""What a finished episode was charged."""

from __future__ import annotations

from leafe.core import Episode


def cost_of(episode: Episode) -> dict[str, float]:
    """What a finished episode was charged: the journal's sums are the budget's."""
    acts = episode.acts
    return {
        "episodes": 0 if episode.looks_back else 1,
        "env_steps": sum(t.env_steps for t in acts),
        "replayed_steps": episode.replayed,
        "policy_calls": len(episode.turns),
        "prompt_tokens": sum(t.usage.prompt for t in episode.turns),
        "cached_tokens": sum(t.usage.cached for t in episode.turns),
        "generated_tokens": sum(t.usage.generated for t in episode.turns),
    }
