"""What samples were like and what they cost: means over samples by their counts, and what was
really computed.

A counted tree holds two costs. The samples' own (turns and tokens that plain sampling would have
spent) weighs each turn by its count; the computed one adds each distinct turn once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from leafe.core import Kind, Spent, Tree, Turn
from leafe.evaluate._coverage import spent


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over all samples, lost ones included (NaN without samples), and what was computed for
    them."""

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
    turns = invalid = 0
    tokens = 0.0
    stops: Counter[str] = Counter()
    for tree in trees:
        for episode in tree.rollouts:
            stops[str(episode.stop)] += episode.count
        for turn in tree:
            if turn.kind is Kind.act:
                turns += turn.count
                invalid += turn.count * (not turn.valid)
                tokens += turn.count * generated_tokens(turn)
    samples = stops.total()
    turns_mean, invalid_mean, tokens_mean = (
        value / samples if samples else float("nan") for value in (turns, invalid, tokens)
    )
    return Measures(
        samples, turns_mean, invalid_mean, tokens_mean, dict(sorted(stops.items())), spent(trees)
    )


def generated_tokens(turn: Turn) -> float:
    """The length of the turn's output in tokens, for one sample.

    Its ids where the engine gives them, as one that counts samples does; else each sample was
    generated for itself, and the usage is divided among them.
    """
    return len(turn.tokens) if turn.tokens is not None else turn.usage.generated / turn.count
