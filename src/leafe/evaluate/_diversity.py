"""How diverse a policy's samples are: the entropy of its actions, and how many of a task's samples
are distinct episodes.

Both are read off the evaluation's trees. Entropy is the mean of -log p over the sampled tokens, an
unbiased estimate of the policy's entropy on its own histories at the sampling temperature; tokens
and turns weigh by their counts. Two samples are the same episode where they took the same actions,
whatever the thoughts. The share of distinct episodes falls with the number of samples: compare it
between rows of equal n only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from leafe.core import LOST, Kind, Tree
from leafe.evaluate._measures import generated_tokens


@dataclass(frozen=True, slots=True)
class Diversity:
    """How diverse samples are. None where the trees do not tell."""

    entropy: float | None
    """Nats per token. None where the engine gives no log-probabilities. At temperature 0: of the
    most likely tokens' probabilities at temperature 1."""
    entropy_turn: float | None
    """Nats per action."""
    distinct: float | None
    """Distinct episodes of a task divided by its samples, mean over tasks; 1 / n: always the same
    episode."""
    largest: float | None
    """The share of a task's samples that are its most frequent episode, mean over tasks."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, rounded to six digits."""
        return {
            name: None if value is None else round(value, 6) for name, value in asdict(self).items()
        }


def diversity(trees: Iterable[Tree]) -> Diversity:
    """The diversity of the trees' samples. Lost samples are no episodes here."""
    surprise = tokens = 0.0
    turns = 0
    distinct: list[float] = []
    largest: list[float] = []
    for tree in trees:
        for turn in tree:
            if turn.kind is Kind.act and turn.logprob is not None:
                surprise -= turn.count * turn.logprob
                turns += turn.count
                tokens += turn.count * generated_tokens(turn)
        samples = _episodes(tree)
        if samples:
            n = sum(samples.values())
            distinct.append(len(samples) / n)
            largest.append(max(samples.values()) / n)
    return Diversity(
        surprise / tokens if tokens else None,
        surprise / turns if turns else None,
        sum(distinct) / len(distinct) if distinct else None,
        sum(largest) / len(largest) if largest else None,
    )


def _episodes(tree: Tree) -> Counter[int]:
    """How many samples each distinct sequence of actions has; sequences are numbered."""
    known: dict[tuple[int, str], int] = {}
    at: dict[str | None, int] = {None: 0}
    out: Counter[int] = Counter()
    for episode in tree.episodes:
        here = at[episode.start]
        for turn in episode.acts:
            here = at[turn.id] = known.setdefault((here, turn.action), len(known) + 1)
        if episode.stop not in LOST:
            out[here] += episode.count
    return out
