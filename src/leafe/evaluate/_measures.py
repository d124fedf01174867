"""What a sample was like and what it cost: means over samples by their counts, and beside them what
was really computed.

A counted tree holds two costs. The samples' own (turns, tokens: what plain sampling would have
spent) weighs each turn by its count; the
computed one adds each distinct turn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leafe.core import Kind, Spent, Tree, Turn
from leafe.evaluate._coverage import spent


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over all samples that were begun, lost ones included (NaN without samples), and what
    was computed for them."""

    samples: int
    turns: float
    """Mean actions of a sample."""
    invalid: float
    """Mean invalid actions of a sample."""
    tokens: float
    """Mean generated tokens of a sample."""
    stops: dict[str, int] = field(default_factory=dict)
    """Samples by the stop that ended them."""
    computed: Spent = field(default_factory=Spent)
    """What was really spent on the distinct turns."""

    @property
    def plain_steps(self) -> float:
        """Environment steps that plain sampling would have taken."""
        return self.turns * self.samples

    @property
    def plain_tokens(self) -> float:
        """Tokens that plain sampling would have generated."""
        return self.tokens * self.samples


def measure(trees: Sequence[Tree]) -> Measures:
    """Count-weighted means over all trees, and what was computed."""
    samples = 0
    turns = invalid = 0
    tokens = 0.0
    stops: dict[str, int] = {}
    for tree in trees:
        for episode in tree.rollouts:
            samples += episode.count
            stops[str(episode.stop)] = stops.get(str(episode.stop), 0) + episode.count
        for turn in tree:
            if turn.kind is Kind.act:
                turns += turn.count
                invalid += turn.count * (not turn.valid)
                tokens += turn.count * generated_tokens(turn)
    nothing = float("nan")
    each = (
        (turns / samples, invalid / samples, tokens / samples)
        if samples
        else (nothing, nothing, nothing)
    )
    return Measures(samples, *each, stops=dict(sorted(stops.items())), computed=spent(trees))


def generated_tokens(turn: Turn) -> float:
    """Length of the action in tokens, a sample: its ids where the engine gives them, as one that
    counts does; else each sample was
    generated for itself, and they share the usage."""
    return len(turn.tokens) if turn.tokens is not None else turn.usage.generated / turn.count
